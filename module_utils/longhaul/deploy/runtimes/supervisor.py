"""supervisord of one home, spoken to over its Unix socket with XML-RPC. Works with or without root or systemd.

One supervisord per home, one program per endpoint. The program is always the same small launcher, which reads the spec and
becomes the engine: changing the spec never changes supervisord's configuration.
"""

from __future__ import annotations

import http.client
import os
import subprocess
import time
import xmlrpc.client
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...files import write_atomic
from ...unix_http import UnixHttpConnection
from ..layout import Layout
from .base import FileChange, ProgramState

# What a call raises where supervisord does not answer, or does not know the program.
_NO_ANSWER = (OSError, http.client.HTTPException, xmlrpc.client.Error)


class _UnixTransport(xmlrpc.client.Transport):
    def __init__(self, path: str) -> None:
        super().__init__()
        self._socket_path = path

    def make_connection(self, host: Any) -> http.client.HTTPConnection:
        made = UnixHttpConnection(self._socket_path, 90)
        self._connection = (host, made)
        return made

    def request(self, *args: Any, **more: Any) -> Any:
        try:
            return super().request(*args, **more)
        finally:
            self.close()


def daemon_config(where: Layout) -> str:
    """supervisord.conf of this home. The include is relative to the file: a list of patterns cannot hold a space."""
    base = _literal(where.supervisor)
    return f"""; Written by Longhaul. Programs are in conf.d, one an endpoint.
[supervisord]
logfile = {base}/supervisord.log
logfile_maxbytes = 10MB
logfile_backups = 3
pidfile = {base}/supervisord.pid
childlogdir = {base}
nocleanup = true
minfds = 1024
silent = true

[unix_http_server]
file = {base}/supervisor.sock
chmod = 0700

[rpcinterface:supervisor]
supervisor.rpcinterface_factory = supervisor.rpcinterface:make_main_rpcinterface

[supervisorctl]
serverurl = unix://{base}/supervisor.sock

[include]
files = conf.d/*.ini
"""


def program_config(where: Layout, stop_timeout_s: int) -> str:
    """The endpoint's program. A start is not retried: one that fails must fail at once, with its own message.

    ``autorestart``: an engine that was up and died is started again. One that is being started is watched.
    """
    python = where.supervisor / "env" / "bin" / "python"
    # This one value is expanded twice (supervisor/options.py, processes_from_section, 4.3.0).
    log = _literal(where.log).replace("%", "%%")
    return f"""[program:{where.program}]
command = {_quote(str(python))} {_quote(str(where.launcher))} {_quote(str(where.current_spec))}
directory = {_literal(where.state)}
autostart = true
autorestart = true
startsecs = 5
startretries = 0
stopsignal = TERM
stopwaitsecs = {stop_timeout_s}
stopasgroup = true
killasgroup = true
redirect_stderr = true
stdout_logfile = {log}
stdout_logfile_maxbytes = 50MB
stdout_logfile_backups = 5
"""


def _literal(path: Path) -> str:
    # supervisord expands %(...)s in every value.
    return str(path).replace("%", "%%")


def _quote(text: str) -> str:
    # It also splits a command into words, as a shell does.
    text = text.replace("%", "%%")
    return '"' + text.replace('"', '\\"') + '"' if any(c in text for c in " \t\"'") else text


