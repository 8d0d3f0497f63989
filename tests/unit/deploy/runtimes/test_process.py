"""The process runtime on a real supervisord (installed once into the tests' cache), with small programs in the engine's place."""

from __future__ import annotations

import contextlib
import json
import os
import re
import shutil
import signal
import socket
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from longhaul.deploy.layout import Layout
from longhaul.deploy.runtimes.process import ProcessRuntime
from longhaul.deploy.runtimes.registry import state_of
from longhaul.deploy.runtimes.supervisor import Supervisor, daemon_config, program_config
from longhaul.deploy.service import Reached, give_up, reach
from longhaul.deploy.spec import Spec, load_spec
from longhaul.errors import UserError
from support.environments import supervisor_env
from support.specs import make_spec

# Counts its starts, then does what its spec says: a stand-in for the launcher, which takes the spec's path as its argument.
PROGRAM = """
import json, signal, sys, time
from pathlib import Path
path = Path(sys.argv[1])
spec = json.loads(path.read_text())
with path.with_name("starts").open("a") as out:
    out.write("x")
if spec["do"] == "ignore":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
print("started:", spec["do"], flush=True)
if spec["do"] == "die":
    sys.exit(3)
time.sleep(600)
"""


def until(ready: Callable[[], bool], timeout_s: float = 20) -> None:
    """Wait for what must come soon."""
    end = time.monotonic() + timeout_s
    while not ready():
        assert time.monotonic() < end, "it never happened"
        time.sleep(0.05)


class Endpoint:
    """One endpoint of a home, with a stand-in program."""

    def __init__(self, home: Path, instance: str = "default", do: str = "run") -> None:
        self.where = Layout(home, instance)
        self.supervisor = Supervisor(self.where)
        self.where.log.parent.mkdir(parents=True, exist_ok=True)
        self.where.current_spec.parent.mkdir(parents=True, exist_ok=True)
        self.where.launcher.parent.mkdir(parents=True, exist_ok=True)
        self.where.launcher.write_text(PROGRAM, encoding="utf-8")
        self.do(do)

    def do(self, what: str) -> None:
        """What the program does from its next start on."""
        self.where.current_spec.write_text(json.dumps({"do": what, **self.spec(what).document}), encoding="utf-8")

    @staticmethod
    def spec(what: str) -> Spec:
        """A spec that names what the program does."""
        return make_spec(spec_id=f"spec-{what}")

    def deploy(self, stop_timeout_s: int = 10) -> None:
        """As the engine role does it."""
        self.supervisor.write_config(stop_timeout_s)
        self.supervisor.ensure_running()
        self.supervisor.load_programs()
        self.supervisor.start()

    @property
    def starts(self) -> int:
        """How often the program began."""
        path = self.where.current_spec.with_name("starts")
        return len(path.read_text(encoding="utf-8")) if path.exists() else 0


@pytest.fixture
def home() -> Iterator[Path]:
    """A short path, with a blank and a percent sign in it; supervisord ends with the test."""
    base = Path(tempfile.mkdtemp(prefix="lh"))
    made = base / "my home 100%"
    (made / "supervisor").mkdir(parents=True)
    (made / "supervisor" / "env").symlink_to(supervisor_env())
    try:
        yield made
    finally:
        supervisor = Supervisor(Layout(made))
        if supervisor.running():
            supervisor.shutdown()
        shutil.rmtree(base, ignore_errors=True)


def test_life_of_an_endpoint(home: Path) -> None:
    """Start, start again, restart, stop, stop again; exactly one start each time that one was asked for."""
    one = Endpoint(home)
    assert one.supervisor.state().state == "ABSENT"
    assert not one.supervisor.running()
    assert one.supervisor.stop(5) is False
    one.deploy()
    until(lambda: one.starts == 1)
    first = one.supervisor.state()
    assert first.alive
    assert first.pid
    assert one.supervisor.start() is False
    one.deploy()
    assert one.supervisor.write_config(10) == ()
    assert one.supervisor.state().pid == first.pid
    assert one.starts == 1, "a deployment that changes nothing restarts nothing"
    assert "started: run" in one.where.log.read_text(encoding="utf-8"), "the log is where the watcher looks"
    assert one.supervisor.stop(10)
    assert not one.supervisor.state().alive
    with pytest.raises(ProcessLookupError):
        os.kill(first.pid, 0)
    assert one.supervisor.stop(10) is False
    assert one.supervisor.start()
    until(lambda: one.starts == 2)
    assert one.supervisor.state().pid != first.pid
    assert one.supervisor.shutdown()
    assert not one.supervisor.running()
    assert one.supervisor.shutdown() is False


