"""What a run tells a person while it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """One step of a run, for people. ``left_s`` is a forecast, ``kv_usage`` 0..1, ``done`` of ``total`` requests or points."""

    stage: str
    point_id: str | None
    message: str
    elapsed_s: float
    left_s: float | None = None
    kv_usage: float | None = None
    done: int = 0
    total: int = 0


class Reporter:
    """Hands progress on, with the time since the run began."""

    def __init__(self, on_progress: Callable[[Progress], None]) -> None:
        self._on_progress = on_progress
        self._began = time.perf_counter()

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self._began

    def say(
        self,
        stage: str,
        message: str,
        *,
        point_id: str | None = None,
        left_s: float | None = None,
        kv_usage: float | None = None,
        done: int = 0,
        total: int = 0,
    ) -> None:
        """Report one step."""
        self._on_progress(Progress(stage, point_id, message, self.elapsed_s, left_s, kv_usage, done, total))


def duration(value_s: float | None) -> str:
    """Seconds for people: 3.2 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if value_s is None:
        return "?"
    if value_s < 10:
        return f"{value_s:.1f} s"
    if value_s < 120:
        return f"{value_s:.0f} s"
    if value_s < 7200:
        return f"{int(value_s // 60)} min {int(value_s % 60)} s"
    return f"{int(value_s // 3600)} h {int(value_s % 3600 // 60)} min"
