"""A burn-in's hands on the host: who serves here, make room and give it back, the all-reduce, the evidence.

The burn-in's engine is an endpoint of its own (an instance), so that no deployment's spec, facts or log is ever touched.
What was stopped for it is written down before it is stopped: a controller that was killed in the middle loses nothing, the
next burn-in (or its end) brings it back.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..deploy.endpoint_test import environment
from ..deploy.hostfacts import update_facts
from ..deploy.layout import DEFAULT_INSTANCE, Layout
from ..deploy.runtimes.container import LABEL_SPEC, create_body, host_folders
from ..deploy.runtimes.docker import Docker, DockerRuntime, demultiplex
from ..deploy.runtimes.process import Supervisor
from ..deploy.runtimes.registry import docker_here, state_of
from ..deploy.spec import load_spec
from ..deploy.status import log_tail
from ..errors import UserError
from ..files import read_json, to_json, write_atomic
from ..host.checks import SmiLog, parse_smi_xml
from ..physics.hardware import GIB, detect_gpus
from ..results import CapacityFacts, RunResult, Verdict, dump_run, from_jsonable, load_run
from .judge import Limits, Sampler, burnin_facts, judge, with_burnin

# A driver and a display hold some memory of every card; an engine that is left over holds much more.
FREE_GPU_BYTES = 2 * GIB
LOG_LINES = 20_000
ALL_REDUCE = "allreduce.json"
_SCRIPT_INSIDE = "/longhaul-allreduce.py"


def state_file(where: Layout) -> Path:
    """What this burn-in must give back."""
    return where.state / "burnin.json"


def evidence(where: Layout, run_id: str) -> Path:
    """Folder of a burn-in's evidence: among the results of the host's default endpoint, which outlive the burn-in."""
    return Layout(where.home).results / run_id


def endpoints(home: Path, leave_out: str) -> list[Layout]:
    """Every endpoint deployed in this home, but ``leave_out``."""
    names = [p.parent.parent.name for p in sorted(home.glob("instances/*/spec/current.json"))]
    found = [Layout(home, name) for name in (DEFAULT_INSTANCE, *names) if name != leave_out]
    return [where for where in found if where.current_spec.exists()]


def serving(where: Layout) -> list[Layout]:
    """Endpoints of this home whose engine runs (or is starting) now, but the burn-in's own."""
    return [other for other in endpoints(where.home, where.instance) if _alive(other)]


def _alive(where: Layout) -> bool:
    spec = load_spec(where)
    return state_of(where, spec).alive or Supervisor(where).state().alive


def check_instance(where: Layout, host_instance: str) -> None:
    """UserError where the burn-in's endpoint is somebody's: it is thrown away at the end."""
    theirs = where.current_spec.exists() and not state_file(where).exists()
    if where.instance in (DEFAULT_INSTANCE, host_instance) or theirs:
        raise UserError(
            f"burnin_instance {where.instance!r}, which is a deployment's",
            "a name of its own: what is deployed under it is removed after the burn-in",
            "set burnin_instance, e.g. burnin",
        )


def refuse_if_serving(others: Sequence[Layout], replace: bool) -> None:
    """UserError on a host that serves, unless the operator said so."""
    if not others or replace:
        return
    specs = [(other.instance, load_spec(other) or {}) for other in others]
    names = ", ".join(f"{s.get('engine')} {s.get('version')} ({name}) at {s.get('url')}" for name, s in specs)
    raise UserError(
        f"{names} runs on this host",
        "a host that serves nothing",
        "stop it (playbooks/stop.yml), or set burnin_replace: true to have it stopped and started again after the burn-in",
    )


def begin(
    where: Layout, run_id: str, *, replace: bool, stop_timeout_s: int, on_gpu: bool = True, gpus: Sequence[int] = ()
) -> dict[str, Any]:
    """Make room and begin to sample. Returns what was stopped (instances) and whether nvidia-smi samples.

    ``gpus``: the indexes that the endpoint will use, which must be empty then; none given means all.
    """
    left = read_json(state_file(where)) or {}
    others = serving(where)
    refuse_if_serving(others, replace)
    paused = sorted({*left.get("paused", []), *(other.instance for other in others)})
    supervisor = Supervisor(where)
    was = bool(left.get("supervisord", supervisor.running()))
    write_atomic(state_file(where), to_json({"paused": paused, "supervisord": was, "run_id": run_id}))
    _stop(where, stop_timeout_s)
    for other in others:
        _stop(other, stop_timeout_s)
    if not supervisor.running() and list((where.supervisor / "conf.d").glob("*.ini")):
        # A fresh supervisord starts every program by itself: also those that were meant to stay stopped.
        supervisor.ensure_running()
        for other in endpoints(where.home, where.instance):
            _stop(other, stop_timeout_s)
    ours = [g for g in detect_gpus() if not gpus or g.index in gpus] if on_gpu else []
    busy = [g for g in ours if g.memory_used_bytes > FREE_GPU_BYTES]
    if busy:
        words = ", ".join(f"GPU {g.index} {g.memory_used_bytes / GIB:.1f} GiB" for g in busy)
        raise UserError(f"memory in use: {words}", "empty GPUs", "nvidia-smi names the processes; end them")
    folder = evidence(where, run_id)
    folder.mkdir(parents=True, exist_ok=True)
    _smi_log(folder / "nvidia-smi-before.xml")
    return {"paused": paused, "sampling": Sampler(folder).start()}


