"""The sums: the request's and the measured figures, the engines' own functions by release, and what must always hold."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from longhaul.capacity.drift import compare_with_engine
from longhaul.capacity.plan import check_plan, needed_kv_bytes, plan_capacity, requests_that_fit
from longhaul.capacity.search import max_context, nearest_plans
from longhaul.capacity.settings import settings_from_engine
from longhaul.engines.base import EngineCapacity
from longhaul.engines.registry import get_engine
from longhaul.engines.settings import EngineSettings
from longhaul.engines.sglang.rules import FLIPS as SGLANG_FLIPS
from longhaul.engines.sizing import PlanSettings
from longhaul.engines.vllm.rules import FLIPS as VLLM_FLIPS
from longhaul.engines.vllm.rules import vllm_rules
from longhaul.errors import UserError
from longhaul.models.architecture import ModelArchitecture
from longhaul.models.reader import load_architecture
from longhaul.physics.hardware import GIB, Gpu, get_gpu
from longhaul.version import Version
from support.paths import CONFIGS

FIGURES = json.loads((CONFIGS / "engine_figures" / "vllm.json").read_text(encoding="utf-8"))
SGLANG_FIGURES = json.loads((CONFIGS / "engine_figures" / "sglang.json").read_text(encoding="utf-8"))
H200 = get_gpu("h200")
CPU = get_gpu("cpu")


def model(name: str) -> ModelArchitecture:
    return load_architecture(CONFIGS / f"{name}.json")


SCOUT = model("llama-4-scout")


def vllm(release: str = "0.12.0", context: int = 8_388_608, **changes: Any) -> PlanSettings:
    changes.setdefault("tensor_parallel", 8)
    return PlanSettings("vllm", Version.parse(release), context_tokens=context, **changes)


def sglang(release: str = "0.5.23", context: int = 2_097_152, **changes: Any) -> PlanSettings:
    changes.setdefault("tensor_parallel", 8)
    return PlanSettings("sglang", Version.parse(release), context_tokens=context, **changes)


# ---- the request's own figures


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


# ---- measured runs


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


def test_the_sglang_run_splits_its_pool_as_measured() -> None:
    """0.5.12.post1, TP2, ratio 0.05: full 2,656,945 and local 132,847 tokens; 69.93 GiB is what those take."""
    wanted = sglang("0.5.12.post1", 1_048_576, tensor_parallel=2, swa_full_tokens_ratio=0.05, max_num_seqs=4)
    taken = 2048 * (12 * 2_656_945 + 36 * 132_847) / GIB
    plan = plan_capacity(SCOUT, H200, replace(wanted, weights_dtype="fp8", available_kv_gib=taken))
    assert plan.kv_cache_tokens == pytest.approx(2_656_945, abs=2)
    assert plan.local_kv_tokens == int(plan.kv_cache_tokens * 0.05)


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


# ---- the engines' own functions, release by release


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


@pytest.mark.parametrize("release", SGLANG_FIGURES["figures"])
def test_every_sglang_release_agrees_with_its_own_code(release: str) -> None:
    for case, theirs in zip(SGLANG_FIGURES["cases"], SGLANG_FIGURES["figures"][release], strict=True):
        wanted = sglang(
            release,
            case["context"],
            available_kv_gib=case["available_bytes"] / GIB,
            swa_full_tokens_ratio=case["swa_full_tokens_ratio"],
            hybrid_kv=case["hybrid_kv"],
            max_num_seqs=8,
        )
        plan = plan_capacity(model(case["model"]), H200, wanted)
        assert [plan.kv_cache_tokens, plan.local_kv_tokens] == theirs, case


def test_rules_change_at_the_release_that_the_row_names() -> None:
    before, after = vllm_rules(Version.parse("0.20.2")), vllm_rules(Version.parse("0.21.0"))
    assert (before.printed_tokens, after.printed_tokens) == ("blocks", "concurrency")
    assert [vllm_rules(Version.parse(v)).start_check for v in ("0.13.0", "0.14.0", "0.18.1", "0.19.0")] == [
        "layers",
        "first_group",
        "first_group",
        "groups",
    ]
    assert all(flip.source.split(":")[0].endswith(".py") or ".py" in flip.source for flip in (*VLLM_FLIPS, *SGLANG_FLIPS))


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


# ---- splits over GPUs


def test_kv_heads_are_replicated_beyond_their_count() -> None:
    one, two = (plan_capacity(SCOUT, H200, vllm(context=131_072, tensor_parallel=t)) for t in (8, 40))
    assert one.kv_bytes_per_token == two.kv_bytes_per_token == 24_576


def test_mla_is_whole_on_every_gpu() -> None:
    deepseek = model("deepseek-v3")
    tokens = {
        tp: plan_capacity(deepseek, get_gpu("b300"), vllm("0.33.0", 131_072, tensor_parallel=tp)).kv_bytes_per_token
        for tp in (4, 8)
    }
    assert tokens == {4: 61 * 576 * 2, 8: 61 * 576 * 2}


def test_sixteen_way_is_impossible_for_40_heads_and_8x2_is_named() -> None:
    (finding,) = (f for f in check_plan(SCOUT, H200, vllm(tensor_parallel=16)) if f.code == "tp_heads")
    assert (finding.severity, finding.fix) == ("refuse", "use TP8 x PP2")


def test_pipeline_stages_share_layers_as_the_engines_cut_them() -> None:
    whole = plan_capacity(SCOUT, H200, vllm(hybrid_kv="on", available_kv_gib=80))
    halves = plan_capacity(SCOUT, H200, vllm(hybrid_kv="on", available_kv_gib=80, pipeline_parallel=2))
    assert halves.max_concurrency == pytest.approx(2 * whole.max_concurrency, rel=1e-3)
    assert halves.weights_bytes < 0.6 * whole.weights_bytes


# ---- block sizes


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


def test_sglang_counts_whole_pages() -> None:
    wanted = sglang("0.5.23", 100_001, available_kv_gib=10, swa_full_tokens_ratio=0.3, max_num_seqs=8)
    one, paged = (plan_capacity(SCOUT, H200, replace(wanted, block_size_tokens=n)) for n in (None, 128))
    assert paged.fits
    assert paged.kv_cache_tokens == one.kv_cache_tokens // 128 * 128
    assert paged.local_kv_tokens == int(paged.kv_cache_tokens * 0.3) // 128 * 128
    # 100,001 tokens end in a page of their own; a request may take all but one page.
    assert paged.max_concurrency == paged.kv_cache_tokens / 100_096
    assert paged.needed_kv_bytes_per_request > one.needed_kv_bytes_per_request
    alone = plan_capacity(SCOUT, H200, replace(wanted, block_size_tokens=128, hybrid_kv="off"))
    assert alone.pool_ceiling_tokens == alone.kv_cache_tokens - 128


@pytest.mark.parametrize(
    ("wanted", "required"),
    [
        (vllm("0.25.1", 131_072, block_size_tokens=100), "multiple of 16"),
        (vllm("0.17.1", 131_072, block_size_tokens=144), "one of 16, 32, 64, 128, 256"),  # 1 and 8 would be refused next
        (vllm("0.25.1", 131_072, block_size_tokens=144), "attention chunk of 8,192"),
        (vllm("0.25.1", 131_072, block_size_tokens=144, hybrid_kv="off"), "attention chunk of 8,192"),
        (sglang("0.5.23", 131_072, block_size_tokens=96, max_num_batched_tokens=9600), "attention chunk of 8,192"),
        (sglang("0.5.23", 131_072, block_size_tokens=96, max_num_batched_tokens=9600), "power of two"),
        (sglang("0.5.23", 131_072, block_size_tokens=128, max_num_batched_tokens=5000), "prefill chunk of 5,000"),
        (sglang("0.5.12.post1", 131_072, block_size_tokens=128), "mixes up tokens and pages"),
        (sglang("0.5.19", 131_072, block_size_tokens=128), "0.5.19"),
    ],
)
def test_block_sizes_that_cannot_serve_are_refused(wanted: PlanSettings, required: str) -> None:
    findings = [f for f in check_plan(SCOUT, H200, wanted, host_gpus=8) if f.code == "block_size"]
    assert {f.severity for f in findings} == {"refuse"}
    assert any(required in f.required for f in findings)
    assert not plan_capacity(SCOUT, H200, wanted).fits
    roomy = replace(wanted, max_num_seqs=8, available_kv_gib=80)
    assert dict(nearest_plans(SCOUT, H200, roomy, host_gpus=8))["the engine's own block size"].fits


@pytest.mark.parametrize(
    ("engine", "release", "changes", "required"),
    [
        ("vllm", "0.32.0", {"device": "cpu", "block_size_tokens": 16}, "a multiple of 32 on a CPU with vLLM 0.32.0"),
        ("vllm", "0.28.0", {"device": "cpu", "block_size_tokens": 8}, "a multiple of 16 on a CPU with vLLM 0.28.0"),
        ("vllm", "0.17.1", {"device": "cpu", "block_size_tokens": 8}, "a multiple of 16 on a CPU with vLLM 0.17.1"),
        ("vllm", "0.32.0", {"block_size_tokens": 8}, "a multiple of 16 on GPUs"),
        ("vllm", "0.17.1", {"block_size_tokens": 144}, "vLLM 0.17.1: one of 16, 32, 64, 128, 256"),
        (
            "sglang",
            "0.5.23",
            {"block_size_tokens": 128, "max_num_batched_tokens": 5000},
            "a divisor of the prefill chunk of 5,000",
        ),
        (
            "sglang",
            "0.5.23",
            {"block_size_tokens": 96, "max_num_batched_tokens": 9600, "attention_backend": "fa3"},
            "power of two",
        ),
    ],
)
def test_the_plan_and_the_launch_refuse_a_block_size_in_the_same_words(
    engine: str, release: str, changes: dict[str, Any], required: str
) -> None:
    wanted = EngineSettings(
        model_path="/m",
        served_model_name="m",
        context_tokens=8192,
        cpu_kv_cache_gib=4 if "device" in changes else None,
        **changes,
    )
    with pytest.raises(UserError, match=required) as caught:
        get_engine(engine).launch(wanted, Version.parse(release))
    plan = settings_from_engine(wanted, engine, Version.parse(release))
    findings = [
        f for f in check_plan(model("llama-3.1-8b"), CPU if "device" in changes else H200, plan) if f.code == "block_size"
    ]
    assert [(f.severity, f.found, f.required, f.fix) for f in findings] == [
        ("refuse", caught.value.found, caught.value.required, caught.value.fix)
    ]


@pytest.mark.parametrize(
    ("gpu", "wanted", "warned"),
    [
        (H200, sglang("0.5.12.post1", 1_048_576, kv_cache_dtype="fp8_e4m3", attention_backend="fa3"), True),
        (
            H200,
            sglang("0.5.12.post1", 1_048_576, kv_cache_dtype="fp8_e4m3"),
            True,
        ),  # FlashAttention 3 is its own choice on Hopper
        (H200, sglang("0.5.12.post1", 1_048_576, kv_cache_dtype="fp8_e4m3", attention_backend="triton"), False),
        (H200, sglang("0.5.12.post1", 1_048_576), False),
        (H200, vllm("0.25.1", 1_048_576, kv_cache_dtype="fp8"), False),
        (get_gpu("b200"), sglang("0.5.12.post1", 1_048_576, kv_cache_dtype="fp8_e4m3"), False),
    ],
)
def test_fp8_attention_that_loses_small_terms_is_warned_of(gpu: Gpu, wanted: PlanSettings, warned: bool) -> None:
    found = [f for f in check_plan(SCOUT, gpu, replace(wanted, tensor_parallel=2), host_gpus=2) if f.code == "short_fp8_sums"]
    assert [f.severity for f in found] == (["warn"] if warned else [])


@pytest.mark.parametrize(
    ("name", "gpu", "wanted"),
    [
        ("llama-4-scout", "h200", vllm("0.25.1", 131_072, block_size_tokens=128)),
        ("llama-3.1-70b", "h200", vllm("0.25.1", 131_072, block_size_tokens=144)),
        ("llama-4-scout", "h200", sglang("0.5.20", 131_072, block_size_tokens=128)),
        ("llama-4-scout", "h200", sglang("0.5.12.post1", 131_072, block_size_tokens=1)),
        ("llama-4-scout", "h200", sglang("0.5.12.post1", 131_072, block_size_tokens=128, attention_backend="triton")),
        ("llama-3.1-70b", "h200", sglang("0.5.12.post1", 131_072, block_size_tokens=128)),
        ("llama-4-scout", "cpu", vllm("0.28.0", 8192, tensor_parallel=1, block_size_tokens=16, available_kv_gib=40)),
        ("llama-4-scout", "cpu", vllm("0.32.0", 8192, tensor_parallel=1, block_size_tokens=64, available_kv_gib=40)),
    ],
)
def test_block_sizes_that_serve_pass(name: str, gpu: str, wanted: PlanSettings) -> None:
    assert "block_size" not in {f.code for f in check_plan(model(name), get_gpu(gpu), wanted)}


# ---- SGLang's fixed costs


def test_the_request_table_is_what_breaks_long_contexts() -> None:
    findings = {f.code: f for f in check_plan(SCOUT, H200, sglang("0.5.6.post2", cuda_graph_max_batch=0, context=8_388_608))}
    assert "request table 64.00 GiB" in findings["request_table"].found
    eight = plan_capacity(SCOUT, H200, sglang("0.5.6.post2", 8_388_608, cuda_graph_max_batch=0, max_num_seqs=8))
    assert f"{eight.fixed_costs_bytes / GIB:.2f}" == "0.25"
    assert "request_table" not in {f.code for f in eight.findings}


def test_graph_buffers_grow_with_the_context() -> None:
    plan = plan_capacity(SCOUT, H200, sglang("0.5.6.post2", 2_097_152, cuda_graph_max_batch=4, max_num_seqs=1))
    assert plan.fixed_costs_bytes == 4 * (2_097_152 + 4) + 2 * 4 * 2_097_152 * 4


def test_sglang_splits_by_architecture_not_by_attention() -> None:
    text_only = replace(SCOUT, architecture="Llama4ForCausalLM")
    split, uniform = (
        plan_capacity(m, H200, sglang(available_kv_gib=60, max_num_seqs=8, swa_full_tokens_ratio=0.02))
        for m in (SCOUT, text_only)
    )
    assert (split.hybrid_kv, uniform.hybrid_kv) == ("on", "off")
    assert split.kv_cache_tokens > 3.5 * uniform.kv_cache_tokens
    assert uniform.local_kv_tokens is None


def test_old_sglang_hybrid_does_not_lengthen_prompts() -> None:
    """Before 0.5.8 the whole prompt had to fit the local pool."""
    on = plan_capacity(SCOUT, H200, sglang("0.5.6.post2", available_kv_gib=60, hybrid_kv="on", max_num_seqs=8))
    assert on.local_kv_tokens is not None
    assert on.pool_ceiling_tokens <= on.local_kv_tokens < on.kv_cache_tokens


# ---- what check_plan refuses and warns


@pytest.mark.parametrize(
    ("gpu", "wanted", "host_gpus", "code"),
    [
        ("h200", vllm(tensor_parallel=16), 16, "tp_heads"),
        ("h200", vllm(tensor_parallel=8, context=131_072), 4, "host_gpus"),
        ("h200", vllm(context=10_485_761), 8, "positions"),
        ("a100", vllm(context=131_072, kv_cache_dtype="fp8"), 8, "kv_dtype"),
        ("h200", vllm(available_kv_gib=89.71), 8, "concurrency"),
        ("h200", sglang("0.5.6.post2", context=8_388_608), 8, "request_table"),
        ("l40s", vllm(context=131_072, tensor_parallel=1), 8, "no_kv_memory"),
    ],
)
def test_every_refusal_names_what_was_found_and_how_to_mend_it(gpu: str, wanted: PlanSettings, host_gpus: int, code: str) -> None:
    findings = {f.code: f for f in check_plan(SCOUT, get_gpu(gpu), wanted, host_gpus=host_gpus)}
    assert findings[code].severity == "refuse"
    assert all((findings[code].found, findings[code].required, findings[code].fix))
    assert not plan_capacity(SCOUT, get_gpu(gpu), wanted, host_gpus=host_gpus).fits


def test_a_sound_plan_has_no_findings() -> None:
    assert check_plan(SCOUT, H200, vllm("0.33.0", 2_097_152), host_gpus=8, ladder=[(1_000_000, 2)]) == ()


def test_the_ladder_and_the_wanted_concurrency_warn() -> None:
    wanted = vllm(available_kv_gib=89.71, hybrid_kv="on", concurrency=4)
    found = check_plan(SCOUT, H200, wanted, host_gpus=8, ladder=[(8_000_000, 2), (100_000, 50), (2_000_000, 7)])
    assert [(f.severity, f.code) for f in found] == [("warn", "concurrency_wanted"), ("warn", "ladder_over_capacity")]
    assert "2 requests of 8,000,000" in found[1].found


def test_a_release_outside_the_verified_range_warns() -> None:
    assert "unverified_release" in {f.code for f in check_plan(SCOUT, H200, vllm("0.40.0", 131_072))}


def test_nearest_plans_fit_and_are_sorted_by_effort() -> None:
    nearest = nearest_plans(SCOUT, H200, vllm(available_kv_gib=89.71), host_gpus=8)
    assert nearest[0][0] == "hybrid KV on"
    assert all(p.fits for _, p in nearest)
    assert nearest[-1][1].settings.context_tokens == 3_919_472
    sixteen = dict(nearest_plans(SCOUT, H200, vllm(tensor_parallel=16, hybrid_kv="on"), host_gpus=16))
    assert "TP8 x PP2 (16 GPUs)" in sixteen


def test_max_context_is_the_edge() -> None:
    longest = max_context(SCOUT, H200, vllm(available_kv_gib=89.71), host_gpus=8)
    assert requests_that_fit(plan_capacity(SCOUT, H200, vllm(context=longest, available_kv_gib=89.71)), longest) == 1
    longer = plan_capacity(SCOUT, H200, vllm(context=longest + 16, available_kv_gib=89.71))
    assert requests_that_fit(longer, longest + 16) == 0


# ---- the engine's own figures beside the plan


def test_a_model_that_the_engine_reads_otherwise_is_caught() -> None:
    """As if the engine had taken all 48 layers as full attention: a quarter of the tokens."""
    plan = plan_capacity(SCOUT, H200, vllm("0.25.1", 2_097_152, hybrid_kv="on"))
    theirs = EngineCapacity(kv_cache_tokens=3_000_000, max_concurrency=1.43, context_tokens=2_097_152, available_kv_gib=70.0)
    facts = compare_with_engine(plan, theirs)
    assert facts.exact
    assert facts.predicted["agrees"] is False
    assert facts.predicted["to_the_digit"] is False
    assert facts.drift is not None
    assert facts.drift < -0.7
    assert "blocks" in facts.predicted["sum"]
    assert "3,000,000 tokens" in facts.engine["sum"]


def test_without_the_engines_memory_the_comparison_is_not_exact() -> None:
    plan = plan_capacity(SCOUT, H200, vllm("0.25.1", 2_097_152))
    facts = compare_with_engine(plan, EngineCapacity(kv_cache_tokens=10_000_000))
    assert not facts.exact
    assert "to_the_digit" not in facts.predicted
    assert compare_with_engine(plan, EngineCapacity()).drift is None


def test_a_deployments_settings_become_a_plans() -> None:
    wanted = EngineSettings(
        model_path="/m",
        served_model_name="m",
        context_tokens=8192,
        device="cpu",
        cpu_kv_cache_gib=2,
        quantization="fp8",
        max_num_seqs=4,
    )
    found = settings_from_engine(wanted, "vllm", Version.parse("0.32.0"), concurrency=2)
    assert (found.available_kv_gib, found.weights_dtype, found.max_num_seqs, found.concurrency) == (2, "fp8", 4, 2)
    assert plan_capacity(model("smollm2-135m"), CPU, found).exact
    paged = EngineSettings(
        model_path="/m", served_model_name="m", context_tokens=8192, block_size_tokens=128, attention_backend="triton"
    )
    found = settings_from_engine(paged, "sglang", Version.parse("0.5.23"))
    assert (found.block_size_tokens, found.attention_backend) == (128, "triton")


# ---- nonsense


@pytest.mark.parametrize(
    "wrong",
    [
        {"context": 0},
        {"context": -1},
        {"tensor_parallel": 0},
        {"pipeline_parallel": -2},
        {"available_kv_gib": -1.0},
        {"available_kv_gib": float("nan")},
        {"gpu_memory_utilization": 1.5},
        {"max_num_batched_tokens": 0},
        {"kv_cache_dtype": "int3"},
        {"weights_dtype": "ternary"},
        {"swa_full_tokens_ratio": 0.0},
        {"concurrency": 0},
        {"block_size_tokens": 0},
    ],
)
def test_nonsense_is_one_line(wrong: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        plan_capacity(SCOUT, H200, vllm(**wrong))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "latest", "0.12.x", "v", "-1"])
def test_versions_that_are_none_are_one_line(text: str) -> None:
    with pytest.raises(UserError):
        Version.parse(text)


def test_a_cpu_plan_needs_the_kv_space() -> None:
    with pytest.raises(UserError, match="VLLM_CPU_KVCACHE_SPACE"):
        plan_capacity(SCOUT, CPU, vllm("0.32.0", 65_536, tensor_parallel=1))


# ---- what must always hold

ENGINES = st.sampled_from(
    [
        ("vllm", "0.12.0"),
        ("vllm", "0.18.0"),
        ("vllm", "0.33.0"),
        ("sglang", "0.5.6.post2"),
        ("sglang", "0.5.9"),
        ("sglang", "0.5.23"),
    ]
)
MODELS = st.sampled_from([model(n) for n in ("llama-4-scout", "llama-3.1-70b", "gemma-3-27b", "gpt-oss-120b", "mistral-7b-v0.1")])
HYBRID = st.sampled_from(["on", "off", "default"])


def _settings(engine: tuple[str, str], context: int, **changes: Any) -> PlanSettings:
    return PlanSettings(engine[0], Version.parse(engine[1]), context_tokens=context, **changes)


@settings(max_examples=150, deadline=None)
@given(ENGINES, MODELS, HYBRID, st.integers(1, 100_000), st.floats(0.5, 200), st.floats(0, 50))
def test_more_memory_never_lowers_capacity(
    engine: tuple[str, str], arch: ModelArchitecture, hybrid: Any, context: int, gib: float, more: float
) -> None:
    small, large = (
        plan_capacity(arch, H200, _settings(engine, context, hybrid_kv=hybrid, available_kv_gib=g)) for g in (gib, gib + more)
    )
    assert large.kv_cache_tokens >= small.kv_cache_tokens
    assert large.max_concurrency >= small.max_concurrency
    assert large.pool_ceiling_tokens >= small.pool_ceiling_tokens


@settings(max_examples=150, deadline=None)
@given(ENGINES, MODELS, HYBRID, st.integers(1, 5_000_000), st.integers(0, 5_000_000), st.floats(0.5, 200))
def test_longer_context_never_raises_concurrency(
    engine: tuple[str, str], arch: ModelArchitecture, hybrid: Any, context: int, more: int, gib: float
) -> None:
    short, long = (
        plan_capacity(arch, H200, _settings(engine, c, hybrid_kv=hybrid, available_kv_gib=gib, max_num_batched_tokens=8192))
        for c in (context, context + more)
    )
    assert long.max_concurrency <= short.max_concurrency


@settings(max_examples=100, deadline=None)
@given(MODELS, st.sampled_from([1, 2, 4, 8]), st.sampled_from(["bf16", "fp8"]))
def test_tensor_parallel_splits_add_up(arch: ModelArchitecture, tp: int, dtype: str) -> None:
    one, many = (
        plan_capacity(
            arch, H200, _settings(("vllm", "0.33.0"), 4096, tensor_parallel=t, kv_cache_dtype=dtype, available_kv_gib=40)
        )
        for t in (1, tp)
    )
    # Shards together hold the model once, plus what is replicated (routers, norms): never less, hardly more.
    assert one.weights_bytes <= many.weights_bytes * tp + tp
    assert many.weights_bytes * tp <= one.weights_bytes * 1.01
    assert many.kv_bytes_per_token_all_layers * tp == one.kv_bytes_per_token_all_layers


@settings(max_examples=60, deadline=None)
@given(ENGINES, MODELS, st.integers(1000, 100_000), st.floats(1, 200), st.integers(1, 20))
def test_requests_that_fit_is_what_their_need_says(
    engine: tuple[str, str], arch: ModelArchitecture, tokens: int, gib: float, at_once: int
) -> None:
    plan = plan_capacity(arch, H200, _settings(engine, 100_000, available_kv_gib=gib, hybrid_kv="off"))
    if requests_that_fit(plan, tokens) >= at_once:
        assert needed_kv_bytes(plan, tokens, at_once) <= plan.available_kv_bytes
