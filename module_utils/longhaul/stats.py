"""Order statistics, disagreement of repeats, and whether a difference exceeds the noise of both sides. Pure."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

from .results import Stats


def percentile(ordered: Sequence[float], q: float) -> float:
    """The ``q``-quantile (0..1) of an ascending, non-empty sequence, by linear interpolation (type 7)."""
    position = (len(ordered) - 1) * q
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def summarize(values: Iterable[float | None]) -> Stats | None:
    """Stats over the values that are there; ``None`` where there is none."""
    found = sorted(v for v in values if v is not None)
    if not found:
        return None
    return Stats(
        n=len(found),
        mean=math.fsum(found) / len(found),
        min=found[0],
        p50=percentile(found, 0.5),
        p90=percentile(found, 0.9),
        p99=percentile(found, 0.99),
        max=found[-1],
    )


def median(values: Iterable[float]) -> float:
    """The median of a non-empty collection."""
    return percentile(sorted(values), 0.5)


def disagreement(medians: Sequence[float]) -> float | None:
    """How far repeats are apart: (largest - smallest) / median of them; ``None`` for fewer than two."""
    if len(medians) < 2:
        return None
    middle = median(medians)
    return (max(medians) - min(medians)) / middle if middle > 0 else None


def spread_of_median(stats: Stats) -> float:
    """A standard error of the median, from p50 and p90: sigma = (p90 - p50) / 1.2816, times 1.2533 / sqrt(n).

    The constants hold for a normal distribution; a long tail makes the result larger, that is, more careful. With a
    single value there is no spread to be had: 0.
    """
    if stats.n < 2:
        return 0.0
    sigma = max(stats.p90 - stats.p50, (stats.max - stats.min) / 4 if stats.n < 8 else 0.0) / 1.2816
    return 1.2533 * sigma / math.sqrt(stats.n)


def change(now: Stats, then: Stats) -> float:
    """Relative change of the median: 0.1 = ten per cent more than then."""
    return now.p50 / then.p50 - 1 if then.p50 > 0 else 0.0


def noise(now: Stats, then: Stats, floor: float = 0.05) -> float:
    """The relative change below which a difference of two medians says nothing: twice their joint standard error.

    ``floor`` is the least noise assumed, because one value (n=1) has no spread, and two runs never meet exactly.
    """
    if then.p50 <= 0:
        return floor
    joint = math.hypot(spread_of_median(now), spread_of_median(then))
    return max(floor, 2 * joint / then.p50)
