"""An engine's log, read and explained: phases of the start with seconds, capacity, what its figures are not, failures.

Nothing here is a measurement. The log's throughput figures in particular are bookings (see :class:`Throughput`), and
:func:`explain` says so with the numbers of the log at hand.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from .base import EngineAdapter, EngineCapacity
from .diagnosis import Diagnosis, Phase, diagnose, phase_of
from .registry import ENGINES

# A log appended by several starts: the line that opens one.
START_LINES = {"vllm": "non-default args:", "sglang": "server_args="}
# What only one engine writes, to tell them apart.
_SIGNATURES = {
    "vllm": ("vLLM", "vllm.", "vllm/", "(EngineCore", "(APIServer", "Avg prompt throughput", "non-default args:"),
    "sglang": ("sglang", "SGLang", "server_args=", "Load weight begin", "#new-token:", "max_total_num_tokens="),
}

_DOCKER = re.compile(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?)\d*(?:Z|[+-]\d\d:\d\d) ")
_SGLANG = re.compile(r"^\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:[.,]\d{1,6})?)")
_VLLM = re.compile(r"\b(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) (\d\d-\d\d \d\d:\d\d:\d\d)\b")

_VLLM_STATS = re.compile(
    r"Avg prompt throughput: ([\d.]+) tokens/s, Avg generation throughput: ([\d.]+) tokens/s, "
    r"Running: (\d+) reqs, Waiting: (\d+) reqs"
)
_VLLM_KV = re.compile(r"KV cache usage: ([\d.]+)%")
_VLLM_HITS = re.compile(r"Prefix cache hit rate: ([\d.]+)%")
_SGLANG_PREFILL = re.compile(r"Prefill batch.*?#new-token: (\d+), #cached-token: (\d+)")
_SGLANG_INPUT = re.compile(r"input throughput \(token/s\): ([\d.]+)")
_SGLANG_GEN = re.compile(r"gen throughput \(token/s\): ([\d.]+)")

# vllm/envs.py, VLLM_LOG_STATS_INTERVAL.
VLLM_STATS_INTERVAL_S = 10.0


@dataclass(frozen=True)
class PhaseSpan:
    """One phase of the last start: seconds from the start's first line, and how long it lasted (``None``: unknown or
    still in it)."""

    phase: Phase
    begin_s: float | None
    seconds: float | None


@dataclass(frozen=True)
class Throughput:
    """What the statistics lines say, and what they are worth.

    vLLM books a whole prompt at the moment its first token arrives and divides by the log interval, so that
    ``max_prompt_tokens_per_s`` x ``interval_s`` = ``booked_tokens`` is a prompt's length. ``prefill_at_least_s``: how long
    the lines before it showed a running request without any prompt token booked; ``rate_at_most`` = booked_tokens over
    that, an upper limit of the true prefill rate.
    """

    lines: int
    max_prompt_tokens_per_s: float
    interval_s: float
    booked_tokens: int
    prefill_at_least_s: float | None = None
    rate_at_most: float | None = None
    evidence: str = ""


@dataclass(frozen=True)
class Note:
    """Something a reader of this log should know. ``code`` is stable, ``text`` is for people."""

    code: str
    text: str
    evidence: str = ""


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
    """``vllm``, ``sglang`` or ``None``: whichever left more of its own marks."""
    counts = dict.fromkeys(_SIGNATURES, 0)
    for line in lines:
        for name, marks in _SIGNATURES.items():
            counts[name] += any(m in line for m in marks)
    best = max(counts, key=lambda n: counts[n])
    return best if counts[best] and list(counts.values()).count(counts[best]) == 1 else None


def last_start(lines: Sequence[str], engine: str) -> tuple[Sequence[str], int]:
    """The lines of the last start, and how many starts the log holds (0: no opening line, all lines are returned)."""
    opening = START_LINES.get(engine, "\0")
    at = [i for i, line in enumerate(lines) if opening in line]
    return (lines[at[-1] :] if len(at) > 1 else lines), len(at)


def stamp_s(line: str) -> float | None:
    """Seconds of a line's own time stamp on an arbitrary scale (vLLM writes no year), or ``None``.

    Knows the engines' stamps and the RFC 3339 stamps that ``docker logs --timestamps`` puts in front, which win.
    """
    if found := _DOCKER.match(line):
        return _seconds(found[1].replace("T", " "))
    if found := _SGLANG.match(line):
        return _seconds(found[1].replace(",", "."))
    if found := _VLLM.search(line[:200]):
        return _seconds(f"2000-{found[1]}")  # a leap year, so that 02-29 parses
    return None


def _seconds(text: str) -> float | None:
    form = "%Y-%m-%d %H:%M:%S.%f" if "." in text else "%Y-%m-%d %H:%M:%S"
    try:
        return (datetime.strptime(text, form) - datetime(2000, 1, 1)).total_seconds()  # differences only: no zone
    except ValueError:
        return None


def phase_spans(lines: Iterable[str], adapter: EngineAdapter) -> tuple[PhaseSpan, ...]:
    """The phases that the lines mark, in the order of a start, each with its seconds.

    A phase lasts until the next one begins. A line without a stamp takes the last stamp before it (exact to the second
    on vLLM, whose last line has none).
    """
    order = list(Phase)
    begins: dict[Phase, float | None] = {}
    first: float | None = None
    now: float | None = None
    for line in lines:
        stamp = stamp_s(line)
        if stamp is not None:
            now = stamp
            first = stamp if first is None else first
        phase = phase_of(line, adapter.phases)
        if phase is None or phase in begins:
            continue
        if begins and order.index(phase) < max(order.index(p) for p in begins):
            continue  # a slower rank repeats an earlier line
        begins[phase] = now
    spans: list[PhaseSpan] = []
    found = list(begins.items())
    for i, (phase, begin) in enumerate(found):
        end = found[i + 1][1] if i + 1 < len(found) else None
        spans.append(
            PhaseSpan(
                phase,
                None if begin is None or first is None else round(begin - first, 3),
                None if begin is None or end is None else round(end - begin, 3),
            )
        )
    return tuple(spans)


def vllm_throughput(lines: Iterable[str]) -> Throughput | None:
    """Read vLLM's statistics lines; ``None`` where there is none."""
    count = 0
    best: Throughput | None = None
    silent_since: float | None = None
    interval = VLLM_STATS_INTERVAL_S
    for line in lines:
        found = _VLLM_STATS.search(line)
        if not found:
            continue
        count += 1
        prompt, running = float(found[1]), int(found[3])
        now = stamp_s(line)
        if prompt > 0 and (best is None or prompt > best.max_prompt_tokens_per_s):
            waited = None if now is None or silent_since is None else now - silent_since
            # The first token may have come right after the line before this one.
            at_least = None if waited is None or waited <= interval else waited - interval
            tokens = round(prompt * interval)
            best = Throughput(
                0, prompt, interval, tokens, at_least, None if not at_least else tokens / at_least, line.strip()[-300:]
            )
        if prompt > 0 or running == 0:
            silent_since = None
        elif silent_since is None:
            silent_since = now
    if not count:
        return None
    return replace(best, lines=count) if best else Throughput(count, 0.0, interval, 0)


