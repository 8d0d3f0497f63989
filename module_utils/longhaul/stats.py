"""Order statistics, disagreement of repeats, and the one rule of noise: whether two medians differ by more than chance. Pure.

What a few values tell of their noise lies between two bounds:

- The low bound takes the spread as normal and well known: twice the joint standard error of both medians, and never less than
  5% of the first one (two runs never meet exactly).
- The high bound allows for what repeats are: few, skewed by queues, and sharing batches. Sigma of one side is the range of up to
  6 values over d2(n), the control chart's estimate, and above that p90 - p50, which is 1.28 sigma of a normal spread and wide
  enough for the flat one of requests that queue. The bound is Student's t (95%, n_A + n_B - 2 degrees of freedom) times the
  joint standard error, and never less than 3% of the larger median (clocks and temperature drift between runs), 10% with
  several requests at once (they share batches, so they are not independent).

A difference above the high bound is beyond noise. Else, one above the low bound is close to noise and not judged: more repeats
would tell. With one value on a side there is no high bound. Everything else is within noise.

The standard error of a median is 1.2533 sigma / sqrt(n) (normal, large n; a little too wide for a small n).
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .results import Stats

_MEDIAN_ERROR = 1.2533
_P90_SIGMA = 1.2816  # p90 - p50 of a normal spread
LOW_FLOOR = 0.05
FLOOR_ALONE = 0.03
FLOOR_TOGETHER = 0.10
# Mean range of n normal values over their sigma, for n from 2 on.
_D2 = (1.128, 1.693, 2.059, 2.326, 2.534)
# Two-sided 95% points of Student's t by degrees of freedom.
_T95 = (
    (1, 12.706), (2, 4.303), (3, 3.182), (4, 2.776), (5, 2.571), (6, 2.447), (7, 2.365), (8, 2.306), (9, 2.262), (10, 2.228),
    (12, 2.179), (15, 2.131), (20, 2.086), (30, 2.042), (60, 2.000), (120, 1.980),
)  # fmt: skip


def percentile(ordered: Sequence[float], q: float) -> float:
    """The ``q``-quantile (0..1) of an ascending, non-empty sequence, by linear interpolation (type 7).

    ``statistics.quantiles`` cuts into equal parts only, and before Python 3.13 needs two values.
    """
    position = (len(ordered) - 1) * q
    low = math.floor(position)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (position - low)


def summarize(values: Iterable[float | None]) -> Stats | None:
    """Stats over the values that are there; ``None`` where there is none."""
    found = sorted(v for v in values if v is not None)
    if not found:
        return None
    p50, p90, p99 = (percentile(found, q) for q in (0.5, 0.9, 0.99))
    return Stats(len(found), statistics.fmean(found), found[0], p50, p90, p99, found[-1])


def disagreement(medians: Sequence[float]) -> float | None:
    """How far repeats are apart: (largest - smallest) / median of them; ``None`` for fewer than two."""
    if len(medians) < 2:
        return None
    middle = statistics.median(medians)
    return (max(medians) - min(medians)) / middle if middle > 0 else None


@dataclass(frozen=True)
class Difference:
    """Two medians against the noise of both sides.

    ``relative``: second / first - 1. ``noise``: the relative difference that counts as beyond noise, ``None`` where it is not
    known. ``beyond``: ``None`` where the difference is not judged, and ``note`` says why.
    """

    relative: float
    noise: float | None
    beyond: bool | None
    note: str = ""


def difference(first: Stats, second: Stats, concurrency: int = 1) -> Difference | None:
    """Hold the second median against the first by the rule above; ``None`` where a figure is missing or the first is not positive.

    ``concurrency``: requests at once, the same on both sides.
    """
    if not (_is_whole(first) and _is_whole(second)) or first.p50 <= 0:
        return None
    relative = second.p50 / first.p50 - 1
    high = high_noise(first, second, concurrency)
    noise = None if high is None else high / first.p50
    apart = abs(second.p50 - first.p50)
    if high is not None and apart > high:
        return Difference(relative, noise, True)
    if apart <= low_noise(first, second):
        return Difference(relative, noise, False)
    return Difference(relative, noise, None, "not judged: one request" if high is None else "not judged: close to noise")


def low_noise(first: Stats, second: Stats) -> float:
    """The low bound, in the unit of the figures: a difference up to this says nothing."""
    joint = math.hypot(*(_MEDIAN_ERROR * _normal_sigma(s) / math.sqrt(s.n) for s in (first, second)))
    return max(LOW_FLOOR * first.p50, 2 * joint)


def high_noise(first: Stats, second: Stats, concurrency: int = 1) -> float | None:
    """The high bound, in the unit of the figures: a difference above this is no chance. ``None`` with one value on a side."""
    if min(first.n, second.n) < 2:
        return None
    joint = math.hypot(*(_MEDIAN_ERROR * _careful_sigma(s) / math.sqrt(s.n) for s in (first, second)))
    least = FLOOR_ALONE if concurrency <= 1 else FLOOR_TOGETHER
    return max(student_t(first.n + second.n - 2) * joint, least * max(abs(first.p50), abs(second.p50)))


def share_noise(first: float, first_n: int, second: float, second_n: int) -> float:
    """The difference of two shares (0..1) of so many trials each that counts: 1.96 standard errors, pooled (95%)."""
    pooled = (first * first_n + second * second_n) / (first_n + second_n)
    return 1.96 * math.sqrt(max(0.0, pooled * (1 - pooled)) * (1 / first_n + 1 / second_n))


def student_t(degrees: int) -> float:
    """Student's t, two-sided 95%, for the next lower degree of freedom listed (that is, rounded up)."""
    return next(t for limit, t in reversed(_T95) if degrees >= limit)


def _is_whole(stats: Stats) -> bool:
    """Whether the figures are numbers: a result file may hold anything."""
    figures = (stats.min, stats.p50, stats.p90, stats.max)
    return stats.n >= 1 and all(isinstance(v, (int, float)) and math.isfinite(v) for v in figures)


def _normal_sigma(stats: Stats) -> float:
    if stats.n < 2:
        return 0.0
    return max(stats.p90 - stats.p50, (stats.max - stats.min) / 4 if stats.n < 8 else 0.0) / _P90_SIGMA


def _careful_sigma(stats: Stats) -> float:
    if stats.n <= len(_D2) + 1:
        return max(0.0, stats.max - stats.min) / _D2[stats.n - 2]
    return max(0.0, stats.p90 - stats.p50)
