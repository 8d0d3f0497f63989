"""The all-reduce over a host's GPUs: measured as the engine of a spec would do it, read from what the script printed."""

from __future__ import annotations

import json
from typing import Any

from ..deploy.layout import Layout
from ..deploy.runtimes.registry import runtime_of
from ..deploy.spec import Spec
from ..errors import UserError
from ..files import to_json, write_atomic
from .host import evidence

ALL_REDUCE = "allreduce.json"


def measure_all_reduce(
    where: Layout, run_id: str, spec: Spec | None, script: str, *, mib: int, timeout_s: float
) -> dict[str, Any]:
    """:func:`reduce_spec`, written to the evidence at once: the play may not live until the judgement."""
    found = reduce_spec(where, spec, script, mib=mib, timeout_s=timeout_s)
    write_atomic(evidence(where, run_id) / ALL_REDUCE, to_json(found))
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
