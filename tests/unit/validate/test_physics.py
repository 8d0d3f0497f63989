"""Floors of whole runs: a peak that was only timed is timed again before it condemns a point."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from longhaul.physics import roofline
from longhaul.physics.hardware import Gpu
from longhaul.results import RequestRecord, RequestStatus, RunResult, Verdict
from longhaul.validate.config import Point
from longhaul.validate.physics import Floors, measured_physics
from unit.validate.runs import ARCHITECTURE, HONEST, SLOW_GPU


def test_a_calibrated_floor_is_timed_again_before_it_condemns(
    tmp_path: Path, run: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = [1e12, 8e12]  # the first time the host was busy: its floor would be 1.1 s

    def calibrate(python: str | None) -> Gpu:
        return replace(SLOW_GPU, vendor="cpu", peak_flop_per_s={"bf16": peaks.pop(0)})

    monkeypatch.setattr(roofline, "calibrate_cpu", calibrate)
    result = run(HONEST, tmp_path, architecture=ARCHITECTURE, calibrate=True)
    assert result.verdict is Verdict.PASS, result.reasons
    assert not peaks


def record(ttft_s: float, repeat: int = 0) -> RequestRecord:
    return RequestRecord("p", 0, repeat, False, 0.0, RequestStatus.OK, 4000, 8, ttft_s=ttft_s)


def test_the_tighter_of_both_bounds_counts() -> None:
    """The quickest request is held against one prompt, the last of a full round against all prompts of the round."""
    floors = Floors(ARCHITECTURE, SLOW_GPU, 1, None, "auto")
    lone, together = floors.prefill(4000), floors.prefill(4000, 3)
    assert together.floor_s > 2 * lone.floor_s
    honest = [record(lone.floor_s * n) for n in (1.5, 3.0, 4.5)]
    found = measured_physics(floors, Point(4000, 8, 3), honest)
    assert found is not None
    assert found.ratio == pytest.approx(min(1.5, 4.5 * lone.floor_s / together.floor_s))
    assert found.explaining_cached_share is None
    quick = [record(lone.floor_s * 1.1) for _ in range(3)]
    caught = measured_physics(floors, Point(4000, 8, 3), quick)
    assert caught is not None
    assert caught.floor_s == together.floor_s
    assert caught.ratio < 0.5
    assert (caught.explaining_cached_share or 0) > 0.4


def test_a_round_that_lost_a_request_is_held_against_one_prompt_only() -> None:
    floors = Floors(ARCHITECTURE, SLOW_GPU, 1, None, "auto")
    lone = floors.prefill(4000)
    found = measured_physics(floors, Point(4000, 8, 3), [record(lone.floor_s * 1.1), record(lone.floor_s * 1.2)])
    assert found is not None
    assert found.floor_s == lone.floor_s
    assert found.ratio == pytest.approx(1.1)
    assert measured_physics(floors, Point(4000, 8, 3), []) is None