class Supervisor:
    """supervisord of one home, and this endpoint's program. Every wait ends."""

    def __init__(self, where: Layout) -> None:
        self.where = where

    def _rpc(self) -> Any:
        proxy = xmlrpc.client.ServerProxy("http://localhost", transport=_UnixTransport(str(self.where.supervisor_socket)))
        return proxy.supervisor

    def running(self) -> bool:
        """Whether supervisord answers."""
        try:
            return bool(self._rpc().getState()["statename"] == "RUNNING")
        except _NO_ANSWER:
            return False

    def ensure_running(self, timeout_s: float = 20) -> bool:
        """Start supervisord unless it answers. Returns whether it had to be started."""
        if self.running():
            return False
        binary = self.where.supervisor / "env" / "bin" / "supervisord"
        config = self.where.supervisor / "supervisord.conf"
        if not binary.exists():
            raise UserError(f"no {binary}", "supervisord installed by the engine role", "run ansible-playbook deploy.yml")
        # A clean environment: the engine must not see the tokens, proxies and virtualenv of the operator's shell.
        kept = ("PATH", "HOME", "LANG", "LC_ALL", "TMPDIR", "USER", "LOGNAME")
        environment = {name: value for name, value in os.environ.items() if name in kept}
        # A session of its own, so that it outlives the SSH connection (or the async job) that started it.
        begun = subprocess.run(
            [str(binary), "-c", str(config)],
            env=environment,
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
            check=False,
            timeout=timeout_s,
        )
        if begun.returncode != 0:
            # It says why on its terminal only: start it again in the foreground, where a bad configuration ends it at once.
            why = subprocess.run(
                [str(binary), "-n", "-c", str(config)],
                env=environment,
                cwd="/",
                capture_output=True,
                text=True,
                check=False,
                timeout=5,
            )
            text = (why.stderr or why.stdout).strip().splitlines()
            raise UserError(
                f"supervisord does not start: {text[0] if text else 'no output'}", "a supervisord that starts", f"see {config}"
            )
        self._wait(self.running, timeout_s, "supervisord does not answer", f"see {self.where.supervisor / 'supervisord.log'}")
        return True

    def state(self) -> ProgramState:
        """The endpoint's program now."""
        try:
            info = self._rpc().getProcessInfo(self.where.program)
        except _NO_ANSWER:
            return ProgramState("ABSENT")
        return ProgramState(str(info["statename"]), int(info["pid"]) or None, float(info["start"]) or None)

    def load_programs(self) -> None:
        """Make supervisord read added, changed and removed files of conf.d. Other programs run on."""
        rpc = self._rpc()
        added, changed, removed = rpc.reloadConfig()[0]
        for name in removed + changed:
            rpc.stopProcessGroup(name)
            rpc.removeProcessGroup(name)
        for name in changed + added:
            try:
                rpc.addProcessGroup(name)
            except xmlrpc.client.Fault as fault:
                if "ALREADY_ADDED" not in fault.faultString:
                    raise

    def start(self) -> bool:
        """Start the program unless it has a process. Returns at once (the watcher waits for readiness)."""
        if self.state().alive:
            return False
        self._rpc().startProcess(self.where.program, False)
        return True

    def stop(self, timeout_s: float) -> bool:
        """Stop the program and wait until its process group is gone."""
        if not self.state().alive:
            return False
        self._rpc().stopProcess(self.where.program, False)
        self._wait(self._is_gone, timeout_s + 15, f"{self.where.program} does not stop", "see the engine's log")
        return True

    def _is_gone(self) -> bool:
        state = self.state()
        return not state.alive and state.state != "STOPPING"

    def give_up(self, timeout_s: float) -> bool:
        """Stop a program whose start failed; returns whether there was a process.

        It may have exited and be about to start again, so this looks for three seconds.
        """
        end = time.monotonic() + 3
        while time.monotonic() < end:
            state = self.state()
            if state.alive:
                return self.stop(timeout_s)
            if state.state in ("STOPPED", "FATAL", "ABSENT"):
                return False
            time.sleep(0.1)
        return False

    def shutdown(self, timeout_s: float = 60) -> bool:
        """End supervisord and every program of this home."""
        if not self.running():
            return False
        self._rpc().shutdown()
        self._wait(lambda: not self.running(), timeout_s, "supervisord does not end", "end it by its pid file")
        return True

    def write_config(self, stop_timeout_s: int, *, dry_run: bool = False) -> tuple[FileChange, ...]:
        """Write supervisord.conf and the endpoint's program file where they differ. Returns what differed."""
        changes = []
        for path, text in self.config_files(stop_timeout_s).items():
            try:
                before = path.read_text(encoding="utf-8")
            except OSError:
                before = ""
            if before != text:
                changes.append(FileChange(str(path), before, text))
                if not dry_run:
                    write_atomic(path, text)
        return tuple(changes)

    @property
    def program_file(self) -> Path:
        """The endpoint's program, as supervisord reads it."""
        return self.where.supervisor / "conf.d" / f"{self.where.instance}.ini"

    def config_files(self, stop_timeout_s: int) -> dict[Path, str]:
        """The files this endpoint needs, with their text."""
        return {
            self.where.supervisor / "supervisord.conf": daemon_config(self.where),
            self.program_file: program_config(self.where, stop_timeout_s),
        }

    def remove_program(self) -> bool:
        """Take the stopped program out of supervisord, which ends with its last program. Returns whether anything was there."""
        there = self.program_file.exists()
        if there:
            self.program_file.unlink()
            if self.running():
                self.load_programs()
        if not list(self.program_file.parent.glob("*.ini")):
            there = self.shutdown() or there
        return there

    @staticmethod
    def _wait(ready: Callable[[], bool], timeout_s: float, found: str, fix: str) -> None:
        end = time.monotonic() + timeout_s
        while not ready():
            if time.monotonic() > end:
                raise UserError(f"{found} after {timeout_s:.0f} s", "an answer within that time", fix)
            time.sleep(0.1)
