"""Plots as inline SVG: axes with round ticks, lines with whiskers, a heat map, bars, small KV curves.

Colours and font sizes come from the page's style sheet (classes), so that one drawing serves light, dark and a phone.
The output is well-formed XML without a name space (it is set inside HTML). Numbers without meaning (None, NaN) never reach
these functions: callers filter them with :func:`~.figures.finite`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from .wording import clean, short_count

WIDTH, HEIGHT = 560, 300
LEFT, RIGHT, TOP, BOTTOM = 66, 22, 24, 48
_EPS = 1e-9


def esc(value: object) -> str:
    """Text for HTML, SVG or a quoted attribute."""
    text = clean(value)
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;").replace("'", "&#39;")


def _n(value: float) -> str:
    return f"{value:.1f}".rstrip("0").rstrip(".") if value else "0"


@dataclass(frozen=True)
class Mark:
    """One measured value. ``kind``: ``pass``, ``fail``, ``unsure`` (hollow, not joined) or ``void`` (INVALID: never joined)."""

    x: float
    y: float
    low: float | None = None
    high: float | None = None
    kind: str = "pass"
    title: str = ""
    label: str = ""


@dataclass(frozen=True)
class Series:
    """Marks of one colour (``index`` 0..5), joined in the order of x. ``computed``: a dashed line without marks."""

    name: str
    marks: tuple[Mark, ...]
    index: int = 0
    computed: bool = False


@dataclass(frozen=True)
class Axis:
    """One axis: a range, its scale and its ticks as (value, text)."""

    low: float
    high: float
    log: bool
    ticks: tuple[tuple[float, str], ...]

    def place(self, value: float) -> float:
        """Where a value lies, 0..1; values outside are put on the edge."""
        if self.log:
            share = math.log(max(value, self.low) / self.low) / math.log(self.high / self.low)
        else:
            share = (value - self.low) / (self.high - self.low)
        return min(1.0, max(0.0, share))


def linear_axis(high: float, text: Callable[[float], str], wanted: int = 5) -> Axis:
    """From 0 to a round number at or above ``high``, with steps of 1, 2, 2.5 or 5 times a power of ten."""
    top = high if high > 0 else 1.0
    base = 10.0 ** math.floor(math.log10(top / wanted))
    step = next((base * m for m in (1, 2, 2.5, 5, 10) if base * m * wanted >= top * (1 - _EPS)), base * 10)
    count = max(1, math.ceil(top / step - _EPS))
    return Axis(0.0, step * count, False, tuple((step * i, text(step * i)) for i in range(count + 1)))


def log_axis(low: float, high: float, text: Callable[[float], str]) -> Axis:
    """Around ``low``..``high`` (both > 0), ticks at 1, or 1 and 3, or 1, 2 and 5 times powers of ten, by the range."""
    low, high = low / 1.3, high * 1.3
    decades = math.log10(high / low)
    steps: tuple[int, ...] = (1,) if decades > 2.6 else (1, 3) if decades > 1.6 else (1, 2, 5)
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    if decades > 7:
        powers = range(powers.start, powers.stop, math.ceil(decades / 6))
    values = [m * 10.0**p for p in powers for m in steps]
    return Axis(low, high, True, tuple((v, text(v)) for v in values if low * (1 - _EPS) <= v <= high * (1 + _EPS)))


def axis_for(values: Sequence[float], text: Callable[[float], str], log_from: float) -> Axis:
    """Logarithmic when the positive values span a factor of ``log_from`` or more, else linear from zero."""
    positive = [v for v in values if v > 0]
    if positive and len(positive) == len(values) and max(positive) / min(positive) >= log_from:
        return log_axis(min(positive), max(positive), text)
    return linear_axis(max(positive, default=1.0) * 1.06, text)


def plot(series: Sequence[Series], *, describe: str, x_title: str, y_text: Callable[[float], str]) -> str:
    """A line plot; an empty string when there is nothing to draw. Void marks never stretch the axes: they are put on the edge."""
    if not any(s.marks for s in series if not s.computed):
        return ""
    every = [m for s in series for m in s.marks]
    solid = [m for m in every if m.kind != "void"] or every
    heights = [v for m in solid for v in (m.y, m.low, m.high) if v is not None]
    x_axis = axis_for([m.x for m in every], short_count, 8)
    y_axis = axis_for(heights, y_text, 15)
    inner_w, inner_h = WIDTH - LEFT - RIGHT, HEIGHT - TOP - BOTTOM

    def px(value: float) -> float:
        return LEFT + x_axis.place(value) * inner_w

    def py(value: float) -> float:
        return TOP + (1 - y_axis.place(value)) * inner_h

    out = [f'<svg class="plot" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{esc(describe)}">']
    for value, text in y_axis.ticks:
        y = _n(py(value))
        out.append(f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y}" y2="{y}"/>')
        out.append(f'<text class="tick" x="{LEFT - 8}" y="{y}" dy="0.35em" text-anchor="end">{esc(text)}</text>')
    base = HEIGHT - BOTTOM
    out.append(f'<line class="axis" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{base}" y2="{base}"/>')
    last = -1e9
    for value, text in x_axis.ticks:
        x = px(value)
        out.append(f'<line class="axis" x1="{_n(x)}" x2="{_n(x)}" y1="{base}" y2="{base + 4}"/>')
        if x - last >= 44:
            out.append(f'<text class="tick" x="{_n(x)}" y="{base + 18}" text-anchor="middle">{esc(text)}</text>')
            last = x
    out.append(f'<text class="title" x="{LEFT + inner_w / 2:.0f}" y="{HEIGHT - 6}" text-anchor="middle">{esc(x_title)}</text>')
    return "".join([*out, *(_series(one, px, py) for one in series), "</svg>"])


def _series(series: Series, px: Callable[[float], float], py: Callable[[float], float]) -> str:
    marks = sorted(series.marks, key=lambda m: m.x)
    joined = [m for m in marks if m.kind in ("pass", "fail")]
    path = " ".join(f"{_n(px(m.x))},{_n(py(m.y))}" for m in joined)
    if series.computed and len(joined) > 1:
        return f'<polyline class="computed k{series.index}" points="{path}"/>'
    if series.computed:  # at one length only: a short dash
        return "".join(f'<path class="computed" d="M{_n(px(m.x) - 14)} {_n(py(m.y))}h28"/>' for m in joined)
    out = [f'<g class="k{series.index}">']
    taken: list[tuple[float, float]] = []
    if len(joined) > 1:
        out.append(f'<polyline class="line" points="{path}"/>')
    for mark in marks:
        x, y = px(mark.x), py(mark.y)
        out.append(f'<g class="mark {mark.kind}"><title>{esc(mark.title)}</title>')
        if mark.low is not None and mark.high is not None and mark.kind != "void":
            low, high = py(mark.low), py(mark.high)
            if low - high > 3:
                out.append(
                    f'<path class="whisker" d="M{_n(x)} {_n(low)}V{_n(high)}M{_n(x - 4)} {_n(low)}h8M{_n(x - 4)} {_n(high)}h8"/>'
                )
        out.append(shape(mark.kind, series.index, x, y))
        out.append("" if mark.kind == "void" else _label(mark, x, y, taken, mark is marks[-1]))
        out.append("</g>")
    return "".join([*out, "</g>"])


def _label(mark: Mark, x: float, y: float, taken: list[tuple[float, float]], last: bool) -> str:
    """The value beside a mark, unless it would cover another one. On a phone only the last one is shown (class ``opt``)."""
    if not mark.label or (not last and any(abs(x - tx) < 50 and abs(y - ty) < 15 for tx, ty in taken)):
        return ""
    taken.append((x, y))
    anchor, shift = ("start", 8) if x < LEFT + 34 else ("end", 9)
    kind = "value" if last else "value opt"
    lift = y - 10 if anchor == "end" else y + 4 if y < TOP + 20 else y - 11
    return f'<text class="{kind}" x="{_n(x + shift)}" y="{_n(lift)}" text-anchor="{anchor}">{esc(mark.label)}</text>'


def shape(kind: str, index: int, x: float, y: float, size: float = 4.6) -> str:
    """The mark itself: a form for each series, so that colour is not the only sign; INVALID is a hatched, crossed ring."""
    if kind == "void":
        r = size + 2
        d = r * 0.7
        return (
            f'<circle class="ring" cx="{_n(x)}" cy="{_n(y)}" r="{_n(r)}"/>'
            f'<path class="cross" d="M{_n(x - d)} {_n(y - d)}l{_n(2 * d)} {_n(2 * d)}m0 {_n(-2 * d)}l{_n(-2 * d)} {_n(2 * d)}"/>'
        )
    form = index % 4
    if form == 0:
        return f'<circle class="dot" cx="{_n(x)}" cy="{_n(y)}" r="{_n(size)}"/>'
    if form == 1:
        s = size * 0.9
        return f'<rect class="dot" x="{_n(x - s)}" y="{_n(y - s)}" width="{_n(2 * s)}" height="{_n(2 * s)}"/>'
    if form == 2:
        s = size * 1.2
        return f'<path class="dot" d="M{_n(x)} {_n(y - s)}l{_n(s)} {_n(1.8 * s)}h{_n(-2 * s)}z"/>'
    s = size * 1.25
    return f'<path class="dot" d="M{_n(x)} {_n(y - s)}l{_n(s)} {_n(s)}l{_n(-s)} {_n(s)}l{_n(-s)} {_n(-s)}z"/>'


def legend_mark(kind: str, index: int, computed: bool = False) -> str:
    """A small drawing for a legend."""
    if computed:
        body = f'<path class="computed k{index}" d="M1 8h26"/>'
    else:
        line = '<path class="line" d="M1 8h26"/>' if kind == "pass" else ""
        body = f'<g class="k{index}">{line}<g class="mark {kind}">{shape(kind, index, 14, 8)}</g></g>'
    return f'<svg class="key" viewBox="0 0 28 16" aria-hidden="true">{body}</svg>'


def heat_map(
    rows: Sequence[str],
    columns: Sequence[str],
    cells: Sequence[Sequence[tuple[int, int] | None]],
    describe: str,
    links: Sequence[Sequence[str | None]] = (),
) -> str:
    """Found of asked for each (row, column); the figure stands in the cell, the tint follows the share found.

    ``links``: for each cell the id of what it leads to, or ``None``.
    """
    left, top = 66, 6
    cell_h = max(32, min(60, 250 // max(len(rows), 1)))
    width = max(WIDTH, left + 40 * len(columns))
    cell_w = (width - left - 4) / max(len(columns), 1)
    height = top + cell_h * len(rows) + 44
    out = [f'<svg class="plot heat" viewBox="0 0 {width} {height}" role="img" aria-label="{esc(describe)}">']
    for r, name in enumerate(rows):
        y = top + r * cell_h
        out.append(f'<text class="tick" x="{left - 8}" y="{_n(y + cell_h / 2)}" dy="0.35em" text-anchor="end">{esc(name)}</text>')
        for c, column in enumerate(columns):
            cell = cells[r][c]
            x = left + c * cell_w
            box = f'x="{_n(x + 1)}" y="{_n(y + 1)}" width="{_n(cell_w - 2)}" height="{cell_h - 2}" rx="3"'
            if cell is None or cell[1] <= 0:
                out.append(f'<g><title>{esc(f"{name} tokens, depth {column}: not asked")}</title><rect class="none" {box}/></g>')
                continue
            share = min(1.0, max(0.0, cell[0] / cell[1]))
            tone = "hi" if share > 0.6 else "zero" if cell[0] == 0 else "lo"
            link = links[r][c] if links else None
            opened, closed = (f'<a href="#{esc(link)}">', "</a>") if link else ("<g>", "</g>")
            more = "; see the answer" if link else ""
            out.append(
                f"{opened}<title>{esc(f'{name} tokens, depth {column}: {cell[0]} of {cell[1]} found{more}')}</title>"
                f'<rect class="cell0" {box}/><rect class="cell" fill-opacity="{share * 0.92:.2f}" {box}/>'
                f'<text class="in {tone}" x="{_n(x + cell_w / 2)}" y="{_n(y + cell_h / 2)}" dy="0.35em" '
                f'text-anchor="middle">{cell[0]}/{cell[1]}</text>{closed}'
            )
    base = top + cell_h * len(rows)
    for c, column in enumerate(columns):
        x = left + (c + 0.5) * cell_w
        out.append(f'<text class="tick" x="{_n(x)}" y="{base + 17}" text-anchor="middle">{esc(column)}</text>')
    out.append(
        f'<text class="title" x="{_n((left + width) / 2)}" y="{base + 39}" text-anchor="middle">'
        "Depth of the planted fact in the prompt</text></svg>"
    )
    return "".join(out)


@dataclass(frozen=True)
class QueueRow:
    """Requests of one point: how many fit at once, how many wait, and what to print at the right."""

    name: str
    at_once: int
    queued: int
    known: bool
    text: str
    hint: str = ""
    void: bool = False


def queue_bars(rows: Sequence[QueueRow], describe: str) -> str:
    """One bar a point: requests that run at once, then those that wait (hatched)."""
    step = 52
    height = step * len(rows)
    most = max((r.at_once + r.queued for r in rows), default=1) or 1
    out = [f'<svg class="plot" viewBox="0 0 {WIDTH} {height}" role="img" aria-label="{esc(describe)}">']
    for i, row in enumerate(rows):
        y = i * step
        run_w = WIDTH * row.at_once / most
        wait_w = WIDTH * row.queued / most
        fits = f"{row.at_once:,} at once, {row.queued:,} queued" if row.known else f"{row.at_once:,} sent; room not known"
        struck = " struck" if row.void else ""
        out.append(f"<g><title>{esc(f'{row.name}: {fits}; {row.hint}')}</title>")
        name = f'<tspan class="strong">{esc(row.name)}</tspan><tspan class="muted" dx="8">{esc(fits)}</tspan>'
        out.append(f'<text x="0" y="{y + 16}">{name}</text>')
        out.append(f'<text class="muted{struck}" x="{WIDTH}" y="{y + 16}" text-anchor="end">{esc(row.text)}</text>')
        if row.at_once:
            kind = "runs" if row.known else "none"
            out.append(f'<rect class="{kind}" x="0" y="{y + 24}" width="{_n(max(run_w, 2))}" height="14" rx="2"/>')
        if row.queued:
            out.append(
                f'<rect class="waits" x="{_n(run_w + 1)}" y="{y + 24}" width="{_n(max(wait_w - 2, 2))}" height="14" rx="2"/>'
            )
        out.append("</g>")
    out.append("</svg>")
    return "".join(out)


def kv_curve(
    samples: Sequence[tuple[float, float]], describe: str, time_text: Callable[[float], str], top_share: float = 1.0
) -> str:
    """KV use (0..1) over seconds as a small filled curve up to ``top_share``; empty with fewer than two samples."""
    points = thin([(t, min(1.0, max(0.0, u / top_share))) for t, u in samples if t >= 0])
    if len(points) < 2:
        return ""
    width, height, left, right, top, bottom = 280, 130, 40, 12, 8, 24
    end = points[-1][0] or 1.0
    inner_w, inner_h = width - left - right, height - top - bottom
    path = " ".join(f"{_n(left + t / end * inner_w)},{_n(top + (1 - u) * inner_h)}" for t, u in points)
    base = top + inner_h
    first = _n(left + points[0][0] / end * inner_w)
    out = [f'<svg class="plot small" viewBox="0 0 {width} {height}" role="img" aria-label="{esc(describe)}">']
    for share in (0.0, 0.5, 1.0):
        y = _n(top + (1 - share) * inner_h)
        out.append(f'<line class="{"grid" if share else "axis"}" x1="{left}" x2="{width - right}" y1="{y}" y2="{y}"/>')
        tick = "tick opt" if share == 0.5 else "tick"
        text = f"{share * top_share * 100:.3g}%"
        out.append(f'<text class="{tick}" x="{left - 5}" y="{y}" dy="0.35em" text-anchor="end">{text}</text>')
    out.append(f'<polygon class="area k0" points="{first},{_n(base)} {path} {_n(left + inner_w)},{_n(base)}"/>')
    out.append(f'<polyline class="line k0" points="{path}"/>')
    out.append(f'<text class="tick" x="{left}" y="{height - 6}">0</text>')
    out.append(f'<text class="tick" x="{width - right}" y="{height - 6}" text-anchor="end">{esc(time_text(end))}</text></svg>')
    return "".join(out)


def thin(points: Sequence[tuple[float, float]], most: int = 160) -> list[tuple[float, float]]:
    """At most ``most`` points, in order of time, that keep each stretch's peak."""
    ordered = sorted(points)
    if len(ordered) <= most:
        return ordered
    size = math.ceil(len(ordered) / (most - 2))
    kept = [max(ordered[i : i + size], key=lambda p: p[1]) for i in range(0, len(ordered), size)]
    return sorted({ordered[0], *kept, ordered[-1]})


def deviation(value: float, limit: float) -> str:
    """A difference (0.02 = 2 %) as a dot left or right of a centre line; ``limit`` is the scale's end."""
    share = max(-1.0, min(1.0, value / limit)) if limit > 0 else 0.0
    x = 60 + share * 50
    return (
        '<svg class="dev" viewBox="0 0 120 18" aria-hidden="true"><line class="grid" x1="6" x2="114" y1="9" y2="9"/>'
        f'<line class="axis" x1="60" x2="60" y1="2" y2="16"/><line class="line k0" x1="60" x2="{_n(x)}" y1="9" y2="9"/>'
        f'<g class="k0"><g class="mark pass"><circle class="dot" cx="{_n(x)}" cy="9" r="4.5"/></g></g></svg>'
    )
