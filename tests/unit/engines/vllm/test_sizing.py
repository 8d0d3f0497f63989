"""vLLM's sums: the request's and the measured figures, and the engine's own functions release by release."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from longhaul.capacity.drift import compare_with_engine
from longhaul.capacity.plan import check_plan, plan_capacity
from longhaul.engines.base import EngineCapacity
from longhaul.engines.sizing import PlanSettings
from longhaul.engines.vllm.rules import FLIPS, vllm_rules
from longhaul.errors import UserError
from longhaul.models.reader import load_architecture
from longhaul.physics.hardware import GIB, Gpu, get_gpu
from longhaul.version import Version
from support.paths import CONFIGS
from unit.capacity.plans import CPU, H200, SCOUT, model, vllm

FIGURES = json.loads((CONFIGS / "engine_figures" / "vllm.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize(("context", "concurrency"), [(8_388_608, "1.86"), (5_242_880, "2.96")])
def test_the_requests_concurrency_with_hybrid_kv(context: int, concurrency: str) -> None:
    plan = plan_capacity(SCOUT, H200, vllm(context=context, available_kv_gib=89.71, hybrid_kv="on"))
    assert plan.fits
    assert plan.exact
    assert f"{plan.max_concurrency:.2f}" == concurrency


def test_the_requests_token_figure_lies_within_the_rounding_of_its_gib_figure() -> None:
    plan = plan_capacity(SCOUT, H200, vllm(available_kv_gib=89.71, hybrid_kv="on"))
    assert plan.kv_cache_tokens_low <= 3_919_664 <= plan.kv_cache_tokens_high
    assert plan.kv_cache_tokens_high - plan.kv_cache_tokens_low < 500
    # 89.714 GiB prints as 89.71 and gives the request's figure to the digit.
    assert plan_capacity(SCOUT, H200, vllm(available_kv_gib=89.714, hybrid_kv="on")).kv_cache_tokens == 3_919_664


def test_the_request_with_hybrid_kv_off_is_refused_though_the_engine_would_start() -> None:
    plan = plan_capacity(SCOUT, H200, vllm(available_kv_gib=89.71))
    assert not plan.fits
    assert f"{plan.max_concurrency:.2f}" == "0.47"
    assert plan.starts_anyway
    assert {f.code: f.severity for f in plan.findings} == {"concurrency": "refuse", "hybrid_off": "warn"}
    assert "4.0 times" in plan.findings[1].found


def test_the_requests_weights_and_token_cost() -> None:
    plan = plan_capacity(SCOUT, H200, vllm(available_kv_gib=89.71, hybrid_kv="on"))
    assert f"{plan.weights_bytes / GIB:.1f}" == "25.3"
    assert f"{plan.rope_bytes / GIB:.2f}" == "2.50"
    assert (plan.kv_bytes_per_token, plan.kv_bytes_per_token_all_layers) == (6144, 24_576)
    fp8 = plan_capacity(SCOUT, H200, vllm(available_kv_gib=89.71, hybrid_kv="on", kv_cache_dtype="fp8"))
    assert (fp8.kv_bytes_per_token, fp8.kv_bytes_per_token_all_layers) == (3072, 12_288)


def test_a_single_request_may_be_far_longer_than_the_request_thought() -> None:
    plan = plan_capacity(SCOUT, H200, vllm(available_kv_gib=89.71, hybrid_kv="on"))
    assert plan.pool_ceiling_tokens == pytest.approx(15.6e6, rel=0.005)
    assert plan.max_request_tokens == 8_388_608


def test_the_h200_run_to_the_printed_digit() -> None:
    wanted = vllm("0.25.1", 2_097_152, tensor_parallel=2, weights_dtype="fp8", text_only=True)
    plan = plan_capacity(SCOUT, H200, replace(wanted, available_kv_gib=71.58))
    engine = EngineCapacity(3_055_834, 1.46, 2_097_152, 71.58, 53.71)
    facts = compare_with_engine(plan, engine)
    assert facts.exact
    assert facts.predicted["to_the_digit"] is True
    assert facts.predicted["agrees"] is True
    assert facts.drift == pytest.approx(0, abs=1e-4)
    assert f"{plan.max_concurrency:.2f}" == "1.46"
    # Weights as the engine counts them, the rotary table included.
    assert facts.predicted["weights_gib"] == pytest.approx(53.71, rel=0.002)


def test_the_cpu_run_to_the_printed_digit() -> None:
    toy = {
        "model_type": "llama4_text",
        "hidden_size": 256,
        "intermediate_size": 256,
        "num_hidden_layers": 4,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 32,
        "vocab_size": 1024,
        "max_position_embeddings": 1_048_576,
    }
    plan = plan_capacity(load_architecture(toy), CPU, vllm("0.32.0", 65_536, tensor_parallel=1, available_kv_gib=2))
    assert plan.kv_cache_tokens == plan.kv_cache_tokens_low == plan.kv_cache_tokens_high == 5_711_392
    assert f"{plan.max_concurrency:.2f}" == "87.15"


@pytest.mark.parametrize(
    ("wanted", "measured_gib"),
    [
        (vllm("0.12.0", hybrid_kv="on"), 89.71),
        (vllm("0.25.1", 2_097_152, tensor_parallel=2, weights_dtype="fp8", text_only=True), 71.58),
    ],
    ids=["tp8-bf16", "tp2-fp8"],
)
def test_the_memory_estimate_holds_the_measured_runs_within_its_margin(wanted: PlanSettings, measured_gib: float) -> None:
    plan = plan_capacity(SCOUT, H200, wanted)
    assert not plan.exact
    assert abs(plan.available_kv_bytes / GIB - measured_gib) <= plan.available_kv_margin_bytes / GIB
    assert plan.kv_cache_tokens_low < plan.kv_cache_tokens < plan.kv_cache_tokens_high


H100 = get_gpu("h100")
_VISIT: dict[str, Any] = {"weights_dtype": "fp8", "text_only": True, "torch_sampler": True}
_ON_H100 = {"context": 503_808, "gpu_memory_utilization": 0.96} | _VISIT


@pytest.mark.parametrize(
    ("gpu", "wanted", "measured_gib"),
    [
        (H200, vllm("0.25.1", 262_144, tensor_parallel=1, **_VISIT), 19.06),
        (H200, vllm("0.25.1", 262_144, tensor_parallel=1, gpu_memory_utilization=0.97, **_VISIT), 26.07),
        (H200, vllm("0.25.1", 1_048_576, tensor_parallel=2, **_VISIT), 69.69),
        (H200, vllm("0.25.1", 1_048_576, tensor_parallel=1, pipeline_parallel=2, **_VISIT), 76_188_913_255 / GIB),
        (H100, vllm("0.25.1", tensor_parallel=2, **_ON_H100), 17.09),
        (H100, vllm("0.25.1", tensor_parallel=2, max_num_batched_tokens=16_384, **_ON_H100), 16.81),
        (H100, vllm("0.25.1", tensor_parallel=2, max_num_batched_tokens=32_768, **_ON_H100), 16.24),
        (H100, vllm("0.25.1", tensor_parallel=2, enforce_eager=True, **_ON_H100), 18.63),
        (H100, vllm("0.25.1", tensor_parallel=1, pipeline_parallel=2, **_ON_H100), 19_343_906_980 / GIB),
    ],
    ids=[
        "h200-tp1",
        "h200-tp1-share",
        "h200-tp2",
        "h200-pp2",
        "h100-tp2",
        "h100-chunk16k",
        "h100-chunk32k",
        "h100-eager",
        "h100-pp2",
    ],
)
def test_the_memory_estimate_is_within_one_percent_of_measured_starts(
    gpu: Gpu, wanted: PlanSettings, measured_gib: float
) -> None:
    """What vLLM 0.25.1 printed for Llama-4-Scout (text, fp8 on load, PyTorch's sampler); docs/results. Pipelines: the last stage's."""
    plan = plan_capacity(SCOUT, gpu, wanted)
    assert plan.available_kv_bytes / GIB == pytest.approx(measured_gib, rel=0.01)


@pytest.mark.parametrize(
    ("gpu", "wanted", "printed"),
    [
        (H100, vllm("0.25.1", block_size_tokens=128, tensor_parallel=1, pipeline_parallel=2, **_ON_H100), (18.74, 717_110, 1.42)),
        (
            H200,
            vllm("0.25.1", 1_048_576, block_size_tokens=128, tensor_parallel=1, pipeline_parallel=2, **_VISIT),
            (71.65, 2_961_224, 2.82),
        ),
    ],
    ids=["h100", "h200"],
)
def test_a_pipelines_printed_memory_is_its_first_stages_and_the_pool_its_last(
    gpu: Gpu, wanted: PlanSettings, printed: tuple[float, int, float]
) -> None:
    """A healthy start in two stages printed 4.1% fewer tokens than its printed GiB would give: no reason to refuse it."""
    gib, tokens, concurrency = printed
    plan = plan_capacity(SCOUT, gpu, wanted)
    facts = compare_with_engine(plan, EngineCapacity(tokens, concurrency, wanted.context_tokens, gib))
    assert facts.predicted["agrees"] is True
    assert facts.drift == pytest.approx(0, abs=0.01)
    other = compare_with_engine(plan, EngineCapacity(tokens * 8 // 10, concurrency * 0.8, wanted.context_tokens, gib))
    assert other.predicted["agrees"] is False


@pytest.mark.parametrize(
    ("gpu", "share", "stages", "warned"),
    [
        ("h100", 0.96, 2, True),
        ("h100", 0.92, 2, False),
        ("h100", None, 2, False),
        ("h100", 0.96, 1, False),
        ("h200", 0.95, 2, False),
        ("l40s", None, 4, False),
    ],
)
def test_a_pipeline_is_warned_of_a_share_that_leaves_nccl_no_memory(
    gpu: str, share: float | None, stages: int, warned: bool
) -> None:
    wanted = vllm(
        "0.25.1", 32_768, tensor_parallel=1, pipeline_parallel=stages, weights_dtype="fp8", gpu_memory_utilization=share
    )
    found = [f for f in check_plan(SCOUT, get_gpu(gpu), wanted) if f.code == "pipeline_room"]
    assert bool(found) is warned
    if warned:
        assert "1.7 GiB of a GPU left" in found[0].found
        assert "0.92" in found[0].fix


@pytest.mark.parametrize("release", FIGURES["figures"])
def test_every_release_agrees_with_its_own_code(release: str) -> None:
    """Figures computed by each release's own kv_cache_utils (see the file's ``_source``); ``None``: it refuses to start."""
    for case, theirs in zip(FIGURES["cases"], FIGURES["figures"][release], strict=True):
        wanted = vllm(
            release,
            case["context"],
            available_kv_gib=case["available_bytes"] / GIB,
            max_num_batched_tokens=case["max_num_batched_tokens"],
            hybrid_kv="on" if case["hybrid"] else "off",
            async_scheduling=case["async_scheduling"],
        )
        plan = plan_capacity(model(case["model"]), H200, wanted)
        if theirs is None:
            assert not plan.fits, case
            assert not plan.starts_anyway, case
        else:
            assert [plan.kv_cache_tokens, plan.max_concurrency] == theirs, case
            assert plan.fits or plan.starts_anyway, case


def test_rules_change_at_the_release_that_the_row_names() -> None:
    before, after = vllm_rules(Version.parse("0.20.2")), vllm_rules(Version.parse("0.21.0"))
    assert (before.printed_tokens, after.printed_tokens) == ("blocks", "concurrency")
    assert [vllm_rules(Version.parse(v)).start_check for v in ("0.13.0", "0.14.0", "0.18.1", "0.19.0")] == [
        "layers",
        "first_group",
        "first_group",
        "groups",
    ]
    assert all(".py" in flip.source for flip in FLIPS)


@pytest.mark.parametrize(("release", "hybrid"), [("0.12.0", "off"), ("0.13.0", "off"), ("0.14.0", "on"), ("0.33.0", "on")])
def test_hybrid_by_default_for_chunked_models(release: str, hybrid: str) -> None:
    assert plan_capacity(SCOUT, H200, vllm(release, 131_072)).hybrid_kv == hybrid
    # Sliding-window models had it on all along, uniform ones have nothing to gain.
    assert plan_capacity(model("gemma-3-27b"), H200, vllm(release, 131_072)).hybrid_kv == "on"
    assert plan_capacity(model("llama-3.1-70b"), H200, vllm(release, 131_072)).hybrid_kv == "uniform"


def test_batches_in_flight_count_from_0_26_on() -> None:
    old, new = (plan_capacity(SCOUT, H200, vllm(r, available_kv_gib=80, hybrid_kv="on")) for r in ("0.25.1", "0.33.0"))
    local_blocks = 3 * 8192 // 16
    assert new.needed_kv_bytes_per_request - old.needed_kv_bytes_per_request == local_blocks * 98_304
    cpu_old, cpu_new = (
        plan_capacity(SCOUT, CPU, vllm(r, 65_536, tensor_parallel=1, available_kv_gib=80)) for r in ("0.25.1", "0.33.0")
    )
    assert cpu_old.needed_kv_bytes_per_request == cpu_new.needed_kv_bytes_per_request


# From 0.25.1's and 0.32.0's own get_kv_cache_configs and get_max_concurrency_for_kv_cache_config over every stage's layers:
# (block size, PP, TP, context, batch, bytes a GPU) -> blocks, concurrency, tokens.
PAGED = [
    ("0.25.1", (16, 2, 1, 1_048_576, 8192, 40 << 30), (109_226, 1.592030083955224, 1_669_364)),
    ("0.25.1", (128, 2, 1, 1_048_576, 8192, 40 << 30), (13_653, 1.592000932835821, 1_669_333)),
    ("0.25.1", (128, 1, 2, 2_000_003, 5001, 50 << 30), (17_066, 1.070774250219601, 2_141_551)),
    ("0.25.1", (16, 1, 2, 2_000_003, 5001, 50 << 30), (136_533, 1.0710486679845619, 2_142_100)),
    ("0.25.1", (128, 2, 1, 500_001, 2048, 16_345_678_901), (5196, 1.252953942609115, 626_478)),
    ("0.25.1", (64, 4, 1, 1_048_576, 16_384, 20 << 30), (27_306, 1.557139598540146, 1_632_779)),
    ("0.25.1", (256, 1, 8, 131_072, 8192, 10 << 30), (6826, 9.696022727272727, 1_270_877)),
    ("0.25.1", (128, 3, 8, 131_072, 8192, 10 << 30), (40_960, 29.09090909090909, 3_813_003)),
    ("0.32.0", (128, 2, 1, 1_048_576, 8192, 40 << 30), (13_653, 1.5237723214285714, 1_597_791)),
    ("0.32.0", (128, 1, 2, 2_000_003, 5001, 50 << 30), (17_066, 1.062971037060106, 2_125_945)),
    ("0.32.0", (64, 4, 1, 1_048_576, 16_384, 20 << 30), (27_306, 1.3250194099378882, 1_389_383)),
    ("0.32.0", (128, 3, 8, 131_072, 8192, 10 << 30), (40_960, 20.64516129032258, 2_706_002)),
]


@pytest.mark.parametrize(("release", "case", "theirs"), PAGED)
def test_blocks_and_stages_agree_with_the_engines_own_code(release: str, case: tuple[int, ...], theirs: tuple[Any, ...]) -> None:
    size, stages, tensor, context, batched, available = case
    split: dict[str, Any] = {"tensor_parallel": tensor, "pipeline_parallel": stages, "available_kv_gib": available / GIB}
    wanted = vllm(release, context, block_size_tokens=size, max_num_batched_tokens=batched, hybrid_kv="on", **split)
    plan = plan_capacity(SCOUT, H200, wanted)
    assert plan.fits
    assert (plan.max_concurrency, plan.kv_cache_tokens) == theirs[1:]
    facts = compare_with_engine(plan, EngineCapacity(kv_cache_tokens=theirs[2], context_tokens=context, kv_blocks=theirs[0]))
    assert facts.predicted["drift_by_figure"] == {"kv_cache_tokens": 0.0, "kv_blocks": 0.0}


def test_each_of_two_stages_holds_half_of_every_group() -> None:
    plan = plan_capacity(SCOUT, H200, vllm("0.25.1", 1_048_576, tensor_parallel=1, pipeline_parallel=2, block_size_tokens=128))
    assert [sum(i < 24 for i in g.layers) for g in plan.groups] == [6, 6, 6, 6]
    assert {g.block_size for g in plan.groups} == {128}


def test_a_model_of_windows_only_keeps_the_kernels_block() -> None:
    plan = plan_capacity(model("mistral-7b-v0.1"), H200, vllm("0.25.1", 32_768, block_size_tokens=128, available_kv_gib=20))
    assert plan.groups[0].block_size == 16
    plan = plan_capacity(model("mistral-7b-v0.1"), H200, vllm("0.33.0", 32_768, block_size_tokens=128, available_kv_gib=20))
    assert plan.groups[0].block_size == 128


def test_a_cpu_plan_needs_the_kv_space() -> None:
    with pytest.raises(UserError, match="VLLM_CPU_KVCACHE_SPACE"):
        plan_capacity(SCOUT, CPU, vllm("0.32.0", 65_536, tensor_parallel=1))
