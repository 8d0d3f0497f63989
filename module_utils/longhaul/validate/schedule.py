"""What each point is expected to take, from what was measured so far: the plan that is shown, time-outs, the budget."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median

from ..client.exchange import Timeouts
from ..results import RequestRecord, RequestStatus
from .config import Point, ValidateConfig
from .forecast import Expectation, Forecaster, Measured, concurrency_note, within_budget
from .progress import Reporter, duration


class Schedule:
    """Forecasts of one run; every measurement sharpens them."""

    def __init__(self, config: ValidateConfig, forecaster: Forecaster, kv_cache_tokens: int | None) -> None:
        self._config = config
        self._forecaster = forecaster
        self._kv_cache_tokens = kv_cache_tokens

    def expect(self, point: Point) -> Expectation:
        """All rounds of a point, the untimed ones of warm mode too."""
        rounds = self._config.rounds(point) * (2 if self._config.mode == "warm" else 1)
        return self._forecaster.expect(point.input_tokens, point.output_tokens, point.concurrency, rounds)

    def total_s(self, points: Sequence[Point]) -> float | None:
        """Expected seconds of these points in all; ``None`` where any rests on assumptions alone."""
        found = [self.expect(p) for p in points]
        return None if any(e.basis == "assumed" for e in found) else sum(e.total_s for e in found)

    def about(self, point: Point) -> str:
        """The expected time of a point, for people."""
        expected = self.expect(point)
        if expected.basis == "assumed":
            return "time unknown until a first prompt is measured"
        return f"about {duration(expected.total_s)} ({expected.basis})"

    def fits(self, point: Point) -> tuple[int | None, int | None]:
        """(how many of the point's requests fit at once, how many will queue), ``None`` where the KV pool is unknown."""
        return concurrency_note(
            point.input_tokens, point.output_tokens, point.concurrency, self._kv_cache_tokens, self._config.max_running
        )

    def timeouts(self, point: Point) -> Timeouts:
        """Time-outs of one round of a point."""
        floor_s = self._config.timeout_floor_s
        limits = self._forecaster.deadlines(point.input_tokens, point.output_tokens, point.concurrency, floor_s=floor_s)
        return Timeouts(first_token_s=limits.first_token_s, stall_s=limits.stall_s, total_s=limits.total_s)

    def over_budget(self, point: Point, spent_s: float) -> str | None:
        """Why the point does not fit what is left of the budget, or ``None`` where it does.

        Nothing is skipped on an assumption: the first prompt is what the rest is forecast from.
        """
        expected, budget_s = self.expect(point), self._config.budget_s
        if budget_s is None or expected.basis == "assumed" or within_budget([expected.total_s], budget_s, spent_s)[0]:
            return None
        left = f"{duration(max(0.0, budget_s - spent_s))} of the budget of {duration(budget_s)} are left"
        return f"needs about {duration(expected.total_s)}; {left}"

    def learn(self, point: Point, records: Sequence[RequestRecord]) -> None:
        """Take a point's completed requests as a measurement, unless a cache may have served them."""
        ok = [r for r in records if r.status is RequestStatus.OK and r.ttft_s is not None]
        if not ok or self._config.mode == "warm" or any((r.cached_tokens or 0) > r.input_tokens // 10 for r in ok):
            return
        times = [r.ttft_s or 0.0 for r in ok]
        # The last first token of a burst waited for all the prefills before it.
        ttft_s = median(times) if point.concurrency == 1 else max(times) / point.concurrency
        tpots = [r.tpot_s for r in ok if r.tpot_s is not None]
        self._forecaster = self._forecaster.learn(Measured(point.input_tokens, ttft_s, median(tpots) if tpots else None))

    def learn_warm_up(self, record: RequestRecord) -> None:
        """Take one untimed request as a measurement."""
        if record.ttft_s is not None:
            self._forecaster = self._forecaster.learn(Measured(record.input_tokens, record.ttft_s, record.tpot_s))


def show_plan(config: ValidateConfig, schedule: Schedule, reporter: Reporter, note: str | None) -> None:
    """Tell what will be sent and how long it is expected to take. ``note``: what else to say of the plan."""
    for number, point in enumerate(config.points, 1):
        fits, queued = schedule.fits(point)
        queueing = f"; {fits:,} fit at once, {queued:,} will queue" if fits is not None and point.concurrency > 1 else ""
        reporter.say(
            "plan",
            f"{point.input_tokens:,} in, {point.output_tokens:,} out, {point.concurrency} in flight, "
            f"{config.rounds(point)}x: {schedule.about(point)}{queueing}",
            point_id=point.id,
            left_s=schedule.total_s([point]),
            done=number,
            total=len(config.points),
        )
    total_s = schedule.total_s(config.points)
    about = f", about {duration(total_s)} in all" if total_s is not None else ""
    budget = f", budget {duration(config.budget_s)}" if config.budget_s is not None else ""
    reporter.say("plan", f"{len(config.points)} points{about}{budget}", left_s=total_s)
    if note:
        reporter.say("plan", note)
