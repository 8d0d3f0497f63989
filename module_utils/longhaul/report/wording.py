"""How a value is written, by every renderer: numbers with units, instants, text that is safe in XML.

Missing and not-finite numbers are an em dash, never ``None`` or ``nan``. Every number that stands alone carries its unit.
"""

from __future__ import annotations

import math
import re
from datetime import datetime, timezone
from typing import Any

DASH = "\N{EM DASH}"
TIMES = "\N{MULTIPLICATION SIGN}"
WITHHELD = "void"

# Seconds below the first figure are written times the second, with so many digits, in that unit.
_SECONDS = (
    (0.000_999_5, 1e6, 0, "\N{MICRO SIGN}s"), (0.009_995, 1e3, 2, "ms"), (0.099_95, 1e3, 1, "ms"), (0.999_5, 1e3, 0, "ms"),
    (9.995, 1.0, 2, "s"),
)  # fmt: skip

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


def seconds(value: object) -> str:
    """Seconds with three or four digits; milli- and microseconds below one second: ``520.3 s``, ``3.87 s``, ``183 ms``."""
    number = finite(value)
    if number is None:
        return DASH
    if number == 0:
        return "0 s"
    for below, scale, digits, unit in _SECONDS:
        if abs(number) < below:
            return f"{number * scale:.{digits}f} {unit}"
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
