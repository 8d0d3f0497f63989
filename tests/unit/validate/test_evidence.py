"""Counters and cached tokens: what proves a prompt cold, warm, or nothing."""

from __future__ import annotations

from typing import Any

import pytest
from longhaul.engines.registry import get_engine
from longhaul.results import Counters, RequestRecord, RequestStatus
from longhaul.validate.evidence import (
    CacheFinding,
    Delta,
    cache_finding,
    delta,
    has_counters,
    parse_counters,
    parse_loads,
    parse_models,
    traffic,
)

VLLM_PAGE = b"""# HELP vllm:prompt_tokens_total Number of prefill tokens processed.
# TYPE vllm:prompt_tokens_total counter
vllm:prompt_tokens_total{engine="0",model_name="m"} 1000.0
vllm:prompt_tokens_total{engine="1",model_name="m"} 2.5e+02
vllm:prompt_tokens_total_created{engine="0"} 1.7e+09
vllm:generation_tokens_total{engine="0",model_name="m with } and space"} 40.0
vllm:prefix_cache_queries_total{engine="0"} 1250.0
vllm:prefix_cache_hits_total{engine="0"} 32.0
vllm:kv_cache_usage_perc{engine="0"} 0.25
vllm:kv_cache_usage_perc{engine="1"} 0.75
vllm:num_requests_running{engine="0"} NaN
vllm:request_success_total{finished_reason="stop"} 1.0
vllm:request_success_total{finished_reason="length"} 2.0
"""


def test_series_are_summed_and_kv_use_is_the_fullest_engine() -> None:
    found = parse_counters(VLLM_PAGE, get_engine("vllm").metrics, unix_s=1.0)
    assert found.prompt_tokens == 1250.0
    assert found.generation_tokens == 40.0
    assert found.cache_hits_tokens == 32.0
    assert found.kv_usage == 0.75
    assert found.requests_finished == 3.0
    assert found.running is None, "NaN is no value"
    assert found.waiting is None


def test_a_page_without_counters_proves_nothing() -> None:
    assert delta(parse_counters(b"<html>", get_engine("vllm").metrics), Counters(1.0, prompt_tokens=1)) is None


def test_a_falling_counter_is_a_restart() -> None:
    moved = delta(Counters(1, prompt_tokens=500, generation_tokens=5), Counters(2, prompt_tokens=10, generation_tokens=6))
    assert moved is not None
    assert moved.restarted


def test_sglang_shows_its_counter_of_cached_tokens_only_after_the_first_hit() -> None:
    cold = b'sglang:prompt_tokens_total{model_name="m"} 5000.0\nsglang:generation_tokens_total{model_name="m"} 8.0\n'
    hit = cold + b'sglang:cached_tokens_total{cache_source="device",model_name="m"} 4000.0\n'
    names = get_engine("sglang").metrics
    assert parse_counters(cold, names).cache_hits_tokens == 0.0
    moved = delta(parse_counters(cold, names), parse_counters(hit, names))
    assert moved is not None
    assert moved.cache_hits_tokens == 4000.0
    assert parse_counters(b"other 1.0\n", names).cache_hits_tokens is None, "a page of something else proves nothing"


NEW_LOADS = {"loads": [{"num_running_reqs": 3, "num_waiting_reqs": 1, "num_used_tokens": 500, "max_total_num_tokens": 1000}]}
OLD_LOADS = [{"dp_rank": 0, "num_reqs": 4, "num_waiting_reqs": 1, "num_tokens": 500}]


@pytest.mark.parametrize("answer", [NEW_LOADS, OLD_LOADS], ids=["v1/loads", "get_load"])
def test_sglangs_load_in_both_shapes(answer: Any) -> None:
    found = parse_loads(answer, pool_tokens=1000)
    assert found is not None
    assert (found.running, found.waiting, found.kv_usage) == (3.0, 1.0, 0.5)
    assert not has_counters(found), "gauges prove no coldness"


def test_load_of_several_ranks_is_summed_and_the_fullest_pool_counts() -> None:
    second = {"num_running_reqs": 1, "num_waiting_reqs": 0, "num_used_tokens": 900, "max_total_num_tokens": 1000}
    found = parse_loads({"loads": [*NEW_LOADS["loads"], second]})
    assert found is not None
    assert (found.running, found.waiting, found.kv_usage) == (4.0, 1.0, 0.9)


