"""The report's plots: each takes a run and returns a figure with its title and a sentence on how to read it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from ..results import PointResult, RunResult, Stats, Verdict
from . import svg
from .figures import p50, point_name, stands, state
from .needle_map import needles_section
from .page import figure
from .svg import Mark, Series, esc
from .wording import TIMES, duration, finite, percent, plottable, rate, seconds, short_count, with_unit

Pick = Callable[[PointResult], Stats | None]
Text = Callable[[object], str]
AxisText = Callable[[float], str]


def overlay(runs: Sequence[RunResult], names: Sequence[str]) -> str:
    """Two figures, TTFT and prefill rate against input length, with one line for each of the first six runs that have one."""
    ttft = _overlay(runs, names, "TTFT", lambda p: p.ttft_s, seconds, _axis_seconds, "median")
    speed = _overlay(runs, names, "Prefill rate", lambda p: p.prefill_tokens_per_s, rate, _axis_rate, "tokens/s, median")
    return ttft + speed


def _overlay(
    runs: Sequence[RunResult], names: Sequence[str], name: str, pick: Pick, text: Text, axis: AxisText, note: str
) -> str:
    """One figure of every host against input length, cold runs only, points that PASSed or FAILed; six hosts at most."""
    series: list[Series] = []
    for run, who in zip(runs, names, strict=True):
        measured = _marks(run, [p for p in _lowest(run) if p.concurrency == 1], pick, text, name)
        joined = [m for m in measured if m.kind in ("pass", "fail")]
        marks = tuple(Mark(m.x, m.y, None, None, m.kind, f"{who}: {m.title}") for m in joined)
        if marks and run.mode == "cold" and len(series) < 6:
            series.append(Series(who, marks, len(series)))
    if len(series) < 2:
        return ""
    if len(runs) > len(series):
        note += f", {len(series)} of {len(runs)} endpoints"
    drawing = svg.plot(series, describe=f"{name} against input length, side by side", x_title="Input tokens", y_text=axis)
    return figure(f"{name}, side by side", f"{note}, one request at a time", drawing, series)


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
    run: RunResult, points: Sequence[PointResult], pick: Pick, text: Text, name: str, attribute: str = "p50", labels: bool = False
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


@dataclass(frozen=True)
class View:
    """What the plots of one run share. ``points`` are those at the lowest concurrency, ``by_output`` the same by output length.

    ``place``: number of the run in its report, for links. ``load`` and ``spread`` say in words how the points were measured.
    """

    run: RunResult
    place: int
    points: Sequence[PointResult]
    by_output: Mapping[int, Sequence[PointResult]]
    load: str
    spread: str

    @property
    def alone(self) -> bool:
        """Whether the points had one request in flight."""
        return not self.points or self.points[0].concurrency == 1


def _view(run: RunResult, place: int) -> View:
    points = _lowest(run)
    least = points[0].concurrency if points else 1
    load = "one request at a time" if least == 1 else f"{least} requests at once"
    by_output = _by_output(points)
    whiskers = any(m.low is not None for s in _series(run, by_output, lambda p: p.ttft_s, seconds, "TTFT") for m in s.marks)
    return View(run, place, points, by_output, load, "median, whiskers from min to max" if whiskers else "median")


def plots_of(run: RunResult, place: int) -> str:
    """All plots of a run in a grid of two columns; empty where nothing can be drawn."""
    view = _view(run, place)
    drawn = [d for plot in PLOTS for d in plot(view) if d]
    if len(drawn) % 2:
        # An odd card out would leave a hole beside it.
        drawn.append(_kv(run, wide=False) or drawn.pop().replace('class="card"', 'class="card lone"', 1))
    else:
        drawn.append(_kv(run, wide=True))
    return f'<div class="grid2">{"".join(drawn)}</div>' if any(drawn) else ""


def _ttft(view: View) -> list[str]:
    series = _series(view.run, view.by_output, lambda p: p.ttft_s, seconds, "TTFT")
    if view.run.mode == "cold":
        floor = _computed(view.points, lambda p: p.physics.floor_s if p.physics else None)
        series.append(Series("Floor: least time if cold", floor, 9, True))
    return [_by_length("TTFT", f"{view.load}; {view.spread}", series, _axis_seconds)]


def _prefill_rate(view: View) -> list[str]:
    if view.run.mode != "cold" or not view.alone:
        return []
    series = _series(view.run, view.by_output, lambda p: p.prefill_tokens_per_s, _tokens_per_s, "prefill", labels=False)
    series.append(Series("Ceiling: input tokens / floor", _computed(view.points, _ceiling), 9, True))
    return [_by_length("Prefill rate", f"tokens/s, {view.load}; {view.spread}", series, _axis_rate)]


def _decode_latency(view: View) -> list[str]:
    single = len(view.by_output) == 1
    series = _series(view.run, view.by_output, lambda p: p.tpot_s, seconds, "TPOT", labels=False)
    series = [Series("TPOT, median" if single else f"TPOT, {s.name}", s.marks, s.index) for s in series]
    if single:
        tail = _marks(view.run, view.points, lambda p: p.itl_s, seconds, "ITL", attribute="p99")
        series.append(Series("ITL, p99", tail, 1))
    floor = _computed(view.points, lambda p: p.physics.decode_floor_s if p.physics else None)
    series.append(Series("Decode floor", floor, 9, True))
    return [_by_length("Decode latency", f"time per output token, {view.load}", series, _axis_seconds)]


def _by_length(name: str, note: str, series: Sequence[Series], axis: AxisText) -> str:
    title = f"{name} against input length"
    return figure(title, note, svg.plot(series, describe=title, x_title="Input tokens", y_text=axis), series)


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
    run: RunResult, by_output: Mapping[int, Sequence[PointResult]], pick: Pick, text: Text, name: str, labels: bool = True
) -> list[Series]:
    show = labels and len(by_output) == 1 and sum(len(v) for v in by_output.values()) <= 8
    marks = {output: _marks(run, points, pick, text, name, labels=show) for output, points in by_output.items()}
    names = ["Measured"] if len(marks) == 1 else [f"{output:,} output tokens" for output in marks]
    return [Series(title, found, place) for place, (title, found) in enumerate(zip(names, marks.values(), strict=True))]


def _queueing(view: View) -> list[str]:
    run, rows = view.run, []
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
        return []
    shown = rows[:12]
    legend = _swatch("runs", "fit in the KV cache at once") if any(r.known for r in shown) else ""
    legend += _swatch("waits", "wait in the queue") if any(r.queued for r in shown) else ""
    note = f"input tokens {TIMES} requests sent together"
    if len(rows) > len(shown):
        note += f"; {len(rows) - len(shown)} more in the table"
    drawing = svg.queue_bars(shown, "Requests at once and queued")
    return [figure("Concurrency and queueing", note, drawing, legend=legend)]


def _swatch(kind: str, text: str) -> str:
    return f'<span><svg class="swatch" aria-hidden="true"><rect class="{kind}" width="14" height="12"/></svg>{text}</span>'


def _ttft_by_concurrency(view: View) -> list[str]:
    """TTFT against concurrency, for the lengths that were run at two or more of them."""
    run = view.run
    lengths: dict[int, list[PointResult]] = {}
    for point in run.points:
        if point.ran and point.concurrency > 0:
            lengths.setdefault(point.input_tokens, []).append(point)
    chosen = [(n, ps) for n, ps in sorted(lengths.items()) if len({p.concurrency for p in ps}) > 1][:5]
    series: list[Series] = []
    for place, (tokens, points) in enumerate(chosen):
        pairs = ((m, p) for p in points for m in _marks(run, [p], lambda q: q.ttft_s, seconds, "TTFT"))
        marks = [Mark(float(p.concurrency), m.y, None, None, m.kind, m.title) for m, p in pairs]
        if len({m.x for m in marks if m.kind in ("pass", "fail")}) > 1:
            series.append(Series(f"{short_count(tokens)} input tokens", tuple(marks), place))
    drawing = svg.plot(series, describe="TTFT against concurrency", x_title="Requests at once", y_text=_axis_seconds)
    names = ", ".join(s.name for s in series) if len(series) == 1 else "by input length"
    return [figure("TTFT against concurrency", f"median, {names}", drawing, series)]


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
    return figure("KV cache use over time", note, f'<div class="small4">{"".join(cards)}</div>', wide=wide)


def _needles(view: View) -> list[str]:
    return needles_section(view.run, view.place)


# In the order of the report. A new plot is one function that takes the view and returns figures, and its name here.
PLOTS: tuple[Callable[[View], list[str]], ...] = (
    _ttft, _prefill_rate, _decode_latency, _needles, _queueing, _ttft_by_concurrency,
)  # fmt: skip
