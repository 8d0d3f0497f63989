"""The docker runtime: Docker's Engine API over its Unix socket, with the standard library alone.

A container belongs to one spec and is never changed. The one that serves carries the endpoint's name; the one before is
kept, stopped, beside it, so that going back needs no image, no registry and no free disk.
"""

from __future__ import annotations

import datetime
import http.client
import json
import struct
import time
import urllib.parse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ...errors import UserError
from ...files import to_json, write_atomic
from ...unix_http import UnixHttpConnection
from ..layout import Layout
from .container import LABEL_ENDPOINT, LABEL_SPEC, container_from, create_body, host_folders, reference
from .process import ProgramState

SOCKET = "/var/run/docker.sock"
# A daemon that was killed is started again by systemd within seconds.
DAEMON_PATIENCE_S = 30.0


class DockerError(UserError):
    """Docker refused; ``status`` is its HTTP status (0: it did not answer)."""

    def __init__(self, status: int, what: str, said: str) -> None:
        self.status = status
        required, fix = _advice(said)
        super().__init__(f"Docker: {what}: {said}", required, fix)


def _advice(said: str) -> tuple[str, str]:
    low = said.lower()
    if "no such image" in low or "manifest unknown" in low:
        return "the image on this host", "run playbooks/provision.yml, or correct engine_image and engine_image_digest"
    if "could not select device driver" in low or "cdi" in low or "nvidia" in low:
        return "a container runtime that knows the GPUs", "run playbooks/provision.yml (nvidia-container-toolkit)"
    if "no space left" in low:
        return "free disk for containers", "free space under Docker's data folder"
    return "a Docker daemon that does it", "see journalctl -u docker on the host"


class Docker:
    """The daemon behind a socket. Waits a while for one that is being restarted."""

    def __init__(self, path: str = SOCKET, patience_s: float = DAEMON_PATIENCE_S) -> None:
        self.path, self.patience_s = path, patience_s

    def call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, ok: tuple[int, ...] = (), timeout_s: float = 120
    ) -> tuple[int, bytes]:
        """(status, body). DockerError for a status of 400 and above that is not in ``ok``, and where nobody answers."""
        deadline = time.monotonic() + self.patience_s
        while True:
            connection = UnixHttpConnection(self.path, timeout_s)
            try:
                data = None if body is None else json.dumps(body).encode()
                connection.request(method, path, body=data, headers={"Content-Type": "application/json"} if data else {})
                answer = connection.getresponse()
                status, content = answer.status, answer.read()
                break
            except (OSError, http.client.HTTPException) as exc:
                if time.monotonic() >= deadline:
                    raise DockerError(0, self.path, f"no answer ({exc or type(exc).__name__})") from exc
                time.sleep(0.5)
            finally:
                connection.close()
        if status >= 400 and status not in ok:
            try:
                said = str(json.loads(content)["message"])
            except (ValueError, KeyError, TypeError):
                said = content.decode(errors="replace")[:300]
            raise DockerError(status, f"{method} {path.split('?', maxsplit=1)[0]}", " ".join(said.split()))
        return status, content

    def get(self, path: str, *, ok: tuple[int, ...] = (404,)) -> Any:
        """Decoded JSON; ``None`` where there is no such thing."""
        status, content = self.call("GET", path, ok=ok)
        return None if status >= 400 else json.loads(content)

    def image(self, name: str) -> dict[str, Any] | None:
        """What the daemon knows of an image, by any of its names."""
        found: dict[str, Any] | None = self.get(f"/images/{urllib.parse.quote(name, safe='/:@')}/json")
        return found

    def containers(self, label: str) -> list[dict[str, Any]]:
        """All containers, running or not, that carry ``label`` (``key=value``)."""
        query = urllib.parse.urlencode({"all": "1", "filters": json.dumps({"label": [label]})})
        found: list[dict[str, Any]] = self.get(f"/containers/json?{query}")
        return found


