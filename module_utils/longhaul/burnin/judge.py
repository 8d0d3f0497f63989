"""Burn-in: is this host fit for the model, before its weights are copied? What was seen, as named checks and one verdict.

The engine runs with dummy weights of the full-size model; :mod:`validate` measures the ladder; here its result meets the
plan, the roofline and the hardware's own counters. Pure, but for :class:`Sampler`, which runs nvidia-smi.
"""

from __future__ import annotations

import csv
import dataclasses
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

from ..errors import UserError
from ..files import read_json, to_json, write_atomic
from ..host.checks import SmiLog
from ..results import BurninCheck as Check
from ..results import BurninFacts, GpuLoad, Reason, RunResult, Verdict, worst
from ..values import converted

SAMPLE_QUERY = "index,clocks.sm,clocks.max.sm,power.draw,temperature.gpu,utilization.gpu"
# The driver's newer name first; either may be unknown to it.
REASON_FIELDS = ("clocks_event_reasons.active", "clocks_throttle_reasons.active")
# Bits of nvmlClocksEventReasons (nvml.h). Those of _BAD mean that the card is not as fast as it was bought to be.
_REASONS = {
    0x4: "sw_power_cap",
    0x8: "hw_slowdown",
    0x10: "sync_boost",
    0x20: "sw_thermal_slowdown",
    0x40: "hw_thermal_slowdown",
    0x80: "hw_power_brake",
}
_BAD = 0x8 | 0x20 | 0x40 | 0x80
LOADED_UTILIZATION = 50


@dataclass(frozen=True)
class Limits:
    """What a healthy host must show. Empty (``None``) is not judged.

    ``least_mfu``/``most_mfu``: share of the GPU's dense peak at the longest prompt, alone in flight (vLLM and SGLang reached 0.59
    to 0.61 at 1-2M tokens on H200). ``least_clock_share``: median SM clock under load over the card's maximum.
    ``most_throttled_share``: samples under load in which heat, a power brake or the board slowed the clocks down.
    ``least_allreduce_gb_per_s``: bus bandwidth as NCCL's tests define it.
    """

    least_mfu: float | None = 0.25
    most_mfu: float | None = 1.0
    least_clock_share: float | None = 0.6
    most_temperature_c: float | None = 87.0
    most_throttled_share: float | None = 0.05
    least_allreduce_gb_per_s: float | None = None


def limits_from(options: Mapping[str, Any]) -> Limits:
    """Numbers as an inventory gives them; ``None`` or "" switches a limit off. UserError names the bad one."""
    known = Limits.__dataclass_fields__
    values: dict[str, float | None] = {}
    for name, value in options.items():
        if name not in known:
            raise UserError(f"burn-in limit {name!r}", "one of " + ", ".join(known), "correct burnin_limits")
        empty = value is None or value == ""
        values[name] = None if empty else converted(f"burn-in limit {name}", value, "float", "correct burnin_limits")
    return Limits(**values)


def parse_samples(text: str) -> tuple[GpuLoad, ...]:
    """CSV of ``nvidia-smi --query-gpu=SAMPLE_QUERY[,a reason field] --format=csv,noheader,nounits`` -> one row a GPU.

    Torn lines are left out: the sampler is ended in the middle of one.
    """
    columns = SAMPLE_QUERY.count(",") + 1
    rows: dict[int, list[tuple[list[float | None], int | None]]] = {}
    for words in csv.reader(io.StringIO(text)):
        numbers = [_float(w) for w in words[:columns]]
        if len(numbers) == columns and numbers[0] is not None:
            reasons = _mask(words[columns]) if len(words) > columns else None
            rows.setdefault(int(numbers[0]), []).append((numbers[1:], reasons))
    return tuple(_load(index, rows[index]) for index in sorted(rows))


