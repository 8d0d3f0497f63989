"""Plans of any engine: what is refused, warned of and proposed, and what must always hold."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from longhaul.capacity.drift import compare_with_engine
from longhaul.capacity.gate import settings_from_engine
from longhaul.capacity.plan import check_plan, needed_kv_bytes, plan_capacity, requests_that_fit
from longhaul.capacity.search import max_context, nearest_plans
from longhaul.engines.base import EngineCapacity
from longhaul.engines.registry import get_engine
from longhaul.engines.settings import EngineSettings
from longhaul.engines.sizing import PlanSettings
from longhaul.errors import UserError
from longhaul.models.architecture import ModelArchitecture
from longhaul.physics.hardware import get_gpu
from longhaul.version import Version
from unit.capacity.plans import CPU, H200, SCOUT, model, sglang, vllm

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
