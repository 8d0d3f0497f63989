"""From measured points to results: every point judged, the run summed up and written."""

from __future__ import annotations

import platform
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..engines.registry import get_engine
from ..physics.hardware import Gpu
from ..prompts.needles import aggregate, recall, shown
from ..results import (
    NeedleCell,
    Physics,
    PointResult,
    Reason,
    RequestRecord,
    RequestStatus,
    RunResult,
    load_run,
    to_jsonable,
    worst,
)
from ..stats import summarize
from ..version import __version__
from .config import NeedleSettings, Point, ValidateConfig
from .evidence import cache_finding, delta, foreign_running, queue_s, traffic
from .forecast import Schedule
from .measure import PointRun
from .server import Server, ServerFacts
from .verdict import PointEvidence, implausible_rates, judge_needles, judge_point, judge_regression, meets_slo


@dataclass(frozen=True)
class RunFacts:
    """What holds for a whole run: what was asked for, and what the server, the hardware and the corpus are."""

    config: ValidateConfig
    seed: int
    started_unix_s: float
    server: ServerFacts
    hardware: tuple[Gpu, int] | None
    physics_note: str | None
    corpus: str
    corpus_note: str | None


def judge_run(
    config: ValidateConfig,
    run: PointRun,
    *,
    server: Server,
    schedule: Schedule,
    physics: Physics | None,
    distinct_share: float | None,
) -> PointResult:
    """The result of one attempt at a point. ``distinct_share``: of the windows of its prompt, ``None`` where nothing repeats."""
    point, ok = run.point, run.ok
    moved = delta(run.before, run.after)
    others = traffic(moved, run.records) if moved is not None else None
    cache = cache_finding(run.records, moved, others, cache_off=server.facts.info.prefix_cache_off)
    verdict, reasons = judge_point(
        PointEvidence(
            records=run.records,
            moved=moved,
            traffic=others,
            cache=cache,
            physics=physics,
            warm_mode=config.mode == "warm",
            exact_ids=config.transport == "ids",
            foreign_running=foreign_running(point.concurrency, run.before, run.series),
            watched=f"{server.load_path}, {1 + len(run.series)}x" if run.before is not None and server.load_path else None,
            counters_advice=get_engine(config.engine).counters_advice,
            distinct_share=distinct_share,
            repetition_matters=_repetition_matters(config),
            lag_share=run.lag_share,
            server_dead=run.gone,
            limits=config.limits,
        )
    )
    fits, queued = schedule.fits(point)
    errors = [abs(r.prompt_tokens - r.input_tokens) for r in ok if r.prompt_tokens is not None]
    rates = [(r.prompt_tokens or r.input_tokens) / r.ttft_s for r in ok if r.ttft_s] if point.concurrency == 1 else []
    return PointResult(
        point_id=point.id,
        input_tokens=point.input_tokens,
        output_tokens=point.output_tokens,
        concurrency=point.concurrency,
        verdict=verdict,
        reasons=reasons,
        repeats=run.rounds,
        completed=len(ok),
        failed=sum(r.status not in (RequestStatus.OK, RequestStatus.TIMEOUT) for r in run.records),
        timed_out=sum(r.status is RequestStatus.TIMEOUT for r in run.records),
        cache_state=cache.state,
        cached_share=cache.share,
        token_error_max=max(errors) if errors else None,
        ttft_s=summarize(r.ttft_s for r in ok),
        tpot_s=summarize(r.tpot_s for r in ok),
        itl_s=summarize(gap for r in ok for gap in r.itl_s),
        e2e_s=summarize(r.e2e_s for r in ok),
        build_s=summarize(r.build_s for r in ok),
        upload_s=summarize(r.upload_s for r in ok),
        prefill_tokens_per_s=summarize(rates),
        output_tokens_per_s=_per_s(sum(r.completion_tokens or 0 for r in ok) or None, run.burst_s),
        goodput_per_s=_per_s(sum(meets_slo(r, config.limits) for r in ok), run.burst_s),
        requests_per_s=_per_s(len(ok), run.burst_s),
        before=run.before,
        after=run.after,
        kv_series=run.series,
        physics=physics,
        fits_at_once=fits,
        will_queue=queued,
        client_lag_s=max((r.client_lag_s or 0.0 for r in run.records), default=None),
        expected_s=run.expected.total_s,
        wall_s=run.wall_s,
        attempts=run.attempt + 1,
        server_queue_s=queue_s(run.before, run.after),
    )


