"""Which sizing rule holds in which SGLang release: one row for each change, with the engine's source file that settles it.

Read in 0.5.6.post2, 0.5.7-0.5.12.post1, 0.5.15, 0.5.18, 0.5.20 and 0.5.23. A release outside that range gets the rules of the
nearest end, and the plan says so.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from ...dtypes import normal_dtype
from ...errors import Finding, UserError
from ...models.architecture import AttentionKind, ModelArchitecture
from ...physics.hardware import GIB, Gpu
from ...version import Version
from ..rules import Flip, block_fault, chunk_faults, facts_at, least_faults
from ..sizing import Change, PlanSettings

VERIFIED = ("0.5.6.post2", "0.5.23")

# fmt: off
FLIPS: tuple[Flip, ...] = (
    # Llama-4's split pool: --hybrid-kvcache-ratio (unset: none), then --swa-full-tokens-ratio for every listed architecture.
    Flip("llama4_split", "0.5.8", "kvcache_ratio", "tokens_ratio", "configs/model_config.py: is_hybrid_swa_model"),
    # Which models split at all: any with a window (but Llama-4), then a list of architectures.
    Flip("split_by_list", "0.5.8", False, True, "configs/model_config.py: is_hybrid_swa_model"),
    # How the split is solved: from a pool already cut to whole tokens (by layers; by bytes), then from the bytes.
    Flip("split_sum", "0.5.9", "layers", "bytes", "model_executor/model_runner_kv_cache_mixin.py: set_num_token_hybrid_swa"),
    Flip("split_sum", "0.5.11", "bytes", "direct", "model_executor/pool_configurator.py: HybridSWAPoolConfigurator"),
    # The request table has one padding row.
    Flip("table_padding_rows", "0.5.12", 0, 1, "mem_cache/memory_pool.py: ReqToTokenPool"),
    # Chunked attention on fa3 read the table of tokens as if it were one of pages: garbage, or an illegal memory access.
    Flip("paged_chunks", "0.5.20", False, True, "layers/attention/flashattention_backend.py: _maybe_init_local_attn_metadata"),
)
# fmt: on

# Architectures whose KV pool SGLang splits since 0.5.8 (configs/model_config.py: is_hybrid_swa_model), those of them that
# models/ can read. Gemma-2/3 are not among them: all their layers count as full there.
SPLIT_ARCHITECTURES = frozenset({"Llama4ForConditionalGeneration", "GptOssForCausalLM"})


@dataclass(frozen=True)
class SglangRules:
    """SGLang's sizing rules at one release; each field is the ``fact`` of a row in ``FLIPS``."""

    llama4_split: Literal["kvcache_ratio", "tokens_ratio"]
    split_by_list: bool
    split_sum: Literal["layers", "bytes", "direct"]
    table_padding_rows: int
    paged_chunks: bool


@functools.cache
def sglang_rules(version: Version) -> SglangRules:
    """The rules of that SGLang release."""
    return SglangRules(**facts_at(FLIPS, version))


def block_faults(
    version: Version,
    size: int | None,
    *,
    prefill_chunk: int | None = None,
    fa3: bool = False,
    architecture: str = "",
    attention_chunks: Collection[int] = (),
) -> list[UserError]:
    """Why that release would refuse this ``--page-size``, or answer wrongly with it; empty where nothing speaks against it.

    ``prefill_chunk``: in tokens (0 or less: it does not chunk). ``fa3``: whether FlashAttention 3 runs. ``attention_chunks``: the
    widths of the model's chunked-local layers. What is not known is left out (a launch does not know the model).
    """
    if size is None or size < 1:
        return least_faults(size)
    return _page_faults(version, size, prefill_chunk, fa3, architecture) + chunk_faults(size, attention_chunks)


def _page_faults(version: Version, size: int, prefill_chunk: int | None, fa3: bool, architecture: str) -> list[UserError]:
    found: list[UserError] = []
    if prefill_chunk is not None and prefill_chunk > 0 and prefill_chunk % size:
        fix = f"set max_num_batched_tokens to a multiple of {size}, or choose another block size"
        found.append(block_fault(size, f"a divisor of the prefill chunk of {prefill_chunk:,} tokens", fix))
    # layers/attention/flashattention_backend.py: normal_decode_set_metadata asserts it.
    if fa3 and size & (size - 1):
        found.append(block_fault(size, "a power of two with FlashAttention 3 (fa3)", "use 64 or 128, or leave it out"))
    # SGLang calls only this architecture a local-attention model (configs/model_config.py: is_local_attention_model).
    chunked = architecture == "Llama4ForConditionalGeneration"
    if fa3 and chunked and size > 1 and not sglang_rules(version).paged_chunks:
        required = f"1 for Llama-4 with FlashAttention 3 in SGLang {version}, which mixes up tokens and pages"
        found.append(block_fault(size, required, "leave the block size to the engine, or use SGLang 0.5.20 or newer"))
    return found


# -------------------------------------------------------------------------------------------------------- before a start


def batched_tokens(s: PlanSettings, gpu: Gpu) -> int:
    """--chunked-prefill-size, or its default by GPU memory (server_args.py: _handle_gpu_memory_settings)."""
    return s.max_num_batched_tokens or (16384 if gpu.memory_bytes >= 160 * GIB else 8192)


def findings(model: ModelArchitecture, gpu: Gpu, s: PlanSettings) -> list[Finding]:
    """Page sizes that SGLang refuses or answers wrongly with, and attention that loses small terms."""
    chunks = set(model.windows(AttentionKind.CHUNKED))
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
    found = "fp8 KV with FlashAttention 3 in SGLang on Hopper, whose attention sums lose small terms (errors of 0.57 at 131,072 tokens)"
    required = "answers that are right at the whole context"
    fix = "use bf16 KV, or prove it with the real weights: context_test_needles: true at the longest context (docs/tuning.md)"
    return [Finding(found, required, fix, "warn", "short_fp8_sums")]


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
