"""What a server answers to questions about itself, in the shapes that engines share: counters, gauges, served models."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

from ..results import Counters
from .base import MetricNames

# What Counters and MetricNames call alike.
_SAME_NAMES = (
    "prompt_tokens", "generation_tokens", "cache_queries_tokens", "cache_hits_tokens", "running", "waiting", "kv_usage",
    "preemptions", "requests_finished",
)  # fmt: skip


@lru_cache(maxsize=8)
def _pattern(names: tuple[str, ...]) -> re.Pattern[bytes]:
    union = b"|".join(re.escape(n.encode()) for n in names)
    return re.compile(rb"^(" + union + rb")(?:\{[^\n]*\})?[ \t]+(\S+)", re.MULTILINE)


def parse_counters(page: bytes, names: MetricNames, unix_s: float | None = None) -> Counters:
    """A Prometheus page -> Counters. Series are summed over label sets, ``kv_usage`` (0..1) is their maximum."""
    fields: dict[str, str | None] = {name: getattr(names, name) for name in _SAME_NAMES}
    if names.queue_time:
        fields |= {"queue_time_s": f"{names.queue_time}_sum", "queue_times": f"{names.queue_time}_count"}
    wanted = tuple(dict.fromkeys(n for n in fields.values() if n))
    sums: dict[str, float] = {}
    peaks: dict[str, float] = {}
    for match in _pattern(wanted).finditer(page):
        name = match[1].decode()
        try:
            value = float(match[2])
        except ValueError:
            continue
        if math.isnan(value):  # a gauge that was never set
            continue
        sums[name] = sums.get(name, 0.0) + value
        peaks[name] = max(peaks.get(name, value), value)
    if names.prompt_tokens in sums:
        for name in names.born_at_first_use.intersection(wanted):
            sums.setdefault(name, 0.0)
    found = {key: (peaks if key == "kv_usage" else sums).get(name) if name else None for key, name in fields.items()}
    return Counters(unix_s=time.time() if unix_s is None else unix_s, **found)


def has_counters(counters: Counters | None) -> bool:
    """Whether the page held the counters that prove anything."""
    return counters is not None and counters.prompt_tokens is not None


def parse_models(answer: Any) -> list[tuple[str, int | None]]:
    """``/v1/models`` -> (served name, max_model_len where given)."""
    data = answer.get("data") if isinstance(answer, Mapping) else None
    out: list[tuple[str, int | None]] = []
    for card in data if isinstance(data, list) else []:
        if isinstance(card, Mapping) and isinstance(card.get("id"), str):
            length = card.get("max_model_len")
            out.append((card["id"], length if isinstance(length, int) else None))
    return out
