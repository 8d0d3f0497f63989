"""What SGLang tells of itself beside its metrics."""

from __future__ import annotations

from typing import Any

import pytest
from longhaul.engines.base import ServerInfo
from longhaul.engines.metrics import has_counters, parse_counters
from longhaul.engines.registry import get_engine
from longhaul.engines.sglang.adapter import parse_info, parse_loads


def test_sglang_shows_its_counter_of_cached_tokens_only_after_the_first_hit() -> None:
    cold = b'sglang:prompt_tokens_total{model_name="m"} 5000.0\nsglang:generation_tokens_total{model_name="m"} 8.0\n'
    hit = cold + b'sglang:cached_tokens_total{cache_source="device",model_name="m"} 4000.0\n'
    names = get_engine("sglang").metrics
    assert parse_counters(cold, names).cache_hits_tokens == 0.0
    assert parse_counters(hit, names).cache_hits_tokens == 4000.0
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


def test_the_server_tells_its_version_its_pool_and_whether_it_can_cache() -> None:
    told = {"version": "0.5.23", "max_total_num_tokens": 4096, "disable_radix_cache": True}
    assert parse_info({**told, "tp_size": 8, "enable_metrics": None}) == ServerInfo("0.5.23", 4096, True, told)
    assert not parse_info({"disable_radix_cache": False}).prefix_cache_off


@pytest.mark.parametrize("answer", [None, [], "no", {"version": None, "max_total_num_tokens": None}])
def test_a_server_that_tells_nothing(answer: Any) -> None:
    assert parse_info(answer) == ServerInfo()
