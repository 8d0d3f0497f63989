"""The report as one self-contained HTML file: verdict and every reason first, then plots, tables, evidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from ..results import SEVERITY, NeedleAnswer, PointResult, Reason, RunResult, Stats, Verdict
from . import svg
from .capacity import capacity_rows, signed_percent, sums
from .figures import (
    DASH,
    TIMES,
    all_reasons,
    cache_text,
    clean,
    count,
    duration,
    engine_name,
    finite,
    flatten,
    headline_point,
    instant,
    one_line,
    p50,
    percent,
    plottable,
    point_name,
    prefill_rate,
    rate,
    seconds,
    short_count,
    stands,
    state,
    tally,
    times,
    with_unit,
)
from .page import Cell, Column, chip, facts, icon, number, page, table, verdict_class, words
from .svg import Mark, Series, esc

_FOLD_HOSTS_FROM = 5
_MOST_REASONS_OPEN = 12


def render_html(runs: Sequence[RunResult]) -> str:
    """One HTML document for all runs, the worst verdict first. It fetches nothing, and it is well-formed XML."""
    ordered = sorted(runs, key=lambda r: (-SEVERITY.index(r.verdict), r.host, r.engine))
    body = [_top(ordered)]
    if len(ordered) > 1:
        body.append(_fleet(ordered))
    fold = len(ordered) >= _FOLD_HOSTS_FROM
    for place, run in enumerate(ordered):
        body.append(_host(run, place, alone=len(ordered) == 1, fold=fold))
    body.append(_footer())
    return page(f"Longhaul: {_title(ordered)}", "\n".join(body))


def _title(runs: Sequence[RunResult]) -> str:
    models = list(dict.fromkeys(one_line(r.model) for r in runs))
    return ", ".join(models) if 0 < len(models) < 4 else f"{len(models)} models" if models else "no results"


def _top(runs: Sequence[RunResult]) -> str:
    out = ['<header><p class="eyebrow">Longhaul validation report</p>', f"<h1>{esc(_title(runs))}</h1>"]
    if not runs:
        return "".join([*out, '<p class="sub">No results in this run.</p></header>'])
    engines = ", ".join(dict.fromkeys(engine_name(r) for r in runs))
    ids = list(dict.fromkeys(one_line(r.run_id) for r in runs))
    hosts = f"{len(runs)} endpoints" if len(runs) > 1 else one_line(runs[0].host)
    line = f"{esc(engines)} \N{MIDDLE DOT} {esc(hosts)} \N{MIDDLE DOT} {instant(min(r.started_unix_s for r in runs))}"
    out.append(f'<p class="sub">{line} \N{MIDDLE DOT} run <span class="mono">{esc(", ".join(ids[:3]))}</span></p></header>')
    return "".join(out)


def _footer() -> str:
    return (
        "<footer><p>TTFT: from the first byte of the request sent to the first token received. "
        "TPOT: (end to end - TTFT) / (output tokens - 1). ITL: gap between two token events. "
        "Prefill rate: prompt tokens as the server counted them / TTFT, one request at a time. "
        "Floor: the least time a cold prompt of that length can take on this hardware. MFU: floor / TTFT. "
        "Cold: the server's own counters show that no prompt token came from its cache.</p></footer>"
    )


# --- several hosts -------------------------------------------------------------------------------------------------------


def _fleet(runs: Sequence[RunResult]) -> str:
    several = len({r.model for r in runs}) > 1
    columns = [
        Column("Host"),
        Column("Verdict"),
        Column("Engine"),
        *([Column("Model")] if several else []),
        Column("Proven prompt", True, "Longest prompt that PASSed, tokens"),
        Column("TTFT p50", True, "at that length"),
        Column("Prefill, tok/s", True, "at that length, one request at a time"),
        Column("TPOT p50", True, "at that length"),
        Column("Needles", True, "Share of planted facts found"),
        Column("Points"),
        Column("Finished, UTC"),
    ]
    rows = []
    for place, run in enumerate(runs):
        best = headline_point(run)
        speed = prefill_rate(run, best) if best else None
        ttft, tpot = (p50(best.ttft_s), p50(best.tpot_s)) if best else (None, None)
        recall = finite(run.needle_recall)
        rows.append(
            [
                Cell(f'<a href="#h{place}">{esc(one_line(run.host))}</a>'),
                Cell(chip(run.verdict.value), float(SEVERITY.index(run.verdict))),
                words(engine_name(run)),
                *([words(one_line(run.model), long=True)] if several else []),
                number(count(best.input_tokens if best else None), float(best.input_tokens) if best else None),
                number(seconds(ttft), ttft),
                number(rate(speed), speed),
                number(seconds(tpot), tpot),
                number(percent(recall), recall, struck=run.verdict is Verdict.INVALID),
                words(", ".join(f"{n} {word.lower()}" for word, n in tally(run.points)) or DASH, long=True),
                Cell(esc(instant(run.finished_unix_s)[:16]), finite(run.finished_unix_s)),
            ]
        )
    tally_text = ", ".join(f"{n} {v}" for v, n in Counter(r.verdict.value for r in runs).most_common())
    out = [f'<section class="card"><div class="head"><h3>All hosts</h3><p class="sub">{esc(tally_text)}</p></div>']
    out.append(table(columns, rows, "All hosts") + "</section>")
    drawn = overlay(runs, [f"{one_line(r.host)} ({engine_name(r)})" for r in runs])
    return "".join(out) + (f'<div class="grid2">{drawn}</div>' if drawn else "")


def overlay(runs: Sequence[RunResult], names: Sequence[str]) -> str:
    """Two figures, TTFT and prefill rate against input length, with one line for each of the first six runs that have one."""
    return "".join(
        (
            _overlay(runs, names, "TTFT", lambda p: p.ttft_s, seconds, _axis_seconds, "median"),
            _overlay(runs, names, "Prefill rate", lambda p: p.prefill_tokens_per_s, rate, _axis_rate, "tokens/s, median"),
        )
    )


def _overlay(
    runs: Sequence[RunResult],
    names: Sequence[str],
    name: str,
    pick: Callable[[PointResult], Stats | None],
    text: Callable[[object], str],
    axis: Callable[[float], str],
    note: str,
) -> str:
    """One figure of every host against input length, cold runs only, points that PASSed or FAILed; six hosts at most."""
    series: list[Series] = []
    for run, who in zip(runs, names, strict=True):
        points = [p for p in _lowest(run) if p.concurrency == 1]
        marks = tuple(
            Mark(m.x, m.y, None, None, m.kind, f"{who}: {m.title}")
            for m in _marks(run, points, pick, text, name)
            if m.kind in ("pass", "fail")
        )
        if marks and run.mode == "cold" and len(series) < 6:
            series.append(Series(who, marks, len(series)))
    if len(series) < 2:
        return ""
    if len(runs) > len(series):
        note += f", {len(series)} of {len(runs)} endpoints"
    drawing = svg.plot(series, describe=f"{name} against input length, side by side", x_title="Input tokens", y_text=axis)
    return _figure(f"{name}, side by side", f"{note}, one request at a time", drawing, series)


# --- one host ------------------------------------------------------------------------------------------------------------


def _host(run: RunResult, place: int, *, alone: bool, fold: bool) -> str:
    inner = [
        _banner(run),
        _flags(run),
        _tiles(run),
        _burnin(run),
        _plots(run, place),
        _answers(run, place),
        _points(run),
        _evidence(run),
        _capacity(run),
        _settings(run),
    ]
    body = "".join(inner)
    names = f"{engine_name(run)} \N{MIDDLE DOT} {one_line(run.model)} \N{MIDDLE DOT} "
    sub = f'<p class="sub">{esc(names)}<span class="mono">{esc(one_line(run.url))}</span></p>'
    if alone:
        return f'<section id="h{place}">{body}</section>'
    head = f'<div class="hosthead"><h2>{esc(one_line(run.host))}</h2>{sub}</div>'
    if fold:
        opened = ' open="open"' if run.verdict is not Verdict.PASS and place < _FOLD_HOSTS_FROM else ""
        name = f'<span class="name">{esc(one_line(run.host))}</span>'
        short = f"<summary>{name} {chip(run.verdict.value)}</summary>"
        return f'<section class="host fold" id="h{place}"><details{opened}>{short}{sub}{body}</details></section>'
    return f'<section class="host" id="h{place}">{head}{body}</section>'


def _banner(run: RunResult) -> str:
    word = run.verdict.value
    out = [f'<div class="banner {verdict_class(word)}"><div class="what">{icon(word)}<span>{esc(word)}</span></div>']
    out.append(f'<p class="say">{esc(_sentence(run))}</p>')
    groups: dict[str, list[Reason]] = {}
    for point, reason in all_reasons(run):
        groups.setdefault("Whole run" if point is None else point_name(point), []).append(reason)
    items = []
    for where, reasons in groups.items():
        lines = "".join(
            f'<span class="r">{chip(r.verdict.value)} {esc(clean(r.text))} <code>{esc(one_line(r.code))}</code></span>'
            for r in reasons
        )
        items.append(f'<li><span class="where">{esc(where)}</span><div>{lines}</div></li>')
    if items:
        shown, rest = items[:_MOST_REASONS_OPEN], items[_MOST_REASONS_OPEN:]
        out.append(f'<ul class="why">{"".join(shown)}</ul>')
        if rest:
            out.append(f'<details><summary>{len(rest)} more</summary><ul class="why">{"".join(rest)}</ul></details>')
    out.append("</div>")
    return "".join(out)


def _sentence(run: RunResult) -> str:
    ran = [p for p in run.points if p.ran]
    passed = sum(p.verdict is Verdict.PASS for p in ran)
    skipped = len(run.points) - len(ran)
    parts = [f"{passed} of {len(ran)} point{'' if len(ran) == 1 else 's'} passed" if ran else "No point was run"]
    if skipped:
        parts[0] += f", {skipped} not run"
    best = headline_point(run)
    if best is not None and run.mode == "cold":
        parts.append(f"longest proven prompt: {best.input_tokens:,} tokens")
    elif run.mode == "cold":
        parts.append("no prompt length is proven")
    done = [p for p in ran if p.verdict is Verdict.PASS]
    text = "; ".join(parts) + "."
    if (
        run.mode == "cold"
        and done
        and len(done) == len(ran)
        and all(p.token_error_max == 0 and p.cache_state == "COLD" for p in done)
    ):
        text += " Every prompt had exactly the tokens asked for and was proven cold."
    return text


def _flags(run: RunResult) -> str:
    out = ""
    if run.mode != "cold":
        out += (
            f'<p class="flag"><b>{esc(one_line(run.mode).capitalize())} mode.</b> Prompts were repeated on purpose: '
            "these times measure the prefix cache, not prefill.</p>"
        )
    if not run.complete:
        out += '<p class="flag"><b>Cut short.</b> The run did not reach its end; what follows had been measured by then.</p>'
    if run.settings.get("corpus_note"):
        out += f'<p class="flag"><b>Text.</b> {esc(_sentence_of(run.settings["corpus_note"]))}</p>'
    return out


def _sentence_of(note: object) -> str:
    text = one_line(note)
    return text[:1].upper() + text[1:] + "."


def _tiles(run: RunResult) -> str:
    best = headline_point(run)
    at = f"at {short_count(best.input_tokens)} input tokens" if best else "no point passed"
    speed = prefill_rate(run, best) if best else None
    tpot = p50(best.tpot_s) if best else None
    decode = f"{rate(1 / tpot)} tokens/s for one request" if tpot and best and best.concurrency == 1 else at
    tiles = [
        ("Proven prompt, tokens", count(best.input_tokens if best else None), "cold and exact" if best else at),
        ("TTFT, median", seconds(p50(best.ttft_s) if best else None), at),
        ("Prefill, tokens/s", rate(speed), at),
        ("TPOT, median", seconds(tpot), decode),
    ]
    if run.mode != "cold" and best is not None:
        tiles[0] = ("Longest prompt, tokens", count(best.input_tokens), "warm: not a proof of prefill")
    if run.needle_recall is not None or run.needle_note:
        void = run.verdict is Verdict.INVALID
        recall = DASH if void else percent(run.needle_recall)
        note = one_line(run.needle_note) if run.needle_note else "of the planted facts"
        tiles.append(("Needles found", recall, "withheld: INVALID" if void and run.needle_recall is not None else note))
    pool = finite(run.capacity.engine.get("kv_cache_tokens")) if run.capacity else None
    if pool is not None:
        tiles.append(("KV cache, tokens", count(pool), "as the engine reports it"))
    out = ""
    for name, text, note in tiles:
        lines = f'<div class="k">{esc(name)}</div><div class="n">{esc(text)}</div><div class="d">{esc(note)}</div>'
        out += f'<div class="tile">{lines}</div>'
    return f'<div class="tiles">{out}</div>'


# --- plots ---------------------------------------------------------------------------------------------------------------


def _axis_seconds(value: float) -> str:
    if value == 0:
        return "0"
    for size, unit in ((1.0, "s"), (1e-3, "ms"), (1e-6, "\N{MICRO SIGN}s")):
        if value >= size * 0.999_999:
            return f"{value / size:,.4g} {unit}"
    return f"{value:.0e} s"


def _axis_rate(value: float) -> str:
    return short_count(value) if value else "0"


def _kind(run: RunResult, point: PointResult) -> str:
    if not stands(run, point):
        return "void"
    return {Verdict.PASS: "pass", Verdict.FAIL: "fail"}.get(point.verdict, "unsure")


def _lowest(run: RunResult) -> list[PointResult]:
    """The points at the lowest concurrency that ran: those where TTFT is prefill."""
    ran = [p for p in run.points if p.ran]
    least = min((p.concurrency for p in ran), default=1)
    return [p for p in ran if p.concurrency == least]


def _marks(
    run: RunResult,
    points: Sequence[PointResult],
    pick: Callable[[PointResult], Stats | None],
    text: Callable[[object], str],
    name: str,
    *,
    attribute: str = "p50",
    labels: bool = False,
) -> tuple[Mark, ...]:
    out = []
    for point in points:
        stats = pick(point)
        y = plottable(getattr(stats, attribute)) if stats is not None and stats.n > 0 else None
        if stats is None or y is None or point.input_tokens <= 0:
            continue
        kind = _kind(run, point)
        low, high = (plottable(stats.min), plottable(stats.max)) if attribute == "p50" and stats.n > 1 else (None, None)
        title = f"{point_name(point)}: {name} {text(y)} ({attribute} of {stats.n})"
        title = f"INVALID, no result. {title}" if kind == "void" else f"{state(point)}. {title}" if kind != "pass" else title
        out.append(Mark(float(point.input_tokens), y, low, high, kind, title, text(y) if labels else ""))
    return tuple(out)


def _computed(points: Sequence[PointResult], pick: Callable[[PointResult], object]) -> tuple[Mark, ...]:
    values = {p.input_tokens: plottable(pick(p)) for p in points if p.input_tokens > 0}
    return tuple(Mark(float(x), y) for x, y in sorted(values.items()) if y is not None)


def _figure(title: str, note: str, drawing: str, series: Sequence[Series] = (), *, wide: bool = False, legend: str = "") -> str:
    if not drawing:
        return ""
    keys = legend
    kinds = {m.kind for s in series if not s.computed for m in s.marks}
    for one in series:
        if one.marks and (len([s for s in series if s.marks]) > 1):
            keys += f"<span>{svg.legend_mark('pass', one.index, one.computed)}{esc(one.name)}</span>"
    names = {"fail": "FAIL", "unsure": "INCONCLUSIVE: not proven", "void": "INVALID: no result"}
    for kind, name in names.items():
        if kind in kinds:
            keys += f"<span>{svg.legend_mark(kind, 0)}{esc(name)}</span>"
    keys = f'<div class="legend">{keys}</div>' if keys else ""
    kind = "card wide" if wide else "card"
    caption = f'<figcaption><h3>{esc(title)}</h3><p class="sub">{esc(note)}</p></figcaption>'
    return f'<figure class="{kind}">{caption}{keys}{drawing}</figure>'


def _plots(run: RunResult, place: int) -> str:
    points = _lowest(run)
    least = points[0].concurrency if points else 1
    load = "one request at a time" if least == 1 else f"{least} requests at once"
    by_output = _by_output(points)
    single = len(by_output) == 1
    cold = run.mode == "cold"
    out = []

    ttft = _series(run, by_output, lambda p: p.ttft_s, seconds, "TTFT")
    floor = Series("Floor: least time if cold", _computed(points, lambda p: p.physics.floor_s if p.physics else None), 9, True)
    if cold:
        ttft.append(floor)
    drawing = svg.plot(ttft, describe="TTFT against input length", x_title="Input tokens", y_text=_axis_seconds)
    whiskers = any(m.low is not None for s in ttft for m in s.marks)
    spread = "median, whiskers from min to max" if whiskers else "median"
    out.append(_figure("TTFT against input length", f"{load}; {spread}", drawing, ttft))

    if cold and least == 1:
        speed = _series(run, by_output, lambda p: p.prefill_tokens_per_s, _tokens_per_s, "prefill", labels=False)
        ceiling = _computed(points, _ceiling)
        speed.append(Series("Ceiling: input tokens / floor", ceiling, 9, True))
        drawing = svg.plot(speed, describe="Prefill rate against input length", x_title="Input tokens", y_text=_axis_rate)
        out.append(_figure("Prefill rate against input length", f"tokens/s, {load}; {spread}", drawing, speed))

    decode = _series(run, by_output, lambda p: p.tpot_s, seconds, "TPOT", labels=False)
    decode = [Series("TPOT, median" if single else f"TPOT, {s.name}", s.marks, s.index) for s in decode]
    if single:
        decode.append(Series("ITL, p99", _marks(run, points, lambda p: p.itl_s, seconds, "ITL", attribute="p99"), 1))
    decode.append(Series("Decode floor", _computed(points, lambda p: p.physics.decode_floor_s if p.physics else None), 9, True))
    drawing = svg.plot(decode, describe="Decode latency against input length", x_title="Input tokens", y_text=_axis_seconds)
    out.append(_figure("Decode latency against input length", f"time per output token, {load}", drawing, decode))

    out += _needles(run, place)
    out.append(_queueing(run))
    out.append(_load(run))
    drawn = [d for d in out if d]
    if len(drawn) % 2:
        # An odd card out would leave a hole beside it.
        drawn.append(_kv(run, wide=False) or drawn.pop().replace('class="card"', 'class="card lone"', 1))
    else:
        drawn.append(_kv(run, wide=True))
    return f'<div class="grid2">{"".join(drawn)}</div>' if any(drawn) else ""


def _tokens_per_s(value: object) -> str:
    return with_unit(rate(value), "tok/s")


def _ceiling(point: PointResult) -> float | None:
    floor = finite(point.physics.floor_s) if point.physics else None
    return point.input_tokens / floor if floor else None


def _by_output(points: Sequence[PointResult]) -> dict[int, list[PointResult]]:
    groups: dict[int, list[PointResult]] = {}
    for point in points:
        groups.setdefault(point.output_tokens, []).append(point)
    biggest = sorted(groups, key=lambda k: -len(groups[k]))[:4]
    return {k: groups[k] for k in sorted(biggest)}


def _series(
    run: RunResult,
    by_output: Mapping[int, Sequence[PointResult]],
    pick: Callable[[PointResult], Stats | None],
    text: Callable[[object], str],
    name: str,
    *,
    labels: bool = True,
) -> list[Series]:
    show = labels and len(by_output) == 1 and sum(len(v) for v in by_output.values()) <= 8
    out = []
    for place, (output, points) in enumerate(by_output.items()):
        title = "Measured" if len(by_output) == 1 else f"{output:,} output tokens"
        out.append(Series(title, _marks(run, points, pick, text, name, labels=show), place))
    return out


_Grid = tuple[str, list[int], list[float], dict[tuple[int, float], tuple[int, int]], dict[tuple[int, float], str]]


def _grids(run: RunResult, place: int) -> list[_Grid]:
    """For each kind of needle: name, lengths, depths, (found, asked) by cell, and the id of each cell's answers."""
    out: list[_Grid] = []
    for order, kind in enumerate(dict.fromkeys(c.kind for c in run.needles)):
        mine = [c for c in run.needles if c.kind == kind and finite(c.depth) is not None]
        lengths = sorted({c.input_tokens for c in mine})
        depths = sorted({c.depth for c in mine})
        grid: dict[tuple[int, float], tuple[int, int]] = {}
        for cell in mine:
            found, asked = grid.get((cell.input_tokens, cell.depth), (0, 0))
            grid[cell.input_tokens, cell.depth] = (found + cell.found, asked + cell.asked)
        told = {(a.input_tokens, a.told.depth) for a in run.needle_answers if a.told.kind == kind}
        keys = [(n, d) for n in lengths for d in depths]
        names = {key: f"n{place}-{order}-{i}" for i, key in enumerate(keys) if key in told and grid.get(key, (0, 0))[1] > 0}
        out.append((kind, lengths, depths, grid, names))
    return out


