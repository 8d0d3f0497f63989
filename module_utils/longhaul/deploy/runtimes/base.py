"""What a runtime must do: run one endpoint's engine on this host, and say how it is.

A runtime is one module with a class that has these methods, and one line in ``registry.py``. Nothing else compares a
runtime's name. Every method speaks of the endpoint ``where``; a host may have several.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Protocol

from ..layout import Layout
from ..ports import PortHolder
from ..spec import Spec

# A daemon that was killed is started again by systemd within seconds.
PATIENCE_S = 30.0
# For a question that may go unanswered.
GLANCE_S = 2.0

RUNNING = "RUNNING"
STARTING = "STARTING"


@dataclass(frozen=True)
class ProgramState:
    """An engine's process as its runtime sees it, in supervisord's words. ABSENT: there is none, or the runtime does not run."""

    state: str
    pid: int | None = None
    started_unix_s: float | None = None

    @property
    def alive(self) -> bool:
        """Whether it has a process."""
        return self.state in (RUNNING, STARTING)


@dataclass(frozen=True)
class FileChange:
    """A file that was written, or would be; ``before`` is empty where there was none."""

    path: str
    before: str
    after: str


@dataclass(frozen=True)
class Started:
    """How a start began. ``log_position``: where this start begins in the log, as :meth:`Runtime.watch` takes it."""

    changed: bool
    log_position: int
    state: ProgramState


@dataclass(frozen=True)
class Watched:
    """A start to watch. ``alive`` turns False when its first process is gone; ``give_up`` stops what is left of it."""

    alive: Callable[[], bool]
    new_lines: Callable[[], Iterable[str]]
    log_name: str
    give_up: Callable[[], object]


@dataclass(frozen=True)
class ScriptEnd:
    """How a script ended that ran beside the engine. ``exit_code`` is ``None`` where it did not end in time."""

    exit_code: int | None
    output: str


class Runtime(Protocol):
    """One endpoint's engine under this runtime. Every wait ends; a runtime that does not answer is a UserError."""

    name: ClassVar[str]

    def __init__(self, where: Layout, *, patience_s: float = PATIENCE_S) -> None:
        """``patience_s``: how long to wait for a daemon that does not answer."""

    @staticmethod
    def is_here() -> bool:
        """Whether this host has the runtime, so that something of an endpoint may run under it."""

    @staticmethod
    def part_of_spec(options: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """The runtime's own part of a spec (``container``) from an operator's options; ``None`` where it has none."""

    @staticmethod
    def own_shm_bytes(options: Mapping[str, Any]) -> int | None:
        """Shared memory that the engine has for itself; ``None`` where it uses the host's. ``options``: ipc and shm_size."""

    @staticmethod
    def host_python(spec: Spec) -> str | None:
        """The interpreter with the engine's packages, where this host can run it without the engine's surroundings."""

    @staticmethod
    def gpu_env(gpus: Sequence[str]) -> dict[str, str]:
        """Environment variables that limit an engine to these NVIDIA GPUs; none where the runtime limits it otherwise."""

    def configure(self, stop_timeout_s: int, *, dry_run: bool = False) -> tuple[FileChange, ...]:
        """Write what the runtime needs before any start. Returns what changed."""

    def state(self, spec: Spec | None) -> ProgramState:
        """The engine of ``spec`` now; ABSENT where another spec's engine runs instead."""

    def is_running(self) -> bool:
        """Whether anything of this endpoint runs, or is about to run again, whatever its spec."""

    def start(self, spec: Spec, stop_timeout_s: int, *, restart: bool = False) -> Started:
        """Make the engine of ``spec`` the one that runs, in place of another spec's. Returns before it is ready.

        UserError where somebody else holds its port.
        """

    def watch(self, spec: Spec, log_position: int, stop_timeout_s: int = 30) -> Watched:
        """The start that has just begun."""

    def stop(self, timeout_s: int) -> bool:
        """Stop whatever of this endpoint runs, and wait for its end. Returns whether anything ran."""

    def prune(self, keep: Collection[str]) -> bool:
        """Remove what is kept for specs that are not in ``keep`` (their ids). Returns whether there was any."""

    def remove(self, timeout_s: int, *, dry_run: bool = False) -> bool:
        """Stop and remove everything of this endpoint. Returns whether there was anything."""

    def log_position(self) -> int:
        """Where the log ends now."""

    def log_lines(self, spec: Spec | None) -> list[str]:
        """The engine's log, as far back as it is kept."""

    def follow(self, spec: Spec) -> Callable[[], list[str]] | None:
        """What the engine of ``spec`` logs from now on; ``None`` where it does not run."""

    def owns_port(self, spec: Spec | None, port: int, holder: PortHolder | None) -> bool:
        """Whether the process that listens on ``port`` is this endpoint's. ``spec``: what is deployed."""

    def run_script(self, spec: Spec, script: str, words: Sequence[str], timeout_s: float) -> ScriptEnd:
        """Run a Python program as the engine of ``spec`` would run: its interpreter or image, its environment, its GPUs."""
