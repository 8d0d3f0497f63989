"""What a run tells a person while it goes on."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, field


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


@dataclass
class Reporter:
    """Hands progress on, with the time since the run began."""

    on_progress: Callable[[Progress], None]
    began: float = field(default_factory=time.perf_counter)

    @property
    def elapsed_s(self) -> float:
        """Seconds since the run began."""
        return time.perf_counter() - self.began

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
        self.on_progress(Progress(stage, point_id, message, self.elapsed_s, left_s, kv_usage, done, total))


def progress_line(step: Progress) -> str:
    """One step as one line for people."""
    name = f" {step.point_id}" if step.point_id else ""
    usage = f", KV {100 * step.kv_usage:.0f}%" if step.kv_usage is not None else ""
    left = f", about {step.left_s:.0f} s left" if step.left_s else ""
    return f"[{step.elapsed_s:6.1f} s] {step.stage}{name}: {step.message}{usage}{left}"


class QuietProgress:
    """Passes every step on as a line, but few of a running point: one when a request ends, else one every ten seconds."""

    EVERY_S = 10.0

    def __init__(self, say: Callable[[str], None]) -> None:
        self._say = say
        self._last_s = -self.EVERY_S
        self._done: tuple[str | None, int] = (None, -1)

    def __call__(self, step: Progress) -> None:
        """Take one step."""
        if step.stage == "running":
            done = (step.point_id, step.done)
            if done == self._done and step.elapsed_s - self._last_s < self.EVERY_S:
                return
            self._done, self._last_s = done, step.elapsed_s
        self._say(progress_line(step))


def duration(value_s: float | None) -> str:
    """Seconds for people: 3.2 s, 12 s, 3 min 20 s, 2 h 5 min."""
    if value_s is None:
        return "?"
    if value_s < 120:
        return f"{value_s:.1f} s" if value_s < 10 else f"{value_s:.0f} s"
    if value_s < 7200:
        return f"{int(value_s // 60)} min {int(value_s % 60)} s"
    return f"{int(value_s // 3600)} h {int(value_s % 3600 // 60)} min"
