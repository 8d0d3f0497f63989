"""The capacity gate of a deployment: plan from its own settings before the start, compare with the engine after it.

Each answer is to refuse, to warn or to go on, by the operator's policy (``fail`` or ``warn``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..engines.base import EngineCapacity
from ..engines.registry import get_engine
from ..engines.settings import EngineSettings, size_values
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

_FIX_DRIFT = "check that settings and model are the ones planned; engine_capacity_drift: warn lets it pass"


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


@dataclass(frozen=True)
class Answer:
    """``refused`` is why the deployment must not go on; empty where it may. ``skipped`` is why nothing was planned.

    ``facts``: the section of the local facts, ``planned`` before a start and ``capacity`` after it.
    """

    facts: Mapping[str, Any] | None = None
    skipped: str = ""
    refused: str = ""
    warnings: tuple[str, ...] = ()


def settings_from_engine(
    wanted: EngineSettings, engine: str, release: Version, *, concurrency: int = 1, available_kv_gib: float | None = None
) -> PlanSettings:
    """A deployment's settings -> what the plan needs of them. On CPU the KV space is the available memory."""
    on_cpu = wanted.device == "cpu"
    planned = PlanSettings(
        engine,
        release,
        **size_values(wanted),
        available_kv_gib=available_kv_gib if available_kv_gib is not None else (wanted.cpu_kv_cache_gib if on_cpu else None),
        weights_dtype="fp8" if (wanted.quantization or "").startswith("fp8") else wanted.dtype,
        concurrency=concurrency,
    )
    return get_engine(engine).planned(wanted, planned)


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
    plan_settings = settings_from_engine(settings, engine, Version.parse(version))
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
    engine: str, version: str, settings: EngineSettings, config: Mapping[str, Any], gpu: Gpu, capacity: Mapping[str, Any]
) -> CapacityFacts | None:
    """The engine's own figures beside the plan; ``None`` where it printed none."""
    known = {k: v for k, v in capacity.items() if k in EngineCapacity.__dataclass_fields__ and v is not None}
    if not known:
        return None
    model: ModelArchitecture = load_architecture(config)
    plan = plan_capacity(model, gpu, settings_from_engine(settings, engine, Version.parse(version)))
    return compare_with_engine(plan, EngineCapacity(**known))


def drift_facts(facts: CapacityFacts) -> dict[str, Any]:
    """As JSON for the fact file."""
    return dict(to_jsonable(facts))


def answer_gate(result: GateResult, policy: str, host_gpus: int | None) -> Answer:
    """Before the start: every refusal with the nearest plans that fit. With policy ``warn`` refusals are warnings."""
    if result.plan is None:
        return Answer(skipped=result.skipped or "nothing to plan")
    facts = planned_facts(result.plan)
    warnings = tuple(f"capacity: {f}" for f in result.findings if f.severity == "warn" or policy == "warn")
    if not result.refusals or policy != "fail":
        return Answer(facts, warnings=warnings)
    near = advice(result, host_gpus)
    refused = "\n".join(map(str, result.refusals)) + (f" | nearest plans that fit: {near}" if near else "")
    return Answer(facts, refused=refused, warnings=warnings)


def answer_drift(found: CapacityFacts | None, policy: str) -> Answer:
    """After the start: the engine's own figures beside the plan. A drift beyond the tolerance is refused or a warning."""
    if found is None:
        return Answer(skipped="the engine printed no capacity figures")
    facts = drift_facts(found)
    if not found.exact or found.predicted.get("agrees") is not False:
        return Answer(facts)
    text = (
        f"found: the engine's capacity is {100 * (found.drift or 0):+.1f}% off the plan: engine {found.engine.get('sum')} | "
        f"required: within {100 * found.predicted['tolerance']:.0f}% of the plan: {found.predicted.get('sum')} | fix: {_FIX_DRIFT}"
    )
    return Answer(facts, refused=text) if policy == "fail" else Answer(facts, warnings=(text,))
