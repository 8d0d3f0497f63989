"""The docker runtime against a made-up daemon that keeps containers in memory; the real daemon's turn is tests/testbed."""

from __future__ import annotations

import dataclasses
import json
import urllib.parse
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from longhaul.deploy.layout import Layout
from longhaul.deploy.ports import PortHolder
from longhaul.deploy.runtimes import docker as docker_module
from longhaul.deploy.runtimes.container import LABEL_ENDPOINT, LABEL_SPEC
from longhaul.deploy.runtimes.docker import DockerRuntime
from longhaul.deploy.runtimes.docker_api import Docker, DockerError
from longhaul.deploy.spec import Spec
from longhaul.errors import UserError
from support.specs import make_spec


@dataclass
class Container:
    name: str
    body: Mapping[str, Any]
    status: str = "created"
    pid: int = 0


@dataclass
class Daemon(Docker):
    """Containers by id. ``done``: what was asked that changes something. ``images``: what is on the host."""

    containers_here: dict[str, Container] = field(default_factory=dict)
    done: list[str] = field(default_factory=list)
    images: dict[str, str] = field(default_factory=lambda: {"vllm/vllm-openai:v0.12.0": "sha256:" + "1" * 64})
    refuses: str = ""
    starts: int = 0

    def __post_init__(self) -> None:
        super().__init__()

    def call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, *, ok: tuple[int, ...] = (), timeout_s: float = 120
    ) -> tuple[int, bytes]:
        place, _, query = path.partition("?")
        words = place.strip("/").split("/")
        options = {k: v[0] for k, v in urllib.parse.parse_qs(query).items()}
        if words[0] == "images":
            name = urllib.parse.unquote("/".join(words[1:-1]))
            return (200, json.dumps({"Id": self.images[name]}).encode()) if name in self.images else (404, b"{}")
        if words[1] == "json":
            (label,) = json.loads(options["filters"])["label"]
            key, _, value = label.partition("=")
            rows = [
                {"Id": i, "Names": [f"/{c.name}"], "State": c.status, "Labels": c.body["Labels"]}
                for i, c in self.containers_here.items()
                if c.body["Labels"].get(key) == value
            ]
            return 200, json.dumps(rows).encode()
        if words[1] == "create":
            if self.refuses:
                raise DockerError(500, "create", self.refuses)
            number = f"c{len(self.containers_here) + 1}"
            self.containers_here[number] = Container(options["name"], body or {})
            return 201, json.dumps({"Id": number}).encode()
        found = self.containers_here[words[1]]
        if method == "GET":
            state = {"Status": found.status, "Pid": found.pid, "StartedAt": "2026-11-25T17:47:48Z", "ExitCode": 0}
            return 200, json.dumps({"Name": f"/{found.name}", "State": state}).encode()
        if method == "DELETE":
            del self.containers_here[words[1]]
            self.done.append(f"delete {words[1]}")
        elif words[2] == "start":
            self.starts += 1
            found.status, found.pid = "running", 100 + self.starts
            self.done.append(f"start {words[1]}")
        elif words[2] == "stop":
            found.status, found.pid = "exited", 0
            self.done.append(f"stop {words[1]}")
        elif words[2] == "rename":
            assert options["name"] not in [c.name for c in self.containers_here.values()], "a name is taken once"
            found.name = options["name"]
        return 204, b""


@pytest.fixture
def daemon(monkeypatch: pytest.MonkeyPatch) -> Daemon:
    """The daemon of this host."""
    made = Daemon()
    monkeypatch.setattr(docker_module, "Docker", lambda patience_s: made)
    monkeypatch.setattr(docker_module, "require_port_free", lambda port, host: None)
    return made


def spec(tmp_path: Path, spec_id: str) -> Spec:
    return make_spec("docker", spec_id=spec_id, python="python3", container={"cache_dir": str(tmp_path / "cache")})


def test_a_container_per_spec_of_which_one_runs_under_the_endpoints_name(daemon: Daemon, tmp_path: Path) -> None:
    where = Layout(tmp_path)
    runtime, one, two = DockerRuntime(where), spec(tmp_path, "one"), spec(tmp_path, "two")
    assert (runtime.state(one).state, runtime.is_running()) == ("ABSENT", False)
    first = runtime.start(one, 5)
    assert first.changed
    assert (first.state.state, first.state.pid) == ("RUNNING", 101)
    assert json.loads(where.container_spec("one").read_text(encoding="utf-8")) == one.document
    assert (tmp_path / "cache").is_dir(), "Docker would make it as root, or refuse"
    # Again: nothing to do. Asked to restart: the same container, another process.
    again = runtime.start(one, 5)
    assert (again.changed, daemon.done) == (False, ["start c1"])
    assert runtime.start(one, 5, restart=True).state.pid == 102
    assert daemon.done[1:] == ["stop c1", "start c1"]
    daemon.done.clear()
    # Another spec: its container is made beside, then the first is stopped and keeps its spec's name.
    assert runtime.start(two, 5).changed
    assert daemon.done == ["stop c1", "start c2"]
    assert {c.name: c.status for c in daemon.containers_here.values()} == {
        "longhaul-default-one": "exited",
        "longhaul-default": "running",
    }
    assert [runtime.state(s).state for s in (one, two)] == ["EXITED", "RUNNING"]
    # And back, without a new container.
    runtime.start(one, 5)
    assert {c.name: c.status for c in daemon.containers_here.values()} == {
        "longhaul-default": "running",
        "longhaul-default-two": "exited",
    }
    assert daemon.containers_here["c1"].body["Labels"][LABEL_SPEC] == "one"
    assert daemon.containers_here["c1"].body["Labels"][LABEL_ENDPOINT] == str(where.state)


