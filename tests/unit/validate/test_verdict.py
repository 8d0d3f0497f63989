"""Verdicts from evidence: what outweighs what, and what must never pass."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from longhaul.results import Physics, PointResult, RequestRecord, RequestStatus, RunResult, Stats, Verdict
from longhaul.validate.evidence import CacheFinding, Delta, cache_finding, traffic
from longhaul.validate.verdict import (
    Limits,
    PointEvidence,
    implausible_rates,
    judge_needles,
    judge_point,
    judge_regression,
    meets_slo,
)


def record(**changes: Any) -> RequestRecord:
    values: dict[str, Any] = {
        "point_id": "p", "index": 0, "repeat": 0, "warmup": False, "started_unix_s": 0.0, "status": RequestStatus.OK,
        "input_tokens": 10_000, "output_tokens": 3, "prompt_tokens": 10_000, "completion_tokens": 3, "cached_tokens": 0,
        "ttft_s": 1.0, "tpot_s": 0.1, "e2e_s": 1.2, "itl_s": (0.1, 0.1), "client_lag_s": 0.0,
    }  # fmt: skip
    return RequestRecord(**(values | changes))


def evidence(*records: RequestRecord, **changes: Any) -> PointEvidence:
    found = records or (record(),)
    moved = changes.pop("moved", Delta(
        prompt_tokens=float(sum(r.input_tokens for r in found)), generation_tokens=float(sum(r.output_tokens for r in found)),
        cache_hits_tokens=0.0,
    ))  # fmt: skip
    others = traffic(moved, found) if moved is not None else None
    cache = changes.pop("cache", cache_finding(found, moved, others))
    return PointEvidence(records=found, moved=moved, traffic=others, cache=cache, **changes)


def physics(ratio: float, share: float | None = None) -> Physics:
    return Physics(1.0, ratio, 0.4, 1e15, 1e15, "made up", explaining_cached_share=share)


def test_complete_evidence_passes_without_a_reason() -> None:
    assert judge_point(evidence(record(), record(index=1), physics=physics(2.5))) == (Verdict.PASS, ())


@pytest.mark.parametrize(("share", "matters"), [(0.95, "needles"), (0.1, None), (None, "needles")])
def test_repeated_text_counts_only_where_it_is_much_and_matters(share: float | None, matters: str | None) -> None:
    assert judge_point(evidence(distinct_share=share, repetition_matters=matters)) == (Verdict.PASS, ())


CASES = [
    (evidence(record(status=RequestStatus.TIMEOUT, error="stalled")), "FAIL", "request_failed"),
    (evidence(record(), moved=Delta(prompt_tokens=10_000, generation_tokens=3, cache_hits_tokens=0, restarted=True)), "FAIL", "server_restarted"),
    (evidence(record(prompt_tokens=9_999)), "INVALID", "token_error"),
    (evidence(record(completion_tokens=2)), "INVALID", "output_token_error"),
    (evidence(record(itl_s=(0.1,) * 30)), "INVALID", "output_token_error"),
    (evidence(record(cached_tokens=9_000)), "INVALID", "cached_prompt"),
    (evidence(physics=physics(0.99, 0.3)), "INVALID", "below_floor"),
    (evidence(record(prompt_tokens=None, cached_tokens=None)), "INCONCLUSIVE", "no_usage"),
    (evidence(moved=None), "INCONCLUSIVE", "no_metrics"),
    (evidence(distinct_share=0.83, repetition_matters="needles"), "INCONCLUSIVE", "repeated_text"),
    (evidence(record(cached_tokens=None), moved=Delta(prompt_tokens=10_000, generation_tokens=3)), "INCONCLUSIVE", "cache_unknown"),
    (evidence(moved=Delta(prompt_tokens=50_000, generation_tokens=3, cache_hits_tokens=0)), "INCONCLUSIVE", "foreign_traffic"),
    (evidence(moved=Delta(prompt_tokens=5_000, generation_tokens=3, cache_hits_tokens=0)), "INCONCLUSIVE", "counter_mismatch"),
    (evidence(foreign_running=1.0), "INCONCLUSIVE", "foreign_traffic"),
    (evidence(record(client_lag_s=0.3)), "INCONCLUSIVE", "client_lag"),
    (evidence(lag_share=0.5), "INCONCLUSIVE", "client_lag"),
    (evidence(record(), record(repeat=1, ttft_s=2.0)), "INCONCLUSIVE", "repeats_disagree"),
    (evidence(limits=Limits(ttft_s=0.9)), "FAIL", "slo_missed"),
    (evidence(limits=Limits(itl_s=0.05)), "FAIL", "slo_missed"),
]  # fmt: skip


@pytest.mark.parametrize(("given_evidence", "verdict", "code"), CASES, ids=[f"{c[2]}-{i}" for i, c in enumerate(CASES)])
def test_one_flaw_one_reason(given_evidence: PointEvidence, verdict: str, code: str) -> None:
    found, reasons = judge_point(given_evidence)
    assert (found.value, [r.code for r in reasons]) == (verdict, [code])
    assert all("\n" not in r.text and len(r.text) > 15 for r in reasons)


@given(st.lists(st.sampled_from(CASES), min_size=1, max_size=4))
def test_the_verdict_is_the_worst_reason_and_reasons_come_worst_first(cases: list[tuple[PointEvidence, str, str]]) -> None:
    records = tuple(r for case in cases for r in case[0].records)
    joined = replace(cases[0][0], records=records)
    verdict, reasons = judge_point(joined)
    order = [Verdict.FAIL, Verdict.INVALID, Verdict.INCONCLUSIVE]
    assert [order.index(r.verdict) for r in reasons] == sorted(order.index(r.verdict) for r in reasons)
    assert verdict is (reasons[0].verdict if reasons else Verdict.PASS)


@given(cached=st.integers(0, 10_000), hits=st.integers(0, 10_000), ratio=st.floats(0.01, 5), counted=st.integers(9_000, 11_000))
def test_a_flawed_cold_figure_never_passes(cached: int, hits: int, ratio: float, counted: int) -> None:
    moved = Delta(prompt_tokens=10_000, generation_tokens=3, cache_hits_tokens=float(hits))
    verdict, _ = judge_point(evidence(record(cached_tokens=cached, prompt_tokens=counted), moved=moved, physics=physics(ratio)))
    clean = cached <= 3 and hits <= 3 and ratio >= 1 and counted == 10_000
    assert (verdict is Verdict.PASS) is clean


def test_small_lag_against_a_long_prefill_is_no_matter() -> None:
    assert judge_point(evidence(record(client_lag_s=0.08)))[0] is Verdict.PASS
    assert judge_point(evidence(record(client_lag_s=0.08, ttft_s=0.1)))[0] is Verdict.INCONCLUSIVE


def test_warm_mode_is_not_held_against_the_cache_or_physics() -> None:
    warm = evidence(record(cached_tokens=9_984), physics=physics(0.01, 0.99), warm_mode=True)
    assert judge_point(warm)[0] is Verdict.PASS
    cold = evidence(record(), warm_mode=True)
    assert [r.code for r in judge_point(cold)[1]] == ["not_warm"]
    unknown = replace(warm, cache=CacheFinding("UNKNOWN", None, "nothing"))
    assert judge_point(unknown)[0] is Verdict.INCONCLUSIVE


def test_text_may_be_off_by_little_if_it_says_so() -> None:
    off = record(prompt_tokens=10_004)
    assert judge_point(evidence(off, exact_ids=False))[0] is Verdict.INCONCLUSIVE
    assert judge_point(evidence(off))[0] is Verdict.INVALID
    assert judge_point(evidence(record(prompt_tokens=10_400), exact_ids=False))[0] is Verdict.INVALID


def test_goodput_counts_a_request_that_meets_every_limit() -> None:
    limits = Limits(ttft_s=1.0, tpot_s=0.1, itl_s=0.2, e2e_s=2)
    assert meets_slo(record(), limits)
    assert not meets_slo(record(itl_s=(0.1, 0.3)), limits)
    assert not meets_slo(record(status=RequestStatus.HTTP_ERROR), Limits())


def test_needle_recall() -> None:
    assert judge_needles(0.8, 0.8, True) == ()
    assert judge_needles(0.79, 0.8, True)[0].verdict is Verdict.FAIL
    assert judge_needles(None, 0.8, True)[0].verdict is Verdict.INCONCLUSIVE
    assert judge_needles(None, 0.8, False) == ()


def stats_of(p50: float, spread: float, n: int) -> Stats:
    return Stats(n, p50, p50 - spread, p50, p50 + spread, p50 + spread, p50 + spread)


def point(point_id: str, tokens: int, ttft: Stats, verdict: Verdict = Verdict.PASS) -> PointResult:
    return PointResult(point_id, tokens, 5, 1, verdict, ttft_s=ttft)


def baseline(*points: PointResult) -> RunResult:
    return RunResult("then", "h", "u", "vllm", "1", "m", 0, 1, Verdict.PASS, (), points)


@pytest.mark.parametrize(
    ("now", "then", "worse"),
    [
        pytest.param(stats_of(1.04, 0, 1), stats_of(1.0, 0, 1), False, id="four per cent of single values"),
        pytest.param(stats_of(1.2, 0.01, 10), stats_of(1.0, 0.01, 10), True, id="twenty per cent, quiet"),
        pytest.param(stats_of(1.2, 0.9, 10), stats_of(1.0, 0.01, 10), False, id="now is noisy"),
        pytest.param(stats_of(1.2, 0.01, 10), stats_of(1.0, 0.9, 10), False, id="then was noisy"),
        pytest.param(stats_of(0.5, 0.01, 10), stats_of(1.0, 0.01, 10), False, id="faster"),
    ],
)
def test_regression_considers_the_noise_of_both(now: Stats, then: Stats, worse: bool) -> None:
    reasons = judge_regression([point("a", 1000, now)], baseline(point("a", 1000, then)))
    assert [r.code for r in reasons] == (["regression"] if worse else [])


def test_six_per_cent_of_single_values_is_not_judged_and_says_so() -> None:
    (reason,) = judge_regression([point("a", 1000, stats_of(1.06, 0, 1))], baseline(point("a", 1000, stats_of(1.0, 0, 1))))
    assert (reason.verdict, reason.code) == (Verdict.INCONCLUSIVE, "regression")
    assert "+6%, not judged: one request; measure both with more repeats" in reason.text


def test_an_invalid_baseline_is_never_compared_with() -> None:
    reasons = judge_regression(
        [point("a", 1000, stats_of(9, 0, 1))], baseline(point("a", 1000, stats_of(1, 0, 1), Verdict.INVALID))
    )
    assert [(r.verdict, r.code) for r in reasons] == [(Verdict.INCONCLUSIVE, "regression")]


def test_a_long_prompt_quicker_than_a_short_one_is_implausible_even_without_a_known_floor() -> None:
    honest = [point("a", 10_000, stats_of(0.95, 0, 1)), point("b", 100_000, stats_of(3.87, 0, 1))]
    cached = point("c", 2_096_900, stats_of(1.1, 0, 1))
    assert implausible_rates(honest) == {}
    assert set(implausible_rates([*honest, cached])) == {"c"}
