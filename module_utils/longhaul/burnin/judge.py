"""Judge a burn-in: is this host fit for the model, before its weights are copied? Named checks and one verdict. Pure.

The engine ran with dummy weights of the full-size model, and ``validate`` measured the ladder. Here that result is compared
with the plan, the roofline and the hardware's own counters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from ..deploy.hostfacts import largest_passed_input_tokens, verdict_of
from ..errors import UserError
from ..host.state import SmiLog
from ..results import BurninCheck as Check
from ..results import BurninFacts, GpuLoad, Reason, RunResult, Verdict, worst
from ..values import converted


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
    """The verdict and all checks. Without a GPU, checks of GPUs are not applicable.

    ``failure`` is why the burn-in ended before there was a result. What could not be measured by then is not judged.
    """
    hardware = [*_gpu_checks(loads, limits, on_gpu), _ecc(before, after, on_gpu), _allreduce(allreduce, limits)]
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
    """The run with its burn-in's checks. Each check that did not pass becomes a reason of the run."""
    reasons = tuple(
        Reason(c.verdict, f"burnin_{c.name.lower().replace('-', '')}", f"{c.name}: {c.found} (required: {c.required})")
        for c in checks
        # The run has the ladder's reasons already.
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
    if not on_gpu or not loads:
        said, verdict = ("no samples", Verdict.INCONCLUSIVE) if on_gpu else ("no GPU", None)
        kinds = {"clocks": clocks, "temperature": heat, "throttling": throttled}
        return [Check(name, said, required, verdict) for name, required in kinds.items()]
    found = []
    for load in loads:
        share = load.sm_clock_mhz / load.max_sm_clock_mhz if load.sm_clock_mhz and load.max_sm_clock_mhz else None
        if share is None:
            words, verdict = f"GPU {load.index}: never seen under load in {load.samples} samples", Verdict.INCONCLUSIVE
        else:
            words = f"GPU {load.index}: {load.sm_clock_mhz:.0f} of {load.max_sm_clock_mhz:.0f} MHz"
            verdict = Verdict.PASS if share >= (limits.least_clock_share or 0) else Verdict.FAIL
        found.append(Check("clocks", words, clocks, verdict))
        found += [_temperature(load, limits, heat), _throttling(load, limits, throttled)]
    return found


def _temperature(load: GpuLoad, limits: Limits, required: str) -> Check:
    hottest, most = load.temperature_c_max, limits.most_temperature_c
    if hottest is None:
        return Check("temperature", f"GPU {load.index}: not told", required, Verdict.INCONCLUSIVE)
    verdict = Verdict.PASS if most is None or hottest <= most else Verdict.FAIL
    return Check("temperature", f"GPU {load.index}: {hottest:.0f} C", required, verdict)


def _throttling(load: GpuLoad, limits: Limits, required: str) -> Check:
    if load.throttled_samples is None:
        # Never under load, or the driver does not say. The clocks themselves are judged anyway.
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
    """The ``burnin`` section of the local facts, for a run that :func:`with_burnin` made."""
    facts = run.burnin
    if facts is None:
        raise ValueError("a run without a burn-in")
    return {
        **verdict_of(run),
        "engine": run.engine,
        "version": run.engine_version,
        "model": run.model,
        "context_tokens": (run.environment.get("settings") or {}).get("context_tokens"),
        "largest_passed_input_tokens": largest_passed_input_tokens(run),
        "checks": [
            {"name": c.name, "verdict": c.verdict.value if c.verdict else None, "found": c.found, "required": c.required}
            for c in facts.checks
        ],
        "gpus": [asdict(g) for g in facts.gpus],
        "allreduce": facts.allreduce,
        "start_s": facts.start_s,
    }
