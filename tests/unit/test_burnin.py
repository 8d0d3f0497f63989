"""Burn-in: samples of nvidia-smi, limits, and what does not apply without a GPU."""

from __future__ import annotations

import pytest
from longhaul.burnin import judge, limits_from, parse_samples
from longhaul.errors import UserError
from longhaul.results import GpuLoad, RunResult, Verdict


def run_result() -> RunResult:
    """A ladder that passed, without points or capacity."""
    return RunResult("r", "h", "http://h", "vllm", "1", "m", 0.0, 1.0, Verdict.PASS, (), ())


def test_idle_samples_do_not_count_as_load() -> None:
    text = "0, 345, 1980, 80.1, 30, 0\n0, 1965, 1980, 581.0, 47, 100\n0, 1905, 1980, 600.5, 52, 100\n0, 1935, 1980, [N/A]"
    (load,) = parse_samples(text)
    assert (load.samples, load.loaded_samples) == (3, 2)
    assert load.sm_clock_mhz == 1965
    assert (load.power_w_max, load.temperature_c_max) == (600.5, 52)


def test_a_throttled_gpu_fails_and_no_gpu_is_not_applicable() -> None:
    slow = GpuLoad(0, 10, 8, 900.0, 1980.0, 300.0, 91.0)
    verdict, checks = judge(
        run_result(), loads=[slow], before=None, after=None, allreduce=None, limits=limits_from({}), on_gpu=True
    )
    assert verdict is Verdict.FAIL
    assert {c.name for c in checks if c.verdict is Verdict.FAIL} == {"clocks", "temperature"}
    _, checks = judge(run_result(), loads=(), before=None, after=None, allreduce=None, limits=limits_from({}), on_gpu=False)
    assert {c.name for c in checks if c.verdict is None} == {
        "roofline",
        "clocks",
        "temperature",
        "throttling",
        "ECC",
        "all-reduce",
    }


def test_a_wrong_limit_is_named() -> None:
    with pytest.raises(UserError, match="least_mfu"):
        limits_from({"least_mfu": "fast"})
