"""A comparison as text, Markdown and HTML."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Sequence

from ..results import RunResult
from .compare import Change, Comparison, PointComparison, change_text, judgement
from .figures import engine_name, state
from .markdown import escape
from .markdown import table as markdown_table
from .page import Cell, Column, chip, number, page, table, words
from .plots import overlay
from .svg import esc
from .tables import align, fit
from .wording import DASH, clean, instant, one_line, percent, rate, seconds, with_unit


def _amount(change: Change, value: float | None) -> str:
    return with_unit(rate(value), "tok/s") if change.is_rate else seconds(value)


def _noise(change: Change) -> str:
    return DASH if change.noise is None else f"\N{PLUS-MINUS SIGN}{percent(change.noise, 1)}"


def _who(run: RunResult) -> str:
    return f"{one_line(run.host)}, {engine_name(run)}, run {one_line(run.run_id)}"


def _conclusion(comparison: Comparison) -> list[str]:
    """The result in sentences, for every renderer."""
    judged = [c for p in comparison.points for c in p.told if c.beyond is not None]
    beyond = [c for c in judged if c.beyond]
    slower = sum(c.direction == "slower" for c in beyond)
    out = [
        f"{comparison.compared} of {len(comparison.points)} points compared; {len(beyond)} of {len(judged)} judged figures "
        f"differ beyond noise: B is faster in {len(beyond) - slower}, slower in {slower}."
    ]
    lost = sum(p.lost for p in comparison.points)
    if lost:
        out.append(f"{lost} point{'s' if lost > 1 else ''} that PASSed in A did not in B.")
    if comparison.recall is not None:
        recall = comparison.recall
        out.append(f"Needle recall: {percent(recall.a)} in A, {percent(recall.b)} in B ({judgement(recall)}).")
    if comparison.compared == 0:
        out.append("Nothing could be compared.")
    return out


def _figures(change: Change) -> list[str]:
    """The cells of a change in text and Markdown, but for the judgement."""
    return [change.metric, _amount(change, change.a), _amount(change, change.b), change_text(change), _noise(change)]


RULE = (
    "Beyond noise: the medians differ by more than Student's t (95%) times the joint standard error of both sides' repeats, and "
    "by more than 3% (10% with several requests at once). Not judged: less than that, but more than 5% and two standard errors, "
    "or one request on a side. INVALID points are not compared."
)

# --- renderers -----------------------------------------------------------------------------------------------------------


def render_compare_text(comparisons: Sequence[Comparison]) -> str:
    """Plain text, at most 100 columns, for a terminal; ends without a newline."""
    out: list[str] = []

    def say(text: str, indent: str = "  ") -> None:
        out.extend(textwrap.wrap(text, 100, subsequent_indent=indent, break_on_hyphens=False) or [""])

    for comparison in comparisons:
        say(f"A  {_who(comparison.a)}: {comparison.a.verdict.value}", "   ")
        say(f"B  {_who(comparison.b)}: {comparison.b.verdict.value}", "   ")
        for name, left, right in comparison.differences:
            if name != "host":
                say(f"   {name}: {left} in A, {right} in B", "      ")
        out.append("")
        header = ["TOKENS IN+OUT", "REQ", "FIGURE", "A", "B", "B IS", "NOISE", "JUDGEMENT"]
        to_right = [True, True, False, True, True, False, True, False]
        rows: list[list[str]] = []
        notes: list[str] = []
        for point in comparison.points:
            tokens_in, tokens_out, requests = (f"{n:,}" for n in point.sizes)
            head = [f"{tokens_in}+{tokens_out}", requests]
            rows += [[*(["", ""] if i else head), *_figures(c), judgement(c)] for i, c in enumerate(point.changes)]
            notes += [""] * len(point.changes)
            if point.refused is not None:
                rows.append([*head, "not compared", DASH, DASH, "", "", ""])
                notes.append(point.refused)
        lines = align(header, rows, to_right, fit(header, rows, shrink=(7,)))
        out += [lines[0], "-" * max(len(line) for line in lines)]
        for line, note in zip(lines[1:], notes, strict=True):
            out.append(line)
            if note:
                out += textwrap.wrap(note, 100, initial_indent="    > ", subsequent_indent="      ", break_on_hyphens=False)
        out.append("")
        for text in _conclusion(comparison):
            say(text)
        for text in comparison.regressions:
            say(f"REGRESSION {text}")
        out.append("")
    say(RULE)
    return "\n".join(out)


def render_compare_markdown(comparisons: Sequence[Comparison]) -> str:
    """Markdown; ends with a newline."""
    out = ["# Longhaul comparison", ""]
    for c in comparisons:
        out += [f"## {escape(c.a.host)} and {escape(c.b.host)}", ""]
        out += [f"- A: {escape(_who(c.a))}: **{c.a.verdict.value}**", f"- B: {escape(_who(c.b))}: **{c.b.verdict.value}**", ""]
        out += [*[escape(text) for text in _conclusion(c)], ""]
        if c.regressions:
            out += ["Regressions:", "", *[f"- {escape(text)}" for text in c.regressions], ""]
        header = ["Input tokens", "Output tokens", "Requests", "Figure", "A", "B", "B is", "Noise", "Judgement"]
        rows = []
        for point in c.points:
            sizes = [f"{n:,}" for n in point.sizes]
            for change in point.changes:
                verdict = f"**{judgement(change)}**" if change.beyond else escape(judgement(change))
                rows.append([*sizes, *_figures(change), verdict])
            if point.refused is not None:
                rows.append([*sizes, "not compared", DASH, DASH, DASH, DASH, escape(point.refused)])
        right = [True, True, True, False, True, True, False, True, False]
        out += [*markdown_table(header, rows, right), ""]
        if c.differences:
            out += ["What else differs:", ""]
            cells = [[escape(k), escape(x), escape(y)] for k, x, y in c.differences]
            out += [*markdown_table(["Setting", "A", "B"], cells, [False, False, False]), ""]
    return "\n".join([*out, RULE, ""])


def render_compare_html(comparisons: Sequence[Comparison]) -> str:
    """One self-contained HTML document, like the report."""
    body = ['<header><p class="eyebrow">Longhaul comparison</p>']
    title = " and ".join(dict.fromkeys(one_line(r.model) for c in comparisons for r in (c.a, c.b))) or "nothing to compare"
    body.append(f'<h1>{esc(title)}</h1><p class="sub">{esc(RULE)}</p></header>')
    body += [_section(c) for c in comparisons]
    return page(f"Longhaul comparison: {title}", "\n".join(body))


def _section(c: Comparison) -> str:
    sides = ""
    for name, run in (("A", c.a), ("B", c.b)):
        sides += (
            f'<div class="card"><p class="eyebrow">{name}{"" if name == "B" else ", the baseline"}</p>'
            f'<div class="head"><h2>{esc(one_line(run.host))}</h2>{chip(run.verdict.value)}</div>'
            f'<p class="sub">{esc(engine_name(run))} \N{MIDDLE DOT} {esc(one_line(run.model))}<br/>{instant(run.started_unix_s)} '
            f'\N{MIDDLE DOT} run <span class="mono">{esc(one_line(run.run_id))}</span></p></div>'
        )
    worse = "".join(f"<li>{esc(text)}</li>" for text in c.regressions)
    better = "".join(f"<li>{esc(text)}</li>" for text in c.improvements)
    said = "".join(f"<p>{esc(text)}</p>" for text in _conclusion(c))
    said += f'<h3 class="worse list">Slower or lost</h3><ul>{worse}</ul>' if worse else ""
    said += f'<h3 class="better list">Faster</h3><ul>{better}</ul>' if better else ""
    out = [f'<section class="host"><div class="grid2">{sides}</div><div class="card">{said}</div>']
    if c.a.mode == c.b.mode == "cold":
        names = (f"A: {one_line(c.a.host)}, {engine_name(c.a)}", f"B: {one_line(c.b.host)}, {engine_name(c.b)}")
        drawn = overlay((c.a, c.b), names)
        out.append(f'<div class="grid2">{drawn}</div>' if drawn else "")
    columns = [
        Column("Input tokens", True),
        Column("Output", True),
        Column("Req.", True, "requests at once"),
        Column("Figure"),
        Column("A", True),
        Column("B", True),
        Column("B is"),
        Column("Noise", True, "the smallest relative difference that counts"),
        Column("Judgement"),
    ]
    rows = [row for point in c.points for row in _rows(point)]
    out.append(
        f'<section class="card"><div class="head"><h3>Points</h3></div>{table(columns, rows, "Points compared")}</section>'
    )
    if c.differences:
        cells = [[words(k), words(x, long=True), words(y, long=True)] for k, x, y in c.differences]
        inner = table([Column("Setting"), Column("A"), Column("B")], cells, "What else differs")
        out.append(f'<section class="card"><div class="head"><h3>What else differs</h3></div>{inner}</section>')
    return "".join(out) + "</section>"


def _rows(point: PointComparison) -> list[list[Cell]]:
    sizes = [number(f"{n:,}", float(n)) for n in point.sizes]
    rows = []
    for c in point.changes:
        kind = ("better" if c.direction == "faster" else "worse") if c.beyond else "muted"
        signed = None if c.ratio is None else c.ratio if c.direction == "faster" else -c.ratio if c.direction == "slower" else 0.0
        change = Cell(f'<span class="{kind}">{esc(change_text(c))}</span>', signed)
        judged = Cell(f'<span class="{kind}">{esc(judgement(c))}</span>')
        sides = [number(_amount(c, value), value) for value in (c.a, c.b)]
        rows.append([*sizes, words(c.metric), *sides, change, number(_noise(c), c.noise), judged])
    if point.refused is not None:
        sides = [Cell(chip(state(p)) if p is not None else DASH, None, True) for p in (point.a, point.b)]
        refused = Cell(f'<span class="muted">{esc(clean(point.refused))}</span>', long=True)
        rows.append([*sizes, words("not compared"), *sides, words(DASH), number(DASH, None), refused])
    return rows


Renderer = Callable[[Sequence[Comparison]], str]
RENDERERS: dict[str, Renderer] = {"text": render_compare_text, "markdown": render_compare_markdown, "html": render_compare_html}