def _needles(run: RunResult, place: int) -> list[str]:
    out = []
    for kind, lengths, depths, grid, names in _grids(run, place):
        drawing = svg.heat_map(
            [short_count(n) for n in lengths],
            [percent(d) for d in depths],
            [[grid.get((n, d)) for d in depths] for n in lengths],
            f"Needles found by input length and depth, {one_line(kind)}",
            [[names.get((n, d)) for d in depths] for n in lengths],
        )
        note = "found / asked; rows: input tokens" + ("; a cell leads to its answers" if names else "")
        if run.verdict is Verdict.INVALID:
            note += ". The run is INVALID: no result"
        out.append(_figure(f"Needle recall: {one_line(kind)}", note, drawing if lengths else ""))
    return out


def _answers(run: RunResult, place: int) -> str:
    """Every cell of the maps with what was asked, expected and got, word for word; folded."""
    parts = []
    right = total = 0
    grids = _grids(run, place)
    for kind, _, _, _, names in grids:
        told: dict[tuple[int, float], list[NeedleAnswer]] = {}
        for asked in run.needle_answers:
            if asked.told.kind == kind:
                told.setdefault((asked.input_tokens, asked.told.depth), []).append(asked.told)
        cells = ""
        for (tokens, depth), name in names.items():
            answers = told[tokens, depth]
            found = sum(a.found for a in answers)
            right, total = right + found, total + len(answers)
            word = "PASS" if found == len(answers) else "FAIL"
            cells += (
                f'<details class="needle" id="{name}"><summary><span class="{verdict_class(word)} mark">{icon(word)}</span>'
                f"<span>{esc(f'{tokens:,} tokens, depth {percent(depth)}')}</span> "
                f'<span class="sub">{found} of {len(answers)} found</span></summary>{"".join(_answer(a) for a in answers)}</details>'
            )
        if cells:
            title = f"<h4>{esc(one_line(kind))}</h4>" if len(grids) > 1 else ""
            parts.append(f'{title}<div class="needles">{cells}</div>')
    if not parts:
        return ""
    title = f'<summary>Needle answers <span class="sub">word for word; {right} of {total} hold what was planted</span></summary>'
    return f'<section class="card"><details>{title}{"".join(parts)}</details></section>'


