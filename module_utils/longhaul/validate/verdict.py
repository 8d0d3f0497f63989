"""PASS, FAIL, INVALID, INCONCLUSIVE: each with a stable code and a sentence. Pure: evidence in, verdict out.

Codes: ``request_failed``, ``server_dead``, ``server_restarted``, ``slo_missed``, ``needle_recall``, ``regression`` (FAIL);
``token_error``, ``output_token_error``, ``cached_prompt``, ``below_floor``, ``implausible`` (INVALID); ``no_usage``,
``no_metrics``, ``cache_unknown``, ``not_warm``, ``foreign_traffic``, ``client_lag``, ``repeats_disagree``, ``counter_mismatch``,
``repeated_text``, ``not_run`` (INCONCLUSIVE).
"""

from __future__ import annotations

import functools
import math
import statistics
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from ..results import SEVERITY, Physics, PointResult, Reason, RequestRecord, RequestStatus, RunResult, Verdict, worst
from ..stats import difference, disagreement, summarize
from .evidence import CacheFinding, Delta, Traffic, ttft_by_repeat

# A TTFT is doubtful when the client's event loop was late by more than this share of it and by more than this many seconds. A
# point is doubtful when more than this share of its requests are. (Next to a CPU engine that uses every core, 20-30 ms are seen.)
LAG_SHARE = 0.1
LAG_LEAST_S = 0.04
LAG_REQUESTS_SHARE = 0.05
# A client whose loop stood still for more than this share of a point was saturated: every gap that it timed is doubtful. Less
# than that, in stalls too short to move a TTFT, is what a client shows that shares its cores with a CPU engine.
LAG_LOOP_SHARE = 0.3
# The share of a prompt's 16-token windows that are distinct. Text that repeats does not help a prefix cache (a block hits only with
# everything before it), and the time of a dense prefill does not depend on the text. It does change where a mixture of experts
# sends its tokens, and what a planted fact must be told from. For these, a figure below DISTINCT_LEAST says nothing about other
# text. Between the two shares the run notes it: an operator's own files hold licence headers and quotations.
DISTINCT_NOTED = 0.999
DISTINCT_LEAST = 0.9


@dataclass(frozen=True)
class Limits:
    """What the operator requires (SLOs), in seconds and 0..1; ``None``: nothing. The p90 of a point must meet them.

    ``tolerance``: how far apart repeats may be, as (max - min) / median of their TTFT; ``tolerance_least_s``: repeats that are
    closer than this agree. ``floor_ratio``: the least TTFT, as a multiple of the physical floor.
    """

    ttft_s: float | None = None
    tpot_s: float | None = None
    itl_s: float | None = None
    e2e_s: float | None = None
    needle_recall: float | None = None
    tolerance: float = 0.25
    tolerance_least_s: float = 0.05
    floor_ratio: float = 1.0


@dataclass(frozen=True)
class PointEvidence:
    """All that is known of a point when it is judged.

    ``records``: the timed requests only. ``exact_ids``: token ids were sent, not text. ``foreign_running``: other clients'
    requests seen in the gauges. ``lag_share``: the share of the point in which the client's loop stood still. ``watched``: where the
    gauges of a server without counters were read; ``counters_advice``: what makes it show counters. ``distinct_share``: of the
    16-token windows of the first prompt, ``None`` where the corpus does not repeat itself. ``repetition_matters``: which figures
    of the point depend on that, ``None``: none.
    """

    records: Sequence[RequestRecord]
    moved: Delta | None
    traffic: Traffic | None
    cache: CacheFinding
    physics: Physics | None = None
    warm_mode: bool = False
    exact_ids: bool = True
    foreign_running: float | None = None
    lag_share: float = 0.0
    server_dead: str | None = None
    limits: Limits = field(default_factory=Limits)
    watched: str | None = None
    counters_advice: str = ""
    distinct_share: float | None = None
    repetition_matters: str | None = None


_fail = functools.partial(Reason, Verdict.FAIL)
_invalid = functools.partial(Reason, Verdict.INVALID)
_inconclusive = functools.partial(Reason, Verdict.INCONCLUSIVE)


