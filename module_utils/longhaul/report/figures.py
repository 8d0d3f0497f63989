"""What a run and its points say, and whether a figure may be shown at all: shared by every renderer."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ..results import PointResult, Reason, RunResult, Stats, Verdict
from .wording import DASH, TIMES, finite, one_line, percent


def p50(stats: Stats | None) -> float | None:
    """The median of a quantity, when there is one and it is finite."""
    return None if stats is None or stats.n < 1 else finite(stats.p50)


def point_name(point: PointResult) -> str:
    """What a point is, for people: ``2,096,900 in, 200 out`` and the requests at once."""
    return f"{point.input_tokens:,} in, {point.output_tokens:,} out, {TIMES}{point.concurrency:,}"


def cache_text(point: PointResult) -> str:
    """Whether the prompts were proven cold: ``cold``, ``warm 97%``, ``unknown``; an em dash where nothing ran."""
    if not point.ran:
        return DASH
    if point.cache_state.upper() == "WARM" and finite(point.cached_share) is not None:
        return f"warm {percent(point.cached_share)}"
    return one_line(point.cache_state).lower()


def stands(run: RunResult, point: PointResult) -> bool:
    """Whether the figures of ``point`` may be shown as a result.

    They may not when the point, or one of its reasons, is INVALID; nor when the run is INVALID and no point accounts for
    it: then every figure of the run is in doubt.
    """
    if _invalid(point):
        return False
    run_invalid = run.verdict is Verdict.INVALID or any(r.verdict is Verdict.INVALID for r in run.reasons)
    return not run_invalid or any(_invalid(p) for p in run.points)


def _invalid(point: PointResult) -> bool:
    return point.verdict is Verdict.INVALID or any(r.verdict is Verdict.INVALID for r in point.reasons)


def prefill_rate(run: RunResult, point: PointResult) -> float | None:
    """Median prefill tokens/s; None in warm mode and above one request at once, where TTFT is no prefill time."""
    return p50(point.prefill_tokens_per_s) if run.mode == "cold" and point.concurrency == 1 else None


def state(point: PointResult) -> str:
    """The verdict's word, or ``NOT RUN``."""
    return point.verdict.value if point.ran else "NOT RUN"


def unique_reasons(reasons: Iterable[Reason]) -> list[Reason]:
    """Reasons in order, each once."""
    return list(dict.fromkeys(reasons))


def run_only_reasons(run: RunResult) -> list[Reason]:
    """The reasons of the run that none of its points states (same code, and the point's text inside the run's)."""
    stated = [(r.code, one_line(r.text)) for p in run.points for r in p.reasons]
    return [
        r for r in unique_reasons(run.reasons) if not any(r.code == code and text in one_line(r.text) for code, text in stated)
    ]


def all_reasons(run: RunResult) -> list[tuple[PointResult | None, Reason]]:
    """Every reason of a run with the point it belongs to (None: the run itself), each once, the run's own first."""
    own: list[tuple[PointResult | None, Reason]] = [(None, r) for r in run_only_reasons(run)]
    return own + [(p, r) for p in run.points for r in unique_reasons(p.reasons)]


def engine_name(run: RunResult) -> str:
    """``vllm 0.32.0``."""
    return one_line(f"{run.engine} {run.engine_version or ''}")


def headline_point(run: RunResult) -> PointResult | None:
    """The longest prompt that PASSed, at the lowest concurrency: what the run proves. None when nothing did."""
    passed = [p for p in run.points if p.ran and p.verdict is Verdict.PASS and stands(run, p)]
    return max(passed, key=lambda p: (p.input_tokens, -p.concurrency), default=None)


def flatten(values: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """Nested mappings as one list of dotted keys: ``{"a": {"b": 1}}`` -> ``[("a.b", 1)]``."""
    out: list[tuple[str, Any]] = []
    for key, value in values.items():
        name = f"{prefix}{one_line(key)}"
        out += flatten(value, f"{name}.") if isinstance(value, Mapping) else [(name, value)]
    return out


def tally(points: Sequence[PointResult]) -> list[tuple[str, int]]:
    """How many points ended how, in the order PASS, FAIL, INVALID, INCONCLUSIVE, NOT RUN; zeros left out."""
    order = ["PASS", "FAIL", "INVALID", "INCONCLUSIVE", "NOT RUN"]
    found = [state(p) for p in points]
    return [(word, found.count(word)) for word in order if word in found]