def _answer(answer: NeedleAnswer) -> str:
    expected = answer.expected if answer.subject is None else f"{answer.expected} (of {one_line(answer.subject)})"
    rows = [("Asked", answer.question, ""), ("Expected", expected, ""), ("Got", answer.answer.strip() or DASH, ' class="got"')]
    inner = "".join(f"<div><dt>{name}</dt><dd{kind}>{esc(text)}</dd></div>" for name, text, kind in rows if text is not None)
    return f'<dl class="told">{inner}</dl>'


def _queueing(run: RunResult) -> str:
    rows = []
    for point in sorted((p for p in run.points if p.concurrency > 1), key=lambda p: (p.input_tokens, p.concurrency)):
        known = point.fits_at_once is not None
        room = point.concurrency if point.fits_at_once is None else point.fits_at_once
        queued = max(0, point.concurrency - room) if point.will_queue is None else point.will_queue
        queued = min(point.concurrency, max(0, queued))
        at_once = max(0, point.concurrency - queued)
        peaks = [v for v in (finite(s.waiting) for s in point.kv_series) if v is not None]
        text = "" if point.ran else "not run"
        if point.ran and point.ttft_s is not None and p50(point.ttft_s) is not None:
            text = f"TTFT {seconds(p50(point.ttft_s))}, p99 {seconds(point.ttft_s.p99)}"
        hint = f"longest queue seen {max(peaks):.0f}" if peaks else "queue not seen"
        name = f"{short_count(point.input_tokens)} {TIMES} {point.concurrency:,}"
        rows.append(svg.QueueRow(name, at_once, queued, known, text, hint, point.ran and not stands(run, point)))
    if not rows:
        return ""
    shown = rows[:12]
    legend = ""
    if any(r.known for r in shown):
        legend += f"<span>{_swatch('runs')}fit in the KV cache at once</span>"
    if any(r.queued for r in shown):
        legend += f"<span>{_swatch('waits')}wait in the queue</span>"
    note = f"input tokens {TIMES} requests sent together"
    if len(rows) > len(shown):
        note += f"; {len(rows) - len(shown)} more in the table"
    return _figure("Concurrency and queueing", note, svg.queue_bars(shown, "Requests at once and queued"), legend=legend)


