"""How a figure is written, and whether it may be written at all: shared by every renderer.

Missing and not-finite numbers are an em dash, never ``None`` or ``nan``. Every number that stands alone carries its unit.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime, timezone
from typing import Any

from ..results import PointResult, Reason, RunResult, Stats, Verdict

DASH = "\N{EM DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
WITHHELD = "void"

# XML 1.0 allows tab, newline, return and no other control character; a lone surrogate cannot be encoded at all; some readers
# take the Unicode line separators for line ends.
_UNPRINTABLE = re.compile("[\x00-\x08\x0b\x0c\x0e-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff\ufdd0-\ufdef\ufffe\uffff]")


def clean(value: object) -> str:
    """Any value as text that XML, HTML and a UTF-8 file can hold; None is an em dash."""
    if value is None:
        return DASH
    return _UNPRINTABLE.sub("\N{REPLACEMENT CHARACTER}", str(value))


def one_line(value: object) -> str:
    """:func:`clean` with every run of white space as one space."""
    return " ".join(clean(value).split())


def finite(value: Any) -> float | None:
    """A finite number as float; None for None, NaN, infinities, booleans and anything that is no number."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return None
    try:
        number = float(value)
    except OverflowError:
        return None
    return number if math.isfinite(number) else None


def plottable(value: object) -> float | None:
    """A number that an axis can carry, 1e-9 to 1e12; None otherwise: a damaged figure must not flatten a plot."""
    number = finite(value)
    return number if number is not None and 1e-9 <= number <= 1e12 else None


def _huge(number: float) -> str | None:
    """Scientific notation for what no measurement reaches, so that a damaged figure cannot burst a table."""
    return f"{number:.2e}" if abs(number) >= 1e12 else None


def p50(stats: Stats | None) -> float | None:
    """The median of a quantity, when there is one and it is finite."""
    return None if stats is None or stats.n < 1 else finite(stats.p50)


def seconds(value: object) -> str:
    """Seconds with three or four digits; milli- and microseconds below one second: ``520.3 s``, ``3.87 s``, ``183 ms``."""
    number = finite(value)
    if number is None:
        return DASH
    size = abs(number)
    if size == 0:
        return "0 s"
    if size < 0.000_999_5:
        return f"{number * 1e6:.0f} \N{MICRO SIGN}s"
    if size < 0.009_995:
        return f"{number * 1e3:.2f} ms"
    if size < 0.099_95:
        return f"{number * 1e3:.1f} ms"
    if size < 0.999_5:
        return f"{number * 1e3:.0f} ms"
    if size < 9.995:
        return f"{number:.2f} s"
    return f"{_huge(number) or f'{number:,.1f}'} s"


def duration(value: object) -> str:
    """A span a person waits for: ``45 s``, ``8 min 40 s``, ``2 h 05 min``."""
    number = finite(value)
    if number is None:
        return DASH
    if number < 60 or number >= 1e12:
        return seconds(number)
    whole = round(number)
    if whole < 3600:
        return f"{whole // 60:,} min {whole % 60:02d} s"
    return f"{whole // 3600:,} h {whole % 3600 // 60:02d} min"


def count(value: object) -> str:
    """A whole number with thousands separators."""
    number = finite(value)
    return DASH if number is None else _huge(number) or f"{number:,.0f}"