def skipped_point(config: ValidateConfig, schedule: Schedule, point: Point, reason: Reason) -> PointResult:
    """A point that is listed with its reason, but was not run."""
    fits, queued = schedule.fits(point)
    return PointResult(
        point.id, point.input_tokens, point.output_tokens, point.concurrency, reason.verdict, (reason,), ran=False,
        repeats=config.rounds(point), fits_at_once=fits, will_queue=queued, expected_s=schedule.expect(point).total_s,
    )  # fmt: skip


def run_result(
    facts: RunFacts, points: Sequence[PointResult], asked: Sequence[RequestRecord], end: Reason | None, *, complete: bool
) -> RunResult:
    """The run so far. ``asked``: records whose answers were judged for needles. ``end``: why the server died, by its log."""
    config = facts.config
    odd = implausible_rates(points) if config.mode == "cold" else {}
    judged = tuple(_with_reason(p, odd[p.point_id]) if p.point_id in odd else p for p in points)
    cells, found, note = _needle_cells(config.needles, asked)
    reasons = [end] if end is not None else []
    if complete:
        reasons += judge_needles(found, config.limits.needle_recall, config.needles.apply)
        if config.baseline is not None:
            reasons += judge_regression(judged, load_run(config.baseline))
    for point in judged:
        reasons += [Reason(r.verdict, r.code, f"{point.point_id}: {r.text}") for r in point.reasons]
    client = {"longhaul": __version__, "client_python": platform.python_version(), "client_platform": sys.platform}
    return RunResult(
        run_id=config.run_id,
        host=config.host,
        url=config.url,
        engine=config.engine,
        engine_version=facts.server.version,
        model=facts.server.model,
        started_unix_s=facts.started_unix_s,
        finished_unix_s=time.time(),
        verdict=worst([*(p.verdict for p in judged), *(r.verdict for r in reasons)]),
        reasons=tuple(reasons),
        points=judged,
        settings=_settings(facts),
        environment={**client, **config.environment, "server": dict(facts.server.info.details)},
        capacity=config.capacity,
        needles=cells,
        needle_recall=found,
        needle_note=note,
        mode=config.mode,
        complete=complete,
        needle_answers=tuple(shown(r.point_id, r.input_tokens, told) for r in asked for told in r.needles),
    )


def _per_s(count: float | None, seconds: float) -> float | None:
    return count / seconds if count is not None and seconds > 0 else None


def _repetition_matters(config: ValidateConfig) -> str | None:
    """What of this run depends on a text that does not repeat itself; ``None``: nothing."""
    uses = ["needles"] if config.needles.groups else []
    if config.architecture is not None and config.architecture.is_moe:
        uses.append("the routing of a mixture of experts")
    return " and ".join(uses) or None


def _needle_cells(
    needles: NeedleSettings, asked: Sequence[RequestRecord]
) -> tuple[tuple[NeedleCell, ...], float | None, str | None]:
    """Recall for each length and depth, over all of them, and why there is none where needles do not apply."""
    if not needles.enabled:
        return (), None, None
    if not needles.apply:
        return (), None, "not applicable: the weights are random (load format dummy), no answer means anything"
    cells = aggregate((r.input_tokens, r.needles) for r in asked)
    return cells, recall(cells), None


def _with_reason(point: PointResult, reason: Reason) -> PointResult:
    return replace(point, verdict=worst((point.verdict, reason.verdict)), reasons=(*point.reasons, reason))


def _settings(facts: RunFacts) -> Mapping[str, Any]:
    config = facts.config
    return {
        "seed": facts.seed,
        "repeats": config.repeats,
        "warmup": config.warmup,
        "mode": config.mode,
        "transport": config.transport,
        "context_tokens": config.context_tokens or facts.server.context_tokens,
        "kv_cache_tokens": facts.server.kv_cache_tokens,
        "budget_s": config.budget_s,
        "limits": to_jsonable(config.limits),
        "needles": to_jsonable(config.needles),
        "cache_salt": config.cache_salt,
        "flush": config.flush,
        "corpus": facts.corpus,
        "gpu": facts.hardware[0].name if facts.hardware else None,
        "gpu_count": facts.hardware[1] if facts.hardware else None,
        "physics_note": facts.physics_note,
        "corpus_note": facts.corpus_note,
        "baseline": config.baseline.name if config.baseline else None,
    }
