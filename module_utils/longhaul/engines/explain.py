"""What an engine's log says: the phases of the start with seconds, capacity, failures, and what its figures do not mean.

Nothing here is a measurement. The log's throughput figures in particular are bookings (see ``diagnosis.Throughput``), and
:func:`explain` says so with the numbers of the log at hand.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from .base import EngineAdapter, EngineCapacity
from .diagnosis import Diagnosis, Note, Phase, Throughput, diagnose, phase_of
from .registry import ENGINES


@dataclass(frozen=True)
class PhaseSpan:
    """One phase of the last start: when it began, counted from the start's first line, and how long it lasted.

    ``None``: the log does not say, or the phase has not ended.
    """

    phase: Phase
    begin_s: float | None
    seconds: float | None


@dataclass(frozen=True)
class LogReport:
    """What a log says. ``starts`` counts the starts it holds; everything else is of the last one."""

    engine: str
    lines: int
    starts: int
    ready: bool
    phases: tuple[PhaseSpan, ...]
    capacity: EngineCapacity
    throughput: Throughput | None
    notes: tuple[Note, ...]
    failure: Diagnosis | None


def detect_engine(lines: Iterable[str]) -> str | None:
    """The name of the engine that left more of its own marks than any other; ``None`` where none did."""
    counts = dict.fromkeys(ENGINES, 0)
    for line in lines:
        for name, adapter in ENGINES.items():
            counts[name] += any(m in line for m in adapter.log_signatures)
    best = max(counts, key=lambda n: counts[n])
    return best if counts[best] and list(counts.values()).count(counts[best]) == 1 else None


def last_start(lines: Sequence[str], opening: str) -> tuple[Sequence[str], int]:
    """The lines of the last start, and how many starts the log holds (0: no opening line, all lines are returned).

    ``opening``: what stands in the first line of a start.
    """
    at = [i for i, line in enumerate(lines) if opening in line]
    return (lines[at[-1] :] if len(at) > 1 else lines), len(at)


def phase_spans(lines: Iterable[str], adapter: EngineAdapter) -> tuple[PhaseSpan, ...]:
    """The phases that the lines mark, in the order of a start, each with its seconds.

    A phase lasts until the next one begins. A line without a stamp counts as written at the last stamp before it.
    """
    order = list(Phase)
    begins: dict[Phase, float | None] = {}
    first: float | None = None
    now: float | None = None
    for line in lines:
        stamp = adapter.stamp_s(line)
        if stamp is not None:
            now = stamp
            first = stamp if first is None else first
        phase = phase_of(line, adapter.phases)
        if phase is None or phase in begins:
            continue
        if begins and order.index(phase) < max(order.index(p) for p in begins):
            continue  # a slower rank repeats an earlier line
        begins[phase] = now

    def seconds(start: float | None, end: float | None) -> float | None:
        return None if start is None or end is None else round(end - start, 3)

    ends = [*begins.values(), None][1:]
    return tuple(
        PhaseSpan(x, seconds(first, begin), seconds(begin, end)) for (x, begin), end in zip(begins.items(), ends, strict=True)
    )


def explain(lines: Sequence[str], adapter: EngineAdapter) -> LogReport:
    """Read a log of that engine. Takes any text; what the text does not hold is ``None`` or empty."""
    own, starts = last_start(lines, adapter.log_opening)
    spans = phase_spans(own, adapter)
    ready = any(s.phase is Phase.READY for s in spans)
    capacity = adapter.capacity_from_log(own)
    throughput, notes = adapter.explain_log(own, capacity)
    return LogReport(adapter.name, len(lines), starts, ready, spans, capacity, throughput, tuple(notes), diagnose(own, adapter))


def adapter_for(lines: Sequence[str], name: str = "auto") -> EngineAdapter | None:
    """The adapter of that name, or the one whose marks the log bears; ``None`` where neither is seen."""
    chosen = detect_engine(lines) if name == "auto" else name
    return ENGINES.get(chosen) if chosen else None


def as_text(report: LogReport) -> str:
    """The report for a terminal."""
    rows = [f"{report.engine} log, {report.lines} lines, {report.starts or 'no'} start{'' if report.starts == 1 else 's'} seen"]
    if report.starts > 1:
        rows[0] += " (the last one is explained)"
    if report.phases:
        rows += ["", "Start"]
        for span in report.phases:
            at = "      ?" if span.begin_s is None else f"{span.begin_s:7.1f}"
            took = "" if span.seconds is None else f"  took {span.seconds:.1f} s"
            rows.append(f"  {at} s  {span.phase.value}{took}")
        rows.append(f"  {'ready' if report.ready else 'NOT ready'}")
    figures = (
        ("KV cache", report.capacity.kv_cache_tokens, "tokens"),
        ("local-attention pool", report.capacity.local_kv_tokens, "tokens"),
        ("context", report.capacity.context_tokens, "tokens"),
        ("requests of that length at once", report.capacity.max_concurrency, "x"),
        ("KV memory", report.capacity.available_kv_gib, "GiB per GPU"),
        ("weights", report.capacity.weights_gib, "GiB per GPU"),
    )
    if any(value is not None for _, value, _ in figures):
        rows += ["", "Capacity, in the engine's own words"]
        rows += [f"  {name}: {value:,} {unit}" for name, value, unit in figures if value is not None]
    if report.notes:
        rows += ["", "What the figures mean"]
        for note in report.notes:
            rows.append(f"  - {note.text}")
            if note.evidence:
                rows.append(f"      {note.evidence}")
    if report.failure:
        phase = f" (while {report.failure.phase.value})" if report.failure.phase else ""
        rows += ["", f"Failure: {report.failure.cause}{phase}"]
        rows += [f"  evidence: {report.failure.evidence}", f"  advice:   {report.failure.advice}"]
    else:
        rows += ["", "No failure that is known by name."]
    return "\n".join(rows)
