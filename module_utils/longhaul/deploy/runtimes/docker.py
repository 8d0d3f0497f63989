"""The docker runtime: containers of one endpoint, made and driven over Docker's Engine API.

A container belongs to one spec and is never changed. The one that serves carries the endpoint's name; the one before is
kept, stopped, beside it, so that going back needs no image, no registry and no free disk.
"""

from __future__ import annotations

import contextlib
import json
import os
import time
import urllib.parse
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, ClassVar

from ...errors import UserError
from ...files import to_json, write_atomic
from ..layout import Layout
from ..ports import PortHolder, require_port_free
from ..spec import Spec
from .base import PATIENCE_S, FileChange, ProgramState, ScriptEnd, Started, Watched
from .container import LABEL_ENDPOINT, LABEL_SPEC, as_options, container_from, create_body, host_folders, reference, size_bytes
from .docker_api import SOCKET, Docker, DockerError, demultiplex, find_image, unix_s

# What Docker gives a container that asks for no size.
DEFAULT_SHM = "64m"
_STATES = {"running": "RUNNING", "created": "STOPPED", "restarting": "BACKOFF", "paused": "UNKNOWN"}
_SCRIPT_INSIDE = "/longhaul-script.py"


class DockerRuntime:
    """The containers of one endpoint: one per spec, of which one runs."""

    name: ClassVar[str] = "docker"

    def __init__(self, where: Layout, *, patience_s: float = PATIENCE_S) -> None:
        self.where, self.docker = where, Docker(patience_s=patience_s)

    @staticmethod
    def is_here() -> bool:
        """Whether there is a daemon's socket that we may use."""
        return Path(SOCKET).exists() and os.access(SOCKET, os.W_OK)

    @staticmethod
    def part_of_spec(options: Mapping[str, Any] | None) -> dict[str, Any] | None:
        """Image, mounts, limits (see :class:`ContainerSettings`)."""
        return as_options(container_from(options or {}))

    @staticmethod
    def own_shm_bytes(options: Mapping[str, Any]) -> int | None:
        """The container's own shared memory, unless it shares the host's."""
        if options.get("ipc") == "host":
            return None
        return size_bytes("engine_container_shm_size", str(options.get("shm_size") or "") or DEFAULT_SHM)

    @staticmethod
    def host_python(spec: Spec) -> str | None:
        """None: the engine's packages are in its image."""
        return None

    @staticmethod
    def gpu_env(gpus: Sequence[str]) -> dict[str, str]:
        """None: a container is given its GPUs and sees no others."""
        return {}

    # Looking

    def _all(self) -> list[dict[str, Any]]:
        return self.docker.containers(f"{LABEL_ENDPOINT}={self.where.state}")

    def _running(self) -> list[dict[str, Any]]:
        return [c for c in self._all() if c["State"] in ("running", "restarting", "paused")]

    def of(self, spec_id: str) -> dict[str, Any] | None:
        """The container of a spec."""
        return next((c for c in self._all() if c["Labels"].get(LABEL_SPEC) == spec_id), None)

    def state(self, spec: Spec | None) -> ProgramState:
        """The container of a spec."""
        found = self.of(spec.spec_id) if spec is not None else None
        if found is None:
            return ProgramState("ABSENT")
        state = self.docker.get(f"/containers/{found['Id']}/json")["State"]
        return ProgramState(
            _STATES.get(state["Status"], "EXITED"), int(state.get("Pid") or 0) or None, unix_s(state.get("StartedAt") or "")
        )

    def is_running(self) -> bool:
        """Whether a container has a process, or is about to have one again."""
        return bool(self._running())

    def owns_port(self, spec: Spec | None, port: int, holder: PortHolder | None) -> bool:
        """Whether what is deployed is a container on that port. Docker runs it as another user, so ``holder`` is unknown."""
        return spec is not None and spec.runtime == self.name and spec.settings.port == port

    # Changing

    def configure(self, stop_timeout_s: int, *, dry_run: bool = False) -> tuple[FileChange, ...]:
        """Nothing: a container brings its configuration."""
        return ()

    def start(self, spec: Spec, stop_timeout_s: int, *, restart: bool = False) -> Started:
        """Make the container of ``spec`` the one that runs.

        The container is made before the other is stopped: if Docker refuses to make it, the endpoint serves on.
        """
        running = self._running()
        if not running:
            require_port_free(spec.settings.port, spec.settings.host)
        mine = self.of(spec.spec_id)
        if mine and [c["Id"] for c in running] == [mine["Id"]] and mine["State"] == "running" and not restart:
            state = self.state(spec)
            return Started(False, int(state.started_unix_s or time.time()), state)
        mine_id = mine["Id"] if mine else self._create(spec)
        self.stop(stop_timeout_s)
        self._rename(mine_id)
        began_unix_s = time.time()
        self.docker.call("POST", f"/containers/{mine_id}/start", ok=(304,))
        return Started(True, int(began_unix_s), self.state(spec))

    def _create(self, spec: Spec) -> str:
        settings = container_from(spec.container or {})
        name, body = reference(settings), self._body(spec, self.where.container_spec(spec.spec_id))
        found = find_image(self.docker, settings.image, settings.digest)
        if not found["present"]:
            raise DockerError(404, "create", f"no such image: {name}")
        if settings.image_id and found["image_id"] != settings.image_id:
            raise DockerError(
                404, "create", f"no such image: {name} is {found['image_id'][:19]} here, {settings.image_id[:19]} was meant"
            )
        self._make_folders(spec)
        write_atomic(self.where.container_spec(spec.spec_id), to_json(spec.document))
        if found["digest"] is None:
            body["Image"] = found["image_id"]
        title = urllib.parse.quote(f"{self.where.program}-{spec.spec_id}")
        _, content = self.docker.call("POST", f"/containers/create?name={title}", body)
        return str(json.loads(content)["Id"])

    def _body(self, spec: Spec, spec_file: Path) -> dict[str, Any]:
        return create_body(spec, endpoint=str(self.where.state), spec_file=str(spec_file), launcher=str(self.where.launcher))

    @staticmethod
    def _make_folders(spec: Spec) -> None:
        for folder in host_folders(spec):
            Path(folder).mkdir(parents=True, exist_ok=True)

    def _rename(self, mine: str) -> None:
        """Give the endpoint's name to ``mine``; the others are called after their spec."""
        plain = self.where.program
        for found in self._all():
            if found["Id"] != mine and f"/{plain}" in found["Names"]:
                self._call_it(found["Id"], f"{plain}-{found['Labels'].get(LABEL_SPEC)}")
        if self.docker.get(f"/containers/{mine}/json")["Name"] != f"/{plain}":
            self._call_it(mine, plain)

    def _call_it(self, container: str, name: str) -> None:
        self.docker.call("POST", f"/containers/{container}/rename?name={urllib.parse.quote(name)}")

    def stop(self, timeout_s: int) -> bool:
        """Stop every container. They stay down, also when the daemon restarts."""
        running = self._running()
        for found in running:
            self.docker.call(
                "POST", f"/containers/{found['Id']}/stop?t={int(timeout_s)}", ok=(304, 404), timeout_s=timeout_s + 60
            )
        return bool(running)

    def prune(self, keep: Collection[str]) -> bool:
        """Remove the containers of all specs but ``keep``, and their copies of the spec. Images and caches stay."""
        gone = [c for c in self._all() if c["Labels"].get(LABEL_SPEC) not in keep]
        for found in gone:
            self.docker.call("DELETE", f"/containers/{found['Id']}?force=1&v=1", ok=(404, 409))
        for file in self.where.container_spec("x").parent.glob("*.json"):
            if file.stem not in keep:
                file.unlink(missing_ok=True)
        return bool(gone)

    def remove(self, timeout_s: int, *, dry_run: bool = False) -> bool:
        """Stop and remove every container."""
        there = bool(self._all())
        if there and not dry_run:
            self.stop(timeout_s)
            self.prune(())
        return there

    # Logs

    def watch(self, spec: Spec, log_position: int, stop_timeout_s: int = 30) -> Watched:
        """The container that runs now. Docker knows when it began, so ``log_position`` is not used."""
        first = self.state(spec)

        def alive() -> bool:
            now = self.state(spec)
            # Another pid means: it died and Docker started it again.
            return now.alive and (first.pid is None or now.pid == first.pid)

        log = ContainerLog(self, spec.spec_id, first.started_unix_s or 0.0)
        return Watched(alive, log, f"docker logs {self.where.program}", lambda: self.stop(stop_timeout_s))

    def log_position(self) -> int:
        """UNIX seconds now."""
        return int(time.time())

    def log_lines(self, spec: Spec | None) -> list[str]:
        """What Docker keeps of the container's log."""
        return [] if spec is None else ContainerLog(self, spec.spec_id, 0.0)()

    def follow(self, spec: Spec) -> Callable[[], list[str]] | None:
        """The container's log from now on."""
        if not (self.is_here() and self.state(spec).alive):
            return None
        return ContainerLog(self, spec.spec_id, time.time())

    # Beside the engine

    def run_script(self, spec: Spec, script: str, words: Sequence[str], timeout_s: float) -> ScriptEnd:
        """Run it in a container like the engine's: image, GPUs, shared memory, limits and mounts are those of the spec.

        It carries the endpoint's label: if this run is cut short, removing the endpoint removes it. It gets those variables of
        the caller's environment that NCCL and PyTorch's symmetric memory read.
        """
        path = self.where.state / "script.py"
        write_atomic(path, script)
        self._make_folders(spec)
        body = self._body(spec, self.where.current_spec)
        body["Entrypoint"] = [body["Entrypoint"][0], _SCRIPT_INSIDE, *words]
        here = {k: v for k, v in os.environ.items() if k.startswith(("NCCL_", "TORCH_SYMM_MEM_"))}
        body["Env"] = [f"{k}={v}" for k, v in {**here, **spec.env}.items()]
        body["Labels"] = {**body["Labels"], LABEL_SPEC: "script"}
        body.pop("Healthcheck")
        body["HostConfig"]["RestartPolicy"] = {"Name": "no"}
        body["HostConfig"]["Mounts"].append({"Type": "bind", "Source": str(path), "Target": _SCRIPT_INSIDE, "ReadOnly": True})
        made = str(json.loads(self.docker.call("POST", "/containers/create", body)[1])["Id"])
        try:
            self.docker.call("POST", f"/containers/{made}/start")
            end_s = time.monotonic() + timeout_s
            while (state := self.docker.get(f"/containers/{made}/json")["State"])["Running"]:
                if time.monotonic() > end_s:
                    return ScriptEnd(None, "")
                time.sleep(0.5)
            _, logs = self.docker.call("GET", f"/containers/{made}/logs?stdout=1&stderr=1")
        finally:
            with contextlib.suppress(UserError):
                self.docker.call("DELETE", f"/containers/{made}?force=1&v=1", ok=(404, 409))
        return ScriptEnd(int(state["ExitCode"]), demultiplex(logs).decode(errors="replace"))


