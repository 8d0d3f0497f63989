"""Reasons to refuse a plan or to warn of it."""

from __future__ import annotations

from dataclasses import replace

from ..dtypes import normal_dtype
from ..engines.registry import get_engine, sizing_of
from ..engines.sizing import PlanSettings, Pool, Sizing, kv_splits
from ..errors import Finding
from ..models.architecture import ModelArchitecture
from ..physics.hardware import GIB, Gpu
from ..version import Version

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
    if normal_dtype(s.kv_cache_dtype) == "fp8" and gpu.vendor == "nvidia" and gpu.peak_flop_per_s.get("bf16") and not gpu.has_fp8:
        found.append(
            Finding(f"fp8 KV on {gpu.name}", "a GPU with fp8 units", "use bf16 KV, or H100, L40S or newer", "refuse", "kv_dtype")
        )
    engine = get_engine(s.engine)
    found += engine.findings(model, gpu, s)
    low, high = engine.verified
    if not Version.parse(low) <= s.release <= Version.parse(high):
        found.append(
            Finding(
                f"{s.engine} {s.release}",
                f"{low} to {high}, whose sums were verified",
                "the nearest verified release's rules are used; compare with the engine after the start",
                "warn",
                "unverified_release",
            )
        )
    return found


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
    found += sizing.findings(pool)
    gain = _hybrid_gain(sizing, pool)
    if gain is not None and gain >= 1.5:
        found.append(
            Finding(
                f"hybrid KV off by default in {s.engine} {s.release}: {model.name} would hold {gain:.1f} times as much with it",
                "hybrid KV on for models with local attention",
                get_engine(s.engine).hybrid_advice,
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
