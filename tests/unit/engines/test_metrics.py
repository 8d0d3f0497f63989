"""Counters, served models and versions, from answers of any shape."""

from __future__ import annotations

from typing import Any

import pytest
from longhaul.engines.base import ServerInfo
from longhaul.engines.metrics import has_counters, parse_counters, parse_models
from longhaul.engines.registry import get_engine

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
    assert not has_counters(parse_counters(b"<html>", get_engine("vllm").metrics))


def test_models_answer_of_any_shape() -> None:
    card = {"id": "m", "max_model_len": 8192}
    assert parse_models({"data": [card, {"id": "lora"}, {"no": 1}]}) == [("m", 8192), ("lora", None)]
    assert parse_models("nonsense") == []


@pytest.mark.parametrize(("answer", "found"), [({"version": "0.32.0"}, "0.32.0"), ({}, None), (["0.32.0"], None), (None, None)])
def test_a_version_is_read_where_there_is_one(answer: Any, found: str | None) -> None:
    assert get_engine("vllm").parse_info(answer) == (ServerInfo(found, details={"version": found}) if found else ServerInfo())
