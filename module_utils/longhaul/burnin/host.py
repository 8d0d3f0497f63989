"""What a burn-in does on the host: find what serves, stop it, measure the all-reduce, judge, name what must be started again.

The burn-in's engine is an endpoint of its own (an instance), so that no deployment's spec, facts or log is ever touched.
What must be started again is written down before anything is stopped. A controller that was killed in the middle loses
nothing: the next burn-in, or the end of this one, still knows.
"""

from __future__ import annotations

import contextlib
import json
import shutil
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..deploy.hostfacts import update_facts
from ..deploy.layout import DEFAULT_INSTANCE, Layout
from ..deploy.runtimes.registry import runtime_of
from ..deploy.runtimes.supervisor import Supervisor
from ..deploy.spec import Spec, load_spec
from ..deploy.status import log_tail
from ..deploy.validation import environment
from ..errors import UserError
from ..files import read_json, to_json, write_atomic
from ..physics.hardware import GIB, detect_gpus
from ..results import CapacityFacts, RunResult, Verdict, dump_run, from_jsonable, load_run
from .judge import Limits, burnin_facts, judge, with_burnin
from .sampler import Sampler, keep_smi_log, read_smi_log

LOG_LINES = 20_000
# A driver and a display use some memory of every GPU. An engine that was left running uses much more.
FREE_GPU_BYTES = 2 * GIB


def state_file(where: Layout) -> Path:
    """Names what this burn-in stopped and must have started again."""
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
    # A program of a runtime that the endpoint is leaving counts too.
    return runtime_of(where, load_spec(where)).is_running() or Supervisor(where).state().alive


def check_instance(where: Layout, host_instance: str) -> None:
    """UserError where the burn-in's instance is a deployment's. The burn-in removes its instance at the end."""
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
    specs = [(other.instance, load_spec(other)) for other in others]
    names = ", ".join(f"{spec.label} ({instance}) at {spec.url}" for instance, spec in specs if spec is not None)
    raise UserError(
        f"{names} runs on this host",
        "a host that serves nothing",
        "stop it (playbooks/stop.yml), or set burnin_replace: true, which stops it and starts it again after the burn-in",
    )


def begin(
    where: Layout, run_id: str, *, replace: bool, stop_timeout_s: int, on_gpu: bool = True, gpus: Sequence[int] = ()
) -> dict[str, Any]:
    """Stop what serves and start to sample. Returns the instances that were stopped and whether nvidia-smi samples.

    ``gpus`` are the indexes that the endpoint will use; none given means all. UserError where their memory is in use.
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
        # A fresh supervisord starts every program, also those that must stay stopped.
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
    keep_smi_log(folder / "nvidia-smi-before.xml")
    return {"paused": paused, "sampling": Sampler(folder).start()}


def _stop(where: Layout, timeout_s: int) -> None:
    Supervisor(where).stop(timeout_s)
    runtime = runtime_of(where, load_spec(where))
    if runtime.is_here():
        runtime.stop(timeout_s)


def measure_all_reduce(
    where: Layout, run_id: str, spec: Spec | None, script: str, *, mib: int, timeout_s: float
) -> dict[str, Any]:
    """:func:`reduce_spec`, written to the evidence at once: the play may not live until the judgement."""
    found = reduce_spec(where, spec, script, mib=mib, timeout_s=timeout_s)
    write_atomic(evidence(where, run_id) / "allreduce.json", to_json(found))
    return found


def reduce_spec(where: Layout, spec: Spec | None, script: str, *, mib: int, timeout_s: float) -> dict[str, Any]:
    """Run the all-reduce as the engine of ``spec`` would: its interpreter or image, its environment, as many GPUs.

    Returns the script's JSON; ``skipped`` with the reason where there is nothing to measure, ``error`` where it failed.
    """
    if spec is None:
        return {"skipped": "no spec"}
    if spec.gpus < 2:
        return {"skipped": "one GPU"}
    words = ["--ranks", str(spec.gpus), "--mib", str(mib), "--device", spec.settings.device]
    try:
        end = runtime_of(where, spec).run_script(spec, script, words, timeout_s)
    except UserError as error:
        return {"error": error.found}
    if end.exit_code is None:
        return {"error": f"no all-reduce within {timeout_s:.0f} s"}
    return parse_all_reduce(end.exit_code, end.output)


def parse_all_reduce(exit_code: int, text: str) -> dict[str, Any]:
    """What the script printed -> its JSON, else the likeliest line as ``error``."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    for line in reversed(lines):
        if line.startswith('{"gpus"'):
            found: dict[str, Any] = json.loads(line)
            return found
    wrong = [line for line in lines if "Error" in line or "error" in line] or lines or [f"exit code {exit_code}"]
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
    """Judge the burn-in whose engine still runs (or has just failed), keep the evidence, write the facts of the host.

    Returns the run as written to ``run.json`` and all facts of ``host_instance``.
    """
    folder = evidence(where, run_id)
    # One line, and the log's new place: it moves to the evidence.
    failure = " ".join(failure.split()).replace(str(where.log), str(folder / "engine.log"))
    folder.mkdir(parents=True, exist_ok=True)
    measured = where.results / run_id
    if measured.is_dir():
        for path in measured.iterdir():
            shutil.move(str(path), str(folder / path.name))
    sampler = Sampler(folder)
    sampler.stop()
    after = keep_smi_log(folder / "nvidia-smi-after.xml")
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
        before=read_smi_log(folder / "nvidia-smi-before.xml"),
        after=after,
        allreduce=allreduce,
        limits=limits,
        on_gpu=spec is None or spec.settings.device != "cpu",
        start_s=start_s,
        failure=failure,
    )
    run = with_burnin(run, verdict, checks, loads, allreduce, start_s)
    write_atomic(folder / "run.json", dump_run(run))
    _, facts = update_facts(Layout(where.home, host_instance), lambda before: {**before, "burnin": burnin_facts(run)})
    return run, facts


def failed_run(spec: Spec | None, facts: Mapping[str, Any], run_id: str, host: str) -> RunResult:
    """A run without points, for a burn-in that ended before it measured anything."""
    now = time.time()
    capacity = facts.get("capacity")
    return RunResult(
        run_id=run_id,
        host=host,
        url=spec.url if spec else "",
        engine=spec.engine if spec else "",
        engine_version=spec.version if spec else "",
        model=spec.settings.served_model_name if spec else "",
        started_unix_s=now,
        finished_unix_s=now,
        verdict=Verdict.FAIL,
        reasons=(),
        points=(),
        environment=environment(spec, detect_gpus(), remote=False) if spec else {},
        capacity=from_jsonable(CapacityFacts, capacity) if capacity else None,
        complete=False,
    )


def end(where: Layout, run_id: str) -> list[str]:
    """End the sampler and remove the burn-in's instance, whose engine is gone. Returns the instances to start again."""
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
