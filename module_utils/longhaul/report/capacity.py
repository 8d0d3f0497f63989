"""The planner's prediction beside the engine's own figures, as rows any renderer can draw."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ..results import CapacityFacts
from .wording import DASH, clean, count, finite, percent, times

# Unit suffix of a key -> how it is written after the number. The first one that fits wins.
_UNITS = {
    "_bytes_per_token_per_gpu": "B per token per GPU",
    "_gib_per_request": "GiB per request",
    "_gib_per_gpu": "GiB per GPU",
    "_bytes": "B",
    "_gib": "GiB",
    "_tokens": "tokens",
    "_s": "s",
}
# Working figures of the comparison: they explain the rows, they are none themselves.
_NO_ROWS = frozenset({"sum", "agrees", "to_the_digit", "tolerance", "kv_cache_tokens_low", "kv_cache_tokens_high"})
_WORDS = {"kv": "KV", "gib": "GiB", "gpu": "GPU", "gpus": "GPUs"}


@dataclass(frozen=True)
class CapacityRow:
    """One quantity: both sides as text, and as numbers where they are numbers."""

    label: str
    predicted: str
    engine: str
    predicted_value: float | None
    engine_value: float | None

    @property
    def gap(self) -> float | None:
        """engine / predicted - 1, where both are numbers."""
        return self.engine_value / self.predicted_value - 1 if self.engine_value is not None and self.predicted_value else None

    @property
    def difference(self) -> str:
        """:attr:`gap` as text."""
        return DASH if self.gap is None else signed_percent(self.gap)


def capacity_rows(facts: CapacityFacts | None) -> list[CapacityRow]:
    """Every scalar either side names: those both name first, then the rest, each in the order given.

    Nested values and working figures are left out. The difference is engine / predicted - 1.
    """
    if facts is None:
        return []
    keys = [k for k in facts.predicted if k in facts.engine]
    keys += [k for k in [*facts.predicted, *facts.engine] if k not in keys]
    keys = [k for k in keys if k not in _NO_ROWS]
    rows = []
    for key in dict.fromkeys(keys):
        both = (facts.predicted.get(key), facts.engine.get(key))
        if any(isinstance(v, (Mapping, list, tuple)) for v in both) or both == (None, None):
            continue
        rows.append(CapacityRow(label(key), _value(key, both[0]), _value(key, both[1]), finite(both[0]), finite(both[1])))
    return rows


def sums(facts: CapacityFacts | None) -> list[tuple[str, str]]:
    """(whose, the sum in words) of both sides, where they say it."""
    if facts is None:
        return []
    sides = (("plan", facts.predicted.get("sum")), ("engine", facts.engine.get("sum")))
    return [(who, clean(text)) for who, text in sides if isinstance(text, str) and text]


def signed_percent(value: float) -> str:
    """``+0.3%``; an exact match is ``0%``."""
    if value == 0:
        return percent(0)
    if abs(value) < 0.000_5:
        return "<0.1%"
    return ("+" if value > 0 else "\N{MINUS SIGN}") + percent(abs(value), 1)


def label(key: object) -> str:
    """``kv_cache_tokens`` -> ``KV cache tokens``; the unit goes with the number."""
    words = clean(key)
    suffix = next((s for s in _UNITS if words.endswith(s) and s != "_tokens"), "")
    words = words.removesuffix(suffix)
    parts = [_WORDS.get(w, w) for w in words.split("_") if w]
    text = " ".join(parts) or clean(key)
    return text[:1].upper() + text[1:]


def _value(key: str, value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    number = finite(value)
    if number is None:
        return DASH if value is None or isinstance(value, float) else clean(value)
    if "concurrency" in key:
        return times(number)
    text = f"{number:,.2f}" if abs(number) < 1e12 and number != int(number) else count(number)
    unit = next((unit for suffix, unit in _UNITS.items() if key.endswith(suffix)), "")
    return f"{text} {unit}".strip()
