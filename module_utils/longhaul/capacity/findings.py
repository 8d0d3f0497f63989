"""Reasons to refuse a plan or to warn of it."""

from __future__ import annotations

from dataclasses import replace

from ..dtypes import normal_dtype
from ..engines.block_size import block_faults
from ..engines.rules import outside_range, vllm_rules
from ..engines.sizing import PlanSettings, Pool, Sizing, kv_splits, sglang_batched_tokens, sizing_of
from ..errors import Finding
from ..models.architecture import AttentionKind, ModelArchitecture
from ..physics.hardware import GIB, Gpu

UNPLANNABLE = frozenset({"tp_heads", "tp_kv_heads", "pp_layers"})


def structural_findings(model: ModelArchitecture, gpu: Gpu, s: PlanSettings, host_gpus: int | None) -> list[Finding]:
    """Everything that is wrong before any memory is counted: parallel sizes, positions, dtypes, block sizes."""
    found: list[Finding] = []
    tp = s.tensor_parallel
    if model.heads % tp:
        best = max(d for d in range(1, tp + 1) if model.heads % d == 0 and kv_splits(model, d))
        pairs = f"TP{best} x PP{tp // best}" if tp % best == 0 and tp > best else f"TP{best}"
        found.append(
            Finding(
                f"tensor parallel {tp} over {model.heads} attention heads",
                f"a size that divides {model.heads}",
                f"use {pairs}",
                "refuse",
                "tp_heads",
            )
        )
    elif not kv_splits(model, tp):
        found.append(
            Finding(
                f"tensor parallel {tp} over {model.kv_heads} KV heads",
                "a size that divides the KV heads, or a multiple of them (heads are then replicated)",
                f"use TP{max(d for d in range(1, tp + 1) if model.heads % d == 0 and kv_splits(model, d))}",
                "refuse",
                "tp_kv_heads",
            )
        )
    if s.pipeline_parallel > len(model.layers):
        found.append(
            Finding(
                f"{s.pipeline_parallel} pipeline stages for {len(model.layers)} layers",
                "at least one layer a stage",
                "use fewer pipeline stages",
                "refuse",
                "pp_layers",
            )
        )
    if host_gpus is not None and s.gpus > host_gpus:
        found.append(
            Finding(
                f"TP{tp} x PP{s.pipeline_parallel} takes {s.gpus} GPUs",
                f"at most the {host_gpus} that the host has",
                "lower the parallel sizes or use a larger host",
                "refuse",
                "host_gpus",
            )
        )
    if model.max_positions is not None and s.context_tokens > model.max_positions:
        found.append(
            Finding(
                f"context {s.context_tokens:,}",
                f"at most the model's {model.max_positions:,} positions",
                f"ask for a context of {model.max_positions:,} or less",
                "refuse",
                "positions",
            )
        )
    if normal_dtype(s.kv_dtype) == "fp8" and gpu.vendor == "nvidia" and gpu.peak_flop_per_s.get("bf16") and not gpu.has_fp8:
        found.append(
            Finding(f"fp8 KV on {gpu.name}", "a GPU with fp8 units", "use bf16 KV, or H100, L40S or newer", "refuse", "kv_dtype")
        )
    found += _block_findings(model, gpu, s)
    found += _short_sum_findings(model, gpu, s)
    found += _pipeline_room_findings(gpu, s)
    outside = outside_range(s.engine, s.release)
    if outside:
        found.append(
            Finding(
                f"{s.engine} {s.release}",
                f"{outside[0]} to {outside[1]}, whose sums were verified",
                "the nearest verified release's rules are used; compare with the engine after the start",
                "warn",
                "unverified_release",
            )
        )
    return found


def _block_findings(model: ModelArchitecture, gpu: Gpu, s: PlanSettings) -> list[Finding]:
    """Block sizes (SGLang: page sizes) that the engine refuses at its start, or with which it answers wrongly."""
    chunks = {x.window_tokens for x in model.layers if x.kind is AttentionKind.CHUNKED and x.window_tokens}
    faults = block_faults(
        s.engine,
        s.release,
        s.block_size,
        on_cpu=gpu.vendor == "cpu",
        prefill_chunk=sglang_batched_tokens(s, gpu),
        fa3=_sglang_fa3(gpu, s),
        architecture=model.architecture,
        attention_chunks=chunks,
    )
    return [Finding(f.found, f.required, f.fix, "refuse", "block_size") for f in faults]


def _hopper(gpu: Gpu) -> bool:
    return gpu.compute_capability is not None and (9, 0) <= gpu.compute_capability < (10, 0)


def _sglang_fa3(gpu: Gpu, s: PlanSettings) -> bool:
    return s.attention_backend == "fa3" or (s.attention_backend is None and _hopper(gpu))


