"""The report's tables: points, evidence, burn-in, capacity, settings."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..results import SEVERITY, PointResult, RunResult
from . import svg
from .capacity import capacity_rows, signed_percent, sums
from .figures import cache_text, engine_name, flatten, p50, prefill_rate, stands, state
from .page import Cell, Column, TitledCell, amount, chip, facts, number, table, titled_table, words
from .svg import esc
from .wording import DASH, count, duration, finite, instant, one_line, percent, rate, seconds, times


def points_section(run: RunResult) -> str:
    """The table of points: what was asked, timed and judged."""
    if not run.points:
        return '<section class="card"><h3>Points</h3><p class="sub">No point was run.</p></section>'
    note = ""
    if any(p.ran and not stands(run, p) for p in run.points):
        note = '<p class="note"><s>Struck</s> figures are INVALID: kept as evidence of the fault, no result.</p>'
    inner = titled_table([_point_row(run, p) for p in run.points], "Points")
    return f'<section class="card"><div class="head"><h3>Points</h3></div>{inner}{note}</section>'


def _point_row(run: RunResult, point: PointResult) -> list[TitledCell]:
    struck = point.ran and not stands(run, point)
    physics, ttft = point.physics, point.ttft_s
    done = f"{point.completed} / {point.completed + point.failed + point.timed_out}" if point.ran else DASH
    worst_last = float(SEVERITY.index(point.verdict)) if point.ran else -1.0
    return [
        (Column("Input tokens", True), amount(count, point.input_tokens)),
        (Column("Output", True, "output tokens asked for"), amount(count, point.output_tokens)),
        (Column("Req.", True, "requests at once"), amount(count, point.concurrency)),
        (Column("Verdict"), Cell(chip(state(point)), worst_last)),
        (Column("TTFT p50", True), amount(seconds, p50(ttft), struck)),
        (Column("TTFT p99", True), amount(seconds, ttft.p99 if ttft and ttft.n > 1 else None, struck)),
        (Column("Floor", True, "least time of a cold prefill on this hardware"), amount(seconds, physics and physics.floor_s)),
        (Column("TTFT / floor", True), amount(times, physics and physics.ratio, struck)),
        (Column("MFU", True, "share of the hardware's peak used by prefill"), amount(percent, physics and physics.mfu, struck)),
        (Column("Prefill, tok/s", True, "one request at a time, cold"), amount(rate, prefill_rate(run, point), struck)),
        (Column("TPOT p50", True), amount(seconds, p50(point.tpot_s), struck)),
        (Column("ITL p99", True), amount(seconds, point.itl_s and point.itl_s.p99, struck)),
        (Column("Cache"), words(cache_text(point))),
        (Column("Done", True, "completed of all requests"), number(done, float(point.completed) if point.ran else None)),
    ]


def evidence_section(run: RunResult) -> str:
    """What proves each point: counters, cache, physics, client; empty where nothing ran."""
    if not run.points:
        return ""
    inner = titled_table([_evidence_row(run, p) for p in run.points], "Evidence and client")
    about = "token counts, cache, the client's own time, forecast against duration"
    title = f'<summary>Evidence and client <span class="sub">{esc(about)}</span></summary>'
    return f'<section class="card"><details>{title}{inner}</details></section>'


def _evidence_row(run: RunResult, point: PointResult) -> list[TitledCell]:
    struck = point.ran and not stands(run, point)
    first, then = (finite(c.preemptions) if c else None for c in (point.before, point.after))
    preempted = then - first if first is not None and then is not None else None
    error = "largest difference between tokens asked for and counted by the server"
    cached = number(percent(point.cached_share, 1), finite(point.cached_share))
    return [
        (Column("Input tokens", True), amount(count, point.input_tokens)),
        (Column("Req.", True, "requests at once"), amount(count, point.concurrency)),
        (Column("Repeats", True), amount(count, point.repeats if point.ran else None)),
        (Column("Failed", True), amount(count, point.failed if point.ran else None)),
        (Column("Timed out", True), amount(count, point.timed_out if point.ran else None)),
        (Column("Token error", True, error), amount(count, point.token_error_max)),
        (Column("Cached", True, "share of the prompt tokens that came from the cache"), cached),
        (Column("Build", True, "client: building the request, median"), amount(seconds, p50(point.build_s))),
        (Column("Upload", True, "client: sending the body, median"), amount(seconds, p50(point.upload_s))),
        (Column("Queued", True, "server: waiting for its turn, mean, by its own metrics"), amount(seconds, point.server_queue_s)),
        (Column("Client lag", True, "largest delay of the client's event loop"), amount(seconds, point.client_lag_s)),
        (Column("E2E p50", True), amount(seconds, p50(point.e2e_s), struck)),
        (Column("Output, tok/s", True, "all requests together"), amount(rate, point.output_tokens_per_s, struck)),
        (Column("Goodput, req/s", True, "requests/s within every limit"), amount(rate, point.goodput_per_s, struck)),
        (Column("Preemptions", True), amount(count, preempted)),
        (Column("Forecast", True, "expected duration of the point"), amount(duration, point.expected_s)),
        (Column("Took", True), amount(duration, point.wall_s)),
    ]


def burnin_section(run: RunResult) -> str:
    """Checks and GPUs of a burn-in; empty for other runs."""
    if run.burnin is None:
        return ""
    columns = [Column("Check"), Column("Verdict"), Column("Found"), Column("Required")]
    rows = []
    for check in run.burnin.checks:
        verdict = Cell(chip(check.verdict.value) if check.verdict else "not judged")
        rows.append([words(check.name), verdict, words(one_line(check.found)), words(one_line(check.required))])
    note = "the host with random weights, before the real ones are copied"
    if run.burnin.start_s is not None:
        note += f"; ready after {duration(run.burnin.start_s)}"
    return (
        f'<section class="card"><div class="head"><h3>Burn-in</h3><p class="sub">{esc(note)}</p></div>'
        f"{table(columns, rows, 'Burn-in')}</section>"
    )


def capacity_section(run: RunResult) -> str:
    """The plan beside the engine's own figures; empty where neither is known."""
    rows = capacity_rows(run.capacity)
    if not rows or run.capacity is None:
        return ""
    gaps = [r.gap for r in rows if r.gap is not None]
    limit = next((x for x in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if all(abs(g) <= x for g in gaps)), 1.0)
    cells: list[list[TitledCell]] = []
    for row in rows:
        line = [
            (Column("Quantity"), words(row.label)),
            (Column("Predicted", True), number(row.predicted, row.predicted_value)),
            (Column("Engine", True), number(row.engine, row.engine_value)),
            (Column("Difference", True, "engine / predicted - 1"), number(row.difference, row.gap)),
        ]
        if gaps:
            dot = Cell(svg.deviation(row.gap, limit) if row.gap is not None else DASH, row.gap)
            line.append((Column(f"\N{MINUS SIGN}{percent(limit)} to +{percent(limit)}"), dot))
        cells.append(line)
    note = "every part of the prediction is exact" if run.capacity.exact else "part of the prediction is an estimate"
    drift = finite(run.capacity.drift)
    if drift is not None:
        note += f"; drift {signed_percent(drift)}"
    how = "".join(f'<p class="sub">{esc(who)}: {esc(text)}</p>' for who, text in sums(run.capacity))
    return (
        '<section class="card"><div class="head"><h3>Prediction against measurement</h3>'
        f'<p class="sub">{esc(note)}</p></div>{titled_table(cells, "Prediction against measurement")}{how}</section>'
    )


