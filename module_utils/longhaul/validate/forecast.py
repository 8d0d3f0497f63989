"""How long a request will take, before it is sent: the plan that is shown, every time-out, what the budget leaves out. Pure.

The cost of a prompt is its FLOP where the architecture is known, else its length with a quadratic part. Measured points
turn cost into seconds. Before the first one, the hardware's peak at a cautious MFU does, and where the hardware is not known, a
pessimistic rate. ``basis`` says which of the three a figure rests on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import median

from ..client.exchange import Timeouts
from ..results import RequestRecord, RequestStatus
from .config import Point, ValidateConfig
from .progress import Reporter, duration

Cost = Callable[[int], float]

# Before any measurement. Long prefills reach 59-61% of the peak on H200 (measured at 1-2M tokens), short ones less: the forecast
# assumes half of that. A time-out must survive a much lower rate. The tokens per second are those of a slow 2-core CPU.
ASSUMED_MFU = 0.3
PESSIMISTIC_MFU = 0.02
UNKNOWN_TOKENS_PER_S = 200.0
UNKNOWN_TPOT_S = 0.5
# Decode runs well above its memory-bandwidth bound: 9-20 ms measured on 2 x H200 where the bound is 2-5 ms.
ASSUMED_OVER_DECODE_FLOOR = 5.0
# An attention layer's share grows with length; without the architecture, assume it equals the rest at this length.
QUADRATIC_FROM_TOKENS = 100_000


def length_cost(tokens: int) -> float:
    """Cost of a prompt of an unknown model, in token equivalents."""
    return tokens * (1 + tokens / QUADRATIC_FROM_TOKENS)


@dataclass(frozen=True)
class Measured:
    """The times of one lone prompt: measured so, or the last first token of a burst divided by its prompts."""

    input_tokens: int
    ttft_s: float
    tpot_s: float | None = None


@dataclass(frozen=True)
class Expectation:
    """Seconds expected of one point; ``total_s`` is for all rounds. ``basis``: measured, roofline or assumed."""

    ttft_s: float
    last_ttft_s: float
    tpot_s: float
    total_s: float
    basis: str


@dataclass(frozen=True)
class Forecaster:
    """``cost``: FLOP (or token equivalents) of a prompt. ``peak_per_s``: cost per second at 100% of the hardware's peak.

    ``decode_floor_s``: the least seconds per output token on this hardware, at the longest context of the ladder.
    """

    cost: Cost = length_cost
    peak_per_s: float | None = None
    measured: tuple[Measured, ...] = ()
    decode_floor_s: float | None = None

    def learn(self, point: Measured) -> Forecaster:
        """With one more measurement."""
        return replace(self, measured=(*self.measured, point))

    def ttft_s(self, tokens: int) -> tuple[float, str]:
        """Expected seconds to the first token of a lone prompt, and the basis of that figure.

        Scales the nearest measured length by cost. From a shorter prompt this is an upper estimate, because MFU rises with
        length: the right side for a time-out.
        """
        if self.measured:
            nearest = min(self.measured, key=lambda m: abs(m.input_tokens - tokens))
            ratio = self.cost(tokens) / max(self.cost(nearest.input_tokens), 1e-9)
            # Below the nearest measurement a fixed part (scheduling, kernels) remains: never scale down past a tenth.
            return nearest.ttft_s * max(ratio, 0.1), "measured"
        if self.peak_per_s:
            return self.cost(tokens) / (self.peak_per_s * ASSUMED_MFU), "roofline"
        return length_cost(tokens) / UNKNOWN_TOKENS_PER_S, "assumed"

    def tpot_s(self) -> float:
        """Expected seconds per output token."""
        found = [m.tpot_s for m in self.measured if m.tpot_s is not None]
        if found:
            return max(found[-3:])
        return UNKNOWN_TPOT_S if self.decode_floor_s is None else self.decode_floor_s * ASSUMED_OVER_DECODE_FLOOR

    def expect(self, input_tokens: int, output_tokens: int, concurrency: int, repeats: int) -> Expectation:
        """Forecast a point: the server prefills the prompts of one round one after another, then decodes them together."""
        first, basis = self.ttft_s(input_tokens)
        last = first * concurrency
        tpot = self.tpot_s()
        return Expectation(first, last, tpot, (last + tpot * max(0, output_tokens - 1)) * repeats, basis)

    def deadlines(self, input_tokens: int, output_tokens: int, concurrency: int, *, floor_s: float) -> Timeouts:
        """Generous multiples of what is expected, plus ``floor_s``: a time-out is for a server that hangs, not a slow one."""
        expected = self.expect(input_tokens, output_tokens, concurrency, 1)
        factor = {"measured": 5.0, "roofline": ASSUMED_MFU / PESSIMISTIC_MFU, "assumed": 5.0}[expected.basis]
        first = floor_s + factor * expected.last_ttft_s
        # Between two tokens of one stream the others' prompts may be prefilled.
        stall = floor_s + factor * (expected.tpot_s + (expected.last_ttft_s if concurrency > 1 else 0.0))
        return Timeouts(first_token_s=first, stall_s=stall, total_s=first + stall + 4 * expected.tpot_s * output_tokens)


@dataclass
class Schedule:
    """Forecasts of one run; every measurement sharpens them. ``kv_cache_tokens``: size of the server's KV pool."""

    config: ValidateConfig
    forecaster: Forecaster
    kv_cache_tokens: int | None

    def expect(self, point: Point) -> Expectation:
        """All rounds of a point, the untimed ones of warm mode too."""
        rounds = self.config.rounds(point) * (2 if self.config.mode == "warm" else 1)
        return self.forecaster.expect(point.input_tokens, point.output_tokens, point.concurrency, rounds)

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
        if self.kv_cache_tokens is None:
            return None, None
        fits = self.kv_cache_tokens // max(1, point.input_tokens + point.output_tokens)
        if self.config.max_running is not None:
            fits = min(fits, self.config.max_running)
        return fits, max(0, point.concurrency - fits)

    def timeouts(self, point: Point) -> Timeouts:
        """Time-outs of one round of a point."""
        floor_s = self.config.timeout_floor_s
        return self.forecaster.deadlines(point.input_tokens, point.output_tokens, point.concurrency, floor_s=floor_s)

    def over_budget(self, point: Point, spent_s: float) -> str | None:
        """Why the point does not fit what is left of the budget, or ``None`` where it does.

        Nothing is skipped on an assumption: the first prompt is what the rest is forecast from.
        """
        expected, budget_s = self.expect(point), self.config.budget_s
        if budget_s is None or expected.basis == "assumed" or expected.total_s <= budget_s - spent_s:
            return None
        left = f"{duration(max(0.0, budget_s - spent_s))} of the budget of {duration(budget_s)} are left"
        return f"needs about {duration(expected.total_s)}; {left}"

    def add(self, measured: Measured) -> None:
        """Forecast from one more measurement."""
        self.forecaster = self.forecaster.learn(measured)

    def learn(self, point: Point, records: Sequence[RequestRecord]) -> None:
        """Take a point's completed requests as a measurement, unless a cache may have served them."""
        ok = [r for r in records if r.status is RequestStatus.OK and r.ttft_s is not None]
        if not ok or self.config.mode == "warm" or any((r.cached_tokens or 0) > r.input_tokens // 10 for r in ok):
            return
        times = [r.ttft_s or 0.0 for r in ok]
        # The last first token of a burst waited for all the prefills before it.
        ttft_s = median(times) if point.concurrency == 1 else max(times) / point.concurrency
        tpots = [r.tpot_s for r in ok if r.tpot_s is not None]
        self.add(Measured(point.input_tokens, ttft_s, median(tpots) if tpots else None))


def show_plan(config: ValidateConfig, schedule: Schedule, reporter: Reporter, note: str | None) -> None:
    """Tell what will be sent and how long it is expected to take. ``note``: what else to say of the plan."""
    for number, point in enumerate(config.points, 1):
        fits, queued = schedule.fits(point)
        queueing = f"; {fits:,} fit at once, {queued:,} will queue" if fits is not None and point.concurrency > 1 else ""
        words = f"{point.input_tokens:,} in, {point.output_tokens:,} out, {point.concurrency} in flight, "
        words += f"{config.rounds(point)}x: {schedule.about(point)}{queueing}"
        left_s = schedule.total_s([point])
        reporter.say("plan", words, point_id=point.id, left_s=left_s, done=number, total=len(config.points))
    total_s = schedule.total_s(config.points)
    about = f", about {duration(total_s)} in all" if total_s is not None else ""
    budget = f", budget {duration(config.budget_s)}" if config.budget_s is not None else ""
    reporter.say("plan", f"{len(config.points)} points{about}{budget}", left_s=total_s)
    if note:
        reporter.say("plan", note)
