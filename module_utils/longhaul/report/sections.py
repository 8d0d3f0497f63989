"""The report's tables: points, evidence, burn-in, capacity, settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from ..results import SEVERITY, RunResult
from . import svg
from .capacity import capacity_rows, signed_percent, sums
from .figures import (
    DASH,
    cache_text,
    count,
    duration,
    engine_name,
    finite,
    flatten,
    instant,
    one_line,
    p50,
    percent,
    prefill_rate,
    rate,
    seconds,
    stands,
    state,
    times,
)
from .page import Cell, Column, chip, facts, number, table, words
from .svg import esc


def points_section(run: RunResult) -> str:
    """The table of points: what was asked, timed and judged."""
    if not run.points:
        return '<section class="card"><h3>Points</h3><p class="sub">No point was run.</p></section>'
    columns = [
        Column("Input tokens", True),
        Column("Output", True, "output tokens asked for"),
        Column("Req.", True, "requests at once"),
        Column("Verdict"),
        Column("TTFT p50", True),
        Column("TTFT p99", True),
        Column("Floor", True, "least time of a cold prefill on this hardware"),
        Column("TTFT / floor", True),
        Column("MFU", True, "share of the hardware's peak used by prefill"),
        Column("Prefill, tok/s", True, "one request at a time, cold"),
        Column("TPOT p50", True),
        Column("ITL p99", True),
        Column("Cache"),
        Column("Done", True, "completed of all requests"),
    ]
    rows = []
    for point in run.points:
        struck = point.ran and not stands(run, point)
        physics = point.physics
        total = point.completed + point.failed + point.timed_out

        def figure(text: Callable[[object], str], value: object, struck: bool = struck) -> Cell:
            return number(text(value), finite(value), struck)

        rows.append(
            [
                number(count(point.input_tokens), float(point.input_tokens)),
                number(count(point.output_tokens), float(point.output_tokens)),
                number(count(point.concurrency), float(point.concurrency)),
                Cell(chip(state(point)), float(SEVERITY.index(point.verdict)) if point.ran else -1.0),
                figure(seconds, p50(point.ttft_s)),
                figure(seconds, point.ttft_s.p99 if point.ttft_s and point.ttft_s.n > 1 else None),
                number(seconds(physics.floor_s if physics else None), finite(physics.floor_s) if physics else None),
                figure(times, physics.ratio if physics else None),
                figure(percent, physics.mfu if physics else None),
                figure(rate, prefill_rate(run, point)),
                figure(seconds, p50(point.tpot_s)),
                figure(seconds, point.itl_s.p99 if point.itl_s else None),
                words(cache_text(point)),
                number(f"{point.completed} / {total}" if point.ran else DASH, float(point.completed) if point.ran else None),
            ]
        )
    note = ""
    if any(p.ran and not stands(run, p) for p in run.points):
        note = '<p class="note"><s>Struck</s> figures are INVALID: kept as evidence of the fault, no result.</p>'
    return f'<section class="card"><div class="head"><h3>Points</h3></div>{table(columns, rows, "Points")}{note}</section>'


def evidence_section(run: RunResult) -> str:
    """What proves each point: counters, cache, physics, client; empty where nothing ran."""
    if not run.points:
        return ""
    columns = [
        Column("Input tokens", True),
        Column("Req.", True, "requests at once"),
        Column("Repeats", True),
        Column("Failed", True),
        Column("Timed out", True),
        Column("Token error", True, "largest difference between tokens asked for and counted by the server"),
        Column("Cached", True, "share of the prompt tokens that came from the cache"),
        Column("Build", True, "client: building the request, median"),
        Column("Upload", True, "client: sending the body, median"),
        Column("Queued", True, "server: waiting for its turn, mean, by its own metrics"),
        Column("Client lag", True, "largest delay of the client's event loop"),
        Column("E2E p50", True),
        Column("Output, tok/s", True, "all requests together"),
        Column("Goodput, req/s", True, "requests/s within every limit"),
        Column("Preemptions", True),
        Column("Forecast", True, "expected duration of the point"),
        Column("Took", True),
    ]
    rows = []
    for point in run.points:
        struck = point.ran and not stands(run, point)
        preempted = None
        if point.before and point.after:
            first, then = finite(point.before.preemptions), finite(point.after.preemptions)
            preempted = then - first if first is not None and then is not None else None
        plain: list[tuple[Callable[[object], str], object]] = [
            (count, point.input_tokens),
            (count, point.concurrency),
            (count, point.repeats if point.ran else None),
            (count, point.failed if point.ran else None),
            (count, point.timed_out if point.ran else None),
            (count, point.token_error_max),
            (lambda v: percent(v, 1), point.cached_share),
            (seconds, p50(point.build_s)),
            (seconds, p50(point.upload_s)),
            (seconds, point.server_queue_s),
            (seconds, point.client_lag_s),
        ]
        measured: list[tuple[Callable[[object], str], object]] = [
            (seconds, p50(point.e2e_s)),
            (rate, point.output_tokens_per_s),
            (rate, point.goodput_per_s),
        ]
        last: list[tuple[Callable[[object], str], object]] = [
            (count, preempted),
            (duration, point.expected_s),
            (duration, point.wall_s),
        ]
        cells = [number(text(v), finite(v)) for text, v in plain]
        cells += [number(text(v), finite(v), struck) for text, v in measured]
        rows.append([*cells, *[number(text(v), finite(v)) for text, v in last]])
    inner = table(columns, rows, "Evidence and client")
    about = "token counts, cache, the client's own time, forecast against duration"
    title = f'<summary>Evidence and client <span class="sub">{esc(about)}</span></summary>'
    return f'<section class="card"><details>{title}{inner}</details></section>'


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
    gaps = [r.engine_value / r.predicted_value - 1 for r in rows if r.engine_value is not None and r.predicted_value]
    limit = next((x for x in (0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0) if all(abs(g) <= x for g in gaps)), 1.0)
    columns = [
        Column("Quantity"),
        Column("Predicted", True),
        Column("Engine", True),
        Column("Difference", True, "engine / predicted - 1"),
    ]
    if gaps:
        columns.append(Column(f"\N{MINUS SIGN}{percent(limit)} to +{percent(limit)}"))
    cells = []
    for row in rows:
        gap = row.engine_value / row.predicted_value - 1 if row.engine_value is not None and row.predicted_value else None
        line = [
            words(row.label),
            number(row.predicted, row.predicted_value),
            number(row.engine, row.engine_value),
            number(row.difference, gap),
        ]
        if gaps:
            line.append(Cell(svg.deviation(gap, limit) if gap is not None else DASH, gap))
        cells.append(line)
    note = "every part of the prediction is exact" if run.capacity.exact else "part of the prediction is an estimate"
    drift = finite(run.capacity.drift)
    if drift is not None:
        note += f"; drift {signed_percent(drift)}"
    how = "".join(f'<p class="sub">{esc(who)}: {esc(text)}</p>' for who, text in sums(run.capacity))
    return (
        '<section class="card"><div class="head"><h3>Prediction against measurement</h3>'
        f'<p class="sub">{esc(note)}</p></div>{table(columns, cells, "Prediction against measurement")}{how}</section>'
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
