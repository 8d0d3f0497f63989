"""What adapters share when they explain their engine's log: notes, booked throughput, time stamps."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime

_DOCKER = re.compile(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?)\d*(?:Z|[+-]\d\d:\d\d) ")


@dataclass(frozen=True)
class Throughput:
    """What the statistics lines say, and what they are worth.

    vLLM books a whole prompt at the moment its first token arrives and divides by the log interval, so that
    ``max_prompt_tokens_per_s`` x ``interval_s`` = ``booked_tokens`` is a prompt's length. ``prefill_at_least_s``: how long
    the lines before it showed a running request without any prompt token booked; ``rate_at_most`` = booked_tokens over
    that, an upper limit of the true prefill rate.
    """

    lines: int
    max_prompt_tokens_per_s: float
    interval_s: float
    booked_tokens: int
    prefill_at_least_s: float | None = None
    rate_at_most: float | None = None
    evidence: str = ""


@dataclass(frozen=True)
class Note:
    """Something a reader of this log should know. ``code`` is stable, ``text`` is for people."""

    code: str
    text: str
    evidence: str = ""


def stamp_s(line: str, own: re.Pattern[str], year: str = "") -> float | None:
    """Seconds of a line's time stamp on an arbitrary scale, or ``None``.

    ``own``: the engine's stamp, date and time as its first group; ``year`` is put before it where the engine writes none. The
    RFC 3339 stamp that ``docker logs --timestamps`` puts in front wins.
    """
    if found := _DOCKER.match(line):
        return _seconds(found[1].replace("T", " "))
    if found := own.search(line[:200]):
        return _seconds(year + found[1].replace(",", "."))
    return None


def _seconds(text: str) -> float | None:
    form = "%Y-%m-%d %H:%M:%S.%f" if "." in text else "%Y-%m-%d %H:%M:%S"
    try:
        return (datetime.strptime(text, form) - datetime(2000, 1, 1)).total_seconds()  # differences only: no zone
    except ValueError:
        return None
