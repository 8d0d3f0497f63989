"""What the gate tells a deployment, by the operator's policy."""

from __future__ import annotations

import json

import pytest
from longhaul.capacity.gate import answer_drift, answer_gate, drift, gate
from longhaul.engines.settings import EngineSettings
from longhaul.physics.hardware import get_gpu
from longhaul.results import CapacityFacts
from support.paths import CONFIGS

SMOL = {**json.loads((CONFIGS / "smollm2-135m.json").read_text(encoding="utf-8")), "max_position_embeddings": 1_000_000}


def cpu(context: int) -> EngineSettings:
    return EngineSettings(
        model_path="/m", served_model_name="m", context_tokens=context, device="cpu", cpu_kv_cache_gib=1, dtype="bfloat16"
    )


def test_a_plan_that_fits_is_facts_alone() -> None:
    answer = answer_gate(gate("vllm", "0.32.0", cpu(8192), SMOL, gpu=get_gpu("cpu"), host_gpus=None), "fail", None)
    assert answer.facts is not None
    assert answer.facts["fits"] is True
    assert (answer.refused, answer.skipped) == ("", "")


@pytest.mark.parametrize(("policy", "refuses"), [("fail", True), ("warn", False)])
def test_a_plan_that_does_not_fit_is_refused_or_a_warning_by_policy(policy: str, refuses: bool) -> None:
    result = gate("vllm", "0.32.0", cpu(500_000), SMOL, gpu=get_gpu("cpu"), host_gpus=None)
    answer = answer_gate(result, policy, None)
    assert answer.facts is not None, "the plan is a fact either way"
    assert answer.facts["fits"] is False
    assert bool(answer.refused) == refuses
    if refuses:
        assert answer.refused.startswith("found: ")
        assert "nearest plans that fit: " in answer.refused
    else:
        assert any(warning.startswith("capacity: found: ") for warning in answer.warnings)


def test_what_cannot_be_planned_says_why() -> None:
    answer = answer_gate(gate("vllm", "0.32.0", cpu(8192), None, gpu=None, host_gpus=None), "fail", None)
    assert answer.facts is None
    assert "not on the host yet" in answer.skipped
    assert answer_drift(None, "fail").skipped == "the engine printed no capacity figures"


def found(share: float) -> CapacityFacts:
    plan = gate("vllm", "0.32.0", cpu(8192), SMOL, gpu=get_gpu("cpu"), host_gpus=None).plan
    assert plan is not None
    said = {
        "kv_cache_tokens": plan.kv_cache_tokens * share,
        "max_concurrency": plan.max_concurrency * share,
        "context_tokens": 8192,
    }
    made = drift("vllm", "0.32.0", cpu(8192), SMOL, get_gpu("cpu"), said)
    assert made is not None
    return made


def test_a_drift_within_the_tolerance_is_a_fact_and_beyond_it_refused_or_a_warning() -> None:
    same = answer_drift(found(1.0), "fail")
    assert (same.refused, same.warnings) == ("", ())
    assert same.facts is not None
    off = answer_drift(found(0.9), "fail")
    assert "-10.0% off the plan" in off.refused
    assert "engine_capacity_drift: warn" in off.refused
    assert answer_drift(found(0.9), "warn").warnings == (off.refused,)
    assert answer_drift(found(0.9), "warn").refused == ""
