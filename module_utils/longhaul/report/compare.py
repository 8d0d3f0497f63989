"""Two runs, or two engines, side by side: which differences exceed noise.

A is the baseline, B is judged against it. What exceeds noise is decided in :mod:`..stats`, by the rule that ``--baseline`` of a
validation uses too.

A point whose figures are INVALID on either side is not compared, nor is a cold run with a warm one. INCONCLUSIVE figures are
shown but not judged.
"""

from __future__ import annotations

import math
import textwrap
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from ..results import PointResult, RunResult, Stats, Verdict
from ..stats import difference
from .figures import (
    DASH,
    TIMES,
    clean,
    engine_name,
    finite,
    flatten,
    instant,
    one_line,
    p50,
    percent,
    point_name,
    rate,
    seconds,
    stands,
    state,
    with_unit,
)
from .markdown import escape
from .markdown import table as markdown_table
from .page import Cell, Column, chip, number, page, table, words
from .plots import overlay
from .svg import esc
from .tables import align, fit


@dataclass(frozen=True)
class Change:
    """One figure on both sides. ``ratio`` >= 1 says how many times; ``direction``: ``faster``, ``slower`` or ``same`` (of B).

    ``noise`` is relative to A's median (0.03 = 3 %); ``beyond`` None: not judged, ``note`` says why.
    """

    metric: str
    a: float | None
    b: float | None
    ratio: float | None
    direction: str
    noise: float | None
    beyond: bool | None
    note: str = ""
    is_rate: bool = False

    @property
    def regression(self) -> bool:
        """B is slower beyond noise."""
        return self.beyond is True and self.direction == "slower"


@dataclass(frozen=True)
class PointComparison:
    """A point of either run. ``refused`` says why its figures are not compared (None: they are)."""

    input_tokens: int
    output_tokens: int
    concurrency: int
    a: PointResult | None
    b: PointResult | None
    changes: tuple[Change, ...] = ()
    refused: str | None = None

    @property
    def told(self) -> tuple[Change, ...]:
        """The changes to count and to name: at one request at a time the prefill rate is TTFT said again."""
        return tuple(c for c in self.changes if not c.is_rate)

    @property
    def lost(self) -> bool:
        """The point PASSed in A, was run in B and did not PASS there."""
        return (
            self.a is not None
            and self.b is not None
            and self.a.ran
            and self.b.ran
            and self.a.verdict is Verdict.PASS
            and self.b.verdict is not Verdict.PASS
        )


@dataclass(frozen=True)
class Comparison:
    """Run B against run A. ``differences``: (name, A's value, B's value) of everything else that is not the same."""

    a: RunResult
    b: RunResult
    points: tuple[PointComparison, ...]
    differences: tuple[tuple[str, str, str], ...] = ()
    recall: Change | None = None

    @property
    def compared(self) -> int:
        """How many points had figures to compare."""
        return sum(1 for p in self.points if p.refused is None)

    @property
    def regressions(self) -> tuple[str, ...]:
        """Every regression beyond noise, and every PASS that was lost, as a sentence."""
        out = []
        for point in self.points:
            name = point_name(point.b) if point.b else ""
            if point.lost and point.b is not None:
                out.append(f"{name}: PASS became {point.b.verdict.value}")
            out += [f"{name}: {c.metric} {change_text(c)}" for c in point.told if c.regression]
        if self.recall is not None and self.recall.regression:
            out.append(f"needle recall fell from {percent(self.recall.a)} to {percent(self.recall.b)}")
        return tuple(out)

    @property
    def improvements(self) -> tuple[str, ...]:
        """Every figure that is faster beyond noise, as a sentence."""
        better = [(p, c) for p in self.points for c in p.told if c.beyond and c.direction == "faster"]
        return tuple(f"{point_name(p.b)}: {c.metric} {change_text(c)}" for p, c in better if p.b is not None)


def _change(metric: str, a: Stats | None, b: Stats | None, concurrency: int, *, is_rate: bool, unproven: bool) -> Change | None:
    first, second = p50(a), p50(b)
    if a is None or b is None or first is None or second is None:
        return None
    ratio, direction = _direction(first, second, is_rate)
    apart = difference(a, b, concurrency)
    if unproven or apart is None:
        note = "INCONCLUSIVE: not judged" if unproven else "not judged: no noise known"
        return Change(metric, first, second, ratio, direction, apart.noise if apart else None, None, note, is_rate)
    return Change(metric, first, second, ratio, direction, apart.noise, apart.beyond, apart.note, is_rate)


