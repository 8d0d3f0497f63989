"""Burn-in: is this host fit for the model, before its weights are copied? What was seen, as named checks and one verdict.

The engine runs with dummy weights of the full-size model; :mod:`validate` measures the ladder; here its result meets the
plan, the roofline and the hardware's own counters. Pure, but for :class:`Sampler`, which runs nvidia-smi.
"""

from __future__ import annotations

import csv
import io
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from .errors import UserError
from .files import read_json, to_json, write_atomic
from .hostcheck import SmiLog
from .results import RunResult, Verdict, worst

SAMPLE_QUERY = "index,clocks.sm,clocks.max.sm,power.draw,temperature.gpu,utilization.gpu"
NOT_APPLICABLE = "not applicable"


@dataclass(frozen=True)
class Limits:
    """What a healthy host must show. Empty (``None``) is not judged.

    ``least_mfu``/``most_mfu``: share of the GPU's dense peak at the longest prompt, alone in flight (vLLM and SGLang reached 0.59
    to 0.61 at 1-2M tokens on H200). ``least_clock_share``: median SM clock under load over the card's maximum.
    ``least_allreduce_gb_per_s``: bus bandwidth as NCCL's tests define it.
    """

    least_mfu: float | None = 0.25
    most_mfu: float | None = 1.0
    least_clock_share: float | None = 0.6
    most_temperature_c: float | None = 87.0
    least_allreduce_gb_per_s: float | None = None


@dataclass(frozen=True)
class Check:
    """One finding: ``verdict`` is ``None`` where the check does not apply here."""

    name: str
    found: str
    required: str
    verdict: Verdict | None

    def __str__(self) -> str:
        word = self.verdict.value if self.verdict else NOT_APPLICABLE
        return f"{word} {self.name}: found: {self.found} | required: {self.required}"


@dataclass(frozen=True)
class GpuLoad:
    """One GPU over the whole burn-in. Clocks in MHz are medians over the samples under load (utilization of 50% or more)."""

    index: int
    samples: int
    loaded_samples: int
    sm_clock_mhz: float | None
    max_sm_clock_mhz: float | None
    power_w_max: float | None
    temperature_c_max: float | None


def limits_from(options: Mapping[str, Any]) -> Limits:
    """Numbers as an inventory gives them; ``None`` or "" switches a limit off. UserError names the bad one."""
    known = Limits.__dataclass_fields__
    values: dict[str, float | None] = {}
    for name, value in options.items():
        if name not in known:
            raise UserError(f"burn-in limit {name!r}", "one of " + ", ".join(known), "correct burnin_limits")
        try:
            values[name] = None if value in (None, "") else float(value)
        except (TypeError, ValueError) as error:
            raise UserError(f"burn-in limit {name} {value!r}", "a number, or empty", "correct burnin_limits") from error
    return Limits(**values)


def parse_samples(text: str) -> tuple[GpuLoad, ...]:
    """CSV of ``nvidia-smi --query-gpu=SAMPLE_QUERY --format=csv,noheader,nounits -l N`` -> one row a GPU. Torn lines are left out."""
    rows: dict[int, list[list[float | None]]] = {}
    for words in csv.reader(io.StringIO(text)):
        numbers = [_float(w) for w in words]
        if len(numbers) == SAMPLE_QUERY.count(",") + 1 and numbers[0] is not None:
            rows.setdefault(int(numbers[0]), []).append(numbers[1:])
    return tuple(_load(index, rows[index]) for index in sorted(rows))


