"""SGLang's sums: the measured figures, and the engine's own functions release by release."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
from longhaul.capacity.plan import check_plan, plan_capacity
from longhaul.engines.sglang.rules import FLIPS, sglang_rules
from longhaul.engines.sizing import PlanSettings
from longhaul.physics.hardware import GIB, Gpu, get_gpu
from longhaul.version import Version
from support.paths import CONFIGS
from unit.capacity.plans import H200, SCOUT, model, sglang, vllm

SGLANG_FIGURES = json.loads((CONFIGS / "engine_figures" / "sglang.json").read_text(encoding="utf-8"))


def test_the_sglang_run_splits_its_pool_as_measured() -> None:
    """0.5.12.post1, TP2, ratio 0.05: full 2,656,945 and local 132,847 tokens; 69.93 GiB is what those take."""
    wanted = sglang("0.5.12.post1", 1_048_576, tensor_parallel=2, swa_full_tokens_ratio=0.05, max_num_seqs=4)
    taken = 2048 * (12 * 2_656_945 + 36 * 132_847) / GIB
    plan = plan_capacity(SCOUT, H200, replace(wanted, weights_dtype="fp8", available_kv_gib=taken))
    assert plan.kv_cache_tokens == pytest.approx(2_656_945, abs=2)
    assert plan.local_kv_tokens == int(plan.kv_cache_tokens * 0.05)


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


def test_rules_change_at_the_release_that_the_row_names() -> None:
    sums = [sglang_rules(Version.parse(v)).split_sum for v in ("0.5.8", "0.5.9", "0.5.10", "0.5.11")]
    assert sums == ["layers", "bytes", "bytes", "direct"]
    assert all(".py" in flip.source for flip in FLIPS)