def find_image(docker: Docker, image: str, digest: str | None) -> dict[str, Any]:
    """Is the image here? ``{"present", "image_id", "digest"}``; a digest counts as a registry's digest or as the image's own id."""
    found = docker.image(f"{image}@{digest}" if digest else image)
    if found is None and digest:
        # One that was loaded from a file has no registry's digest: its id is the only pin it can carry.
        found = docker.image(image)
        if found is not None and found["Id"] != digest:
            found = None
    if found is None:
        return {"present": False, "image_id": None, "digest": digest}
    name = image.rpartition(":")[0] if ":" in image.rsplit("/", 1)[-1] else image
    known = [d.split("@", 1)[1] for d in found.get("RepoDigests") or [] if d.split("@", 1)[0] == name]
    chosen = digest if digest in known else (known[0] if known else None)
    return {"present": True, "image_id": found["Id"], "digest": chosen}


class DockerRuntime:
    """The containers of one endpoint. The same few verbs as the supervisor has."""

    def __init__(self, where: Layout, docker: Docker | None = None) -> None:
        self.where, self.docker = where, docker or Docker()

    def all(self) -> list[dict[str, Any]]:
        """This endpoint's containers."""
        return self.docker.containers(f"{LABEL_ENDPOINT}={self.where.state}")

    def of(self, spec_id: str) -> dict[str, Any] | None:
        """The container of a spec."""
        return next((c for c in self.all() if c["Labels"].get(LABEL_SPEC) == spec_id), None)

    def inspect(self, spec_id: str) -> dict[str, Any] | None:
        """``docker inspect`` of the container of a spec."""
        found = self.of(spec_id)
        return self.docker.get(f"/containers/{found['Id']}/json") if found else None

    def state(self, spec_id: str) -> ProgramState:
        """The container of a spec now, in the supervisor's words."""
        found = self.inspect(spec_id)
        if found is None:
            return ProgramState("ABSENT")
        state = found["State"]
        words = {"running": "RUNNING", "created": "STOPPED", "restarting": "BACKOFF", "paused": "UNKNOWN"}
        started = _unix_s(state.get("StartedAt") or "")
        return ProgramState(
            state=words.get(state["Status"], "EXITED"),
            pid=int(state.get("Pid") or 0) or None,
            started_unix_s=started,
            exit_status=int(state.get("ExitCode") or 0),
            description=state.get("Error") or ("killed: out of memory" if state.get("OOMKilled") else ""),
        )

    def running(self) -> list[dict[str, Any]]:
        """Those of this endpoint that have a process, or are about to have one again."""
        return [c for c in self.all() if c["State"] in ("running", "restarting", "paused")]

    def stop(self, timeout_s: int) -> bool:
        """Stop whatever of this endpoint runs. A container stopped so stays down, also when the daemon restarts."""
        running = self.running()
        for found in running:
            self.docker.call(
                "POST", f"/containers/{found['Id']}/stop?t={int(timeout_s)}", ok=(304, 404), timeout_s=timeout_s + 60
            )
        return bool(running)

    def activate(self, spec: Mapping[str, Any], timeout_s: int, *, restart: bool = False) -> tuple[bool, float]:
        """Make the container of ``spec`` the one that runs. Returns (changed, UNIX seconds when this start began).

        It is made before the other is stopped: one that Docker refuses to make costs the endpoint nothing.
        """
        mine = self.of(spec["spec_id"])
        running = {c["Id"] for c in self.running()}
        if mine and running == {mine["Id"]} and mine["State"] == "running" and not restart:
            return False, self.state(spec["spec_id"]).started_unix_s or time.time()
        mine_id = mine["Id"] if mine else self._create(spec)
        self.stop(timeout_s)
        self._rename(mine_id)
        began = time.time()
        self.docker.call("POST", f"/containers/{mine_id}/start", ok=(304,))
        return True, began

    def _create(self, spec: Mapping[str, Any]) -> str:
        settings = container_from(spec["container"])
        name = reference(settings)
        found = find_image(self.docker, settings.image, settings.digest)
        if not found["present"]:
            raise DockerError(404, "create", f"no such image: {name}")
        if settings.image_id and found["image_id"] != settings.image_id:
            raise DockerError(
                404, "create", f"no such image: {name} is {found['image_id'][:19]} here, {settings.image_id[:19]} was meant"
            )
        for folder in host_folders(spec):
            Path(folder).mkdir(parents=True, exist_ok=True)
        file = self.where.container_spec(spec["spec_id"])
        write_atomic(file, to_json(spec))
        body = create_body(spec, endpoint=str(self.where.state), spec_file=str(file), launcher=str(self.where.launcher))
        if found["digest"] is None:
            body["Image"] = found["image_id"]
        title = urllib.parse.quote(f"{self.where.program}-{spec['spec_id']}")
        _, content = self.docker.call("POST", f"/containers/create?name={title}", body)
        return str(json.loads(content)["Id"])

    def _rename(self, mine: str) -> None:
        """The endpoint's name to ``mine``; the others are called after their spec."""
        for found in self.all():
            plain = f"/{self.where.program}" in found["Names"]
            if found["Id"] == mine:
                continue
            if plain:
                self._call_it(found["Id"], f"{self.where.program}-{found['Labels'].get(LABEL_SPEC)}")
        now = self.docker.get(f"/containers/{mine}/json")
        if now["Name"] != f"/{self.where.program}":
            self._call_it(mine, self.where.program)

    def _call_it(self, container: str, name: str) -> None:
        self.docker.call("POST", f"/containers/{container}/rename?name={urllib.parse.quote(name)}")

    def remove(self, keep: tuple[str, ...] = ()) -> bool:
        """Remove the containers of all specs but ``keep``, and their copies of the spec. Images and caches stay."""
        gone = [c for c in self.all() if c["Labels"].get(LABEL_SPEC) not in keep]
        for found in gone:
            self.docker.call("DELETE", f"/containers/{found['Id']}?force=1&v=1", ok=(404, 409))
        for file in self.where.container_spec("x").parent.glob("*.json"):
            if file.stem not in keep:
                file.unlink(missing_ok=True)
        return bool(gone)