def _direction(a: float, b: float, is_rate: bool) -> tuple[float | None, str]:
    if a == b:
        return 1.0, "same"
    if a <= 0 or b <= 0:
        return None, "faster" if (b > a) == is_rate else "slower"
    ratio = max(a, b) / min(a, b)
    return ratio, "faster" if (b > a) == is_rate else "slower"


def compare_runs(a: RunResult, b: RunResult) -> Comparison:
    """Compare two runs by point (input tokens, output tokens, concurrency). B is judged against A."""
    rest = list(b.points)
    points = []
    for left in a.points:
        right = next((p for p in rest if _key(p) == _key(left)), None)
        if right is not None:
            rest.remove(right)
        points.append(_point(a, b, left, right))
    points += [_point(a, b, None, right) for right in rest]
    return Comparison(a, b, tuple(points), _differences(a, b), _recall(a, b))


def _key(point: PointResult) -> tuple[int, int, int]:
    return point.input_tokens, point.output_tokens, point.concurrency


def _point(a: RunResult, b: RunResult, left: PointResult | None, right: PointResult | None) -> PointComparison:
    present = left or right
    if present is None:  # pragma: no cover - callers pass at least one
        raise ValueError("a point of either run is needed")
    refused = _refusal(a, b, left, right)
    changes: tuple[Change, ...] = ()
    if refused is None and left is not None and right is not None:
        unproven = Verdict.INCONCLUSIVE in (left.verdict, right.verdict)
        wanted: list[tuple[str, Stats | None, Stats | None, bool]] = [("TTFT p50", left.ttft_s, right.ttft_s, False)]
        if left.concurrency == 1 and a.mode == "cold":
            wanted.append(("Prefill rate", left.prefill_tokens_per_s, right.prefill_tokens_per_s, True))
        wanted += [("TPOT p50", left.tpot_s, right.tpot_s, False), ("E2E p50", left.e2e_s, right.e2e_s, False)]
        made = [_change(name, x, y, left.concurrency, is_rate=r, unproven=unproven) for name, x, y, r in wanted]
        changes = tuple(c for c in made if c is not None)
        if not changes:
            refused = "no figures on both sides"
    return PointComparison(*_key(present), left, right, changes, refused)


def _refusal(a: RunResult, b: RunResult, left: PointResult | None, right: PointResult | None) -> str | None:
    if left is None or right is None:
        return f"only in {'B' if left is None else 'A'}"
    if a.mode != b.mode:
        return f"A is {one_line(a.mode)}, B is {one_line(b.mode)}: not the same measurement"
    for name, run, point in (("A", a, left), ("B", b, right)):
        if not point.ran:
            return f"not run in {name}"
        if not stands(run, point):
            texts = [one_line(r.text) for r in point.reasons if r.verdict is Verdict.INVALID]
            return f"INVALID in {name}" + (f": {texts[0]}" if texts else "")
    return None


def _recall(a: RunResult, b: RunResult) -> Change | None:
    """Needle recall of both; beyond noise when the difference exceeds 1.96 standard errors of two shares (pooled)."""
    first, second = finite(a.needle_recall), finite(b.needle_recall)
    if first is None or second is None or Verdict.INVALID in (a.verdict, b.verdict):
        return None
    asked = [sum(c.asked for c in run.needles) for run in (a, b)]
    direction = "same" if first == second else "faster" if second > first else "slower"
    if min(asked) < 1:
        return Change("Needle recall", first, second, None, direction, None, None, "number of needles not known", True)
    pooled = (first * asked[0] + second * asked[1]) / sum(asked)
    noise = 1.96 * math.sqrt(max(0.0, pooled * (1 - pooled)) * (1 / asked[0] + 1 / asked[1]))
    return Change("Needle recall", first, second, None, direction, noise, abs(first - second) > noise, "", True)


def _differences(a: RunResult, b: RunResult) -> tuple[tuple[str, str, str], ...]:
    pairs: list[tuple[str, Any, Any]] = [
        ("host", a.host, b.host),
        ("engine", engine_name(a), engine_name(b)),
        ("model", a.model, b.model),
    ]
    pairs += [("mode", a.mode, b.mode)]
    for left, right in ((a.settings, b.settings), (a.environment, b.environment)):
        first, second = dict(flatten(left)), dict(flatten(right))
        pairs += [(k, first.get(k), second.get(k)) for k in dict.fromkeys([*first, *second])]
    if a.capacity and b.capacity:
        left, right = a.capacity.engine, b.capacity.engine
        pairs += [(f"engine's {k}", left.get(k), right.get(k)) for k in dict.fromkeys([*left, *right])]
    return tuple((one_line(k), _value(x), _value(y)) for k, x, y in pairs if x != y)


