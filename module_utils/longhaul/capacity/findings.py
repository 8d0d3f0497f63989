"""Reasons to refuse a plan or to warn of it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from ..dtypes import normal_dtype
from ..engines.registry import get_engine, sizing_of
from ..engines.sizing import PlanSettings, Pool, Sizing, kv_splits
from ..errors import Finding
from ..models.architecture import ModelArchitecture
from ..physics.hardware import GIB, Gpu
from ..version import Version

UNPLANNABLE = frozenset({"tp_heads", "tp_kv_heads", "pp_layers"})


def structural_findings(model: ModelArchitecture, gpu: Gpu, s: PlanSettings, host_gpus: int | None) -> Iterator[Finding]:
    """Everything that is wrong before any memory is counted: parallel sizes, positions, dtypes, block sizes."""
    tp, pp = s.tensor_parallel, s.pipeline_parallel
    possible = [d for d in range(1, tp + 1) if model.heads % d == 0 and kv_splits(model, d)]
    if model.heads % tp:
        best = max(possible)
        pairs = f"TP{best} x PP{tp // best}" if tp % best == 0 and tp > best else f"TP{best}"
        found = f"tensor parallel {tp} over {model.heads} attention heads"
        yield Finding(found, f"a size that divides {model.heads}", f"use {pairs}", code="tp_heads")
    elif not kv_splits(model, tp):
        found = f"tensor parallel {tp} over {model.kv_heads} KV heads"
        required = "a size that divides the KV heads, or a multiple of them (heads are then replicated)"
        yield Finding(found, required, f"use TP{max(possible)}", code="tp_kv_heads")
    if pp > len(model.layers):
        found = f"{pp} pipeline stages for {len(model.layers)} layers"
        yield Finding(found, "at least one layer a stage", "use fewer pipeline stages", code="pp_layers")
    if host_gpus is not None and s.gpus > host_gpus:
        found, required = f"TP{tp} x PP{pp} takes {s.gpus} GPUs", f"at most the {host_gpus} that the host has"
        yield Finding(found, required, "lower the parallel sizes or use a larger host", code="host_gpus")
    if model.max_positions is not None and s.context_tokens > model.max_positions:
        found, required = f"context {s.context_tokens:,}", f"at most the model's {model.max_positions:,} positions"
        yield Finding(found, required, f"ask for a context of {model.max_positions:,} or less", code="positions")
    if normal_dtype(s.kv_cache_dtype) == "fp8" and gpu.vendor == "nvidia" and gpu.peak_flop_per_s.get("bf16") and not gpu.has_fp8:
        fix = "use bf16 KV, or H100, L40S or newer"
        yield Finding(f"fp8 KV on {gpu.name}", "a GPU with fp8 units", fix, code="kv_dtype")
    engine = get_engine(s.engine)
    yield from engine.findings(model, gpu, s)
    low, high = engine.verified
    if not Version.parse(low) <= s.release <= Version.parse(high):
        required = f"{low} to {high}, whose sums were verified"
        fix = "the nearest verified release's rules are used; compare with the engine after the start"
        yield Finding(f"{s.engine} {s.release}", required, fix, "warn", "unverified_release")


def capacity_findings(sizing: Sizing, pool: Pool, starts: bool) -> Iterator[Finding]:
    """What the memory does not allow. ``starts``: the engine would start although one request does not fit."""
    s = sizing.settings
    if pool.available_bytes <= 0:
        found = f"no memory left for KV: {-pool.available_bytes / GIB:.1f} GiB per GPU missing"
        fix = "use more GPUs, fp8 weights or a larger share of the memory"
        yield Finding(found, "weights that leave room", fix, code="no_kv_memory")
    elif pool.concurrency < 1.0:
        after = "; the engine would start all the same and preempt that request for ever" if starts else ""
        found = f"concurrency {pool.concurrency:.2f}x at {s.context_tokens:,} tokens (KV for {pool.tokens:,}){after}"
        required = "at least 1.0: one request of the whole context"
        yield Finding(found, required, "see the nearest plans that fit", code="concurrency")
    elif pool.concurrency < s.concurrency:
        found = f"{s.concurrency} requests of {s.context_tokens:,} tokens wanted at once, {pool.concurrency:.2f} fit"
        fix = "the rest will queue; give the pool more memory or lower the concurrency"
        yield Finding(found, f"concurrency of at least {s.concurrency}", fix, "warn", "concurrency_wanted")
    yield from sizing.findings(pool)
    gain = _hybrid_gain(sizing, pool)
    if gain >= 1.5:
        engine = f"{s.engine} {s.release}"
        found = f"hybrid KV off by default in {engine}: {sizing.model.name} would hold {gain:.1f} times as much with it"
        required = "hybrid KV on for models with local attention"
        yield Finding(found, required, get_engine(s.engine).hybrid_advice, "warn", "hybrid_off")


def _hybrid_gain(sizing: Sizing, pool: Pool) -> float:
    """Concurrency with hybrid KV over concurrency without, where it is off only by default; else 1."""
    s = sizing.settings
    if sizing.hybrid != "off" or s.hybrid_kv != "default" or not pool.concurrency:
        return 1.0
    other = sizing_of(sizing.model, sizing.gpu, replace(s, hybrid_kv="on"))
    return other.pool(pool.available_bytes).concurrency / pool.concurrency if other.hybrid == "on" else 1.0
