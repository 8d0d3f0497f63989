"""What SGLang refuses at its start or answers wrongly, whatever the plan's sums say, and which of its settings make room."""

from __future__ import annotations

from dataclasses import replace

from ...dtypes import normal_dtype
from ...errors import Finding
from ...models.architecture import AttentionKind, ModelArchitecture
from ...physics.hardware import Gpu
from ..sizing import Change, PlanSettings
from .rules import SPLIT_ARCHITECTURES, block_faults
from .sizing import batched_tokens


def findings(model: ModelArchitecture, gpu: Gpu, s: PlanSettings) -> list[Finding]:
    """Page sizes that SGLang refuses or answers wrongly with, and attention that loses small terms."""
    chunks = {x.window_tokens for x in model.layers if x.kind is AttentionKind.CHUNKED and x.window_tokens}
    faults = block_faults(
        s.release,
        s.block_size_tokens,
        prefill_chunk=batched_tokens(s, gpu),
        fa3=_fa3(gpu, s),
        architecture=model.architecture,
        attention_chunks=chunks,
    )
    return [Finding(f.found, f.required, f.fix, "refuse", "block_size") for f in faults] + _short_sums(model, gpu, s)


def _hopper(gpu: Gpu) -> bool:
    return gpu.compute_capability is not None and (9, 0) <= gpu.compute_capability < (10, 0)


def _fa3(gpu: Gpu, s: PlanSettings) -> bool:
    return s.attention_backend == "fa3" or (s.attention_backend is None and _hopper(gpu))


def _short_sums(model: ModelArchitecture, gpu: Gpu, s: PlanSettings) -> list[Finding]:
    """Warn of fp8 attention whose sums run in the tensor cores' own accumulator: it keeps too few bits for a long context.

    Measured on an H200 (docs/results/2026-11-25-2x-h200-tuned, attention): SGLang 0.5.12.post1's FlashAttention 3 is off by 0.57 of
    the output at 131,072 tokens and 0.85 at 1,048,576 where the values share a sign; vLLM 0.25.1's, which moves its sums to real
    fp32 as it goes (vLLM since pull request 27889, October 2025), by 0.003.
    """
    if normal_dtype(s.kv_cache_dtype) != "fp8" or model.mla is not None or not (_hopper(gpu) and _fa3(gpu, s)):
        return []
    return [
        Finding(
            "fp8 KV with FlashAttention 3 in SGLang on Hopper, whose attention sums lose small terms (errors of 0.57 at 131,072 tokens)",
            "answers that are right at the whole context",
            "use bf16 KV, or prove it with the real weights: context_test_needles: true at the longest context (docs/tuning.md)",
            "warn",
            "short_fp8_sums",
        )
    ]


def changes(model: ModelArchitecture, gpu: Gpu, s: PlanSettings) -> list[Change]:
    """A smaller table of requests, no graph buffers, a smaller pool for local layers."""
    found = []
    if s.max_num_seqs is None or s.max_num_seqs > 8:
        found.append(Change("max running requests 8", replace(s, max_num_seqs=8)))
    if s.cuda_graph_max_batch is None and not s.enforce_eager:
        found.append(Change("CUDA graphs off", replace(s, cuda_graph_max_batch=0)))
    if s.swa_full_tokens_ratio is None and model.architecture in SPLIT_ARCHITECTURES:
        found.append(Change("swa-full-tokens-ratio 0.02", replace(s, swa_full_tokens_ratio=0.02)))
    return found
