"""What the server's counters and usage prove about a point: cached tokens, other clients' traffic, a restart. Pure.

A server's log is never a source: vLLM books a whole prompt at its first token and divides by the log interval.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from ..engines.metrics import has_counters
from ..results import Counters, KvSample, RequestRecord, RequestStatus

# Traffic below this is not held against a point: SGLang's health probe generates a token, and a load balancer may
# send a ping. The limits are prompt tokens, output tokens, and a share of our own.
FOREIGN_PROMPT_TOKENS = 32
FOREIGN_OUTPUT_TOKENS = 8
FOREIGN_SHARE = 0.01


@dataclass(frozen=True)
class Delta:
    """How far the counters moved over a point; ``None`` where the server lacks one. ``restarted``: a counter fell."""

    prompt_tokens: float | None = None
    generation_tokens: float | None = None
    cache_hits_tokens: float | None = None
    restarted: bool = False


# A server that starts again counts from zero: any of these would fall.
_NEVER_FALL = (
    "prompt_tokens", "generation_tokens", "cache_queries_tokens", "cache_hits_tokens", "preemptions", "requests_finished",
)  # fmt: skip


def delta(before: Counters | None, after: Counters | None) -> Delta | None:
    """How far the counters moved from ``before`` to ``after``, or ``None`` where either page had none."""
    if not has_counters(before) or not has_counters(after) or before is None or after is None:
        return None
    pairs = [(getattr(before, key), getattr(after, key)) for key in _NEVER_FALL]
    return Delta(
        prompt_tokens=_moved(before.prompt_tokens, after.prompt_tokens),
        generation_tokens=_moved(before.generation_tokens, after.generation_tokens),
        cache_hits_tokens=_moved(before.cache_hits_tokens, after.cache_hits_tokens),
        restarted=any(then is not None and now is not None and now < then - 0.5 for then, now in pairs),
    )


def _moved(then: float | None, now: float | None) -> float | None:
    """The movement of one counter. One that was not there before counted from zero."""
    return None if now is None else now - (then or 0.0)


def queue_s(before: Counters | None, after: Counters | None) -> float | None:
    """Mean seconds that a request of the point waited in the server's queue; ``None`` where the server has no such histogram.

    SGLang's histogram appears with the first request: absent before and present after means that it began at zero.
    """
    if before is None or after is None or after.queue_times is None or after.queue_time_s is None:
        return None
    count = after.queue_times - (before.queue_times or 0.0)
    total = after.queue_time_s - (before.queue_time_s or 0.0)
    return total / count if count > 0 and total >= 0 else None


def ttft_by_repeat(ok: Sequence[RequestRecord]) -> list[list[float]]:
    """The TTFT (seconds) of each repeat's completed requests, in the order of the repeats."""
    groups: dict[int, list[float]] = {}
    for record in ok:
        if record.ttft_s is not None:
            groups.setdefault(record.repeat, []).append(record.ttft_s)
    return [groups[repeat] for repeat in sorted(groups)]


@dataclass(frozen=True)
class Traffic:
    """What the server counted over a point, split into our tokens, other clients' tokens, and ours that it did not count."""

    ours_prompt_tokens: int
    ours_output_tokens: int
    foreign_prompt_tokens: float
    foreign_output_tokens: float
    missing_prompt_tokens: float

    @property
    def foreign(self) -> bool:
        """Whether another client was served, beyond health probes."""
        most_prompt = max(FOREIGN_PROMPT_TOKENS, FOREIGN_SHARE * self.ours_prompt_tokens)
        most_output = max(FOREIGN_OUTPUT_TOKENS, FOREIGN_SHARE * self.ours_output_tokens)
        return self.foreign_prompt_tokens > most_prompt or self.foreign_output_tokens > most_output


def traffic(moved: Delta, records: Sequence[RequestRecord]) -> Traffic:
    """Compare the counters' movement with the sizes that we asked for (not those that the server reported).

    The server may or may not have counted a request that failed. Such a request widens the range of what can be ours, and
    never makes traffic look foreign.
    """
    least_prompt = sum(r.input_tokens for r in records if r.status is RequestStatus.OK)
    most_prompt, most_output = sum(r.input_tokens for r in records), sum(r.output_tokens for r in records)
    prompt, output = moved.prompt_tokens or 0.0, moved.generation_tokens or 0.0
    return Traffic(
        ours_prompt_tokens=most_prompt,
        ours_output_tokens=most_output,
        foreign_prompt_tokens=max(0.0, prompt - most_prompt),
        foreign_output_tokens=max(0.0, output - most_output),
        missing_prompt_tokens=max(0.0, least_prompt - prompt),
    )


def foreign_running(ours: int, before: Counters | None, series: Sequence[KvSample]) -> float:
    """Other clients' requests in the server's gauges: any before the point began, and more than ``ours`` while it ran."""
    seen = (before.running or 0.0) + (before.waiting or 0.0) if before is not None else 0.0
    return max([seen, *((s.running or 0.0) + (s.waiting or 0.0) - ours for s in series)])


@dataclass(frozen=True)
class CacheFinding:
    """Whether the prompts of a point were computed.

    ``state``: COLD, WARM or UNKNOWN. ``share`` (0..1): of our prompt tokens that came from a cache. ``source``: what tells so.
    """

    state: str
    share: float | None
    source: str


def tolerated_cached_tokens(record: RequestRecord) -> int:
    """Cached tokens of one request that prove no reuse: those before the nonce, and a chance match of 3 tokens.

    SGLang's radix cache matches single tokens, so that it may hold the nonce's first one by chance. vLLM hits whole blocks of
    16 tokens or more: any vLLM hit behind the nonce is above this.
    """
    return record.shared_prefix_tokens + 3


def cache_finding(
    records: Sequence[RequestRecord], moved: Delta | None, others: Traffic | None, *, cache_off: bool = False
) -> CacheFinding:
    """Whether the server computed the prompts of these completed requests, or took them from its prefix cache.

    The worse of two answers counts: usage (``cached_tokens``) and counters. Hits in the counters that another client may have
    caused give UNKNOWN instead of WARM where usage says cold. ``cache_off``: the server's settings say that it has no prefix
    cache; that counts only where neither usage nor counters tell.
    """
    ok = [r for r in records if r.status is RequestStatus.OK]
    if not ok:
        return CacheFinding("UNKNOWN", None, "no completed request")
    sent = sum(r.input_tokens for r in ok)
    told = [r.cached_tokens for r in ok if r.cached_tokens is not None]
    by_usage = sum(told)
    if any((r.cached_tokens or 0) > tolerated_cached_tokens(r) for r in ok):
        return CacheFinding("WARM", min(1.0, by_usage / sent), "usage.cached_tokens")
    hits = moved.cache_hits_tokens if moved is not None else None
    if hits is not None and hits > sum(tolerated_cached_tokens(r) for r in records):
        if others is not None and others.foreign:
            return CacheFinding("UNKNOWN", min(1.0, hits / sent), "cache counters, with other clients on the server")
        return CacheFinding("WARM", min(1.0, hits / sent), "cache counters")
    if hits is not None:
        return CacheFinding("COLD", max(by_usage, hits) / sent, "usage and cache counters" if told else "cache counters")
    if len(told) == len(ok):
        return CacheFinding("COLD", by_usage / sent, "usage.cached_tokens")
    if cache_off:
        return CacheFinding("COLD", 0.0, "the server's settings: its prefix cache is off")
    return CacheFinding("UNKNOWN", None, "neither usage nor counters tell")
