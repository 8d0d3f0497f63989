"""The plan of a run: what is expected, what the budget leaves out, and what a measurement teaches."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from longhaul.results import RequestRecord, RequestStatus
from longhaul.validate.config import NeedleSettings, Point
from longhaul.validate.forecast import Forecaster, Measured, Schedule, show_plan
from longhaul.validate.progress import Progress, Reporter, duration
from unit.validate.runs import config

MEASURED = Forecaster(measured=(Measured(1000, 2.0, 0.1),))


def schedule(forecaster: Forecaster = MEASURED, kv_cache_tokens: int | None = 10_000, **changes: Any) -> Schedule:
    return Schedule(config("http://127.0.0.1:1", Path("unused"), **changes), forecaster, kv_cache_tokens)


def record(**changes: Any) -> RequestRecord:
    values: dict[str, Any] = {
        "point_id": "p", "index": 0, "repeat": 0, "warmup": False, "started_unix_s": 0.0, "status": RequestStatus.OK,
        "input_tokens": 1000, "output_tokens": 11, "ttft_s": 4.0, "tpot_s": 0.2,
    }  # fmt: skip
    return RequestRecord(**(values | changes))


def test_a_point_over_the_budget_says_what_it_needs_and_what_is_left() -> None:
    point = Point(1000, 11)  # 2 s to the first token, then ten of 0.1 s
    assert schedule(budget_s=None).over_budget(point, 1e9) is None
    assert schedule(budget_s=10.0).over_budget(point, 6.9) is None
    assert schedule(budget_s=10.0).over_budget(point, 7.5) == "needs about 3.0 s; 2.5 s of the budget of 10 s are left"


@pytest.mark.parametrize(
    ("size", "concurrency", "fits", "queued"),
    [(10_000, 50, 299, 0), (100_000, 50, 30, 20), (2_097_152, 50, 1, 49), (4_000_000, 2, 0, 2)],
)
def test_fifty_at_once(size: int, concurrency: int, fits: int, queued: int) -> None:
    assert schedule(kv_cache_tokens=3_055_834).fits(Point(size, 200, concurrency)) == (fits, queued)


def test_an_unknown_pool_is_not_guessed() -> None:
    assert schedule(kv_cache_tokens=None).fits(Point(10_000, 200, 50)) == (None, None)


def test_nothing_is_skipped_on_an_assumption() -> None:
    guess = schedule(Forecaster(), budget_s=1.0)
    assert guess.over_budget(Point(1_000_000, 8), 0.5) is None
    assert guess.total_s([Point(1000, 8)]) is None
    assert guess.about(Point(1000, 8)) == "time unknown until a first prompt is measured"


def test_warm_mode_expects_every_prompt_twice() -> None:
    assert schedule(mode="warm").expect(Point(1000, 11)).total_s == pytest.approx(2 * 3.0)


def test_a_burst_teaches_the_time_of_one_prefill() -> None:
    plan = schedule(Forecaster())
    plan.learn(Point(1000, 11, 4), [record(ttft_s=float(n)) for n in (1, 2, 3, 4)])
    assert plan.expect(Point(1000, 11)).ttft_s == 1.0


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({}, record(cached_tokens=500)),
        ({}, record(status=RequestStatus.TIMEOUT)),
        ({"mode": "warm"}, record()),
    ],
)
def test_a_cached_or_failed_request_teaches_nothing(changes: dict[str, Any], told: RequestRecord) -> None:
    plan = schedule(Forecaster(), **changes)
    plan.learn(Point(1000, 11), [told])
    assert plan.expect(Point(1000, 11)).basis == "assumed"


def test_the_plan_names_every_point_and_the_whole() -> None:
    steps: list[Progress] = []
    made = config("http://127.0.0.1:1", Path("unused"), points=(Point(1000, 11), Point(4000, 11, 5)), budget_s=60.0)
    show_plan(made, Schedule(made, MEASURED, 10_000), Reporter(steps.append), "no physical floor: the hardware is not known")
    assert [s.stage for s in steps] == ["plan"] * 4
    assert steps[0].message == "1,000 in, 11 out, 1 in flight, 1x: about 3.0 s (measured)"
    assert steps[1].message.endswith("2 fit at once, 3 will queue")
    assert steps[2].message.startswith("2 points, about ")
    assert steps[2].message.endswith("budget 60 s")
    assert steps[3].message == "no physical floor: the hardware is not known"


@pytest.mark.parametrize(
    ("value_s", "text"), [(None, "?"), (3.21, "3.2 s"), (12.4, "12 s"), (200, "3 min 20 s"), (7500, "2 h 5 min")]
)
def test_durations_for_people(value_s: float | None, text: str) -> None:
    assert duration(value_s) == text


def test_rounds_cover_the_needle_grid() -> None:
    needles = NeedleSettings(enabled=True, kinds=("single", "multi", "multi_hop"), depths=(0.1, 0.9))
    assert needles.groups == (
        ("single", (0.1,)), ("single", (0.9,)), ("multi", (0.1, 0.9)), ("multi_hop", (0.9, 0.1)), ("multi_hop", (0.1, 0.9)),
    )  # fmt: skip
    made = config("http://127.0.0.1:1", Path("unused"), needles=needles, repeats=2)
    assert [made.rounds(Point(1000, 8, n)) for n in (1, 2, 5)] == [5, 3, 2]
    assert NeedleSettings(enabled=True, dummy_weights=True).groups == NeedleSettings().groups == ()