def _swatch(kind: str) -> str:
    return f'<svg class="swatch" aria-hidden="true"><rect class="{kind}" width="14" height="12"/></svg>'


def _load(run: RunResult) -> str:
    """TTFT against concurrency, for the lengths that were run at two or more of them."""
    lengths: dict[int, list[PointResult]] = {}
    for point in run.points:
        if point.ran and point.concurrency > 0:
            lengths.setdefault(point.input_tokens, []).append(point)
    chosen = [(n, ps) for n, ps in sorted(lengths.items()) if len({p.concurrency for p in ps}) > 1][:5]
    series: list[Series] = []
    for place, (tokens, points) in enumerate(chosen):
        marks = []
        for mark, point in ((m, p) for p in points for m in _marks(run, [p], lambda q: q.ttft_s, seconds, "TTFT")):
            marks.append(Mark(float(point.concurrency), mark.y, None, None, mark.kind, mark.title))
        if len({m.x for m in marks if m.kind in ("pass", "fail")}) > 1:
            series.append(Series(f"{short_count(tokens)} input tokens", tuple(marks), place))
    drawing = (
        svg.plot(series, describe="TTFT against concurrency", x_title="Requests at once", y_text=_axis_seconds) if series else ""
    )
    names = ", ".join(s.name for s in series) if len(series) == 1 else "by input length"
    return _figure("TTFT against concurrency", f"median, {names}", drawing, series)


