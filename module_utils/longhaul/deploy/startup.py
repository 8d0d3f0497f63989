"""Watch an engine start: follow its log, name the phases, notice its death within a second and say why it died.

The runtime hands over what differs between runtimes, as functions: whether the process lives, and what it logs.
"""

from __future__ import annotations

import http.client
import json
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

from ..engines.base import EngineAdapter, EngineCapacity
from ..engines.diagnosis import Diagnosis, Phase, diagnose, last_lines, phase_of, plain_message, unnamed
from ..progress import Say

POLL_S = 0.5
HEARTBEAT_S = 15.0
# Proxies of the environment must not see loopback traffic.
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class ServedModel:
    """What /v1/models says."""

    name: str
    max_model_len: int | None


@dataclass(frozen=True)
class StartOutcome:
    """How a start ended. ``phases``: (phase, seconds since the watch began), in order of appearance."""

    ready: bool
    elapsed_s: float
    phases: tuple[tuple[str, float], ...] = ()
    capacity: EngineCapacity | None = None
    served: tuple[ServedModel, ...] = ()
    diagnosis: Diagnosis | None = None
    died: bool = False
    last_lines: tuple[str, ...] = ()


class LogFollower:
    """Reads what is appended to a log file since ``offset``; notices rotation (the file became shorter)."""

    def __init__(self, path: Path, offset: int = 0) -> None:
        self.path, self.offset, self._rest = path, offset, b""

    def __call__(self) -> list[str]:
        """Complete new lines."""
        try:
            size = self.path.stat().st_size
            if size < self.offset:
                self.offset, self._rest = 0, b""
            if size == self.offset:
                return []
            with self.path.open("rb") as log:
                log.seek(self.offset)
                data = log.read()
        except OSError:
            return []
        self.offset += len(data)
        # Split before decoding: a read may end inside a character.
        lines = (self._rest + data).split(b"\n")
        self._rest = lines.pop()
        return [line.decode(errors="replace") for line in lines]


def _get(url: str, timeout_s: float, api_key: str | None = None) -> tuple[int | None, bytes]:
    headers = {"Authorization": f"Bearer {api_key}"} if api_key else {}
    try:
        request = urllib.request.Request(url, headers=headers)  # noqa: S310 - http(s) by construction
        with _OPENER.open(request, timeout=timeout_s) as answer:
            return int(answer.status), answer.read()
    except urllib.error.HTTPError as error:
        return error.code, b""
    except (OSError, ValueError, http.client.HTTPException):
        return None, b""


def http_status(url: str, timeout_s: float = 5) -> int | None:
    """Status of a GET, ``None`` when nobody answers."""
    return _get(url, timeout_s)[0]


def http_text(url: str, timeout_s: float = 5, api_key: str | None = None) -> str:
    """Body of a GET, empty when nobody answers with 200."""
    return _get(url, timeout_s, api_key)[1].decode(errors="replace")


def served_models(url: str, path: str, api_key: str | None = None, timeout_s: float = 5) -> tuple[ServedModel, ...]:
    """The models that the server says it serves; empty when it does not answer."""
    try:
        body = json.loads(_get(url + path, timeout_s, api_key)[1])
        return tuple(ServedModel(str(m["id"]), m.get("max_model_len")) for m in body["data"])
    except (ValueError, KeyError, TypeError):
        return ()


def watch_start(
    adapter: EngineAdapter,
    url: str,
    new_lines: Callable[[], Iterable[str]],
    alive: Callable[[], bool],
    say: Say,
    timeout_s: float,
    *,
    api_key: str | None = None,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
) -> StartOutcome:
    """Follow one start until it is ready, dead or late. ``alive`` turns False when the first process is gone.

    Ready means: the process lives, the health path answers 200, and /v1/models lists a model.
    """
    began = clock()
    lines: list[str] = []
    phases: list[tuple[str, float]] = []
    spoken = began
    current = Phase.STARTING

    def take() -> None:
        nonlocal current, spoken
        for line in new_lines():
            lines.append(line)
            phase = phase_of(line, adapter.phases)
            if phase is not None and phase is not current:
                current = phase
                phases.append((phase.value, round(clock() - began, 1)))
                # The log says ready before the server answers. It is said once, when the server does.
                if phase is not Phase.READY:
                    say(f"{phase.value} ({clock() - began:.0f} s)")
                    spoken = clock()

    say(f"{current.value} (0 s)")
    phases.append((current.value, 0.0))
    while True:
        take()
        elapsed = clock() - began
        if not alive():
            take()
            why = diagnose(lines, adapter) or unnamed(lines, current, "the process ended without naming a cause")
            return StartOutcome(False, elapsed, tuple(phases), None, (), why, True, last_lines(lines))
        if http_status(url + adapter.health_path) == 200:
            served = served_models(url, adapter.models_path, api_key)
            if served or (api_key is None and http_status(url + adapter.models_path) == 401):
                take()
                if phases[-1][0] != Phase.READY.value:
                    phases.append((Phase.READY.value, round(clock() - began, 1)))
                say(f"{Phase.READY.value} ({clock() - began:.0f} s)")
                capacity = adapter.capacity_from_log(lines)
                if lines:
                    # Without lines the start was not watched: what is known of the last one stays.
                    capacity = capacity.filled_from(adapter.capacity_from_metrics(http_text(url + adapter.metrics_path)))
                return StartOutcome(True, clock() - began, tuple(phases), capacity, served)
        if elapsed > timeout_s:
            why = diagnose(lines, adapter) or unnamed(lines, current, f"not ready after {timeout_s:.0f} s")
            return StartOutcome(False, elapsed, tuple(phases), None, (), why, False, last_lines(lines))
        if clock() - spoken >= HEARTBEAT_S:
            last = last_lines(lines, 1)
            say(f"{current.value} ({elapsed:.0f} s)" + (f": {plain_message(last[0])[:90]}" if last else ""))
            spoken = clock()
        sleep(POLL_S)