def _value(value: object) -> str:
    if isinstance(value, float) and finite(value) is None:
        return DASH
    return one_line(value)


def pair_runs(a: Sequence[RunResult], b: Sequence[RunResult]) -> tuple[list[tuple[RunResult, RunResult]], list[str]]:
    """Runs to compare, by host name (one run on each side: those two), and the hosts that have no partner.

    Raises UserError when there is no pair.
    """
    if len(a) == 1 and len(b) == 1:
        return [(a[0], b[0])], []
    other = {run.host: run for run in b}
    pairs = [(run, other[run.host]) for run in a if run.host in other]
    paired = {run.host for run, _ in pairs}
    if not pairs:
        raise UserError(
            f"hosts {_names(a)} on one side, {_names(b)} on the other",
            "a host with the same name in both",
            "name the two <host>.json files instead of the directories",
        )
    return pairs, sorted({run.host for run in [*a, *b]} - paired)


def _names(runs: Sequence[RunResult]) -> str:
    return ", ".join(one_line(r.host) for r in runs)


# --- words ---------------------------------------------------------------------------------------------------------------


def change_text(change: Change) -> str:
    """``1.16x slower``, ``same``."""
    if change.direction == "same":
        return "same"
    if change.ratio is None:
        return change.direction
    ratio = f"{change.ratio:.3f}" if change.ratio < 1.1 else f"{change.ratio:.2f}" if change.ratio < 10 else f"{change.ratio:.1f}"
    return f"{ratio}{TIMES} {change.direction}"


def judgement(change: Change) -> str:
    """``beyond noise``, ``within noise``, or why it is not judged."""
    if change.beyond is None:
        return change.note
    return "beyond noise" if change.beyond else "within noise"


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


def _cells(point: PointComparison) -> tuple[str, str]:
    return f"{point.input_tokens:,}+{point.output_tokens:,}", f"{point.concurrency:,}"


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
            size, load = _cells(point)
            for i, c in enumerate(point.changes):
                head = [size, load] if i == 0 else ["", ""]
                rows.append([*head, c.metric, _amount(c, c.a), _amount(c, c.b), change_text(c), _noise(c), judgement(c)])
                notes.append("")
            if point.refused is not None:
                rows.append([size, load, "not compared", DASH, DASH, "", "", ""])
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
            sizes = [f"{point.input_tokens:,}", f"{point.output_tokens:,}", f"{point.concurrency:,}"]
            for change in point.changes:
                figures = [_amount(change, change.a), _amount(change, change.b), change_text(change), _noise(change)]
                verdict = f"**{judgement(change)}**" if change.beyond else escape(judgement(change))
                rows.append([*sizes, change.metric, *figures, verdict])
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
    sizes = [number(f"{n:,}", float(n)) for n in (point.input_tokens, point.output_tokens, point.concurrency)]
    rows = []
    for c in point.changes:
        kind = ("better" if c.direction == "faster" else "worse") if c.beyond else "muted"
        signed = None if c.ratio is None else c.ratio if c.direction == "faster" else -c.ratio if c.direction == "slower" else 0.0
        rows.append(
            [
                *sizes,
                words(c.metric),
                number(_amount(c, c.a), c.a),
                number(_amount(c, c.b), c.b),
                Cell(f'<span class="{kind}">{esc(change_text(c))}</span>', signed),
                number(_noise(c), c.noise),
                Cell(f'<span class="{kind}">{esc(judgement(c))}</span>'),
            ]
        )
    if point.refused is not None:
        sides = [chip(state(p)) if p is not None else DASH for p in (point.a, point.b)]
        refused = Cell(f'<span class="muted">{esc(clean(point.refused))}</span>', long=True)
        rows.append(
            [*sizes, words("not compared"), *[Cell(s, None, True) for s in sides], words(DASH), number(DASH, None), refused]
        )
    return rows


Renderer = Callable[[Sequence[Comparison]], str]
RENDERERS: dict[str, Renderer] = {"text": render_compare_text, "markdown": render_compare_markdown, "html": render_compare_html}