def _stop(where: Layout, timeout_s: int) -> None:
    Supervisor(where).stop(timeout_s)
    spec = load_spec(where)
    if spec is not None and spec["runtime"] == "docker" and docker_here():
        DockerRuntime(where).stop(timeout_s)


def end(where: Layout, run_id: str) -> list[str]:
    """After the burn-in's engine was taken away: end the sampler, remove the instance. Returns the instances to start again."""
    Sampler(evidence(where, run_id)).stop()
    left = read_json(state_file(where)) or {}
    if left.get("run_id") and left["run_id"] != run_id:
        Sampler(evidence(where, str(left["run_id"]))).stop()
    paused = [name for name in left.get("paused", []) if Layout(where.home, name).current_spec.exists()]
    supervisor = Supervisor(where)
    if not left.get("supervisord", True) and not paused:
        supervisor.shutdown()
    if where.instance != DEFAULT_INSTANCE:
        shutil.rmtree(where.state, ignore_errors=True)
    return paused


def measure_all_reduce(
    where: Layout, run_id: str, spec: Mapping[str, Any] | None, script: str, *, mib: int, timeout_s: float
) -> dict[str, Any]:
    """:func:`reduce_spec`, kept among the evidence at once: the play may not live until the judgement."""
    found = reduce_spec(where, spec, script, mib=mib, timeout_s=timeout_s)
    write_atomic(evidence(where, run_id) / ALL_REDUCE, to_json(found))
    return found


def reduce_spec(where: Layout, spec: Mapping[str, Any] | None, script: str, *, mib: int, timeout_s: float) -> dict[str, Any]:
    """The all-reduce as the engine of ``spec`` would do it: its interpreter or image, its environment, as many GPUs."""
    if spec is None:
        return {"skipped": "no spec"}
    settings = spec["settings"]
    gpus = int(settings["tensor_parallel"]) * int(settings["pipeline_parallel"])
    if gpus < 2:
        return {"skipped": "one GPU"}
    words = ["--ranks", str(gpus), "--mib", str(mib), "--device", str(settings["device"])]
    if spec["runtime"] == "docker":
        return reduce_in_container(where, spec, script, words, timeout_s)
    return all_reduce(str(spec["argv"][0]), script, words, env=spec["env"], timeout_s=timeout_s)


def all_reduce(python: str, script: str, words: Sequence[str], *, env: Mapping[str, str], timeout_s: float) -> dict[str, Any]:
    """Run the all-reduce ``script`` with an interpreter that has torch. Returns its JSON, or ``error`` with the reason.

    The environment of the caller goes along (NCCL_NVLS_ENABLE, TORCH_SYMM_MEM_DISABLE_MULTICAST ...), ``env`` on top.
    """
    with tempfile.TemporaryDirectory(prefix="longhaul-") as folder:
        path = Path(folder) / "allreduce.py"
        path.write_text(script, encoding="utf-8")
        process = subprocess.Popen(
            [python, str(path), *words],
            env={**os.environ, **env},
            cwd=folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            errors="replace",
            start_new_session=True,
        )
        try:
            text, _ = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            with contextlib.suppress(OSError):
                os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return {"error": f"no all-reduce within {timeout_s:.0f} s"}
    return parse_all_reduce(process.returncode, text)


def reduce_in_container(
    where: Layout, spec: Mapping[str, Any], script: str, words: Sequence[str], timeout_s: float, docker: Docker | None = None
) -> dict[str, Any]:
    """The same in a container like the engine's: image, GPUs, shared memory, limits and mounts are those of the spec.

    It carries the endpoint's label, so that the end of the burn-in removes it should this be cut short.
    """
    docker = docker or Docker()
    path = where.state / "allreduce.py"
    write_atomic(path, script)
    for folder in host_folders(spec):
        Path(folder).mkdir(parents=True, exist_ok=True)
    body = create_body(spec, endpoint=str(where.state), spec_file=str(where.current_spec), launcher=str(where.launcher))
    body["Entrypoint"] = [body["Entrypoint"][0], _SCRIPT_INSIDE, *words]
    here = {k: v for k, v in os.environ.items() if k.startswith(("NCCL_", "TORCH_SYMM_MEM_"))}
    body["Env"] = [f"{k}={v}" for k, v in {**here, **spec["env"]}.items()]
    body["Labels"] = {**body["Labels"], LABEL_SPEC: "allreduce"}
    body.pop("Healthcheck")
    body["HostConfig"]["RestartPolicy"] = {"Name": "no"}
    body["HostConfig"]["Mounts"].append({"Type": "bind", "Source": str(path), "Target": _SCRIPT_INSIDE, "ReadOnly": True})
    try:
        made = str(json.loads(docker.call("POST", "/containers/create", body)[1])["Id"])
    except UserError as error:
        return {"error": error.found}
    try:
        docker.call("POST", f"/containers/{made}/start")
        end_s = time.monotonic() + timeout_s
        state = docker.get(f"/containers/{made}/json")["State"]
        while state["Running"]:
            if time.monotonic() > end_s:
                return {"error": f"no all-reduce within {timeout_s:.0f} s"}
            time.sleep(0.5)
            state = docker.get(f"/containers/{made}/json")["State"]
        _, logs = docker.call("GET", f"/containers/{made}/logs?stdout=1&stderr=1")
    except UserError as error:
        return {"error": error.found}
    finally:
        with contextlib.suppress(UserError):
            docker.call("DELETE", f"/containers/{made}?force=1&v=1", ok=(404, 409))
    return parse_all_reduce(int(state["ExitCode"]), demultiplex(logs).decode(errors="replace"))


