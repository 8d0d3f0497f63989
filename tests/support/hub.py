"""A hub of our own: the few routes of the Hugging Face hub that a snapshot needs, on loopback, with faults to order."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Repo:
    """Files of one repository. ``gated``: a token is asked for; ``claimed_bytes``: sizes that the listing lies about;
    ``cuts``: file -> how many transfers of it break off in the middle."""

    files: dict[str, bytes]
    gated: bool = False
    claimed_bytes: dict[str, int] = field(default_factory=dict)
    cuts: dict[str, int] = field(default_factory=dict)


@dataclass(frozen=True)
class Seen:
    """One request as it came in. ``argvs`` holds every command line of the machine at that moment."""

    method: str
    path: str
    start: int
    authorized: bool
    argvs: bytes


class Hub:
    """The server. ``seen`` grows with every request."""

    def __init__(self, repos: dict[str, Repo], token: str) -> None:
        self.repos, self.token, self.seen = repos, token, list[Seen]()
        hub = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_GET(self) -> None:
                hub.answer(self)

            do_HEAD = do_GET

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Route one request."""
        path = unquote(urlsplit(request.path).path)
        asked = request.headers.get("Range", "")
        start = int(asked.removeprefix("bytes=").split("-")[0] or 0) if asked.startswith("bytes=") else 0
        authorized = request.headers.get("Authorization") == f"Bearer {self.token}"
        self.seen.append(Seen(request.command, path, start, authorized, command_lines()))
        words = path.strip("/").split("/")
        api = words[:2] == ["api", "models"]
        name = "/".join(words[2:4] if api else words[:2])
        repo = self.repos.get(name)
        if repo is None:
            self.refuse(request, 404, "RepoNotFound", "Repository not found")
        elif repo.gated and not authorized:
            self.refuse(
                request, 401, "GatedRepo", f"Access to model {name} is restricted. You must be authenticated to access it."
            )
        elif api and words[4:5] == ["tree"]:
            rows = [{"type": "file", "path": f, "size": len(data), "oid": etag(data)} for f, data in repo.files.items()]
            self.send(request, 200, json.dumps(rows).encode(), {"Content-Type": "application/json"})
        elif api:
            siblings = [
                {"rfilename": f, "size": repo.claimed_bytes.get(f, len(data)), "blobId": etag(data)}
                for f, data in repo.files.items()
            ]
            body = {"_id": "1", "id": name, "modelId": name, "sha": COMMIT, "private": False, "tags": [], "siblings": siblings}
            self.send(request, 200, json.dumps(body).encode(), {"Content-Type": "application/json"})
        else:
            self.send_file(request, repo, "/".join(words[4:]), start)

    def send_file(self, request: BaseHTTPRequestHandler, repo: Repo, name: str, start: int) -> None:
        """A file, or what is left of it; or only half of that, where a cut is due."""
        data = repo.files.get(name)
        if data is None:
            self.refuse(request, 404, "EntryNotFound", "Entry not found")
            return
        headers = {"ETag": f'"{etag(data)}"', "X-Repo-Commit": COMMIT, "Accept-Ranges": "bytes"}
        if start:
            headers["Content-Range"] = f"bytes {start}-{len(data) - 1}/{len(data)}"
        cut = request.command == "GET" and repo.cuts.get(name, 0) > 0
        if cut:
            repo.cuts[name] -= 1
        self.send(request, 206 if start else 200, data[start:], headers, cut=cut)

    @staticmethod
    def refuse(request: BaseHTTPRequestHandler, status: int, code: str, message: str) -> None:
        """An error as the hub words it: the code in a header."""
        Hub.send(request, status, json.dumps({"error": message}).encode(), {"X-Error-Code": code, "X-Error-Message": message})

    @staticmethod
    def send(request: BaseHTTPRequestHandler, status: int, body: bytes, headers: dict[str, str], *, cut: bool = False) -> None:
        """Status, headers, body; with ``cut`` the connection ends in the middle of the body."""
        request.send_response(status)
        for key, value in headers.items():
            request.send_header(key, value)
        request.send_header("Content-Length", str(len(body)))
        request.end_headers()
        if request.command == "HEAD":
            return
        request.wfile.write(body[: len(body) // 2] if cut else body)
        if cut:
            request.close_connection = True


def etag(data: bytes) -> str:
    """As the hub does for large files."""
    return hashlib.sha256(data).hexdigest()


def command_lines() -> bytes:
    """Every command line that this machine shows now."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            found.append(path.read_bytes())
    return b"\n".join(found)


@contextlib.contextmanager
def running_hub(repos: dict[str, Repo], token: str) -> Iterator[Hub]:
    """A hub while the block runs."""
    hub = Hub(repos, token)
    thread = threading.Thread(target=hub.server.serve_forever, kwargs={"poll_interval": 0.05}, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        hub.server.shutdown()
        hub.server.server_close()
        thread.join()
