"""Local facts of an endpoint, one JSON file in Ansible's facts.d: what is deployed, planned and measured, and the verdict."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from ..files import read_json, to_json, write_atomic
from ..results import RunResult, Verdict, to_jsonable
from .layout import Layout
from .spec import Spec

FACTS_SCHEMA = 1


def deployed_section(spec: Spec, started: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The ``deployed`` section from a spec. ``started`` adds what the start showed: seconds, phases, capacity."""
    return {
        "spec_id": spec.spec_id,
        "instance": spec.instance,
        "engine": spec.engine,
        "version": spec.version,
        "runtime": spec.runtime,
        "model": spec.settings.served_model_name,
        "context_tokens": spec.settings.context_tokens,
        "url": spec.url,
        **({"start": dict(started)} if started else {}),
    }


def deployed_facts(
    before: Mapping[str, Any],
    spec: Spec,
    started: Mapping[str, Any] | None,
    planned: Mapping[str, Any] | None = None,
    drift: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Facts after a deployment.

    ``started`` is what the watch of the start returned. A watch that saw no start keeps what is known of the last one. A verdict
    and figures of another spec are removed: nobody has proven this one yet.
    """
    old = before.get("deployed") or {}
    same = old.get("spec_id") == spec.spec_id
    phases = (started or {}).get("phases") or []
    saw_start = bool((started or {}).get("ready")) and len(phases) > 2
    if started and (saw_start or not same):
        start: Mapping[str, Any] | None = {
            "elapsed_s": round(float(started.get("elapsed_s") or 0.0), 1),
            "phases": phases,
            "capacity": started.get("capacity"),
        }
    else:
        start = old.get("start") if same else None
    after = dict(before)
    if not same:
        for section in ("planned", "capacity", "measured", "verdict"):
            after.pop(section, None)
    after["deployed"] = deployed_section(spec, start)
    if planned is not None:
        after["planned"] = dict(planned)
    if drift is not None:
        after["capacity"] = dict(drift)
    return after


def verdict_of(run: RunResult) -> dict[str, Any]:
    """Verdict, time, reasons, and the run that holds the evidence."""
    return {
        "verdict": run.verdict.value,
        "run_id": run.run_id,
        "at_unix_s": round(run.finished_unix_s, 1),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(run.finished_unix_s)),
        "reasons": [r.text for r in run.reasons],
    }


def largest_passed_input_tokens(run: RunResult) -> int | None:
    """The longest prompt that passed; ``None`` where none did."""
    return max((p.input_tokens for p in run.points if p.ran and p.verdict is Verdict.PASS), default=None)


def measured_section(run: RunResult) -> dict[str, Any]:
    """The ``measured`` section: the figures of every point that ran, small enough for a fact."""
    points = [
        {
            "point": p.point_id,
            "input_tokens": p.input_tokens,
            "output_tokens": p.output_tokens,
            "concurrency": p.concurrency,
            "verdict": p.verdict.value,
            "cache_state": p.cache_state,
            "completed": p.completed,
            "failed": p.failed,
            "timed_out": p.timed_out,
            "ttft_p50_s": p.ttft_s.p50 if p.ttft_s else None,
            "tpot_p50_s": p.tpot_s.p50 if p.tpot_s else None,
            "prefill_tokens_per_s": p.prefill_tokens_per_s.p50 if p.prefill_tokens_per_s else None,
        }
        for p in run.points
    ]
    return {
        "run_id": run.run_id,
        "mode": run.mode,
        "largest_passed_input_tokens": largest_passed_input_tokens(run),
        "points": points,
        "capacity": to_jsonable(run.capacity) if run.capacity else None,
        "needle_recall": run.needle_recall,
    }


def validated_facts(before: Mapping[str, Any], run: RunResult) -> dict[str, Any]:
    """Facts after a validation run."""
    return {**before, "measured": measured_section(run), "verdict": {**verdict_of(run), "complete": run.complete}}


def update_facts(
    where: Layout, change: Callable[[Mapping[str, Any]], Mapping[str, Any]], *, dry_run: bool = False
) -> tuple[bool, dict[str, Any]]:
    """Apply ``change`` to the facts on disk. Returns (changed, all facts now)."""
    before = read_json(where.facts_file) or {}
    after = {**change(before), "schema": FACTS_SCHEMA}
    changed = after != before
    if changed and not dry_run:
        write_atomic(where.facts_file, to_json(after))
    return changed, after


def capacity_of_start(facts: Mapping[str, Any]) -> dict[str, Any]:
    """The engine's own capacity figures of the last start that was watched; empty where none is known."""
    return dict(((facts.get("deployed") or {}).get("start") or {}).get("capacity") or {})
