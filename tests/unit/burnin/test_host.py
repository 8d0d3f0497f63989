"""What a burn-in does on the host: nothing that serves is stopped by accident, and what was stopped comes back."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from longhaul.burnin import host as burnin_host
from longhaul.burnin.host import (
    begin,
    check_instance,
    conclude,
    end,
    endpoints,
    evidence,
    measure_all_reduce,
    parse_all_reduce,
    reduce_spec,
    refuse_if_serving,
    serving,
    state_file,
)
from longhaul.burnin.judge import Limits
from longhaul.deploy.layout import Layout
from longhaul.deploy.runtimes import docker as docker_runtime
from longhaul.deploy.runtimes import process as process_runtime
from longhaul.deploy.runtimes.base import ProgramState
from longhaul.deploy.runtimes.docker_api import Docker
from longhaul.deploy.spec import Spec
from longhaul.errors import UserError
from longhaul.files import to_json
from longhaul.physics.hardware import GIB, DetectedGpu
from longhaul.results import RunResult, Verdict, dump_run, load_run
from support.specs import make_spec


@dataclass
class Machine:
    """supervisord as far as the burn-in sees it: which instances run, and what was done."""

    up: bool = True
    running: set[str] = field(default_factory=set)
    programs: set[str] = field(default_factory=set)
    done: list[str] = field(default_factory=list)
    machine_gpus: tuple[DetectedGpu, ...] = ()


class FakeSupervisor:
    machine = Machine()

    def __init__(self, where: Layout) -> None:
        self.where = where

    def running(self) -> bool:
        return self.machine.up

    def state(self) -> ProgramState:
        return ProgramState("RUNNING" if self.where.instance in self.machine.running else "STOPPED", pid=1)

    def stop(self, timeout_s: float) -> bool:
        there = self.where.instance in self.machine.running
        self.machine.running.discard(self.where.instance)
        if there:
            self.machine.done.append(f"stop {self.where.instance}")
        return there

    def ensure_running(self) -> bool:
        self.machine.up = True
        # What supervisord does with autostart.
        self.machine.running |= self.machine.programs
        return True

    def shutdown(self) -> bool:
        self.machine.up = False
        self.machine.done.append("shutdown")
        return True


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    """A machine without GPU and without nvidia-smi, whose supervisord is made up."""
    made = Machine()
    monkeypatch.setattr(FakeSupervisor, "machine", made)
    monkeypatch.setattr(burnin_host, "Supervisor", FakeSupervisor)
    monkeypatch.setattr(burnin_host, "detect_gpus", lambda: made.machine_gpus)
    monkeypatch.setattr(process_runtime, "Supervisor", FakeSupervisor)
    monkeypatch.setenv("PATH", str(tmp_path / "no-tools"))
    return made


def deploy(home: Path, instance: str) -> Layout:
    where = Layout(home, instance)
    where.current_spec.parent.mkdir(parents=True)
    spec = make_spec(instance=instance, served_model_name="scout", spec_id="0123456789ab")
    where.current_spec.write_text(to_json(spec.document), encoding="utf-8")
    (where.supervisor / "conf.d").mkdir(parents=True, exist_ok=True)
    (where.supervisor / "conf.d" / f"{instance}.ini").touch()
    return where


def test_a_host_that_serves_is_refused_and_untouched(machine: Machine, tmp_path: Path) -> None:
    deploy(tmp_path, "default")
    deploy(tmp_path, "two")
    machine.running = {"two"}
    burnin = Layout(tmp_path, "burnin")
    others = serving(burnin)
    assert [o.instance for o in others] == ["two"]
    with pytest.raises(UserError) as caught:
        refuse_if_serving(others, replace=False)
    assert "vllm 0.12.0 (two) at http://127.0.0.1:8000 runs on this host" in str(caught.value)
    assert "burnin_replace" in str(caught.value)
    with pytest.raises(UserError):
        begin(burnin, "r", replace=False, stop_timeout_s=1)
    assert machine.done == []
    assert machine.running == {"two"}


def test_what_was_stopped_is_named_at_the_end_and_what_was_not_is_not(machine: Machine, tmp_path: Path) -> None:
    deploy(tmp_path, "default")
    deploy(tmp_path, "two")
    machine.running = {"default"}
    burnin = Layout(tmp_path, "burnin")
    assert begin(burnin, "r", replace=True, stop_timeout_s=1) == {"paused": ["default"], "sampling": False}
    assert machine.done == ["stop default"]
    assert end(burnin, "r") == ["default"]
    assert not burnin.state.exists()
    assert [w.instance for w in endpoints(tmp_path, "burnin")] == ["default", "two"]
    assert machine.up


def test_a_controller_that_was_killed_in_the_middle_loses_nothing(machine: Machine, tmp_path: Path) -> None:
    deploy(tmp_path, "default")
    machine.running = {"default"}
    burnin = Layout(tmp_path, "burnin")
    begin(burnin, "first", replace=True, stop_timeout_s=1)
    deploy(tmp_path, "burnin")
    machine.running = {"burnin"}
    # Nothing serves now but what the first run left; the second ends it, and still knows what ran before.
    check_instance(burnin, "default")
    begin(burnin, "second", replace=False, stop_timeout_s=1)
    assert machine.done == ["stop default", "stop burnin"]
    assert end(burnin, "second") == ["default"]


def test_a_supervisord_begun_for_the_burnin_starts_nobody_else(machine: Machine, tmp_path: Path) -> None:
    """A fresh one starts every program by itself; a stopped deployment must stay stopped."""
    deploy(tmp_path, "default")
    machine.up, machine.programs = False, {"default"}
    burnin = Layout(tmp_path, "burnin")
    assert begin(burnin, "r", replace=False, stop_timeout_s=1)["paused"] == []
    assert machine.running == set()
    assert end(burnin, "r") == []
    assert machine.done[-1] == "shutdown"


def test_gpus_that_somebody_else_fills_are_named(machine: Machine, tmp_path: Path) -> None:
    machine.machine_gpus = (
        DetectedGpu(0, "NVIDIA H200", 141 * GIB, 1 * GIB, None),
        DetectedGpu(1, "NVIDIA H200", 141 * GIB, 60 * GIB, None),
    )
    burnin = Layout(tmp_path, "burnin")
    with pytest.raises(UserError, match=r"GPU 1 60\.0 GiB"):
        begin(burnin, "r", replace=True, stop_timeout_s=1)
    assert begin(burnin, "r", replace=True, stop_timeout_s=1, gpus=[0])["paused"] == []
    assert begin(burnin, "r", replace=True, stop_timeout_s=1, on_gpu=False)["paused"] == []


@pytest.mark.parametrize("instance", ["default", "prod", "theirs"])
def test_a_deployments_name_is_refused_for_the_burnin(machine: Machine, tmp_path: Path, instance: str) -> None:
    where = deploy(tmp_path, instance) if instance == "theirs" else Layout(tmp_path, instance)
    with pytest.raises(UserError, match="burnin_instance"):
        check_instance(where, "prod")


def test_the_result_outlives_the_burnin_with_evidence_and_facts(machine: Machine, tmp_path: Path) -> None:
    burnin = Layout(tmp_path, "burnin")
    begin(burnin, "r", replace=False, stop_timeout_s=1)
    deploy(tmp_path, "burnin")
    burnin.log.parent.mkdir()
    burnin.log.write_text("engine says hello\n", encoding="utf-8")
    (burnin.results / "r").mkdir(parents=True)
    run = RunResult("r", "h", "http://h", "vllm", "1", "m", 0.0, 1.0, Verdict.PASS, (), ())
    (burnin.results / "r" / "run.json").write_text(dump_run(run), encoding="utf-8")
    (burnin.results / "r" / "requests.jsonl").write_text("{}\n", encoding="utf-8")
    host = Layout(tmp_path)
    host.facts_dir.mkdir()
    host.facts_file.write_text(json.dumps({"verdict": {"verdict": "PASS"}}), encoding="utf-8")
    judged, facts = conclude(burnin, "default", "r", host="h", limits=Limits(), allreduce={"skipped": "one GPU"})
    # A GPU endpoint of which nothing was seen is not proven.
    assert judged.verdict is Verdict.INCONCLUSIVE
    end(burnin, "r")
    folder = evidence(burnin, "r")
    assert not burnin.state.exists()
    assert {p.name for p in folder.iterdir()} == {"run.json", "requests.jsonl", "engine.log", "gpu.csv"}
    assert load_run(folder / "run.json") == judged
    assert "hello" in (folder / "engine.log").read_text(encoding="utf-8")
    assert facts["verdict"] == {"verdict": "PASS"}, "the deployment's own verdict stays"
    assert json.loads(host.facts_file.read_text(encoding="utf-8"))["burnin"]["run_id"] == "r"


def test_an_end_before_any_result_is_a_result_too(machine: Machine, tmp_path: Path) -> None:
    burnin = Layout(tmp_path, "burnin")
    why = f"port 8000\n is held, see {burnin.log}"
    judged, facts = conclude(burnin, "default", "r", host="h", limits=Limits(), allreduce=None, failure=why)
    assert judged.verdict is Verdict.FAIL
    assert not judged.complete
    assert facts["burnin"]["verdict"] == "FAIL"
    kept = evidence(burnin, "r") / "engine.log"
    assert facts["burnin"]["reasons"][0].startswith(f"engine: port 8000 is held, see {kept}"), (
        "the burn-in's own log is gone then"
    )
    assert state_file(burnin).exists() is False


def test_the_all_reduce_gets_the_callers_environment_and_says_why_it_failed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NCCL_NVLS_ENABLE", "0")
    script = (
        "import json, os, sys\n"
        "print('noise')\n"
        "print(json.dumps({'gpus': int(sys.argv[2]), 'bus_gb_per_s': 1.0, 'nvls': os.environ['NCCL_NVLS_ENABLE'],"
        " 'more': os.environ['MORE']}))\n"
    )
    spec = make_spec(python=sys.executable, tensor_parallel=2, env={"MORE": "x"})

    def run(text: str, timeout_s: float = 60) -> dict[str, Any]:
        return reduce_spec(Layout(tmp_path), spec, text, mib=1, timeout_s=timeout_s)

    assert run(script) == {"gpus": 2, "bus_gb_per_s": 1.0, "nvls": "0", "more": "x"}
    assert run("raise RuntimeError('NCCL error: x')") == {"error": "RuntimeError: NCCL error: x"}
    assert "within" in run("import time; time.sleep(60)", 0.5)["error"]
    assert parse_all_reduce(137, "") == {"error": "exit code 137"}


def test_the_all_reduce_is_kept_before_anything_else_happens(tmp_path: Path) -> None:
    """The play may be cut off at any moment after it, and the burn-in's own folder goes with the next one."""
    burnin = Layout(tmp_path, "burnin")
    spec = make_spec(instance="burnin", python=sys.executable, tensor_parallel=2)
    script = 'print(\'{"gpus": 2, "bus_gb_per_s": 333.0}\')'
    found = measure_all_reduce(burnin, "r", spec, script, mib=1, timeout_s=60)
    assert found == {"gpus": 2, "bus_gb_per_s": 333.0}
    end(burnin, "r")
    assert json.loads((evidence(burnin, "r") / "allreduce.json").read_text(encoding="utf-8")) == found
    assert measure_all_reduce(burnin, "one", None, "", mib=1, timeout_s=1) == {"skipped": "no spec"}
    assert json.loads((evidence(burnin, "one") / "allreduce.json").read_text(encoding="utf-8")) == {"skipped": "no spec"}


