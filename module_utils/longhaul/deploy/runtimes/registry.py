"""Both runtimes behind the same few verbs, chosen by the deployed spec: what the Ansible modules drive."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...engines.registry import get_engine
from ...errors import UserError
from ...files import read_json
from ..layout import Layout
from ..startup import LogFollower, http_status
from .docker import SOCKET, ContainerLog, Docker, DockerRuntime
from .process import ProgramState, Supervisor


@dataclass(frozen=True)
class Watched:
    """A start to watch: is it still the same process, and what does it log?"""

    alive: Callable[[], bool]
    new_lines: Callable[[], Iterable[str]]
    log_name: str
    give_up: Callable[[], object]


def docker_here() -> bool:
    """Is there a Docker daemon's socket on this host that we may use?"""
    return Path(SOCKET).exists() and os.access(SOCKET, os.W_OK)


def state_of(where: Layout, spec: Mapping[str, Any] | None) -> ProgramState:
    """The engine of a spec now; ABSENT where another spec's engine runs instead."""
    if spec is None:
        return ProgramState("ABSENT")
    if spec["runtime"] == "docker":
        return DockerRuntime(where).state(spec["spec_id"])
    state = Supervisor(where).state()
    try:
        runs = where.running_file.read_text(encoding="utf-8").strip()
    except OSError:
        runs = ""
    return state if runs in ("", spec["spec_id"]) or not state.alive else ProgramState("ABSENT", description=f"spec {runs} runs")


def healthy(where: Layout, spec: Mapping[str, Any] | None) -> bool:
    """Does the engine of this spec run, and does it answer its health path?"""
    if spec is None or not state_of(where, spec).alive:
        return False
    # A server that says 401 or 404 is up.
    status = http_status(str(spec["url"]) + get_engine(str(spec["engine"])).health_path)
    return status is not None and status < 500


def log_from_now(where: Layout, spec: Mapping[str, Any]) -> Callable[[], list[str]] | None:
    """What the engine of this spec logs from now on; ``None`` where it does not run here, or its log is not ours to read."""
    try:
        if spec["runtime"] == "docker":
            runtime = DockerRuntime(where, Docker(patience_s=2))
            runs = docker_here() and runtime.state(spec["spec_id"]).alive
            return ContainerLog(runtime, spec["spec_id"], time.time()) if runs else None
        return LogFollower(where.log, where.log.stat().st_size) if state_of(where, spec).alive else None
    except (OSError, UserError):
        return None


def stop_other_runtime(where: Layout, spec: Mapping[str, Any], timeout_s: int) -> bool:
    """An endpoint that changes its runtime must not serve twice."""
    if spec["runtime"] == "docker":
        return Supervisor(where).stop(timeout_s)
    return docker_here() and DockerRuntime(where, Docker(patience_s=2)).stop(timeout_s)


def watched(where: Layout, spec: Mapping[str, Any], log_offset: int, stop_timeout_s: int = 30) -> Watched:
    """The start that has just begun. ``log_offset`` counts for a log file (process); a container knows when it began.

    A watch outlives a controller that was killed. When the next controller replaces the deployment, the old watch sees its process
    die; giving up must then not stop the engine that was started in its place.
    """

    def is_current() -> bool:
        return bool((read_json(where.current_spec) or {}).get("spec_id") == spec["spec_id"])

    if spec["runtime"] == "docker":
        runtime = DockerRuntime(where)
        first = runtime.state(spec["spec_id"])

        def container_alive() -> bool:
            now = runtime.state(spec["spec_id"])
            # Another pid means: it died and Docker started it again.
            return now.alive and (first.pid is None or now.pid == first.pid)

        return Watched(
            container_alive,
            ContainerLog(runtime, spec["spec_id"], first.started_unix_s or 0.0),
            f"docker logs {where.program}",
            lambda: is_current() and runtime.stop(stop_timeout_s),
        )
    supervisor = Supervisor(where)
    begun = supervisor.state()

    def program_alive() -> bool:
        now = supervisor.state()
        return now.alive and now.pid == begun.pid

    return Watched(
        program_alive,
        LogFollower(where.log, log_offset),
        str(where.log),
        lambda: is_current() and supervisor.give_up(stop_timeout_s),
    )
