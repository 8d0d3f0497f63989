"""Runtimes: one module per runtime, one line here. What is asked of whichever runtime a spec names."""

from __future__ import annotations

from collections.abc import Callable

from ...engines.registry import get_engine
from ...errors import UserError
from ..layout import Layout
from ..spec import Spec
from ..startup import http_status
from .base import GLANCE_S, PATIENCE_S, ProgramState, Runtime
from .docker import DockerRuntime
from .process import ProcessRuntime

RUNTIMES: dict[str, type[Runtime]] = {kind.name: kind for kind in (ProcessRuntime, DockerRuntime)}


def runtime_kind(name: str) -> type[Runtime]:
    """The runtime of that name, or a UserError that lists the known ones."""
    try:
        return RUNTIMES[name]
    except KeyError:
        raise UserError(f"engine_runtime {name!r}", "one of " + ", ".join(RUNTIMES), "set engine_runtime") from None


def runtime_of(where: Layout, spec: Spec | None, *, patience_s: float = PATIENCE_S) -> Runtime:
    """The endpoint under its spec's runtime; under the process runtime where nothing is deployed."""
    return runtime_kind(ProcessRuntime.name if spec is None else spec.runtime)(where, patience_s=patience_s)


def state_of(where: Layout, spec: Spec | None) -> ProgramState:
    """The engine of a spec now; ABSENT where another spec's engine runs instead, or none is deployed."""
    return ProgramState("ABSENT") if spec is None else runtime_of(where, spec).state(spec)


def healthy(where: Layout, spec: Spec | None) -> bool:
    """Whether the engine of this spec runs and answers its health path."""
    if spec is None or not state_of(where, spec).alive:
        return False
    # A server that says 401 or 404 is up.
    status = http_status(spec.url + get_engine(spec.engine).health_path)
    return status is not None and status < 500


def log_from_now(where: Layout, spec: Spec) -> Callable[[], list[str]] | None:
    """What the engine of this spec logs from now on; ``None`` where it does not run here, or its log is not ours to read."""
    try:
        return runtime_of(where, spec, patience_s=GLANCE_S).follow(spec)
    except (OSError, UserError):
        return None


def stop_others(where: Layout, spec: Spec, timeout_s: int) -> bool:
    """Stop what of this endpoint runs under another runtime than the spec's: an endpoint must not serve twice."""
    others = [kind(where, patience_s=GLANCE_S) for name, kind in RUNTIMES.items() if name != spec.runtime and kind.is_here()]
    stopped = [other.stop(timeout_s) for other in others]
    return any(stopped)