def test_a_start_that_fails_stays_down_and_an_engine_that_was_up_comes_back(home: Path) -> None:
    dying = Endpoint(home, "dying", do="die")
    steady = Endpoint(home, "steady")
    dying.deploy()
    steady.deploy()
    until(lambda: dying.supervisor.state().state == "FATAL")
    assert dying.starts == 1, "a start that fails is not tried again behind the watcher's back"
    assert not dying.supervisor.state().alive
    # Up for longer than startsecs: from then on it is brought back.
    until(lambda: steady.supervisor.state().state == "RUNNING")
    pid = steady.supervisor.state().pid
    assert pid
    os.kill(pid, signal.SIGKILL)
    until(lambda: steady.starts == 2)
    until(lambda: steady.supervisor.state().alive)
    assert steady.supervisor.state().pid != pid
    assert dying.starts == 1
    # It would come back for ever; giving up ends that, whatever state it is in just now.
    steady.do("die")
    steady.supervisor.give_up(10)
    assert not steady.supervisor.state().alive
    assert steady.starts == 2


def test_the_states_of_an_endpoint_on_a_real_supervisord(home: Path) -> None:
    """What the module longhaul_service asks for, from nothing to nothing."""
    one = Endpoint(home)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]

    def deploy(name: str) -> None:
        document = make_spec(spec_id=name, port=port).document
        one.where.current_spec.write_text(json.dumps({"do": "run", **document}), encoding="utf-8")

    def go(wanted: str, dry_run: bool = False) -> Reached:
        reached = reach(one.where, wanted, stop_timeout_s=10, dry_run=dry_run)
        # What the launcher writes when it becomes the engine.
        if reached.started and not dry_run:
            until(lambda: one.starts > 0)
            one.where.running_file.write_text(reached.spec_id or "", encoding="utf-8")
        return reached

    deploy("first")
    assert go("started", dry_run=True).changed
    assert not one.supervisor.running(), "check mode starts nothing"
    first = go("started")
    assert (first.changed, first.started, first.after.alive, first.log_position) == (True, True, True, 0)
    again = go("started")
    assert (again.changed, again.after.pid) == (False, first.after.pid)
    # Another spec is deployed: the process that was started with the first one is not this endpoint any more.
    deploy("second")
    assert state_of(one.where, load_spec(one.where)).state == "ABSENT"
    second = go("started")
    assert (second.changed, second.started) == (True, True)
    assert second.after.pid != first.after.pid
    assert second.log_position > 0, "its log begins after the first one's"
    with socket.socket() as stranger:
        stranger.bind(("127.0.0.1", port))
        stranger.listen(1)
        with pytest.raises(UserError, match=f"port {port} on 127.0.0.1 is held by pid {os.getpid()}"):
            go("restarted")
    assert go("started").changed
    assert go("stopped").changed
    assert not go("stopped").changed
    assert go("absent").changed
    assert not one.supervisor.running(), "supervisord ends with its last program"
    assert not go("absent").changed


def test_a_watch_that_outlived_its_controller_leaves_the_next_deployment_alone(home: Path) -> None:
    one = Endpoint(home, do="ignore")
    one.deploy()
    until(lambda: one.starts == 1)
    runtime = ProcessRuntime(one.where)
    left_behind = runtime.watch(one.spec("ignore"), 0)
    assert left_behind.alive()
    # The next controller deploys something else.
    one.do("run")
    one.supervisor.stop(1)
    one.supervisor.start()
    until(lambda: one.starts == 2)
    assert not left_behind.alive()
    give_up(one.where, one.spec("ignore"), left_behind)
    assert one.supervisor.state().alive
    # Its own watch stops it.
    give_up(one.where, one.spec("run"), runtime.watch(one.spec("run"), 0))
    assert not one.supervisor.state().alive