def _load(index: int, rows: Sequence[tuple[Sequence[float | None], int | None]]) -> GpuLoad:
    loaded = [(r, mask) for r, mask in rows if (r[4] or 0) >= LOADED_UTILIZATION]
    clocks = sorted(r[0] for r, _ in loaded if r[0] is not None)
    masks = [mask for _, mask in loaded if mask is not None]
    return GpuLoad(
        index=index,
        samples=len(rows),
        loaded_samples=len(loaded),
        sm_clock_mhz=clocks[len(clocks) // 2] if clocks else None,
        max_sm_clock_mhz=max((r[1] for r, _ in rows if r[1] is not None), default=None),
        power_w_max=max((r[2] for r, _ in rows if r[2] is not None), default=None),
        temperature_c_max=max((r[3] for r, _ in rows if r[3] is not None), default=None),
        throttled_samples=sum(bool(m & _BAD) for m in masks) if masks else None,
        throttle_reasons=tuple(name for bit, name in _REASONS.items() if any(m & bit for m in masks)),
    )


def _mask(word: str) -> int | None:
    try:
        return int(word, 16)
    except ValueError:
        return None


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
    start_s: float | None = None,
    failure: str = "",
) -> tuple[Verdict, tuple[Check, ...]]:
    """All findings, and the worst of them. What needs a GPU is not applicable without one.

    ``failure``: why it ended before there was a result; what could not be looked at then is not judged.
    """
    hardware = [
        *_gpu_checks(loads, limits, on_gpu),
        _ecc(before, after, on_gpu),
        _allreduce(allreduce, limits),
    ]
    if failure:
        # Idle clocks of a start that died say nothing; heat, errors and a bad link may be the very cause.
        hardware = [c for c in hardware if c.verdict is not Verdict.INCONCLUSIVE]
        return Verdict.FAIL, (Check("engine", failure, "an engine that starts and answers", Verdict.FAIL), *hardware)
    checks = [
        Check("start", "ready" + (f" after {start_s:.0f} s" if start_s else ""), "an engine that starts", Verdict.PASS),
        Check(
            "ladder",
            f"{run.verdict.value}, {sum(p.ran for p in run.points)} of {len(run.points)} points ran",
            "PASS",
            run.verdict,
        ),
        _capacity(run),
        _roofline(run, limits, on_gpu),
        *hardware,
    ]
    return worst(c.verdict for c in checks if c.verdict), tuple(checks)


def with_burnin(
    run: RunResult,
    verdict: Verdict,
    checks: Sequence[Check],
    loads: Sequence[GpuLoad],
    allreduce: Mapping[str, Any] | None,
    start_s: float | None,
) -> RunResult:
    """The run with its burn-in's findings; what did not pass is a reason of the run."""
    reasons = tuple(
        Reason(c.verdict, f"burnin_{c.name.lower().replace('-', '')}", f"{c.name}: {c.found} (required: {c.required})")
        for c in checks
        # The ladder's own reasons are there already.
        if c.verdict is not None and c.verdict is not Verdict.PASS and c.name != "ladder"
    )
    facts = BurninFacts(tuple(checks), tuple(loads), allreduce, start_s)
    return dataclasses.replace(run, verdict=verdict, reasons=(*run.reasons, *reasons), burnin=facts)


def _capacity(run: RunResult) -> Check:
    facts = run.capacity
    if facts is None:
        return Check("capacity", "no prediction beside the engine's figures", "within 2% of the plan", Verdict.INCONCLUSIVE)
    if facts.drift is None:
        return Check("capacity", "the engine printed no figures", "within 2% of the plan", Verdict.INCONCLUSIVE)
    agrees = facts.predicted.get("agrees", abs(facts.drift) <= 0.02)
    both = (facts.engine.get("kv_cache_tokens"), facts.predicted.get("kv_cache_tokens"))
    tokens = [f"{x:,.0f}" if isinstance(x, int | float) else "unknown" for x in both]
    found = f"engine {tokens[0]} tokens, predicted {tokens[1]}, {100 * facts.drift:+.2f}%"
    # Wider in a pipeline, where the engine prints one stage's memory only.
    required = f"within {100 * facts.predicted.get('tolerance', 0.02):.0f}% of the plan"
    return Check("capacity", found, required, Verdict.PASS if agrees else Verdict.FAIL)


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
    throttled = f"slowed down in at most {limits.most_throttled_share} of the samples under load"
    if not on_gpu:
        return [Check(n, "no GPU", r, None) for n, r in (("clocks", clocks), ("temperature", heat), ("throttling", throttled))]
    if not loads:
        kinds = (("clocks", clocks), ("temperature", heat), ("throttling", throttled))
        return [Check(n, "no samples", r, Verdict.INCONCLUSIVE) for n, r in kinds]
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
        found.append(_throttling(load, limits, throttled))
    return found


