"""Counters and cached tokens: what proves a prompt cold, warm, or nothing."""

from __future__ import annotations

from typing import Any

import pytest
from longhaul.results import Counters, RequestRecord, RequestStatus
from longhaul.validate.evidence import (
    CacheFinding,
    Delta,
    cache_finding,
    delta,
    traffic,
)


def test_a_falling_counter_is_a_restart() -> None:
    moved = delta(Counters(1, prompt_tokens=500, generation_tokens=5), Counters(2, prompt_tokens=10, generation_tokens=6))
    assert moved is not None
    assert moved.restarted


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