def docker_spec(tmp_path: Path, tensor_parallel: int = 8) -> Spec:
    container = {"cache_dir": str(tmp_path / "cache"), "shm_size": "64g", "ipc": "private"}
    return make_spec(
        "docker", instance="burnin", python="python3", container=container, env={"NCCL_DEBUG": "WARN"},
        model_path=str(tmp_path), tensor_parallel=tensor_parallel,
    )  # fmt: skip


class FakeDocker(Docker):
    """A daemon that runs what it is told to and then says ``said``."""

    def __init__(self, said: str, code: int = 0, running: int = 1) -> None:
        super().__init__()
        self.said, self.code, self.running, self.asked = said, code, running, list[tuple[str, str]]()
        self.body: Mapping[str, Any] = {}

    def call(self, method: str, path: str, body: Mapping[str, Any] | None = None, **more: Any) -> tuple[int, bytes]:
        self.asked.append((method, path.partition("?")[0]))
        if path == "/containers/create":
            self.body = body or {}
            return 201, b'{"Id": "c1"}'
        if path.endswith("/json"):
            self.running -= 1
            return 200, json.dumps({"State": {"Running": self.running >= 0, "ExitCode": self.code}}).encode()
        return 200, self.said.encode() if "/logs" in path else b""


def test_in_a_container_it_has_the_engines_image_gpus_and_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a made-up daemon: what is asked of Docker, and that nothing is left there."""
    monkeypatch.setenv("NCCL_NVLS_ENABLE", "0")
    docker = FakeDocker('noise\n{"gpus": 8, "bus_gb_per_s": 480.0}\n')
    where = Layout(tmp_path, "burnin")
    spec = docker_spec(tmp_path)
    monkeypatch.setattr(docker_runtime, "Docker", lambda patience_s: docker)
    assert reduce_spec(where, spec, "script", mib=1, timeout_s=60) == {"gpus": 8, "bus_gb_per_s": 480.0}
    body = docker.body
    assert body["Image"] == "vllm/vllm-openai:v0.12.0"
    assert body["Entrypoint"] == ["python3", "/longhaul-script.py", "--ranks", "8", "--mib", "1", "--device", "cuda"]
    assert set(body["Env"]) == {"NCCL_NVLS_ENABLE=0", "NCCL_DEBUG=WARN"}
    assert body["HostConfig"]["DeviceRequests"][0]["Count"] == -1
    assert body["HostConfig"]["ShmSize"] == 64 << 30
    assert body["HostConfig"]["RestartPolicy"] == {"Name": "no"}
    assert "Healthcheck" not in body
    script = next(m for m in body["HostConfig"]["Mounts"] if m["Target"] == "/longhaul-script.py")
    assert Path(script["Source"]).read_text(encoding="utf-8") == "script"
    assert docker.asked[-1] == ("DELETE", "/containers/c1")
    late = FakeDocker("", running=1000)
    monkeypatch.setattr(docker_runtime, "Docker", lambda patience_s: late)
    assert "within" in reduce_spec(where, spec, "script", mib=1, timeout_s=0.0)["error"]
    assert late.asked[-1] == ("DELETE", "/containers/c1")


def test_the_all_reduce_is_for_two_gpus_or_more(tmp_path: Path) -> None:
    where = Layout(tmp_path, "burnin")
    assert reduce_spec(where, docker_spec(tmp_path, 1), "", mib=1, timeout_s=1) == {"skipped": "one GPU"}
    assert reduce_spec(where, None, "", mib=1, timeout_s=1) == {"skipped": "no spec"}
