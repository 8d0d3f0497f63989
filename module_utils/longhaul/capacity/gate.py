"""The capacity gate of a deployment: plan from its own settings before the start, compare with the engine after it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..engines.base import EngineCapacity
from ..engines.settings import EngineSettings
from ..engines.sizing import PlanSettings
from ..errors import Finding, UserError
from ..models.architecture import ModelArchitecture
from ..models.reader import load_architecture
from ..physics.hardware import GIB, DetectedGpu, Gpu, get_gpu
from ..results import CapacityFacts, to_jsonable
from ..version import Version
from .drift import compare_with_engine
from .plan import Plan, check_plan, plan_capacity
from .search import nearest_plans
from .settings import settings_from_engine


@dataclass(frozen=True)
class GateResult:
    """What the gate found. ``plan`` is ``None`` where nothing could be planned; ``skipped`` then says why."""

    findings: tuple[Finding, ...] = ()
    plan: Plan | None = None
    skipped: str | None = None

    @property
    def refusals(self) -> tuple[Finding, ...]:
        """The findings that forbid the deployment."""
        return tuple(f for f in self.findings if f.severity == "refuse")


def choose_gpu(device: str, wanted: str, detected: Sequence[DetectedGpu]) -> tuple[Gpu | None, int | None]:
    """(GPU, how many the host has). ``wanted`` names a GPU that nvidia-smi does not; a detected GPU keeps its real memory."""
    if device == "cpu":
        return get_gpu("cpu"), None
    count = len(detected) or None
    if wanted:
        return get_gpu(wanted), count
    return next((g.gpu for g in detected if g.gpu is not None), None), count


def gate(
    engine: str,
    version: str,
    settings: EngineSettings,
    config: Mapping[str, Any] | None,
    *,
    gpu: Gpu | None,
    host_gpus: int | None,
    ladder: Sequence[tuple[int, int]] = (),
) -> GateResult:
    """Plan the deployment. ``config``: the model's config.json. ``ladder``: (tokens per request, requests at once)."""
    if config is None:
        return GateResult(skipped="the model is not on the host yet; checked again before the launch")
    if gpu is None:
        return GateResult(skipped="no GPU that we know was found; name one with engine_gpu to plan for it")
    try:
        model = load_architecture(config)
    except UserError as error:
        return GateResult(skipped=f"this model cannot be planned ({error.found})")
    plan_settings = _plan_settings(engine, version, settings)
    if gpu.vendor == "cpu" and plan_settings.available_kv_gib is None:
        return GateResult(skipped="engine_cpu_kv_cache_gib is not set, so the KV cache takes what the engine thinks fit")
    findings = check_plan(model, gpu, plan_settings, host_gpus=host_gpus, ladder=ladder)
    return GateResult(findings, plan_capacity(model, gpu, plan_settings, host_gpus=host_gpus))


def advice(result: GateResult, host_gpus: int | None) -> str:
    """The nearest plans that fit, in one phrase; empty where none does."""
    if result.plan is None or result.plan.fits:
        return ""
    near = nearest_plans(result.plan.model, result.plan.gpu, result.plan.settings, host_gpus=host_gpus)
    return "; ".join(f"{change} ({plan.max_concurrency:.2f}x)" for change, plan in near[:3])


def planned_facts(plan: Plan) -> dict[str, Any]:
    """The ``planned`` section of the facts."""
    return {
        "gpu": plan.gpu.name,
        "fits": plan.fits,
        "exact": plan.exact,
        "weights_gib_per_gpu": round(plan.weights_bytes / GIB, 3),
        "available_kv_gib_per_gpu": round(plan.available_kv_bytes / GIB, 3),
        "kv_bytes_per_token_per_gpu": plan.kv_bytes_per_token,
        "kv_cache_tokens": plan.kv_cache_tokens,
        "max_concurrency": round(plan.max_concurrency, 4),
        "max_request_tokens": plan.max_request_tokens,
        "hybrid_kv": plan.hybrid_kv,
        "context_tokens": plan.settings.context_tokens,
        "warnings": list(plan.warnings),
    }


def drift(
    engine: str,
    version: str,
    settings: EngineSettings,
    config: Mapping[str, Any],
    gpu: Gpu,
    capacity: Mapping[str, Any],
) -> CapacityFacts | None:
    """The engine's own figures beside the plan; ``None`` where it printed none."""
    known = {k: v for k, v in capacity.items() if k in EngineCapacity.__dataclass_fields__ and v is not None}
    if not known:
        return None
    model: ModelArchitecture = load_architecture(config)
    plan = plan_capacity(model, gpu, _plan_settings(engine, version, settings))
    return compare_with_engine(plan, EngineCapacity(**known))


def drift_facts(facts: CapacityFacts) -> dict[str, Any]:
    """As JSON for the fact file."""
    return dict(to_jsonable(facts))


def _plan_settings(engine: str, version: str, settings: EngineSettings) -> PlanSettings:
    return settings_from_engine(settings, engine, Version.parse(version))