def _vllm_notes(lines: Sequence[str], capacity: EngineCapacity) -> list[Note]:
    notes: list[Note] = []
    hits = [(float(m[1]), line) for line in lines if (m := _VLLM_HITS.search(line))]
    if hits and max(hits)[0] > 0:
        rate, line = max(hits)
        notes.append(
            Note(
                "warm_prompts",
                f"Prefix cache hit rate up to {rate:g}% (of the prompt tokens of the last 1,000 requests): some prompts were "
                "partly served from cache. Any time taken meanwhile is no cold prefill.",
                line.strip()[-300:],
            )
        )
    waiting = [(int(m[4]), line) for line in lines if (m := _VLLM_STATS.search(line))]
    if waiting and max(waiting)[0] > 0:
        most, line = max(waiting)
        notes.append(
            Note("queueing", f"Up to {most} requests waited: times to first token include the queue.", line.strip()[-300:])
        )
    used = [(float(m[1]), line) for line in lines if (m := _VLLM_KV.search(line))]
    if used and max(used)[0] >= 99.0:
        notes.append(
            Note(
                "kv_full",
                f"The KV cache was {max(used)[0]:g}% full: requests are preempted and computed again.",
                max(used)[1].strip()[-300:],
            )
        )
    if capacity.kv_cache_tokens is not None:
        text = (
            f'"KV cache size: {capacity.kv_cache_tokens:,} tokens" is a pool, not the longest request, and means different '
            "things in different versions"
        )
        if capacity.max_concurrency is not None and capacity.context_tokens is not None:
            text += (
                f"; what counts is the concurrency: {capacity.max_concurrency:g} requests of {capacity.context_tokens:,} "
                "tokens at once"
            )
        notes.append(Note("kv_size", text + ". Tensor parallelism shares this pool: never multiply it by the GPUs."))
    if capacity.max_concurrency is not None and capacity.max_concurrency < 1:
        notes.append(
            Note(
                "below_one",
                f"Maximum concurrency {capacity.max_concurrency:g}x: one request of the full context does not fit. It would "
                "be preempted and started again for ever. Lower the context or enlarge the KV cache.",
            )
        )
    return notes