def test_one_endpoints_change_leaves_the_others_alone(home: Path) -> None:
    one, two = Endpoint(home, "one"), Endpoint(home, "two")
    one.deploy()
    until(lambda: one.starts == 1)
    pid = one.supervisor.state().pid
    two.deploy()
    until(lambda: two.starts == 1)
    two.deploy(stop_timeout_s=11)
    until(lambda: two.starts == 2)
    (home / "supervisor" / "conf.d" / "two.ini").unlink()
    one.supervisor.load_programs()
    assert two.supervisor.state().state == "ABSENT"
    assert one.supervisor.state().pid == pid
    assert one.starts == 1


def test_an_engine_that_ignores_the_signal_is_killed_in_time(home: Path) -> None:
    stubborn = Endpoint(home, do="ignore")
    stubborn.deploy(stop_timeout_s=1)
    until(lambda: "started" in stubborn.where.log.read_text(encoding="utf-8"))
    began = time.monotonic()
    assert stubborn.supervisor.stop(1)
    assert time.monotonic() - began < 15
    assert not stubborn.supervisor.state().alive


def test_what_the_operators_shell_holds_does_not_reach_the_engine(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LH_TEST_TOKEN", "secret")
    one = Endpoint(home)
    one.deploy()
    pid = one.supervisor.state().pid
    # Empty for a moment while the process becomes another program.
    until(lambda: b"PATH=" in Path(f"/proc/{pid}/environ").read_bytes())
    environment = Path(f"/proc/{pid}/environ").read_bytes()
    assert b"LH_TEST_TOKEN" not in environment
    parent = int(Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rsplit(")", 1)[1].split()[1])
    assert os.getsid(parent) != os.getsid(0), "it must outlive the connection that started it"


def test_a_configuration_that_does_not_parse_is_one_line(home: Path) -> None:
    one = Endpoint(home)
    one.supervisor.write_config(10)
    (home / "supervisor" / "supervisord.conf").write_text("[supervisord]\nlogfile = %(nothing)s\n", encoding="utf-8")
    with pytest.raises(UserError, match="supervisord does not start") as caught:
        one.supervisor.ensure_running()
    assert "\n" not in str(caught.value)
    assert "nothing" in caught.value.found


def test_without_an_environment_the_fix_is_a_deployment(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"deploy\.yml"):
        Supervisor(Layout(tmp_path)).ensure_running()


class TestConfiguration:
    WHERE = Layout(Path("/srv/my home/100%"), "a")

    def test_percent_signs_are_doubled_everywhere(self) -> None:
        text = daemon_config(self.WHERE) + program_config(self.WHERE, 60)
        assert {len(run) % 2 for run in re.findall("%+", text)} == {0}
        assert "100%%" in text

    def test_words_with_blanks_are_quoted(self) -> None:
        text = program_config(self.WHERE, 60)
        assert 'command = "/srv/my home/100%%/supervisor/env/bin/python" "/srv/my home/100%%/bin/launch.py" "/srv' in text

    def test_no_home_makes_a_second_pattern_of_the_include(self) -> None:
        (line,) = [x for x in daemon_config(self.WHERE).splitlines() if x.startswith("files")]
        assert line == "files = conf.d/*.ini"

    def test_the_configuration_does_not_depend_on_the_spec(self, tmp_path: Path) -> None:
        """What restarts an engine is its spec, not supervisord's files."""
        one = Supervisor(Layout(tmp_path))
        before = one.config_files(60)
        with contextlib.suppress(FileExistsError):
            one.where.current_spec.parent.mkdir(parents=True)
        one.where.current_spec.write_text("{}", encoding="utf-8")
        assert one.config_files(60) == before

    def test_a_dry_run_writes_nothing(self, tmp_path: Path) -> None:
        one = Supervisor(Layout(tmp_path))
        assert one.write_config(60, dry_run=True)
        assert list(tmp_path.iterdir()) == []
        assert one.write_config(60)
        assert one.write_config(60) == ()
        (change,) = one.write_config(61)
        assert change.path == str(one.program_file)
        assert change.before == change.after.replace("stopwaitsecs = 61", "stopwaitsecs = 60")
