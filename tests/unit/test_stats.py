"""Order statistics and noise: properties that hold for any data, and the figures a report rests on."""

from __future__ import annotations

import statistics

import pytest
from hypothesis import given
from hypothesis import strategies as st
from longhaul.results import Stats
from longhaul.stats import change, disagreement, noise, percentile, summarize

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
    assert noise(quiet, quiet) == 0.05
    assert noise(quiet, loud) == noise(loud, quiet) > 0.2
    assert change(stats_of(1.2, 0.01, 20), quiet) == pytest.approx(0.2)


def test_more_values_mean_less_noise() -> None:
    assert noise(stats_of(1, 0.5, 10), stats_of(1, 0.5, 10)) > noise(stats_of(1, 0.5, 1000), stats_of(1, 0.5, 1000))