@pytest.mark.parametrize("answer", [None, [], {"loads": []}, {"loads": [{"x": 1}]}, [7], {"error": "no"}, [{"num_reqs": True}]])
def test_a_load_that_cannot_be_read_says_nothing(answer: Any) -> None:
    assert parse_loads(answer) is None


def test_models_answer_of_any_shape() -> None:
    card = {"id": "m", "max_model_len": 8192}
    assert parse_models({"data": [card, {"id": "lora"}, {"no": 1}]}) == [("m", 8192), ("lora", None)]
    assert parse_models("nonsense") == []


def record(**changes: Any) -> RequestRecord:
    values: dict[str, Any] = {
        "point_id": "p", "index": 0, "repeat": 0, "warmup": False, "started_unix_s": 0.0, "status": RequestStatus.OK,
        "input_tokens": 10_000, "output_tokens": 20, "prompt_tokens": 10_000, "completion_tokens": 20, "ttft_s": 1.0,
    }  # fmt: skip
    return RequestRecord(**(values | changes))


@pytest.mark.parametrize(
    ("cached", "hits", "state", "share"),
    [
        pytest.param(0, 0, "COLD", 0.0, id="both say cold"),
        pytest.param(None, 0, "COLD", 0.0, id="usage silent, counters cold"),
        pytest.param(0, None, "COLD", 0.0, id="no counters, usage cold"),
        pytest.param(None, None, "UNKNOWN", None, id="nobody says anything"),
        pytest.param(9984, 9984, "WARM", 0.9984, id="both say warm"),
        pytest.param(0, 5000, "WARM", 0.5, id="usage denies, counters tell"),
        pytest.param(5000, 0, "WARM", 0.5, id="counters deny, usage tells"),
        pytest.param(2, 2, "COLD", 0.0002, id="a BOS token shared by chance"),
        pytest.param(16, 16, "WARM", 0.0016, id="one block"),
    ],
)
def test_cache_state(cached: int | None, hits: float | None, state: str, share: float | None) -> None:
    moved = Delta(prompt_tokens=10_000, generation_tokens=20, cache_hits_tokens=hits)
    records = [record(cached_tokens=cached)]
    found = cache_finding(records, moved, traffic(moved, records))
    assert found.state == state
    assert found.share == (pytest.approx(share) if share is not None else None)


def test_a_chat_templates_head_may_be_cached() -> None:
    moved = Delta(prompt_tokens=10_000, cache_hits_tokens=12)
    records = [record(cached_tokens=12, shared_prefix_tokens=12)]
    assert cache_finding(records, moved, None).state == "COLD"
    assert cache_finding([record(cached_tokens=12)], moved, None).state == "WARM"


def test_hits_that_others_may_have_caused_are_not_ours() -> None:
    moved = Delta(prompt_tokens=30_000, generation_tokens=500, cache_hits_tokens=9_000)
    records = [record(cached_tokens=0)]
    others = traffic(moved, records)
    assert others.foreign
    found = cache_finding(records, moved, others)
    assert (found.state, found.share) == ("UNKNOWN", pytest.approx(0.9))


@pytest.mark.parametrize(
    ("prompt", "output", "foreign"),
    [(10_000, 20, False), (10_001, 21, False), (10_032, 28, False), (10_200, 20, True), (10_000, 60, True), (9_000, 20, False)],
)
def test_foreign_traffic(prompt: float, output: float, foreign: bool) -> None:
    assert traffic(Delta(prompt_tokens=prompt, generation_tokens=output), [record()]).foreign is foreign


def test_a_failed_request_never_makes_traffic_foreign() -> None:
    records = [record(), record(status=RequestStatus.TIMEOUT)]
    for counted in (10_000.0, 20_000.0):
        assert not traffic(Delta(prompt_tokens=counted, generation_tokens=20), records).foreign


def test_no_completed_request_is_unknown() -> None:
    failed = [record(status=RequestStatus.HTTP_ERROR)]
    assert cache_finding(failed, None, None) == CacheFinding("UNKNOWN", None, "no completed request")


def test_a_server_without_a_prefix_cache_is_cold_only_where_nothing_else_tells() -> None:
    silent = [record(cached_tokens=None)]
    assert cache_finding(silent, None, None, cache_off=True).state == "COLD"
    assert "cache is off" in cache_finding(silent, None, None, cache_off=True).source
    assert cache_finding([record(cached_tokens=9000)], None, None, cache_off=True).state == "WARM", "what was seen beats settings"