def test_what_docker_refuses_to_make_costs_the_endpoint_nothing(daemon: Daemon, tmp_path: Path) -> None:
    runtime = DockerRuntime(Layout(tmp_path))
    runtime.start(spec(tmp_path, "one"), 5)
    daemon.refuses = "no space left on device"
    with pytest.raises(UserError, match="free disk for containers"):
        runtime.start(spec(tmp_path, "two"), 5)
    daemon.refuses, daemon.images = "", {}
    with pytest.raises(UserError, match="the image on this host"):
        runtime.start(spec(tmp_path, "two"), 5)
    assert runtime.state(spec(tmp_path, "one")).alive
    assert daemon.done == ["start c1"]


def test_another_image_under_the_same_name_is_refused(daemon: Daemon, tmp_path: Path) -> None:
    made = spec(tmp_path, "one")
    pinned = dataclasses.replace(made, container={**(made.container or {}), "image_id": "sha256:" + "2" * 64})
    with pytest.raises(UserError, match="was meant"):
        DockerRuntime(Layout(tmp_path)).start(pinned, 5)


def test_the_port_is_asked_for_only_where_nothing_of_ours_runs(
    daemon: Daemon, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runtime = DockerRuntime(Layout(tmp_path))
    runtime.start(spec(tmp_path, "one"), 5)

    def taken(port: int, host: str) -> None:
        raise UserError(f"port {port} on {host} is held", "a free port", "stop that")

    monkeypatch.setattr(docker_module, "require_port_free", taken)
    assert runtime.start(spec(tmp_path, "two"), 5).changed, "the one that is stopped for it holds the port"
    runtime.stop(5)
    with pytest.raises(UserError, match="port 8000 on 127"):
        runtime.start(spec(tmp_path, "two"), 5)


def test_stopping_pruning_and_removing(daemon: Daemon, tmp_path: Path) -> None:
    where = Layout(tmp_path)
    runtime = DockerRuntime(where)
    for name in ("one", "two", "three"):
        runtime.start(spec(tmp_path, name), 5)
    assert runtime.stop(5)
    assert not runtime.stop(5)
    assert runtime.prune(("two", "three"))
    assert not runtime.prune(("two", "three"))
    assert sorted(c.body["Labels"][LABEL_SPEC] for c in daemon.containers_here.values()) == ["three", "two"]
    assert sorted(path.stem for path in where.container_spec("x").parent.glob("*.json")) == ["three", "two"]
    runtime.start(spec(tmp_path, "two"), 5)
    assert runtime.remove(5, dry_run=True)
    assert runtime.is_running()
    assert runtime.remove(5)
    assert daemon.containers_here == {}
    assert not runtime.remove(5)


def test_another_endpoints_containers_are_left_alone(daemon: Daemon, tmp_path: Path) -> None:
    mine, other = DockerRuntime(Layout(tmp_path)), DockerRuntime(Layout(tmp_path, "two"))
    mine.start(spec(tmp_path, "one"), 5)
    other.start(spec(tmp_path, "one"), 5)
    assert mine.remove(5)
    assert other.is_running()


def test_a_watch_sees_the_container_die_though_docker_starts_it_again(daemon: Daemon, tmp_path: Path) -> None:
    runtime, one = DockerRuntime(Layout(tmp_path)), spec(tmp_path, "one")
    runtime.start(one, 5)
    watched = runtime.watch(one, 0)
    assert watched.alive()
    daemon.containers_here["c1"].pid = 999
    assert not watched.alive()
    assert watched.log_name == "docker logs longhaul-default"
    watched.give_up()
    assert daemon.containers_here["c1"].status == "exited"


def test_whose_port_it_is_is_a_question_to_the_spec(daemon: Daemon, tmp_path: Path) -> None:
    runtime, one = DockerRuntime(Layout(tmp_path)), spec(tmp_path, "one")
    stranger = PortHolder(None, None)
    assert runtime.owns_port(one, 8000, stranger)
    assert not runtime.owns_port(one, 8001, stranger)
    assert not runtime.owns_port(make_spec("process"), 8000, stranger)
    assert not runtime.owns_port(None, 8000, stranger)
