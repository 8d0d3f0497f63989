"""Docker's Engine API over its Unix socket, with the standard library alone: calls, images, log streams."""

from __future__ import annotations

import datetime
import http.client
import json
import struct
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

from ...errors import UserError
from ...unix_http import UnixHttpConnection
from .base import PATIENCE_S

SOCKET = "/var/run/docker.sock"


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
    """The daemon behind a socket. Waits ``patience_s`` for one that is being restarted."""

    def __init__(self, path: str = SOCKET, patience_s: float = PATIENCE_S) -> None:
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
    """What this daemon has of an image: ``{"present", "image_id", "digest"}``. ``digest`` may be a registry's or the image's own id."""
    found = docker.image(f"{image}@{digest}" if digest else image)
    if found is None and digest:
        # An image that was loaded from a file has no registry's digest. Only its own id can pin it.
        found = docker.image(image)
        if found is not None and found["Id"] != digest:
            found = None
    if found is None:
        return {"present": False, "image_id": None, "digest": digest}
    name = image.rpartition(":")[0] if ":" in image.rsplit("/", 1)[-1] else image
    known = [d.split("@", 1)[1] for d in found.get("RepoDigests") or [] if d.split("@", 1)[0] == name]
    chosen = digest if digest in known else (known[0] if known else None)
    return {"present": True, "image_id": found["Id"], "digest": chosen}


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


def unix_s(stamp: str) -> float | None:
    """RFC 3339 with nanoseconds, in UTC -> UNIX seconds; ``None`` for Docker's zero time."""
    try:
        whole, _, fraction = stamp.rstrip("Z").partition(".")
        base = datetime.datetime.strptime(whole, "%Y-%m-%dT%H:%M:%S").replace(tzinfo=datetime.timezone.utc)
    except ValueError:
        return None
    if base.year < 1970:
        return None
    return base.timestamp() + (float(f"0.{fraction}") if fraction else 0.0)