class ContainerLog:
    """New complete lines of a container's log since ``since_unix_s``; each call asks the daemon once."""

    def __init__(self, runtime: DockerRuntime, spec_id: str, since_unix_s: float) -> None:
        self._runtime, self._spec_id = runtime, spec_id
        # The daemon cuts at full precision; a hair earlier loses nothing.
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
            seconds = _unix_s(self._last)
            if seconds is not None:
                self._since = (
                    f"{int(seconds)}.{self._last.split('.')[1].rstrip('Z'):0<9}" if "." in self._last else str(int(seconds))
                )
        return [text for _, text in fresh]


def demultiplex(content: bytes) -> bytes:
    """Docker's framed log stream (8-byte head: stream, 0, 0, 0, length) -> the bytes of both streams."""
    parts, at = [], 0
    while at + 8 <= len(content):
        if content[at] not in (0, 1, 2) or content[at + 1 : at + 4] != b"\0\0\0":
            return content  # a container with a terminal writes plain text
        (length,) = struct.unpack(">I", content[at + 4 : at + 8])
        parts.append(content[at + 8 : at + 8 + length])
        at += 8 + length
    return b"".join(parts)


def _unix_s(stamp: str) -> float | None:
    """RFC 3339 with nanoseconds, in UTC -> UNIX seconds; ``None`` for Docker's zero time."""
    try:
        whole, _, fraction = stamp.rstrip("Z").partition(".")
        base = datetime.datetime.strptime(whole, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=datetime.timezone.utc)
    except ValueError:
        return None
    if base.year < 1970:
        return None
    return base.timestamp() + (float(f"0.{fraction}") if fraction else 0.0)
