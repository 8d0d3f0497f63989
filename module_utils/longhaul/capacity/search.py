"""The largest context that holds, and the nearest plans that fit."""

from __future__ import annotations

from dataclasses import replace

from ..dtypes import normal_dtype
from ..engines.registry import get_engine, sizing_of
from ..engines.sizing import LONGEST_TOKENS, PlanSettings, check_settings, kv_splits
from ..models.architecture import ModelArchitecture
from ..physics.hardware import GIB, Gpu
from .findings import UNPLANNABLE, structural_findings
from .plan import Plan, most, plan_capacity


def max_context(
    model: ModelArchitecture, gpu: Gpu, settings: PlanSettings, *, host_gpus: int | None = None, concurrency: float = 1.0
) -> int:
    """The largest context at which ``concurrency`` requests hold at once, capped by the model's positions; 0 if none."""
    check_settings(settings)
    if any(f.code in UNPLANNABLE for f in structural_findings(model, gpu, settings, host_gpus)):
        return 0
    stages = get_engine(settings.engine).stages(model, settings)

    def holds(tokens: int) -> bool:
        sizing = sizing_of(model, gpu, replace(settings, context_tokens=tokens), stages)
        available = sizing.available()[1]
        if available <= 0 or sizing.at_once(available, tokens) < concurrency:
            return False
        room = sizing.fixed_room()
        return room is None or sum(b for _, b in sizing.fixed_costs(sizing.pool(available))) <= room

    return most(holds, model.max_positions or LONGEST_TOKENS)


def nearest_plans(
    model: ModelArchitecture, gpu: Gpu, settings: PlanSettings, *, host_gpus: int | None = None
) -> tuple[tuple[str, Plan], ...]:
    """Plans that fit, nearest first: one change before two, cheaper changes before dearer; a shorter context comes last."""
    changes = _possible_changes(model, gpu, settings, host_gpus)
    tried: list[tuple[tuple[str, ...], PlanSettings]] = [((name,), changed) for name, changed in changes]
    for i, (first, one) in enumerate(changes):
        for second, two in _possible_changes(model, gpu, one, host_gpus):
            if second not in {first, *(n for n, _ in changes[:i])}:
                tried.append(((first, second), two))
    found: list[tuple[str, Plan]] = []
    for names, candidate in tried:
        if len(names) > 1 and any(n in names for n, _ in found):
            continue
        plan = plan_capacity(model, gpu, candidate, host_gpus=host_gpus)
        if plan.fits:
            found.append((" and ".join(names), plan))
    shorter = max_context(model, gpu, settings, host_gpus=host_gpus)
    if 0 < shorter < settings.context_tokens:
        plan = plan_capacity(model, gpu, replace(settings, context_tokens=shorter), host_gpus=host_gpus)
        if plan.fits:
            found.append((f"context {shorter:,}", plan))
    return tuple(found)


def _possible_changes(
    model: ModelArchitecture, gpu: Gpu, s: PlanSettings, host_gpus: int | None
) -> list[tuple[str, PlanSettings]]:
    """Single changes that could make a plan fit, cheapest first."""
    changes: list[tuple[str, PlanSettings]] = []
    if s.block_size_tokens is not None:
        changes.append(("the engine's own block size", replace(s, block_size_tokens=None)))
    if s.hybrid_kv != "on" and len({(x.kind, x.window_tokens) for x in model.layers}) > 1:
        changes.append(("hybrid KV on", replace(s, hybrid_kv="on")))
    own = get_engine(s.engine).changes(model, gpu, s)
    changes += [(x.name, x.settings) for x in own if not x.dear]
    if model.max_positions is not None and s.context_tokens > model.max_positions:
        changes.append((f"context {model.max_positions:,}", replace(s, context_tokens=model.max_positions)))
    if normal_dtype(s.kv_cache_dtype) != "fp8" and (gpu.has_fp8 or gpu.vendor == "cpu"):
        changes.append(("fp8 KV", replace(s, kv_cache_dtype="fp8")))
    elif normal_dtype(s.kv_cache_dtype) == "fp8" and not gpu.has_fp8 and gpu.vendor == "nvidia":
        changes.append(("bf16 KV", replace(s, kv_cache_dtype="bf16")))
    changes += [(x.name, x.settings) for x in own if x.dear]
    if normal_dtype(s.weights_dtype) not in {"fp8"} and gpu.has_fp8 and model.quantization is None:
        changes.append(("fp8 weights", _moved(model, s, replace(s, weights_dtype="fp8"))))
    tp, pp = s.tensor_parallel, s.pipeline_parallel
    if gpu.vendor == "cpu":
        return changes
    limit = host_gpus if host_gpus is not None else max(16, 4 * s.gpus)
    sizes = [d for d in range(1, limit + 1) if model.heads % d == 0 and kv_splits(model, d)]
    splits: list[tuple[int, int]] = []
    if tp not in sizes or s.gpus > limit:
        splits += [(d, s.gpus // d) for d in reversed(sizes) if s.gpus % d == 0 and d <= s.gpus <= limit][:1]
        splits += [(d, 1) for d in reversed(sizes) if d <= min(tp, limit)][:1]
    splits += [(d, pp) for d in sizes if d > tp and d * pp <= limit and d & (d - 1) == 0][:2]
    splits += [(tp, 2 * pp)] if tp in sizes and 2 * tp * pp <= limit else []
    for new_tp, new_pp in splits:
        changed = replace(s, tensor_parallel=new_tp, pipeline_parallel=new_pp)
        changes.append((f"TP{new_tp} x PP{new_pp} ({new_tp * new_pp} GPUs)", _moved(model, s, changed)))
    return changes


def _moved(model: ModelArchitecture, old: PlanSettings, new: PlanSettings) -> PlanSettings:
    """Carry a given KV memory over to another split or dtype: memory that the weights free goes to KV."""
    if old.available_kv_gib is None:
        return new
    if model.heads % old.tensor_parallel or old.pipeline_parallel > len(model.layers):
        return replace(new, available_kv_gib=None)
    stages = get_engine(old.engine).stages
    freed = max(x.weights_bytes for x in stages(model, old)) - max(x.weights_bytes for x in stages(model, new))
    gib = old.available_kv_gib + freed / GIB
    return replace(new, available_kv_gib=gib if gib > 0 else None)