def judge_point(evidence: PointEvidence) -> tuple[Verdict, tuple[Reason, ...]]:
    """The verdict of a point and every reason for it, the worst first. A point without a reason PASSes."""
    reasons = [*_failures(evidence)]
    ok = [r for r in evidence.records if r.status is RequestStatus.OK]
    if ok:
        for judge in (_tokens, _coldness, _physics, _other_clients, _repeated_text, _client_lag, _repeats, _limits):
            reasons += judge(ok, evidence)
    reasons.sort(key=lambda r: SEVERITY.index(r.verdict), reverse=True)
    return (worst(r.verdict for r in reasons) if reasons else Verdict.PASS), tuple(reasons)


# Each of these gives the reasons that one kind of evidence holds against a point. ``ok``: its completed requests.


def _failures(evidence: PointEvidence) -> Iterator[Reason]:
    failed = [r for r in evidence.records if r.status is not RequestStatus.OK]
    if failed:
        kinds = Counter(record.error or record.status.value for record in failed)
        told = "; ".join(f"{text} ({count}x)" if count > 1 else text for text, count in list(kinds.items())[:3])
        more = f"; and {len(kinds) - 3} other kinds" if len(kinds) > 3 else ""
        yield _fail("request_failed", f"{len(failed)} of {len(evidence.records)} requests failed: {told}{more}")
    if evidence.server_dead is not None:
        yield _fail("server_dead", evidence.server_dead)
    if evidence.moved is not None and evidence.moved.restarted:
        yield _fail("server_restarted", "the server's counters fell during the point: it was restarted")


def _tokens(ok: Sequence[RequestRecord], evidence: PointEvidence) -> Iterator[Reason]:
    silent = sum(r.prompt_tokens is None for r in ok)
    if silent:
        text = f"{silent} of {len(ok)} answers carry no usage: the prompt's size is not confirmed by the server"
        yield _inconclusive("no_usage", text)
    errors = [
        (r.prompt_tokens - r.input_tokens, r) for r in ok if r.prompt_tokens is not None and r.prompt_tokens != r.input_tokens
    ]
    if errors:
        error, first = max(errors, key=lambda pair: abs(pair[0]))
        text = (
            f"the server counted {first.prompt_tokens:,} prompt tokens where {first.input_tokens:,} were sent "
            f"({error:+,}; {len(errors)} of {len(ok)} requests)"
        )
        # Text cannot be aligned better than the endpoint's tokenizer allows: a small error is INCONCLUSIVE, not INVALID.
        if not evidence.exact_ids and all(abs(error) <= 0.001 * r.input_tokens + 4 for error, r in errors):
            yield _inconclusive("token_error", text + "; text is not exact here")
        else:
            yield _invalid("token_error", text)
    short = [r for r in ok if r.completion_tokens is not None and r.completion_tokens != r.output_tokens]
    crowded = [r for r in ok if len(r.itl_s) + 1 > r.output_tokens + 1]
    if short:
        text = (
            f"{short[0].completion_tokens:,} output tokens by the server's count where {short[0].output_tokens:,} were asked for "
            f"({len(short)} of {len(ok)} requests, finish reason {short[0].finish_reason})"
        )
        yield _invalid("output_token_error", text)
    elif crowded:
        text = f"{len(crowded[0].itl_s) + 1} token events where {crowded[0].output_tokens} tokens were asked for"
        yield _invalid("output_token_error", text)
    moved, counted = evidence.moved, evidence.traffic
    if moved is not None and counted is not None and moved.prompt_tokens is not None and not moved.restarted:
        sent = sum(r.input_tokens for r in ok)
        # The server reports the right usage but counted fewer tokens: it did not process what was sent.
        if counted.missing_prompt_tokens > max(1.0, 0.001 * sent):
            text = f"the server's counter moved by {moved.prompt_tokens:,.0f} prompt tokens while {sent:,} were sent"
            yield _inconclusive("counter_mismatch", text)


def _coldness(ok: Sequence[RequestRecord], evidence: PointEvidence) -> Iterator[Reason]:
    cache = evidence.cache
    if cache.state == "UNKNOWN":
        warm = "warm mode, but nothing tells whether the cache was hit"
        yield _inconclusive("cache_unknown", f"{warm if evidence.warm_mode else 'not proven cold'}: {cache.source}")
    elif evidence.warm_mode and cache.state == "COLD":
        text = "warm mode, but no prompt came from the cache: it is off, or too small to keep one prompt"
        yield _inconclusive("not_warm", text)
    elif cache.state == "WARM" and not evidence.warm_mode:
        cached = sum(r.cached_tokens or 0 for r in ok)
        share = f"{100 * (cache.share or 0):.1f}%"
        text = f"{share} of the prompt tokens came from the prefix cache (by {cache.source}; usage says {cached:,} tokens)"
        yield _invalid("cached_prompt", text)


