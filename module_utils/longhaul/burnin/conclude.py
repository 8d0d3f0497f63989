"""The end of a burn-in: gather its evidence in one folder, judge it, write the verdict to the host's facts."""

from __future__ import annotations

import contextlib
import shutil
import time
from collections.abc import Mapping
from typing import Any

from ..deploy.endpoint_test import environment
from ..deploy.hostfacts import update_facts
from ..deploy.layout import Layout
from ..deploy.spec import Spec, load_spec
from ..deploy.status import log_tail
from ..errors import UserError
from ..files import read_json, write_atomic
from ..physics.hardware import detect_gpus
from ..results import CapacityFacts, RunResult, Verdict, dump_run, from_jsonable, load_run
from .host import evidence
from .judge import Limits, burnin_facts, judge, with_burnin
from .sampler import Sampler, keep_smi_log, read_smi_log

LOG_LINES = 20_000


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
