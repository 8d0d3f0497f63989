"""How long a request will take, before it is sent: the source of every time-out and of the plan that is shown. Pure.

The cost of a prompt is its FLOP where the architecture is known, else its length with a quadratic part. Measured points
turn cost into seconds. Before the first one, the hardware's peak at a cautious MFU does, and where the hardware is not known, a
pessimistic rate. ``basis`` says which of the three a figure rests on.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

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
    round_s: float
    total_s: float
    basis: str


@dataclass(frozen=True)
class Deadlines:
    """Time-outs of one round, each a multiple of what is expected (seconds)."""

    first_token_s: float
    stall_s: float
    total_s: float


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
        return tokens / UNKNOWN_TOKENS_PER_S * (1 + tokens / QUADRATIC_FROM_TOKENS), "assumed"

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
        round_s = last + tpot * max(0, output_tokens - 1)
        return Expectation(first, last, tpot, round_s, round_s * repeats, basis)

    def deadlines(self, input_tokens: int, output_tokens: int, concurrency: int, *, floor_s: float) -> Deadlines:
        """Generous multiples of what is expected, plus ``floor_s``: a time-out is for a server that hangs, not a slow one."""
        expected = self.expect(input_tokens, output_tokens, concurrency, 1)
        factor = {"measured": 5.0, "roofline": ASSUMED_MFU / PESSIMISTIC_MFU, "assumed": 5.0}[expected.basis]
        first = floor_s + factor * expected.last_ttft_s
        # Between two tokens of one stream the others' prompts may be prefilled.
        stall = floor_s + factor * (expected.tpot_s + (expected.last_ttft_s if concurrency > 1 else 0.0))
        total = first + stall + 4 * expected.tpot_s * output_tokens
        return Deadlines(first, stall, total)


def concurrency_note(
    input_tokens: int, output_tokens: int, concurrency: int, kv_tokens: int | None, max_running: int | None = None
) -> tuple[int | None, int | None]:
    """(how many of these requests fit at once, how many will queue), ``None`` where the KV pool is unknown."""
    if kv_tokens is None:
        return None, None
    fits = kv_tokens // max(1, input_tokens + output_tokens)
    if max_running is not None:
        fits = min(fits, max_running)
    return fits, max(0, concurrency - fits)


def within_budget(expected_s: Sequence[float], budget_s: float | None, spent_s: float = 0.0) -> list[bool]:
    """Which points, taken in order, finish inside the budget; a later, cheaper point may still fit."""
    if budget_s is None:
        return [True] * len(expected_s)
    left = budget_s - spent_s
    out: list[bool] = []
    for seconds in expected_s:
        fits = seconds <= left
        out.append(fits)
        if fits:
            left -= seconds
    return out