def _kv(run: RunResult, *, wide: bool) -> str:
    curves = []
    for point in run.points:
        pairs = [(finite(s.t_s), finite(s.kv_usage)) for s in point.kv_series]
        samples = [(t, u) for t, u in pairs if t is not None and 0 <= t < 1e12 and u is not None and 0 <= u < 2]
        if len(samples) > 1:
            curves.append((f"{short_count(point.input_tokens)} {TIMES} {point.concurrency:,}", samples))
    if not curves:
        return ""
    most = max(u for _, samples in curves for _, u in samples)
    scale = next((x for x in (0.02, 0.1, 0.25, 0.5) if most <= x), 1.0)
    shown = curves[: 12 if wide else 8]
    cards = []
    for name, samples in shown:
        drawing = svg.kv_curve(samples, f"KV cache use over time, {name}", duration, scale)
        peak = max(u for _, u in samples)
        text = percent(peak, 0 if peak >= 0.1 else 1)
        cards.append(f'<div><p class="cap">{esc(name)} <span class="muted">peak {esc(text)}</span></p>{drawing}</div>')
    more = f"; the first {len(shown)} of {len(curves)} points" if len(curves) > len(shown) else ""
    note = f"share in use from the start of each point; input tokens {TIMES} requests at once{more}"
    return _figure("KV cache use over time", note, f'<div class="small4">{"".join(cards)}</div>', wide=wide)


# --- tables --------------------------------------------------------------------------------------------------------------


def _points(run: RunResult) -> str:
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


def _evidence(run: RunResult) -> str:
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


def _burnin(run: RunResult) -> str:
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


def _capacity(run: RunResult) -> str:
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


def _settings(run: RunResult) -> str:
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
