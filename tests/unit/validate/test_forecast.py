"""Forecasts: every time-out follows from one, so it must grow with the work and learn from what was measured."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from longhaul.validate.forecast import Forecaster, Measured

sizes = st.integers(1, 10_485_760)


@given(sizes, sizes, st.integers(1, 200))
def test_more_work_never_gets_less_time(a: int, b: int, concurrency: int) -> None:
    small, large = sorted((a, b))
    for forecaster in (Forecaster(), Forecaster(peak_per_s=1e6), Forecaster().learn(Measured(5000, 2.0, 0.05))):
        first = forecaster.deadlines(small, 10, concurrency, floor_s=30)
        second = forecaster.deadlines(large, 10, concurrency, floor_s=30)
        assert first.first_token_s <= second.first_token_s * (1 + 1e-9)
        assert second.total_s >= second.first_token_s >= forecaster.expect(large, 10, concurrency, 1).last_ttft_s


def test_a_measured_point_replaces_the_assumption() -> None:
    forecaster = Forecaster()
    assert forecaster.ttft_s(10_000)[1] == "assumed"
    learned = forecaster.learn(Measured(10_000, 0.5, 0.01))
    assert learned.ttft_s(10_000) == (pytest.approx(0.5), "measured")
    assert learned.tpot_s() == 0.01


def test_the_published_ladder_is_forecast_within_a_factor_of_two() -> None:
    """From the 500K point to the 2.1M one of measurements: 40.8 s -> 520 s (vLLM, 2 x H200), by FLOP."""

    def flop(n: int) -> float:
        return 2 * 17e9 * n + 12 * 2 * n * n * 5120

    seconds, _ = Forecaster(flop).learn(Measured(500_000, 40.8)).ttft_s(2_096_900)
    assert 520 / 2 < seconds < 520 * 2


def test_known_hardware_forecasts_decode_from_its_bandwidth() -> None:
    assert Forecaster(decode_floor_s=0.003).tpot_s() == pytest.approx(0.015)
    assert Forecaster(decode_floor_s=0.003).learn(Measured(1000, 1.0, 0.02)).tpot_s() == 0.02


def test_concurrent_prompts_wait_for_one_another() -> None:
    forecaster = Forecaster().learn(Measured(10_000, 2.0, 0.01))
    assert forecaster.expect(10_000, 100, 50, 1).last_ttft_s == pytest.approx(100.0)
    assert forecaster.expect(10_000, 100, 50, 3).total_s == pytest.approx(3 * (100 + 0.99))
