"""What a burn-in does on the host: find what serves, stop it, name what must be started again.

The burn-in's engine is an endpoint of its own (an instance), so that no deployment's spec, facts or log is ever touched.
What must be started again is written down before anything is stopped. A controller that was killed in the middle loses
nothing: the next burn-in, or the end of this one, still knows.
"""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..deploy.layout import DEFAULT_INSTANCE, Layout
from ..deploy.runtimes.registry import runtime_of
from ..deploy.runtimes.supervisor import Supervisor
from ..deploy.spec import load_spec
from ..errors import UserError
from ..files import read_json, to_json, write_atomic
from ..physics.hardware import GIB, detect_gpus
from .sampler import Sampler, keep_smi_log

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