def short_count(value: float) -> str:
    """A token count for an axis: ``900``, ``10K``, ``2.1M``."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "K")):
        if abs(value) >= limit * 0.999_5:
            return f"{value / limit:.3g}{unit}"
    return f"{value:.3g}"


def rate(value: object) -> str:
    """A rate per second without its unit: ``4,030``, ``12.5``, ``0.42``."""
    number = finite(value)
    if number is None:
        return DASH
    size = abs(number)
    return _huge(number) or f"{number:,.0f}" if size >= 100 else f"{number:.1f}" if size >= 10 else f"{number:.3g}"


def with_unit(text: str, unit: str) -> str:
    """``text unit``; an em dash stays alone."""
    return text if text == DASH else f"{text} {unit}"


def percent(value: object, digits: int = 0) -> str:
    """A share 0..1 as per cent."""
    number = finite(value)
    if number is None:
        return DASH
    return f"{_huge(number) or f'{number * 100:,.{digits}f}'}%"


def times(value: object) -> str:
    """A ratio with the multiplication sign after it."""
    number = finite(value)
    if number is None:
        return DASH
    size = abs(number)
    return f"{_huge(number)}{TIMES}" if _huge(number) else f"{number:,.{2 if size < 9.995 else 1 if size < 99.95 else 0}f}{TIMES}"


def instant(value: object) -> str:
    """Unix seconds as ``2026-01-31 14:05:09 UTC``; an em dash when they name no date."""
    number = finite(value)
    if number is None:
        return DASH
    try:
        return datetime.fromtimestamp(number, tz=timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    except (OverflowError, ValueError, OSError):
        return DASH


def point_name(point: PointResult) -> str:
    """What a point is, for people: ``2,096,900 in, 200 out`` and the requests at once."""
    return f"{point.input_tokens:,} in, {point.output_tokens:,} out, {TIMES}{point.concurrency:,}"


def cache_text(point: PointResult) -> str:
    """Whether the prompts were proven cold: ``cold``, ``warm 97%``, ``unknown``; an em dash where nothing ran."""
    if not point.ran:
        return DASH
    if point.cache_state.upper() == "WARM" and finite(point.cached_share) is not None:
        return f"warm {percent(point.cached_share)}"
    return one_line(point.cache_state).lower()


def stands(run: RunResult, point: PointResult) -> bool:
    """Whether the figures of ``point`` may be shown as a result.

    They may not when the point, or one of its reasons, is INVALID; nor when the run is INVALID and no point accounts for
    it: then every figure of the run is in doubt.
    """
    if _invalid(point):
        return False
    run_invalid = run.verdict is Verdict.INVALID or any(r.verdict is Verdict.INVALID for r in run.reasons)
    return not run_invalid or any(_invalid(p) for p in run.points)


def _invalid(point: PointResult) -> bool:
    return point.verdict is Verdict.INVALID or any(r.verdict is Verdict.INVALID for r in point.reasons)


def prefill_rate(run: RunResult, point: PointResult) -> float | None:
    """Median prefill tokens/s; None in warm mode and above one request at once, where TTFT is no prefill time."""
    return p50(point.prefill_tokens_per_s) if run.mode == "cold" and point.concurrency == 1 else None


def state(point: PointResult) -> str:
    """The verdict's word, or ``NOT RUN``."""
    return point.verdict.value if point.ran else "NOT RUN"


def unique_reasons(reasons: Iterable[Reason]) -> list[Reason]:
    """Reasons in order, each once."""
    return list(dict.fromkeys(reasons))


def run_only_reasons(run: RunResult) -> list[Reason]:
    """The reasons of the run that none of its points states (same code, and the point's text inside the run's)."""
    stated = [(r.code, one_line(r.text)) for p in run.points for r in p.reasons]
    return [
        r for r in unique_reasons(run.reasons) if not any(r.code == code and text in one_line(r.text) for code, text in stated)
    ]


def all_reasons(run: RunResult) -> list[tuple[PointResult | None, Reason]]:
    """Every reason of a run with the point it belongs to (None: the run itself), each once, the run's own first."""
    own: list[tuple[PointResult | None, Reason]] = [(None, r) for r in run_only_reasons(run)]
    return own + [(p, r) for p in run.points for r in unique_reasons(p.reasons)]


def engine_name(run: RunResult) -> str:
    """``vllm 0.32.0``."""
    return one_line(f"{run.engine} {run.engine_version or ''}")


def headline_point(run: RunResult) -> PointResult | None:
    """The longest prompt that PASSed, at the lowest concurrency: what the run proves. None when nothing did."""
    passed = [p for p in run.points if p.ran and p.verdict is Verdict.PASS and stands(run, p)]
    return max(passed, key=lambda p: (p.input_tokens, -p.concurrency), default=None)


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested mappings as one list of dotted keys: ``{"a": {"b": 1}}`` -> ``[("a.b", 1)]``."""
    out: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{one_line(key)}"
        out += flatten(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return out


def tally(points: Sequence[PointResult]) -> list[tuple[str, int]]:
    """How many points ended how, in the order PASS, FAIL, INVALID, INCONCLUSIVE, NOT RUN; zeros left out."""
    order = ["PASS", "FAIL", "INVALID", "INCONCLUSIVE", "NOT RUN"]
    found = [state(p) for p in points]
    return [(word, found.count(word)) for word in order if word in found]
