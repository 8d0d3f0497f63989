"""The process runtime: the engine in a virtual environment, as a program of the home's supervisord."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import tempfile
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ..layout import Layout
from ..ports import PortHolder, ancestors_of, require_port_free
from ..spec import Spec
from ..startup import LogFollower
from .base import PATIENCE_S, FileChange, ProgramState, ScriptEnd, Started, Watched
from .supervisor import Supervisor


class ProcessRuntime:
    """The endpoint's one program; the spec that is current when it starts says which engine it becomes."""

    name: ClassVar[str] = "process"

    def __init__(self, where: Layout, *, patience_s: float = PATIENCE_S) -> None:
        self.where, self.supervisor = where, Supervisor(where)

    @staticmethod
    def is_here() -> bool:
        """It needs nothing of the host."""
        return True

    @staticmethod
    def part_of_spec(options: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """None: argv and environment are all there is."""
        return None

    @staticmethod
    def own_shm_bytes(options: Mapping[str, Any]) -> int | None:
        """None: the host's."""
        return None

    @staticmethod
    def host_python(spec: Spec) -> str | None:
        """The interpreter that argv starts with."""
        return spec.argv[0]

    @staticmethod
    def gpu_env(gpus: Sequence[str]) -> dict[str, str]:
        """A process sees every GPU of the host, unless its environment says otherwise."""
        return {"CUDA_VISIBLE_DEVICES": ",".join(gpus)}

    def configure(self, stop_timeout_s: int, *, dry_run: bool = False) -> tuple[FileChange, ...]:
        """supervisord's configuration and the endpoint's program."""
        return self.supervisor.write_config(stop_timeout_s, dry_run=dry_run)

    def state(self, spec: Spec | None) -> ProgramState:
        """The program; ABSENT where it was started with another spec."""
        state = self.supervisor.state()
        if spec is None or not state.alive:
            return state
        try:
            runs = self.where.running_file.read_text(encoding="utf-8").strip()
        except OSError:
            runs = ""
        return state if runs in ("", spec.spec_id) else ProgramState("ABSENT")

    def is_running(self) -> bool:
        """Whether the program has a process."""
        return self.supervisor.state().alive

    def start(self, spec: Spec, stop_timeout_s: int, *, restart: bool = False) -> Started:
        """Start the program; a process that was started with another spec is stopped first."""
        supervisor = self.supervisor
        self.where.log.parent.mkdir(parents=True, exist_ok=True)
        before_bytes = self.log_position()
        alive = supervisor.state().alive
        if alive and (restart or not self.state(spec).alive):
            supervisor.stop(stop_timeout_s)
            alive = False
        if not alive:
            require_port_free(spec.settings.port, spec.settings.host)
        # A fresh supervisord starts every program by itself, so the log's size is taken before.
        fresh = supervisor.ensure_running()
        supervisor.load_programs()
        began = supervisor.start() or fresh
        return Started(began, before_bytes if began else self.log_position(), supervisor.state())

    def watch(self, spec: Spec, log_position: int, stop_timeout_s: int = 30) -> Watched:
        """The process that runs now, and the log from ``log_position`` (bytes) on."""
        begun = self.supervisor.state()

        def alive() -> bool:
            now = self.supervisor.state()
            return now.alive and now.pid == begun.pid

        follower = LogFollower(self.where.log, log_position)
        return Watched(alive, follower, str(self.where.log), lambda: self.supervisor.give_up(stop_timeout_s))

    def stop(self, timeout_s: int) -> bool:
        """Stop the program."""
        return self.supervisor.stop(timeout_s)

    def prune(self, keep: Collection[str]) -> bool:
        """Nothing is kept of other specs."""
        return False

    def remove(self, timeout_s: int, *, dry_run: bool = False) -> bool:
        """Stop the program and take it out of supervisord, which ends with its last program."""
        if dry_run:
            return self.is_running() or self.supervisor.program_file.exists()
        stopped = self.supervisor.stop(timeout_s)
        return self.supervisor.remove_program() or stopped

    def log_position(self) -> int:
        """Bytes of the log file."""
        try:
            return self.where.log.stat().st_size
        except OSError:
            return 0

    def log_lines(self, spec: Spec | None) -> list[str]:
        """The log file's lines; none where it cannot be read."""
        try:
            return self.where.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []

    def follow(self, spec: Spec) -> Callable[[], list[str]] | None:
        """What the log file gains from now on. OSError where there is none."""
        end = self.where.log.stat().st_size
        return LogFollower(self.where.log, end) if self.state(spec).alive else None

    def owns_port(self, spec: Spec | None, port: int, holder: PortHolder | None) -> bool:
        """Whether the listener is the program or one of its children."""
        ours = self.supervisor.state()
        return bool(holder and holder.pid and ours.pid and ours.pid in ancestors_of(holder.pid))

    def run_script(self, spec: Spec, script: str, words: Sequence[str], timeout_s: float) -> ScriptEnd:
        """Run it with the engine's interpreter. The caller's environment goes along, the spec's on top of it."""
        with tempfile.TemporaryDirectory(prefix="longhaul-") as folder:
            path = Path(folder) / "script.py"
            path.write_text(script, encoding="utf-8")
            process = subprocess.Popen(
                [spec.argv[0], str(path), *words],
                env={**os.environ, **spec.env},
                cwd=folder,
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                text=True,
                errors="replace",
                start_new_session=True,
            )
            try:
                text, _ = process.communicate(timeout=timeout_s)
            except subprocess.TimeoutExpired:
                with contextlib.suppress(OSError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.communicate()
                return ScriptEnd(None, "")
        return ScriptEnd(process.returncode, text)