def settings_section(run: RunResult) -> str:
    """Everything the run depended on; folded."""
    pairs = [
        ("Run", one_line(run.run_id)),
        ("Started", instant(run.started_unix_s)),
        ("Took", duration(run.finished_unix_s - run.started_unix_s)),
        ("Endpoint", one_line(run.url)),
        ("Engine", engine_name(run)),
        ("Model", one_line(run.model)),
        ("Mode", one_line(run.mode)),
        ("Schema", f"{run.schema} {run.schema_version}"),
    ]
    sources = list(dict.fromkeys(one_line(p.physics.peak_source) for p in run.points if p.physics))
    pairs += [("Peak for the floor", "; ".join(sources))] if sources else []
    for values in (run.settings, run.environment):
        pairs += [(k, _plain(v)) for k, v in flatten(values) if v not in (None, "", [], ())]
    return f'<section class="card"><details><summary>Settings and environment</summary>{facts(pairs)}</details></section>'


def _plain(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float) and finite(value) is None:
        return DASH
    if isinstance(value, Mapping):
        return ", ".join(f"{k}: {_plain(v)}" for k, v in flatten(value)) or DASH
    if isinstance(value, (list, tuple)):
        return (" " if any(str(v).startswith("--") for v in value) else ", ").join(_plain(v) for v in value) or DASH
    return one_line(value) if value != "" else DASH
