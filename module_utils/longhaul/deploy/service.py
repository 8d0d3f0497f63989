"""Bring an endpoint's engine into a wanted state, whatever its runtime: what the module ``longhaul_service`` drives."""

from __future__ import annotations

from dataclasses import dataclass

from ..engines.registry import get_engine
from ..errors import UserError
from ..progress import Say
from .layout import Layout
from .runtimes.base import RUNNING, FileChange, ProgramState, Watched
from .runtimes.registry import RUNTIMES, runtime_of, stop_others
from .spec import Spec, load_spec, require_spec
from .startup import StartOutcome, watch_start

STATES = ("configured", "started", "stopped", "restarted", "pruned", "absent")


@dataclass(frozen=True)
class Reached:
    """What came of it. ``before`` and ``after`` are the engine's states, ``files`` what was (or would be) written.

    ``log_position``: where this start begins in the log. ``spec_id``: what is deployed.
    """

    changed: bool
    before: ProgramState
    after: ProgramState
    log_position: int
    started: bool = False
    files: tuple[FileChange, ...] = ()
    spec_id: str | None = None

    def words(self, wanted: str) -> tuple[str, str]:
        """The engine before and after, a line each. A dry run has not changed it: what is wanted stands for the state then."""
        after = wanted if self.after == self.before else self.after.state.lower()
        return f"state: {self.before.state.lower()}\n", f"state: {after}\n"


def reach(where: Layout, wanted: str, *, stop_timeout_s: int, dry_run: bool = False) -> Reached:
    """Reach one of ``STATES``. With ``dry_run`` nothing changes, and ``changed`` says whether it would.

    ``restarted`` always stops and starts. ``configured`` only writes configuration. ``pruned`` removes what is kept for specs
    that are neither current nor previous. ``absent`` removes the endpoint from every runtime.
    """
    if wanted not in STATES:
        raise UserError(f"state {wanted!r}", "one of " + ", ".join(STATES), "correct the task")
    if wanted == "absent":
        return _remove(where, stop_timeout_s, dry_run)
    spec = load_spec(where)
    if wanted == "pruned":
        return _prune(where, spec, dry_run)
    if wanted == "stopped":
        return _stop(where, spec, stop_timeout_s, dry_run)
    if wanted == "configured":
        return _configure(where, spec, stop_timeout_s, dry_run)
    return _start(where, spec, stop_timeout_s, dry_run, restart=wanted == "restarted")


def _start(where: Layout, spec: Spec | None, stop_timeout_s: int, dry_run: bool, *, restart: bool) -> Reached:
    if dry_run:
        # In check mode of a first deployment there is no spec yet.
        seen = _configure(where, spec, stop_timeout_s, dry_run)
        up = spec is not None and seen.before.alive
        return Reached(True, seen.before, seen.after, seen.log_position, files=seen.files) if restart or not up else seen
    spec = require_spec(where)
    runtime = runtime_of(where, spec)
    before = runtime.state(spec)
    files = runtime.configure(stop_timeout_s)
    stopped = stop_others(where, spec, stop_timeout_s)
    start = runtime.start(spec, stop_timeout_s, restart=restart)
    changed = bool(files) or stopped or start.changed
    return Reached(changed, before, start.state, start.log_position, start.changed, files, spec.spec_id)


def _configure(where: Layout, spec: Spec | None, stop_timeout_s: int, dry_run: bool) -> Reached:
    runtime = runtime_of(where, spec)
    files = runtime.configure(stop_timeout_s, dry_run=dry_run)
    state = runtime.state(spec)
    return Reached(bool(files), state, state, runtime.log_position(), False, files, spec.spec_id if spec else None)


def _stop(where: Layout, spec: Spec | None, stop_timeout_s: int, dry_run: bool) -> Reached:
    runtime = runtime_of(where, spec)
    before = runtime.state(spec)
    # Another spec's engine counts too: stopped means that nothing of this endpoint runs.
    running = runtime.is_running()
    if running and not dry_run:
        runtime.stop(stop_timeout_s)
    after = before if dry_run else runtime.state(spec)
    return Reached(running, before, after, runtime.log_position(), spec_id=spec.spec_id if spec else None)


def _prune(where: Layout, spec: Spec | None, dry_run: bool) -> Reached:
    runtime = runtime_of(where, spec)
    state = runtime.state(spec)
    keep = tuple(kept.spec_id for kept in (spec, load_spec(where, "previous")) if kept is not None)
    # Without a spec there is nothing to tell what is wanted from what is left over.
    changed = spec is not None and not dry_run and runtime.prune(keep)
    return Reached(changed, state, state, runtime.log_position(), spec_id=spec.spec_id if spec else None)


def _remove(where: Layout, stop_timeout_s: int, dry_run: bool) -> Reached:
    here = [kind(where) for kind in RUNTIMES.values() if kind.is_here()]
    ran = any(runtime.is_running() for runtime in here)
    removed = [runtime.remove(stop_timeout_s, dry_run=dry_run) for runtime in here]
    return Reached(any(removed), ProgramState(RUNNING if ran else "ABSENT"), ProgramState("ABSENT"), 0)


def wait_until_ready(
    where: Layout, *, log_position: int, timeout_s: float, api_key: str | None, say: Say
) -> tuple[StartOutcome, str, str]:
    """Watch the start that has just begun. Returns (outcome, name of the log, why it failed in one line or "").

    An engine that did not become ready is stopped: left alone it would be started again and again, or hold its memory for
    nothing. UserError where another server answers in its place.
    """
    spec = require_spec(where)
    start = runtime_of(where, spec).watch(spec, log_position)
    adapter = get_engine(spec.engine)
    outcome = watch_start(adapter, spec.url, start.new_lines, start.alive, say, timeout_s, api_key=api_key)
    if outcome.ready:
        names = [model.name for model in outcome.served]
        if names and spec.settings.served_model_name not in names:
            raise UserError(
                f"{spec.url} serves {', '.join(names)}",
                f"it to serve {spec.settings.served_model_name}",
                "another server answers on that port: stop it, or set engine_port",
            )
        return outcome, start.log_name, ""
    give_up(where, spec, start)
    return outcome, start.log_name, _why(spec, outcome, start.log_name)


def give_up(where: Layout, spec: Spec, start: Watched) -> None:
    """Stop what is left of a start that failed, unless another spec has become current since.

    A watch outlives a controller that was killed. When the next controller replaces the deployment, the old watch sees its
    process die; giving up must then not stop the engine that was started in its place.
    """
    current = load_spec(where)
    if current is not None and current.spec_id == spec.spec_id:
        start.give_up()


def _why(spec: Spec, outcome: StartOutcome, log_name: str) -> str:
    how = f"{spec.label} {'died' if outcome.died else 'was stopped'} after {outcome.elapsed_s:.0f} s"
    found = outcome.diagnosis
    if found is None:
        return f"{how} | log: {log_name}"
    phase = found.phase.value if found.phase else "starting"
    return f"{how} while {phase}: {found.cause} | evidence: {found.evidence} | advice: {found.advice} | log: {log_name}"
