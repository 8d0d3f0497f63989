"""The engine's own figures beside the plan, after a start."""

from __future__ import annotations

from dataclasses import fields, replace
from typing import Any

from ..engines.base import EngineCapacity
from ..engines.registry import sizing_of
from ..physics.hardware import GIB
from ..results import CapacityFacts
from .plan import Plan

DRIFT_TOLERANCE = 0.02


def compare_with_engine(plan: Plan, engine: EngineCapacity) -> CapacityFacts:
    """Set the engine's own figures beside the plan. Drift is engine / predicted - 1, the largest over the exact figures.

    The pool is recomputed from the engine's own "Available KV cache memory" (on CPU from the configured KV space) at the
    engine's own context, so that only the sums are compared, not the memory estimate. ``exact`` says that this was
    possible: a drift above the tolerance then means that the plan and the engine disagree on the model or the rules, and
    ``predicted["agrees"]`` is False. ``predicted["sum"]`` and ``engine["sum"]`` state both sums in words.
    ``predicted["to_the_digit"]``: the printed token figure follows from a block count within the printed GiB's rounding.
    An engine may print the memory of another pipeline stage than the one with the least. The sum then subtracts the measured
    difference, and the tolerance grows by the same amount.
    """
    settings, tolerance = plan.settings, DRIFT_TOLERANCE
    if engine.context_tokens:
        settings = replace(settings, context_tokens=engine.context_tokens)
    exact = plan.gpu.vendor == "cpu" and settings.available_kv_gib is not None
    sizing = sizing_of(plan.model, plan.gpu, settings)
    printed_gib = engine.available_kv_gib
    if printed_gib is not None and plan.gpu.vendor != "cpu":
        less_gib = sizing.last_stage_less_bytes / GIB
        settings, exact = replace(settings, available_kv_gib=max(printed_gib - less_gib, 0.0)), True
        tolerance += less_gib / printed_gib if less_gib and printed_gib else 0.0
        sizing = sizing_of(plan.model, plan.gpu, settings)
    low, available, high = sizing.available()
    pool, pool_low, pool_high = (sizing.pool(b) for b in (available, low, high))
    predicted: dict[str, Any] = {
        "kv_cache_tokens": pool.tokens,
        "kv_cache_tokens_low": pool_low.tokens,
        "kv_cache_tokens_high": pool_high.tokens,
        "max_concurrency": pool.concurrency,
        "context_tokens": settings.context_tokens,
        "available_kv_gib": available / GIB,
        "weights_gib": (plan.weights_bytes + plan.rope_bytes + plan.load_slack_bytes) / GIB,
        "hybrid_kv": sizing.hybrid,
        "sum": sizing.pool_sum(pool),
    }
    predicted |= sizing.own_figures(pool)
    theirs = {f.name: value for f in fields(engine) if (value := getattr(engine, f.name)) is not None}
    drifts: dict[str, float] = {}
    for name in ("kv_cache_tokens", "max_concurrency", "local_kv_tokens", "kv_blocks"):
        ours = predicted.get(name)
        if name in theirs and ours:
            shown = round(float(ours), 2) if name == "max_concurrency" else float(ours)
            drifts[name] = theirs[name] / shown - 1 if shown else float("inf")
    predicted["drift_by_figure"] = drifts
    if "weights_gib" in theirs and plan.weights_bytes:
        predicted["weights_drift"] = theirs["weights_gib"] / predicted["weights_gib"] - 1
    drift = max(drifts.values(), key=abs, default=None)
    predicted["tolerance"] = tolerance
    predicted["agrees"] = None if drift is None else abs(drift) <= tolerance
    if exact and "kv_cache_tokens" in theirs:
        predicted["to_the_digit"] = sizing.explains(int(theirs["kv_cache_tokens"]), low, high)
    words = [f"{theirs[n]:,} {t}" for n, t in (("kv_cache_tokens", "tokens"), ("local_kv_tokens", "local tokens")) if n in theirs]
    if "max_concurrency" in theirs:
        words.append(f"{theirs['max_concurrency']:.2f}x at {theirs.get('context_tokens', settings.context_tokens):,}")
    if "available_kv_gib" in theirs:
        words.append(f"from {theirs['available_kv_gib']:.2f} GiB")
    return CapacityFacts(predicted, {**theirs, "sum": ", ".join(words)}, drift, exact)