def _load(index: int, rows: Sequence[Sequence[float | None]]) -> GpuLoad:
    loaded = [r for r in rows if (r[4] or 0) >= 50]
    clocks = sorted(r[0] for r in loaded if r[0] is not None)
    return GpuLoad(
        index=index,
        samples=len(rows),
        loaded_samples=len(loaded),
        sm_clock_mhz=clocks[len(clocks) // 2] if clocks else None,
        max_sm_clock_mhz=max((r[1] for r in rows if r[1] is not None), default=None),
        power_w_max=max((r[2] for r in rows if r[2] is not None), default=None),
        temperature_c_max=max((r[3] for r in rows if r[3] is not None), default=None),
    )


def _float(word: str) -> float | None:
    try:
        return float(word)
    except ValueError:
        return None


def judge(
    run: RunResult,
    *,
    loads: Sequence[GpuLoad],
    before: SmiLog | None,
    after: SmiLog | None,
    allreduce: Mapping[str, Any] | None,
    limits: Limits,
    on_gpu: bool,
) -> tuple[Verdict, tuple[Check, ...]]:
    """All findings, and the worst of them. What needs a GPU is not applicable without one."""
    checks = [
        Check(
            "ladder",
            f"{run.verdict.value}, {sum(p.ran for p in run.points)} of {len(run.points)} points ran",
            "PASS",
            run.verdict,
        ),
        _capacity(run),
        _roofline(run, limits, on_gpu),
        *_gpu_checks(loads, limits, on_gpu),
        _ecc(before, after, on_gpu),
        _allreduce(allreduce, limits),
    ]
    return worst(c.verdict for c in checks if c.verdict), tuple(checks)


def _capacity(run: RunResult) -> Check:
    facts = run.capacity
    if facts is None:
        return Check("capacity", "no prediction beside the engine's figures", "within 2% of the plan", Verdict.INCONCLUSIVE)
    if facts.drift is None:
        return Check("capacity", "the engine printed no figures", "within 2% of the plan", Verdict.INCONCLUSIVE)
    agrees = facts.predicted.get("agrees", abs(facts.drift) <= 0.02)
    tokens = facts.engine.get("kv_cache_tokens"), facts.predicted.get("kv_cache_tokens")
    found = f"engine {tokens[0]} tokens, predicted {tokens[1]}, {100 * facts.drift:+.2f}%"
    return Check("capacity", found, "within 2% of the plan", Verdict.PASS if agrees else Verdict.FAIL)


def _roofline(run: RunResult, limits: Limits, on_gpu: bool) -> Check:
    required = f"MFU {limits.least_mfu} to {limits.most_mfu} at the longest prompt"
    alone = [p for p in run.points if p.ran and p.concurrency == 1 and p.physics is not None]
    if not on_gpu:
        return Check("roofline", "no GPU", required, None)
    if not alone:
        return Check("roofline", "no point with a known floor", required, Verdict.INCONCLUSIVE)
    longest = max(alone, key=lambda p: p.input_tokens)
    mfu = longest.physics.mfu if longest.physics else 0.0
    inside = (limits.least_mfu is None or mfu >= limits.least_mfu) and (limits.most_mfu is None or mfu <= limits.most_mfu)
    found = f"MFU {mfu:.2f} at {longest.input_tokens:,} tokens"
    return Check("roofline", found, required, Verdict.PASS if inside else Verdict.FAIL)


def _gpu_checks(loads: Sequence[GpuLoad], limits: Limits, on_gpu: bool) -> list[Check]:
    clocks = f"median SM clock under load at least {limits.least_clock_share} of the maximum"
    heat = f"at most {limits.most_temperature_c} C"
    if not on_gpu:
        return [Check("clocks", "no GPU", clocks, None), Check("temperature", "no GPU", heat, None)]
    if not loads:
        return [Check(n, "no samples", r, Verdict.INCONCLUSIVE) for n, r in (("clocks", clocks), ("temperature", heat))]
    found = []
    for load in loads:
        share = load.sm_clock_mhz / load.max_sm_clock_mhz if load.sm_clock_mhz and load.max_sm_clock_mhz else None
        if share is None:
            words, verdict = f"GPU {load.index}: never seen under load in {load.samples} samples", Verdict.INCONCLUSIVE
        else:
            words = f"GPU {load.index}: {load.sm_clock_mhz:.0f} of {load.max_sm_clock_mhz:.0f} MHz"
            verdict = Verdict.PASS if share >= (limits.least_clock_share or 0) else Verdict.FAIL
        found.append(Check("clocks", words, clocks, verdict))
        hottest = load.temperature_c_max
        if hottest is None:
            found.append(Check("temperature", f"GPU {load.index}: not told", heat, Verdict.INCONCLUSIVE))
        else:
            cool = limits.most_temperature_c is None or hottest <= limits.most_temperature_c
            found.append(Check("temperature", f"GPU {load.index}: {hottest:.0f} C", heat, Verdict.PASS if cool else Verdict.FAIL))
    return found


def _ecc(before: SmiLog | None, after: SmiLog | None, on_gpu: bool) -> Check:
    required = "no uncorrected memory error during the burn-in"
    if not on_gpu:
        return Check("ECC", "no GPU", required, None)
    if before is None or after is None:
        return Check("ECC", "nvidia-smi told nothing", required, Verdict.INCONCLUSIVE)
    old = {g.bus_id: g.uncorrected_volatile for g in before.gpus}
    grown = []
    for gpu in after.gpus:
        then, now = old.get(gpu.bus_id), gpu.uncorrected_volatile
        if now is None or then is None:
            return Check("ECC", f"GPU {gpu.index} keeps no count", required, Verdict.INCONCLUSIVE)
        if now > then:
            grown.append(f"GPU {gpu.index}: {now - then} new")
    return Check("ECC", "; ".join(grown) or f"none on {len(after.gpus)} GPUs", required, Verdict.FAIL if grown else Verdict.PASS)


def _allreduce(found: Mapping[str, Any] | None, limits: Limits) -> Check:
    least = limits.least_allreduce_gb_per_s
    required = f"at least {least:g} GB/s" if least is not None else "recorded, not judged"
    if not found or found.get("skipped"):
        return Check("all-reduce", str((found or {}).get("skipped") or "not measured"), required, None)
    if found.get("error"):
        return Check("all-reduce", str(found["error"])[:300], "an all-reduce that ends", Verdict.FAIL)
    speed = float(found["bus_gb_per_s"])
    slow = least is not None and speed < least
    words = f"{speed:.0f} GB/s bus bandwidth over {found['gpus']} GPUs"
    return Check("all-reduce", words, required, Verdict.FAIL if slow else Verdict.PASS)


def burnin_facts(verdict: Verdict, checks: Sequence[Check], loads: Sequence[GpuLoad], run: RunResult) -> dict[str, Any]:
    """The ``burnin`` section of the local facts."""
    return {
        "verdict": verdict.value,
        "run_id": run.run_id,
        "unix_s": run.finished_unix_s,
        "model": run.model,
        "checks": [
            {"name": c.name, "verdict": c.verdict.value if c.verdict else None, "found": c.found, "required": c.required}
            for c in checks
        ],
        "gpus": [asdict(g) for g in loads],
    }


class Sampler:
    """nvidia-smi once a second into a file, in a session of its own, ended by its own id."""

    def __init__(self, folder: Path) -> None:
        self.samples, self._pid_file = folder / "gpu.csv", folder / "sampler.json"

    def start(self) -> bool:
        """Begin anew; False where there is no nvidia-smi."""
        self.stop()
        tool = shutil.which("nvidia-smi")
        self.samples.parent.mkdir(parents=True, exist_ok=True)
        self.samples.write_text("", encoding="utf-8")
        if tool is None:
            return False
        with self.samples.open("ab") as out:
            command = [tool, f"--query-gpu={SAMPLE_QUERY}", "--format=csv,noheader,nounits", "-l", "1"]
            process = subprocess.Popen(command, stdout=out, stderr=subprocess.DEVNULL, start_new_session=True)
        write_atomic(self._pid_file, to_json({"pid": process.pid, "command": command[0]}))
        return True

    def stop(self) -> None:
        """End the sampler that ``start`` began, if it still runs."""
        known = read_json(self._pid_file)
        if not known:
            return
        pid = int(known["pid"])
        try:
            # A pid is reused: end only what is what we began.
            if b"--query-gpu=" in Path(f"/proc/{pid}/cmdline").read_bytes():
                os.kill(pid, signal.SIGTERM)
                time.sleep(0.2)
        except OSError:
            pass
        self._pid_file.unlink(missing_ok=True)

    def read(self) -> tuple[GpuLoad, ...]:
        """What was sampled."""
        return parse_samples(self.samples.read_text(encoding="utf-8", errors="replace")) if self.samples.exists() else ()