def _physics(_: Sequence[RequestRecord], evidence: PointEvidence) -> Iterator[Reason]:
    physics = evidence.physics
    if physics is not None and physics.ratio < evidence.limits.floor_ratio and not evidence.warm_mode:
        share = physics.explaining_cached_share
        why = f"; a cached share of {100 * share:.0f}% would explain it" if share is not None else ""
        text = (
            f"TTFT is {physics.ratio:.2f} of the least time that this hardware needs ({physics.floor_s:.3f} s at "
            f"{physics.peak_flop_per_s / 1e12:.4g} TFLOP/s, {physics.peak_source}){why}"
        )
        yield _invalid("below_floor", text)


def _other_clients(_: Sequence[RequestRecord], evidence: PointEvidence) -> Iterator[Reason]:
    others, foreign, watched = evidence.traffic, evidence.foreign_running, evidence.watched
    if evidence.moved is None:
        text = "the server shows no counters: other clients' traffic and silent cache hits cannot be ruled out"
        if watched is not None and foreign:
            text += f" (requests in flight read from {watched})"
        elif watched is not None:
            text += f" (the requests in flight, read from {watched}, were ours alone, but a short one slips through)"
        text += f"; {evidence.counters_advice}" if evidence.counters_advice and watched is not None else ""
        yield _inconclusive("no_metrics", text)
    if others is not None and others.foreign:
        text = (
            f"someone else used the server: {others.foreign_prompt_tokens:,.0f} prompt and "
            f"{others.foreign_output_tokens:,.0f} output tokens beyond ours ({others.ours_prompt_tokens:,}, "
            f"{others.ours_output_tokens:,})"
        )
        yield _inconclusive("foreign_traffic", text)
    elif foreign:
        text = f"up to {foreign:.0f} requests of someone else were on the server before or during the point"
        yield _inconclusive("foreign_traffic", text)


def _repeated_text(_: Sequence[RequestRecord], evidence: PointEvidence) -> Iterator[Reason]:
    share, matters = evidence.distinct_share, evidence.repetition_matters
    if share is not None and matters is not None and share < DISTINCT_LEAST:
        text = (
            f"the text repeats: {100 * share:.1f}% of the prompt's 16-token windows are distinct; at least "
            f"{100 * DISTINCT_LEAST:.0f}% are required for {matters}; use a longer or less repetitive corpus file, or the "
            "built-in text"
        )
        yield _inconclusive("repeated_text", text)


def _client_lag(ok: Sequence[RequestRecord], evidence: PointEvidence) -> Iterator[Reason]:
    ttft = summarize(r.ttft_s for r in ok)
    lag = max((r.client_lag_s or 0.0 for r in ok), default=0.0)
    late = [r for r in ok if (r.client_lag_s or 0.0) > max(LAG_LEAST_S, LAG_SHARE * (r.ttft_s or 0.0))]
    if late and ttft is not None and len(late) > LAG_REQUESTS_SHARE * len(ok):
        text = (
            f"the client itself lagged by up to {1000 * lag:.0f} ms when first tokens arrived "
            f"({len(late)} of {len(ok)} requests; TTFT p50 {ttft.p50:.3f} s)"
        )
        yield _inconclusive("client_lag", text)
    elif evidence.lag_share > LAG_LOOP_SHARE:
        text = f"the client's event loop stood still for {100 * evidence.lag_share:.0f}% of the point"
        yield _inconclusive("client_lag", text)


def _repeats(ok: Sequence[RequestRecord], evidence: PointEvidence) -> Iterator[Reason]:
    medians = [statistics.median(times) for times in ttft_by_repeat(ok)]
    apart, limits = disagreement(medians), evidence.limits
    if apart is not None and apart > limits.tolerance and max(medians) - min(medians) > limits.tolerance_least_s:
        listed = ", ".join(f"{m:.3f}" for m in medians)
        text = f"repeats disagree by {100 * apart:.0f}% (allowed: {100 * limits.tolerance:.0f}%): TTFT {listed} s"
        yield _inconclusive("repeats_disagree", text)