def _sglang_notes(lines: Sequence[str]) -> list[Note]:
    notes: list[Note] = []
    new = cached = batches = 0
    fastest = 0.0
    for line in lines:
        if found := _SGLANG_PREFILL.search(line):
            batches += 1
            new += int(found[1])
            cached += int(found[2])
        if found := _SGLANG_INPUT.search(line):
            fastest = max(fastest, float(found[1]))
    if fastest:
        notes.append(
            Note(
                "input_throughput",
                f"input throughput (token/s), up to {fastest:,.0f} here, is the tokens of one prefill chunk over the time since "
                "the chunk before: it falls along a long prompt and includes idle time. It is no prefill rate of a request.",
            )
        )
    if batches:
        share = cached / (new + cached) if new + cached else 0.0
        text = f"{batches} prefill chunks: {new:,} tokens computed, {cached:,} from cache ({share:.0%})."
        if cached:
            text += " Any time taken meanwhile is no cold prefill."
        notes.append(Note("warm_prompts" if cached else "cold_prompts", text))
    if any(_SGLANG_GEN.search(line) for line in lines):
        notes.append(
            Note("gen_throughput", "gen throughput (token/s) is of all running requests together since the line before, no TPOT.")
        )
    return notes


def explain(lines: Sequence[str], adapter: EngineAdapter) -> LogReport:
    """Read a log of that engine. Pure; any text is taken, what it does not hold comes back as ``None`` or empty."""
    own, starts = last_start(lines, adapter.name)
    spans = phase_spans(own, adapter)
    ready = any(s.phase is Phase.READY for s in spans)
    capacity = adapter.capacity_from_log(own)
    throughput = vllm_throughput(own) if adapter.name == "vllm" else None
    notes: list[Note] = []
    if throughput is not None and throughput.booked_tokens:
        text = (
            f'"Avg prompt throughput: {throughput.max_prompt_tokens_per_s:,.1f} tokens/s" is NOT a speed: the whole prompt is '
            f"booked when its first token arrives and divided by the {throughput.interval_s:g} s log interval. It says that prompts of "
            f"about {throughput.booked_tokens:,} tokens finished their prefill in that interval"
        )
        if throughput.prefill_at_least_s and throughput.rate_at_most:
            text += (
                f"; the lines before show at least {throughput.prefill_at_least_s:g} s of work on it, so at most "
                f"{throughput.rate_at_most:,.0f} tokens/s"
            )
        notes.append(Note("avg_prompt_throughput", text + ". Measure with `longhaul validate`.", throughput.evidence))
    notes += _vllm_notes(own, capacity) if adapter.name == "vllm" else _sglang_notes(own)
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
        ("KV memory", report.capacity.available_kv_gib, "GiB a GPU"),
        ("weights", report.capacity.weights_gib, "GiB a GPU"),
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