def _short_sum_findings(model: ModelArchitecture, gpu: Gpu, s: PlanSettings) -> list[Finding]:
    """Warn of fp8 attention whose sums run in the tensor cores' own accumulator: it keeps too few bits for a long context.

    Measured on an H200 (docs/results/2026-11-25-2x-h200-tuned, attention): SGLang 0.5.12.post1's FlashAttention 3 is off by 0.57 of
    the output at 131,072 tokens and 0.85 at 1,048,576 where the values share a sign; vLLM 0.25.1's, which moves its sums to real
    fp32 as it goes (vLLM since pull request 27889, October 2025), by 0.003.
    """
    if s.engine != "sglang" or normal_dtype(s.kv_dtype) != "fp8" or model.mla is not None:
        return []
    if not (_hopper(gpu) and _sglang_fa3(gpu, s)):
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


# What the CUDA context takes before vLLM looks at the free memory (H100 and H200, driver 580).
_CONTEXT_GIB = 1.43


# Memory left beside the share and the CUDA context: 1.74 GiB was too little on two H100, 9.7 GiB enough on two H200.
# Nothing between was tried.
_PIPELINE_ROOM_GIB = 2.0


def _pipeline_room_findings(gpu: Gpu, s: PlanSettings) -> list[Finding]:
    """Warn of a memory share that leaves a vLLM pipeline too little for NCCL.

    NCCL makes the communicators between two stages at the first request, after the profile that sizes the KV cache: vLLM 0.25.1 in
    two stages at share 0.96 of two H100 became healthy and died of its first request (docs/results/2026-11-25-2x-h100, vllm-pp2).
    """
    if s.engine != "vllm" or s.pipeline_parallel < 2 or gpu.vendor != "nvidia" or s.gpu_memory_utilization is None:
        return []
    share, default = s.gpu_memory_utilization, vllm_rules(s.release).memory_utilization
    left_gib = gpu.usable_bytes / GIB * (1 - share) - _CONTEXT_GIB
    if share <= default or left_gib >= _PIPELINE_ROOM_GIB:
        return []
    return [
        Finding(
            f"{max(left_gib, 0):.1f} GiB of a GPU left beside a share of {share:g} in {s.pipeline_parallel} pipeline stages",
            f"at least {_PIPELINE_ROOM_GIB:.0f} GiB: NCCL takes memory at a pipeline's first request, which no profile counts; without it "
            "a healthy server dies then",
            f"lower gpu memory utilization to the engine's own {default:g}",
            "warn",
            "pipeline_room",
        )
    ]


def capacity_findings(sizing: Sizing, pool: Pool, starts: bool) -> list[Finding]:
    s, model = sizing.settings, sizing.model
    found = []
    if pool.available_bytes <= 0:
        short = f"{-pool.available_bytes / GIB:.1f} GiB per GPU missing"
        fix = "use more GPUs, fp8 weights or a larger share of the memory"
        found.append(Finding(f"no memory left for KV: {short}", "weights that leave room", fix, "refuse", "no_kv_memory"))
    elif pool.concurrency < 1.0:
        after = "; the engine would start all the same and preempt that request for ever" if starts else ""
        found.append(
            Finding(
                f"concurrency {pool.concurrency:.2f}x at {s.context_tokens:,} tokens (KV for {pool.tokens:,}){after}",
                "at least 1.0: one request of the whole context",
                "see the nearest plans that fit",
                "refuse",
                "concurrency",
            )
        )
    elif pool.concurrency < s.concurrency:
        found.append(
            Finding(
                f"{s.concurrency} requests of {s.context_tokens:,} tokens wanted at once, {pool.concurrency:.2f} fit",
                f"concurrency of at least {s.concurrency}",
                "the rest will queue; give the pool more memory or lower the concurrency",
                "warn",
                "concurrency_wanted",
            )
        )
    fixed, room = sizing.fixed_costs(pool), sizing.fixed_room()
    total = sum(b for _, b in fixed)
    if fixed and room is not None and total > room:
        parts = " and ".join(f"{label} {b / GIB:.2f} GiB" for label, b in fixed if b)
        found.append(
            Finding(
                f"{parts} a GPU",
                f"at most the {room / GIB:.2f} GiB that the static memory fraction leaves",
                "set max running requests to 8 and keep CUDA graphs off or their batch small",
                "refuse",
                "request_table",
            )
        )
    gain = _hybrid_gain(sizing, pool)
    if gain is not None and gain >= 1.5:
        how = (
            "set VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE=1 (hybrid KV on)"
            if s.engine == "vllm"
            else "switch hybrid KV on"
        )
        found.append(
            Finding(
                f"hybrid KV off by default in {s.engine} {s.release}: {model.name} would hold {gain:.1f} times as much with it",
                "hybrid KV on for models with local attention",
                how,
                "warn",
                "hybrid_off",
            )
        )
    return found


def _hybrid_gain(sizing: Sizing, pool: Pool) -> float | None:
    """Concurrency with hybrid KV over concurrency without, where it is off only by default; else ``None``."""
    s = sizing.settings
    if sizing.hybrid != "off" or s.hybrid_kv != "default" or not pool.concurrency:
        return None
    other = sizing_of(sizing.model, sizing.gpu, replace(s, hybrid_kv="on"))
    return other.pool(pool.available_bytes).concurrency / pool.concurrency if other.hybrid == "on" else None
