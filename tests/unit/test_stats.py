"""Order statistics and noise: properties that hold for any data, and the figures a report rests on."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from longhaul.results import Stats
from longhaul.stats import (
    Difference,
    difference,
    disagreement,
    high_noise,
    low_noise,
    percentile,
    share_noise,
    student_t,
    summarize,
)

values = st.lists(st.floats(1e-6, 1e6), min_size=1, max_size=50)


@given(values)
def test_order_is_kept(found: list[float]) -> None:
    stats = summarize(found)
    assert stats is not None
    assert stats.min <= stats.p50 <= stats.p90 <= stats.p99 <= stats.max
    assert stats.n == len(found)
    assert stats.p50 == pytest.approx(statistics.median(found))


@given(values, st.floats(0, 1))
def test_percentile_is_the_inclusive_quantile(found: list[float], q: float) -> None:
    ordered = sorted(found)
    assert ordered[0] <= percentile(ordered, q) <= ordered[-1] * (1 + 1e-12)


def test_missing_values_are_left_out_not_counted_as_zero() -> None:
    stats = summarize([None, 2.0, None, 4.0])
    assert stats is not None
    assert (stats.n, stats.min, stats.mean) == (2, 2.0, 3.0)
    assert summarize([None]) is None


def test_disagreement_of_repeats() -> None:
    assert disagreement([1.0]) is None
    assert disagreement([1.0, 1.0, 2.0]) == pytest.approx(1.0)


def stats_of(p50: float, spread: float, n: int) -> Stats:
    return Stats(n, p50, p50 - spread, p50, p50 + spread, p50 + spread, p50 + spread)


def test_noise_grows_with_the_spread_of_either_side() -> None:
    quiet, loud = stats_of(1.0, 0.01, 20), stats_of(1.0, 0.8, 20)
    assert low_noise(quiet, quiet) == 0.05
    assert low_noise(quiet, loud) == low_noise(loud, quiet) > 0.2
    found = difference(quiet, stats_of(1.2, 0.01, 20))
    assert found is not None
    assert found.relative == pytest.approx(0.2)


def test_more_values_mean_less_noise() -> None:
    few, many = stats_of(1, 0.5, 10), stats_of(1, 0.5, 1000)
    assert low_noise(few, few) > low_noise(many, many)
    assert (high_noise(few, few) or 0) > (high_noise(many, many) or 0)


def judged(first: Stats, second: Stats, concurrency: int = 1) -> tuple[bool | None, str]:
    found = difference(first, second, concurrency)
    assert isinstance(found, Difference)
    return found.beyond, found.note


@pytest.mark.parametrize("factor", [1.06, 3, 0.5])
def test_one_value_on_a_side_tells_no_noise_and_is_not_judged(factor: float) -> None:
    one, many = stats_of(1.0, 0, 1), stats_of(factor, 0.001, 20)
    assert judged(one, stats_of(factor, 0, 1)) == judged(one, many) == (None, "not judged: one request")
    assert judged(many, one)[0] is None
    assert high_noise(one, many) is None


@pytest.mark.parametrize(
    ("factor", "spread", "n", "concurrency", "beyond"),
    [
        pytest.param(1.04, 0, 1, 1, False, id="four per cent of single values: runs never meet exactly"),
        pytest.param(1.04, 0.001, 5, 1, True, id="four per cent, very quiet"),
        pytest.param(1.06, 0.01, 2, 1, None, id="six per cent of two values each, quiet"),
        pytest.param(1.06, 0.01, 12, 1, True, id="six per cent of twelve"),
        pytest.param(1.06, 0.01, 12, 8, None, id="six per cent of requests that share batches"),
        pytest.param(1.12, 0.01, 12, 8, True, id="twelve per cent of them"),
        pytest.param(1.06, 0.3, 12, 1, False, id="six per cent, loud"),
    ],
)
def test_a_difference_is_beyond_noise_within_it_or_not_judged(
    factor: float, spread: float, n: int, concurrency: int, beyond: bool | None
) -> None:
    then, now = stats_of(1.0, spread, n), stats_of(factor, spread, n)
    assert judged(then, now, concurrency)[0] is beyond
    assert bool(judged(then, now, concurrency)[1]) is (beyond is None), "what is not judged says why"


def test_figures_that_are_no_numbers_give_no_difference() -> None:
    good, bad = stats_of(1.0, 0.1, 5), stats_of(float("nan"), 0.1, 5)
    assert difference(good, bad) is difference(bad, good) is difference(stats_of(0.0, 0, 5), good) is None


def test_noise_of_two_shares() -> None:
    assert share_noise(1.0, 10, 1.0, 10) == 0.0
    assert share_noise(0.5, 50, 0.5, 50) == pytest.approx(1.96 * 0.1)
    assert share_noise(0.9, 10, 0.8, 10) > share_noise(0.9, 100, 0.8, 100)


def test_students_t_is_rounded_up() -> None:
    assert [student_t(degrees) for degrees in (1, 2, 11, 12, 1000)] == [12.706, 4.303, 2.228, 2.179, 1.980]
