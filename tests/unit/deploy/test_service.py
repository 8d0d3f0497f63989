"""Every transition of an endpoint's engine, for a made-up runtime pair: what happens, in which order, and what check mode says."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import pytest
from longhaul.deploy import service
from longhaul.deploy.layout import Layout
from longhaul.deploy.ports import PortHolder
from longhaul.deploy.runtimes import registry
from longhaul.deploy.runtimes.base import PATIENCE_S, FileChange, ProgramState, ScriptEnd, Started, Watched
from longhaul.deploy.service import STATES, Reached, give_up, reach, wait_until_ready
from longhaul.deploy.spec import Spec, require_spec, store_spec
from longhaul.deploy.startup import ServedModel, StartOutcome
from longhaul.engines.diagnosis import Diagnosis, Phase
from longhaul.errors import UserError
from support.specs import make_spec


@dataclass
class Host:
    """What runs under which runtime (name -> spec_id), what was done, and what goes wrong (method -> UserError)."""

    runs: dict[str, str] = field(default_factory=dict)
    there: set[str] = field(default_factory=set)
    here: set[str] = field(default_factory=lambda: {"process", "docker"})
    files: tuple[FileChange, ...] = ()
    done: list[str] = field(default_factory=list)
    wrong: dict[str, UserError] = field(default_factory=dict)


class MadeUp:
    """A runtime that only writes down what it is told."""

    name: ClassVar[str] = ""
    host: ClassVar[Host]

    def __init__(self, where: Layout, *, patience_s: float = PATIENCE_S) -> None:
        self.where = where

    def _do(self, what: str) -> None:
        if what in self.host.wrong:
            raise self.host.wrong[what]
        self.host.done.append(f"{self.name} {what}")

    @classmethod
    def is_here(cls) -> bool:
        return cls.name in cls.host.here

    @staticmethod
    def part_of_spec(options: Mapping[str, Any] | None) -> dict[str, Any] | None:
        return None

    @staticmethod
    def own_shm_bytes(options: Mapping[str, Any]) -> int | None:
        return None

    @staticmethod
    def host_python(spec: Spec) -> str | None:
        return None

    @staticmethod
    def gpu_env(gpus: Sequence[str]) -> dict[str, str]:
        return {}

    def configure(self, stop_timeout_s: int, *, dry_run: bool = False) -> tuple[FileChange, ...]:
        if self.host.files and not dry_run:
            self._do("configure")
        return self.host.files

    def state(self, spec: Spec | None) -> ProgramState:
        runs = self.host.runs.get(self.name)
        if runs is None:
            return ProgramState("STOPPED")
        return ProgramState("RUNNING", 7) if spec is None or runs == spec.spec_id else ProgramState("ABSENT")

    def is_running(self) -> bool:
        return self.name in self.host.runs

    def start(self, spec: Spec, stop_timeout_s: int, *, restart: bool = False) -> Started:
        if self.state(spec).alive and not restart:
            return Started(False, 40, self.state(spec))
        self._do("restart" if self.is_running() else "start")
        self.host.runs[self.name] = spec.spec_id
        return Started(True, 30, self.state(spec))

    def watch(self, spec: Spec, log_position: int, stop_timeout_s: int = 30) -> Watched:
        return Watched(lambda: True, lambda: [f"from {log_position}"], "the log", lambda: self._do("give up"))

    def stop(self, timeout_s: int) -> bool:
        if not self.is_running():
            return False
        self._do("stop")
        del self.host.runs[self.name]
        return True

    def prune(self, keep: Collection[str]) -> bool:
        self._do(f"prune all but {' '.join(keep)}")
        return True

    def remove(self, timeout_s: int, *, dry_run: bool = False) -> bool:
        there = self.name in self.host.there or self.is_running()
        if there and not dry_run:
            self._do("remove")
            self.host.runs.pop(self.name, None)
            self.host.there.discard(self.name)
        return there

    def log_position(self) -> int:
        return 40

    def log_lines(self, spec: Spec | None) -> list[str]:
        return []

    def follow(self, spec: Spec) -> Callable[[], list[str]] | None:
        return None

    def owns_port(self, spec: Spec | None, port: int, holder: PortHolder | None) -> bool:
        return False

    def run_script(self, spec: Spec, script: str, words: Sequence[str], timeout_s: float) -> ScriptEnd:
        return ScriptEnd(0, "")


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """A host on which both runtimes are made up."""
    made = Host()
    for name in ("process", "docker"):
        monkeypatch.setitem(registry.RUNTIMES, name, type(name, (MadeUp,), {"name": name, "host": made}))
    return made


CHANGE = FileChange("/etc/x", "", "y")


def deploy(tmp_path: Path, runtime: str, spec_id: str = "new") -> Layout:
    where = Layout(tmp_path)
    store_spec(where, make_spec(runtime, spec_id=spec_id))
    return where


def go(where: Layout, wanted: str, dry_run: bool = False) -> Reached:
    return reach(where, wanted, stop_timeout_s=5, dry_run=dry_run)


@pytest.mark.parametrize("runtime", ["process", "docker"])
@pytest.mark.parametrize(
    ("wanted", "runs", "changed", "done", "after"),
    [
        ("started", None, True, ["start"], "RUNNING"),
        ("started", "new", False, [], "RUNNING"),
        # A process that was started with another spec is not this endpoint as deployed.
        ("started", "old", True, ["restart"], "RUNNING"),
        ("restarted", None, True, ["start"], "RUNNING"),
        ("restarted", "new", True, ["restart"], "RUNNING"),
        ("stopped", None, False, [], "STOPPED"),
        ("stopped", "new", True, ["stop"], "STOPPED"),
        ("stopped", "old", True, ["stop"], "STOPPED"),
        ("configured", "new", False, [], "RUNNING"),
        ("configured", None, False, [], "STOPPED"),
        ("absent", None, False, [], "ABSENT"),
        ("absent", "new", True, ["remove"], "ABSENT"),
        ("pruned", "new", True, ["prune all but new"], "RUNNING"),
    ],
)
def test_a_transition_under_one_runtime(
    host: Host, tmp_path: Path, runtime: str, wanted: str, runs: str | None, changed: bool, done: list[str], after: str
) -> None:
    where = deploy(tmp_path, runtime)
    if runs:
        host.runs[runtime] = runs
    # Check mode first: it must say the same and do nothing. What is left over of old specs is not asked for then.
    before = dict(host.runs)
    seen = go(where, wanted, dry_run=True)
    assert seen.changed == (changed and wanted != "pruned")
    assert (host.done, host.runs) == ([], before)
    reached = go(where, wanted)
    assert (reached.changed, reached.after.state) == (changed, after)
    assert host.done == [f"{runtime} {x}" for x in done]
    # The second time there is nothing to do.
    if wanted not in ("restarted", "pruned"):
        assert not go(where, wanted).changed


def test_a_start_says_where_its_log_begins(host: Host, tmp_path: Path) -> None:
    where = deploy(tmp_path, "process")
    reached = go(where, "started")
    assert (reached.started, reached.log_position, reached.after.pid, reached.spec_id) == (True, 30, 7, "new")
    again = go(where, "started")
    assert (again.started, again.log_position) == (False, 40)


@pytest.mark.parametrize(("runtime", "other"), [("process", "docker"), ("docker", "process")])
def test_an_endpoint_that_changes_its_runtime_does_not_serve_twice(host: Host, tmp_path: Path, runtime: str, other: str) -> None:
    where = deploy(tmp_path, runtime)
    host.runs = {other: "old"}
    assert go(where, "started", dry_run=True).changed
    assert host.runs == {other: "old"}
    reached = go(where, "started")
    assert reached.changed
    assert host.done == [f"{other} stop", f"{runtime} start"], "the port is free before the new one starts"
    assert host.runs == {runtime: "new"}
    # Both run by mistake: what is deployed goes on, the other ends, and that is a change.
    host.runs[other], host.done = "old", []
    reached = go(where, "started")
    assert (reached.changed, reached.started, host.done) == (True, False, [f"{other} stop"])


def test_a_runtime_that_the_host_lacks_is_not_asked(host: Host, tmp_path: Path) -> None:
    where = deploy(tmp_path, "process")
    host.here, host.runs = {"process"}, {"docker": "ghost"}
    go(where, "started")
    go(where, "absent")
    assert host.done == ["process start", "process remove"]


def test_absent_removes_from_every_runtime_and_needs_no_spec(host: Host, tmp_path: Path) -> None:
    where = Layout(tmp_path)
    host.runs, host.there = {"docker": "old"}, {"process"}
    assert go(where, "absent", dry_run=True).changed
    assert host.done == []
    reached = go(where, "absent")
    assert reached.changed
    assert sorted(host.done) == ["docker remove", "process remove"]
    assert reached.words("absent") == ("state: running\n", "state: absent\n")
    where.current_spec.parent.mkdir(parents=True)
    where.current_spec.write_text("torn", encoding="utf-8")
    assert not go(where, "absent").changed, "a damaged spec is no reason to stay"


def test_without_a_deployment(host: Host, tmp_path: Path) -> None:
    where = Layout(tmp_path)
    assert go(where, "started", dry_run=True).changed, "check mode of a first deployment, whose spec is not written"
    for wanted in ("started", "restarted"):
        with pytest.raises(UserError, match="nothing deployed"):
            go(where, wanted)
    assert not go(where, "stopped").changed
    assert not go(where, "pruned").changed
    assert host.done == []


def test_configuration_that_differs_is_a_change_and_is_shown(host: Host, tmp_path: Path) -> None:
    where = deploy(tmp_path, "process")
    host.files, host.runs = (CHANGE,), {"process": "new"}
    for wanted in ("configured", "started"):
        seen = go(where, wanted, dry_run=True)
        assert (seen.changed, seen.files, host.done) == (True, (CHANGE,), [])
        reached = go(where, wanted)
        assert (reached.changed, reached.files, host.done) == (True, (CHANGE,), ["process configure"])
        host.done.clear()


def test_the_difference_in_words(host: Host, tmp_path: Path) -> None:
    where = deploy(tmp_path, "docker")
    assert go(where, "started", dry_run=True).words("started") == ("state: stopped\n", "state: started\n")
    assert go(where, "started").words("started") == ("state: stopped\n", "state: running\n")
    assert go(where, "stopped").words("stopped") == ("state: running\n", "state: stopped\n")


def test_pruning_keeps_what_a_rollback_returns_to(host: Host, tmp_path: Path) -> None:
    where = deploy(tmp_path, "docker", "one")
    where.rolling_file.unlink()
    deploy(tmp_path, "docker", "two")
    go(where, "pruned")
    assert host.done == ["docker prune all but two one"]


@pytest.mark.parametrize(
    ("wanted", "runs", "what", "done"),
    [
        ("started", {}, "start", []),
        ("restarted", {"process": "new"}, "restart", []),
        ("stopped", {"process": "new"}, "stop", []),
        ("started", {"docker": "old"}, "stop", []),
        ("absent", {"process": "new"}, "remove", []),
    ],
)
def test_what_does_not_end_in_time_is_said_and_nothing_else_is_tried(
    host: Host, tmp_path: Path, wanted: str, runs: dict[str, str], what: str, done: list[str]
) -> None:
    where = deploy(tmp_path, "process")
    host.runs, host.wrong = runs, {what: UserError("it does not stop after 20 s", "an answer within that time", "see the log")}
    with pytest.raises(UserError, match="after 20 s"):
        go(where, wanted)
    assert host.done == done


def test_an_unknown_state_lists_the_known(host: Host, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=", ".join(STATES)):
        go(Layout(tmp_path), "running")


class TestWait:
    WHY = Diagnosis("no memory", "OutOfMemoryError", "lower the context", Phase.LOADING)

    def wait(self, where: Layout, monkeypatch: pytest.MonkeyPatch, outcome: StartOutcome) -> tuple[StartOutcome, str, str]:
        def watch(adapter: Any, url: str, new_lines: Any, alive: Any, *more: Any, **options: Any) -> StartOutcome:
            assert (url, new_lines(), alive()) == ("http://127.0.0.1:8000", ["from 30"], True)
            assert options["api_key"] == "sesame"
            return outcome

        monkeypatch.setattr(service, "watch_start", watch)
        return wait_until_ready(where, log_position=30, timeout_s=9, api_key="sesame", say=lambda _: None)

    def test_ready(self, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        outcome = StartOutcome(True, 3.0, served=(ServedModel("m", 8192),))
        assert self.wait(deploy(tmp_path, "docker"), monkeypatch, outcome) == (outcome, "the log", "")
        assert host.done == []

    @pytest.mark.parametrize(("died", "word"), [(True, "died after 3 s"), (False, "was stopped after 3 s")])
    def test_dead_or_late_is_stopped_and_explained_in_one_line(
        self, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, died: bool, word: str
    ) -> None:
        outcome = StartOutcome(False, 3.0, diagnosis=self.WHY, died=died)
        _, _, why = self.wait(deploy(tmp_path, "process"), monkeypatch, outcome)
        assert why == (
            f"vllm 0.12.0 {word} while loading weights: no memory | evidence: OutOfMemoryError | advice: lower the context"
            " | log: the log"
        )
        assert host.done == ["process give up"], "left alone it would be started again and again"

    def test_a_watch_whose_spec_was_replaced_leaves_the_next_deployment_alone(
        self, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        where = deploy(tmp_path, "process", "old")
        spec = require_spec(where)
        deploy(tmp_path, "process", "new")
        give_up(where, spec, Watched(lambda: False, list, "", lambda: host.done.append("stopped")))
        assert host.done == []
        give_up(where, require_spec(where), Watched(lambda: False, list, "", lambda: host.done.append("stopped")))
        assert host.done == ["stopped"]

    def test_another_server_on_the_port(self, host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        outcome = StartOutcome(True, 3.0, served=(ServedModel("theirs", None),))
        with pytest.raises(UserError, match="serves theirs"):
            self.wait(deploy(tmp_path, "process"), monkeypatch, outcome)
        assert host.done == []
