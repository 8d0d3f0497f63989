"""The log of the engine that serves, from now on: of a file and of a container; nothing where it is not ours."""

from __future__ import annotations

import datetime
import re
import struct
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from longhaul.deploy.layout import Layout
from longhaul.deploy.runtimes import docker as docker_runtime
from longhaul.deploy.runtimes import registry as runtimes
from longhaul.deploy.runtimes.base import ProgramState, Runtime
from longhaul.deploy.runtimes.container import LABEL_SPEC
from longhaul.deploy.runtimes.docker import DockerRuntime
from longhaul.deploy.runtimes.docker_api import Docker, DockerError
from longhaul.deploy.runtimes.supervisor import Supervisor
from longhaul.errors import UserError
from support.paths import ROOT
from support.specs import make_spec

SPEC = make_spec(spec_id="abc")
CONTAINER = make_spec("docker", spec_id="abc")


def stamp(unix_s: float) -> str:
    return datetime.datetime.fromtimestamp(unix_s, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%S.%f000Z")


class Daemon(Docker):
    """A container with a log, behind the few calls that are made of it. ``down``: it does not answer."""

    down = False
    status = "running"
    lines: Sequence[tuple[float, str]] = ()

    def containers(self, label: str) -> list[dict[str, Any]]:
        if self.down:
            raise DockerError(0, self.path, "no answer")
        return [{"Id": "c1", "Labels": {LABEL_SPEC: "abc"}, "State": self.status}]

    def call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, ok: tuple[int, ...] = (), timeout_s: float = 120
    ) -> tuple[int, bytes]:
        if path.endswith("/json"):
            return 200, b'{"State": {"Status": "%s", "Pid": 7, "StartedAt": "2026-11-25T17:47:48Z"}}' % self.status.encode()
        since = float(path.split("since=")[1])
        text = [f"{stamp(at)} {line}\n".encode() for at, line in self.lines if at >= since]
        return 200, b"".join(b"\x01\0\0\0" + struct.pack(">I", len(x)) + x for x in text)


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> type[Daemon]:
    """The daemon of this host."""
    here = type("Here", (Daemon,), {})
    monkeypatch.setattr(docker_runtime, "Docker", here)
    monkeypatch.setattr(DockerRuntime, "is_here", staticmethod(lambda: True))
    return here


def test_of_a_file_only_what_comes_now(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    where = Layout(tmp_path)
    assert runtimes.log_from_now(where, SPEC) is None, "no log, no supervisord"
    where.log.parent.mkdir()
    where.log.write_text("torch.OutOfMemoryError: of an older start\n", encoding="utf-8")
    assert runtimes.log_from_now(where, SPEC) is None, "nothing of ours runs: whoever answers is another"
    monkeypatch.setattr(Supervisor, "state", lambda self: ProgramState("RUNNING", 7))
    read = runtimes.log_from_now(where, SPEC)
    assert read is not None
    assert read() == []
    with where.log.open("a", encoding="utf-8") as log:
        log.write("one\ntwo\n")
    assert read() == ["one", "two"]
    where.running_file.parent.mkdir()
    where.running_file.write_text("another", encoding="utf-8")
    assert runtimes.log_from_now(where, SPEC) is None, "another spec's engine runs"


def test_of_a_container_only_what_comes_now(tmp_path: Path, daemon: type[Daemon]) -> None:
    now = time.time()
    daemon.lines = [(now - 60, "torch.OutOfMemoryError: before")]
    read = runtimes.log_from_now(Layout(tmp_path), CONTAINER)
    assert read is not None
    assert read() == []
    daemon.lines = [*daemon.lines, (now + 1, "one"), (now + 2, "two")]
    assert read() == ["one", "two"]
    assert read() == []


def test_without_a_container_that_runs_or_a_daemon_there_is_none(
    tmp_path: Path, daemon: type[Daemon], monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon.status = "exited"
    assert runtimes.log_from_now(Layout(tmp_path), CONTAINER) is None
    daemon.status, daemon.down = "running", True
    assert runtimes.log_from_now(Layout(tmp_path), CONTAINER) is None
    monkeypatch.setattr(DockerRuntime, "is_here", staticmethod(lambda: False))
    assert runtimes.log_from_now(Layout(tmp_path), CONTAINER) is None


def test_every_runtime_has_all_that_is_asked_of_one(tmp_path: Path) -> None:
    asked = {name for name in vars(Runtime) if not name.startswith("_")} | set(Runtime.__annotations__)
    for name, kind in runtimes.RUNTIMES.items():
        assert kind.name == name
        assert asked <= set(dir(kind))
    with pytest.raises(UserError, match=r"engine_runtime 'podman' \| required: one of process, docker"):
        runtimes.runtime_kind("podman")
    assert runtimes.runtime_of(Layout(tmp_path), None).name == "process"


def test_no_other_module_compares_a_runtimes_name() -> None:
    """One comparison elsewhere, and a runtime is no longer one module and one line."""
    places = [*(ROOT / "module_utils").rglob("*.py"), *(ROOT / "library").glob("*.py"), *(ROOT / "plugins").rglob("*.py")]
    compared = re.compile(r"""[!=]=\s*["'](process|docker|kubernetes)["']|["'](process|docker|kubernetes)["']\s*[!=]=""")
    found = [str(p) for p in places if compared.search(p.read_text(encoding="utf-8"))]
    assert found == []
    assert len(places) > 100