class ContainerLog:
    """New complete lines of a container's log since ``since_unix_s``; each call asks the daemon once."""

    def __init__(self, runtime: DockerRuntime, spec_id: str, since_unix_s: float) -> None:
        self._runtime, self._spec_id = runtime, spec_id
        # The daemon cuts at full precision: ask for a millisecond more, so that no line is lost.
        self._since, self._last = f"{max(0.0, since_unix_s - 0.001):.9f}", ""

    def __call__(self) -> list[str]:
        """Lines in the order of their time stamps."""
        found = self._runtime.of(self._spec_id)
        if found is None:
            return []
        query = urllib.parse.urlencode({"stdout": 1, "stderr": 1, "timestamps": 1, "since": self._since})
        status, content = self._runtime.docker.call("GET", f"/containers/{found['Id']}/logs?{query}", ok=(404, 409))
        if status >= 400:
            return []
        stamped = sorted(
            (line.split(" ", 1) for line in demultiplex(content).decode(errors="replace").splitlines() if " " in line),
            key=lambda pair: pair[0],
        )
        fresh = [pair for pair in stamped if pair[0] > self._last]
        if fresh:
            self._last = fresh[-1][0]
            seconds = unix_s(self._last)
            if seconds is not None:
                self._since = (
                    f"{int(seconds)}.{self._last.split('.')[1].rstrip('Z'):0<9}" if "." in self._last else str(int(seconds))
                )
        return [text for _, text in fresh]