def _throttling(load: GpuLoad, limits: Limits, required: str) -> Check:
    if load.throttled_samples is None:
        # Not loaded, or a driver that does not say: the clocks themselves are judged anyway.
        return Check("throttling", f"GPU {load.index}: not told", required, None)
    share = load.throttled_samples / load.loaded_samples
    words = f"GPU {load.index}: {load.throttled_samples} of {load.loaded_samples} samples"
    words += f" ({', '.join(load.throttle_reasons)})" if load.throttle_reasons else ""
    bad = limits.most_throttled_share is not None and share > limits.most_throttled_share
    return Check("throttling", words, required, Verdict.FAIL if bad else Verdict.PASS)


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
    return Check(
        "ECC",
        "; ".join(grown) or f"none on {len(after.gpus)} GPU{'s' if len(after.gpus) != 1 else ''}",
        required,
        Verdict.FAIL if grown else Verdict.PASS,
    )


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


def burnin_facts(run: RunResult) -> dict[str, Any]:
    """The ``burnin`` section of the local facts, small enough for a fact: of a run that :func:`with_burnin` made."""
    facts = run.burnin
    if facts is None:
        raise ValueError("a run without a burn-in")
    return {
        "verdict": run.verdict.value,
        "run_id": run.run_id,
        "at_unix_s": round(run.finished_unix_s, 1),
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(run.finished_unix_s)),
        "engine": run.engine,
        "version": run.engine_version,
        "model": run.model,
        "context_tokens": (run.environment.get("settings") or {}).get("context_tokens"),
        "largest_passed_input_tokens": max(
            (p.input_tokens for p in run.points if p.ran and p.verdict is Verdict.PASS), default=None
        ),
        "reasons": [r.text for r in run.reasons],
        "checks": [
            {"name": c.name, "verdict": c.verdict.value if c.verdict else None, "found": c.found, "required": c.required}
            for c in facts.checks
        ],
        "gpus": [asdict(g) for g in facts.gpus],
        "allreduce": facts.allreduce,
        "start_s": facts.start_s,
    }


class Sampler:
    """nvidia-smi once a second into a file, in a session of its own, ended by its own id (a module ends long before it)."""

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
        known = next((f for f in REASON_FIELDS if self._answers(tool, f)), None)
        query = f"{SAMPLE_QUERY},{known}" if known else SAMPLE_QUERY
        command = [tool, f"--query-gpu={query}", "--format=csv,noheader,nounits", "-l", "1"]
        # Nobody waits for it: not a Popen, which would complain of that. Nothing of the caller's is held open by it.
        pid = os.posix_spawn(
            tool,
            command,
            os.environ,
            file_actions=[
                (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
                (os.POSIX_SPAWN_OPEN, 1, str(self.samples), os.O_WRONLY | os.O_APPEND, 0),
                (os.POSIX_SPAWN_OPEN, 2, os.devnull, os.O_WRONLY, 0),
            ],
            setsid=True,
        )
        write_atomic(self._pid_file, to_json({"pid": pid, "command": command}))
        return True

    @staticmethod
    def _answers(tool: str, field: str) -> bool:
        try:
            words = [tool, f"--query-gpu={field}", "--format=csv,noheader"]
            return subprocess.run(words, capture_output=True, timeout=30, check=False).returncode == 0
        except (OSError, subprocess.SubprocessError):
            return False

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
