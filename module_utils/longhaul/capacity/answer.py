"""What the capacity gate tells a deployment: refuse, warn or go on, by the operator's policy (``fail`` or ``warn``)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..results import CapacityFacts
from .gate import GateResult, advice, drift_facts, planned_facts

FIX_DRIFT = "check that settings and model are the ones planned; engine_capacity_drift: warn lets it pass"


@dataclass(frozen=True)
class Answer:
    """``refused`` is why the deployment must not go on; empty where it may. ``skipped`` is why nothing was planned.

    ``facts``: the section of the local facts, ``planned`` before a start and ``capacity`` after it.
    """

    facts: Mapping[str, Any] | None = None
    skipped: str = ""
    refused: str = ""
    warnings: tuple[str, ...] = ()


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
        f"required: within {100 * found.predicted['tolerance']:.0f}% of the plan: {found.predicted.get('sum')} | fix: {FIX_DRIFT}"
    )
    return Answer(facts, refused=text) if policy == "fail" else Answer(facts, warnings=(text,))