def _limits(ok: Sequence[RequestRecord], evidence: PointEvidence) -> Iterator[Reason]:
    limits = evidence.limits
    for name, limit, values in (
        ("TTFT", limits.ttft_s, (r.ttft_s for r in ok)),
        ("TPOT", limits.tpot_s, (r.tpot_s for r in ok)),
        ("ITL", limits.itl_s, (gap for r in ok for gap in r.itl_s)),
        ("E2E", limits.e2e_s, (r.e2e_s for r in ok)),
    ):
        stats = summarize(values) if limit is not None else None
        if limit is not None and stats is not None and stats.p90 > limit:
            yield _fail("slo_missed", f"{name} p90 {stats.p90:.4g} s is over the limit of {limit:.4g} s")


def meets_slo(record: RequestRecord, limits: Limits) -> bool:
    """Whether one completed request meets every latency limit: what goodput counts."""
    if record.status is not RequestStatus.OK:
        return False
    pairs = (
        (record.ttft_s, limits.ttft_s),
        (record.tpot_s, limits.tpot_s),
        (max(record.itl_s, default=None), limits.itl_s),
        (record.e2e_s, limits.e2e_s),
    )
    return all(limit is None or value is None or value <= limit for value, limit in pairs)


def judge_needles(recall: float | None, limit: float | None, applicable: bool) -> tuple[Reason, ...]:
    """FAIL where recall is under the operator's limit; INCONCLUSIVE where a limit is set and nothing was measured."""
    if limit is None or not applicable:
        return ()
    if recall is None:
        return (_inconclusive("needle_recall", "a recall limit is set but no needle was answered"),)
    if recall < limit:
        return (_fail("needle_recall", f"needle recall {recall:.2f} is under the limit of {limit:.2f}"),)
    return ()


def judge_regression(now: Sequence[PointResult], baseline: RunResult) -> list[Reason]:
    """Reasons for every point that is slower than in the stored run. Points are matched by id.

    FAIL where it is slower by more than the noise of both (:func:`..stats.difference`), INCONCLUSIVE where too few requests were
    timed to tell, and where no valid point is in common.
    """
    before = {p.point_id: p for p in baseline.points if p.ran and p.verdict in (Verdict.PASS, Verdict.FAIL)}
    pairs = [(point, before[point.point_id]) for point in now if point.ran and point.point_id in before]
    if not pairs:
        text = f"run {baseline.run_id} has no valid point in common with this one: nothing was compared"
        return [_inconclusive("regression", text)]
    reasons = []
    for point, then in pairs:
        for name, new, old in (("TTFT", point.ttft_s, then.ttft_s), ("TPOT", point.tpot_s, then.tpot_s)):
            apart = difference(old, new, point.concurrency) if old is not None and new is not None else None
            if old is None or new is None or apart is None or apart.beyond is False or apart.relative <= 0:
                continue
            text = f"{point.point_id}: {name} p50 {new.p50:.4g} s was {old.p50:.4g} s in run {baseline.run_id}: "
            text += f"{100 * apart.relative:+.0f}%, "
            noise = "" if apart.noise is None else f" ({100 * apart.noise:.0f}%)"
            if apart.beyond:
                reasons.append(_fail("regression", f"{text}more than the noise of both{noise}"))
            else:
                reasons.append(_inconclusive("regression", f"{text}{apart.note}{noise}; measure both with more repeats"))
    return reasons


def implausible_rates(points: Sequence[PointResult], factor: float = 4.0) -> dict[str, Reason]:
    """Points whose prefill is far faster than every other point of the run, by point id: INVALID.

    Without known hardware there is no floor, but there is the run itself: the rate of a cold prefill rises with length
    until the hardware is busy and then falls, so a long point cannot beat all shorter ones by a large factor.
    """
    out: dict[str, Reason] = {}
    single = [(p, p.ttft_s.p50) for p in points if p.ran and p.ttft_s is not None and p.concurrency == 1]
    for point, ttft_s in single:
        shorter = [(p.input_tokens, s) for p, s in single if 1000 <= p.input_tokens < point.input_tokens]
        if not shorter:
            continue
        quickest = max(tokens / max(s, 1e-6) for tokens, s in shorter)
        rate = point.input_tokens / max(ttft_s, 1e-6)
        if rate > factor * quickest and ttft_s < max(s for _, s in shorter) and math.isfinite(rate):
            text = (
                f"{rate:,.0f} tokens/s is {rate / quickest:.1f} times the best shorter point, and quicker in all: "
                "a cold prompt cannot take less time than a shorter one"
            )
            out[point.point_id] = _invalid("implausible", text)
    return out