def parse_all_reduce(code: int, text: str) -> dict[str, Any]:
    """What the script printed -> its JSON, else the likeliest line as ``error``."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in reversed(lines):
        if line.startswith('{"gpus"'):
            found: dict[str, Any] = json.loads(line)
            return found
    wrong = [line for line in lines if "Error" in line or "error" in line] or lines or [f"exit code {code}"]
    return {"error": wrong[-1]}


def conclude(
    where: Layout,
    host_instance: str,
    run_id: str,
    *,
    host: str,
    limits: Limits,
    allreduce: Mapping[str, Any] | None,
    failure: str = "",
) -> tuple[RunResult, dict[str, Any]]:
    """Judge the burn-in whose engine still stands (or has just failed), keep the evidence, write the facts of the host.

    Returns the run as written to ``run.json`` and all facts of ``host_instance``.
    """
    folder = evidence(where, run_id)
    # One line; and the log will be where the evidence is, not where it was.
    failure = " ".join(failure.split()).replace(str(where.log), str(folder / "engine.log"))
    folder.mkdir(parents=True, exist_ok=True)
    measured = where.results / run_id
    if measured.is_dir():
        for path in measured.iterdir():
            shutil.move(str(path), str(folder / path.name))
    sampler = Sampler(folder)
    sampler.stop()
    after = _smi_log(folder / "nvidia-smi-after.xml")
    spec = load_spec(where)
    own = read_json(where.facts_file) or {}
    with contextlib.suppress(OSError, UserError):
        write_atomic(folder / "engine.log", "\n".join(log_tail(where, LOG_LINES)) + "\n")
    if failure or not (folder / "run.json").exists():
        failure = failure or "the ladder left no result"
        run = failed_run(spec, own, run_id, host)
    else:
        run = load_run(folder / "run.json")
    start = (own.get("deployed") or {}).get("start") or {}
    start_s = float(start["elapsed_s"]) if start.get("elapsed_s") else None
    loads = sampler.read()
    verdict, checks = judge(
        run,
        loads=loads,
        before=_read_smi(folder / "nvidia-smi-before.xml"),
        after=after,
        allreduce=allreduce,
        limits=limits,
        on_gpu=spec is None or spec["settings"]["device"] != "cpu",
        start_s=start_s,
        failure=failure,
    )
    run = with_burnin(run, verdict, checks, loads, allreduce, start_s)
    write_atomic(folder / "run.json", dump_run(run))
    _, facts = update_facts(Layout(where.home, host_instance), lambda before: {**before, "burnin": burnin_facts(run)})
    return run, facts


def failed_run(spec: Mapping[str, Any] | None, facts: Mapping[str, Any], run_id: str, host: str) -> RunResult:
    """A run without points, for a burn-in that ended before it measured anything."""
    now = time.time()
    settings = (spec or {}).get("settings") or {}
    capacity = facts.get("capacity")
    return RunResult(
        run_id=run_id,
        host=host,
        url=str((spec or {}).get("url") or ""),
        engine=str((spec or {}).get("engine") or ""),
        engine_version=str((spec or {}).get("version") or ""),
        model=str(settings.get("served_model_name") or ""),
        started_unix_s=now,
        finished_unix_s=now,
        verdict=Verdict.FAIL,
        reasons=(),
        points=(),
        environment=environment(spec, detect_gpus(), remote=False) if spec else {},
        capacity=from_jsonable(CapacityFacts, capacity) if capacity else None,
        complete=False,
    )


def _smi_log(path: Path) -> SmiLog | None:
    """Keep ``nvidia-smi -q -x`` in ``path``; ``None`` where it says nothing."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        return None
    try:
        done = subprocess.run([tool, "-q", "-x"], capture_output=True, text=True, errors="replace", timeout=120, check=False)
    except (OSError, subprocess.SubprocessError):
        return None
    path.write_text(done.stdout, encoding="utf-8")
    return _read_smi(path)


def _read_smi(path: Path) -> SmiLog | None:
    try:
        return parse_smi_xml(path.read_text(encoding="utf-8"))
    except (OSError, UserError):
        return None
