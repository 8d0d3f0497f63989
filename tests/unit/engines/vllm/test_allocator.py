"""What an allocator keeps when weights are quantized on load: the engine's printed figures, and what must always hold."""

from __future__ import annotations

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from longhaul.capacity.plan import plan_capacity
from longhaul.engines.registry import get_engine
from longhaul.engines.sizing import PlanSettings
from longhaul.engines.vllm.allocator import fp8_load_slack_bytes
from longhaul.models.reader import load_architecture
from longhaul.physics.hardware import GIB, get_gpu
from longhaul.version import Version
from support.paths import CONFIGS

SCOUT = load_architecture(CONFIGS / "llama-4-scout.json")
H200 = get_gpu("h200")


def settings(release: str, tp: int, weights: str = "fp8") -> PlanSettings:
    return PlanSettings(
        "vllm", Version.parse(release), context_tokens=262_144, tensor_parallel=tp, weights_dtype=weights, text_only=True
    )


# "Model loading took N GiB memory", vLLM 0.25.1, fp8 on load, one H200 and two.
@pytest.mark.parametrize(("tp", "printed_gib"), [(1, 105.58), (2, 53.71)])
def test_weights_and_slack_are_what_the_engine_printed(tp: int, printed_gib: float) -> None:
    rotary = SCOUT.rope_positions * SCOUT.rope_dim * 2
    weights = max(x.weights_bytes for x in get_engine("vllm").stages(SCOUT, settings("0.25.1", tp)))
    total = weights + rotary + fp8_load_slack_bytes(SCOUT, tp, 0, len(SCOUT.layers))
    assert total / GIB == pytest.approx(printed_gib, abs=0.04)


def test_what_the_engine_sets_aside_shrinks_the_pool_only_where_it_does() -> None:
    def kv_gib(release: str, **changes: object) -> float:
        wanted = replace(settings(release, 2, "bf16"), gpu_memory_utilization=0.9, max_num_batched_tokens=8192, **changes)  # type: ignore[arg-type]
        return plan_capacity(SCOUT, H200, wanted).available_kv_bytes / GIB

    reserved = 1.47
    assert kv_gib("0.25.1", enforce_eager=True) - kv_gib("0.25.1") == pytest.approx(reserved, abs=0.01)
    assert kv_gib("0.20.2") == pytest.approx(kv_gib("0.20.2", enforce_eager=True))
    # 1,024 rows of logits of 202,048 words, 1.7 times more with PyTorch's sampler, less what the layers took, which is free by then:
    # 4 hidden states of 5,120 and two of three sharded feed-forward ones of 16,384 / 2 for each token of the batch. Fewer requests at
    # once cost less.
    sampler = 1.7 * 1024 * 202_048 * 4 - 2 * 8192 * (4 * 5120 + 2 * 16_384 / 2)
    assert kv_gib("0.25.1") - kv_gib("0.25.1", torch_sampler=True) == pytest.approx(sampler / GIB, abs=0.01)
    assert kv_gib("0.25.1", max_num_seqs=16) > kv_gib("0.25.1") + 1.4


def test_only_weights_quantized_on_load_by_releases_that_never_split_pay_it() -> None:
    def of(release: str, weights: str) -> bool:
        plan = plan_capacity(SCOUT, H200, settings(release, 8, weights))
        return any(step.label == "slack of the load" for step in plan.steps)

    assert of("0.25.1", "fp8")
    assert not of("0.20.2", "fp8")
    assert not of("0.25.1", "bf16")


@given(st.sampled_from([1, 2, 4, 8]), st.integers(0, 47), st.integers(1, 48))
def test_slack_is_less_than_20_mib_a_tensor(tp: int, first: int, count: int) -> None:
    end = min(first + count, 48)
    slack = fp8_load_slack_bytes(SCOUT, tp, first, end)
    assert 0 <= slack < (end - first) * 6 * 20 * 1024**2
