"""The report as Markdown (GitHub flavour): summary, every reason, points, needles, capacity. INVALID figures are struck."""

from __future__ import annotations

import re
from collections.abc import Sequence

from ..results import NeedleCell, PointResult, RunResult
from .capacity import capacity_rows
from .figures import all_reasons, cache_text, engine_name, p50, point_name, prefill_rate, stands, state, tally
from .wording import DASH, count, duration, finite, instant, one_line, percent, rate, seconds, times

_SPECIAL = re.compile(r"([\\`*_{}\[\]<>#|~&])")
_MOST_MISSED = 10


def escape(value: object) -> str:
    """Text that shows as itself in a Markdown table or paragraph: one line, no markup, no link, no HTML."""
    return _SPECIAL.sub(r"\\\1", one_line(value)).replace("://", ":&#47;&#47;")


def table(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool]) -> list[str]:
    """A Markdown table; cells are taken as they are."""
    lines = ["| " + " | ".join(header) + " |", "|" + "|".join("---:" if r else "---" for r in right) + "|"]
    return lines + ["| " + " | ".join(row) + " |" for row in rows]


def render_markdown(runs: Sequence[RunResult]) -> str:
    """One Markdown document for all runs; ends with a newline."""
    out = ["# Longhaul validation report", ""]
    if not runs:
        return "\n".join([*out, "No results.", ""])
    if len(runs) > 1:
        rows = []
        for r in runs:
            ended = ", ".join(f"{n} {word}" for word, n in tally(r.points)) or "no point"
            names = [escape(r.host), escape(engine_name(r)), escape(r.model)]
            rows.append([*names, f"**{r.verdict.value}**", ended, percent(r.needle_recall), instant(r.finished_unix_s)])
        right = [False, False, False, False, False, True, False]
        out += [*table(["Host", "Engine", "Model", "Verdict", "Points", "Needles found", "Finished"], rows, right), ""]
    for run in runs:
        out += _run(run)
    return "\n".join(out)


def _run(run: RunResult) -> list[str]:
    out = [f"## {escape(run.host)}: {run.verdict.value}", ""]
    out.append(
        f"{escape(engine_name(run))} serving {escape(run.model)} at {escape(run.url)}. Run `{_code(run.run_id)}`, "
        f"{instant(run.started_unix_s)}, {duration(run.finished_unix_s - run.started_unix_s)}."
    )
    out.append("")
    if run.settings.get("corpus_note"):
        out += [f"**Text:** {escape(run.settings['corpus_note'])}", ""]
    if run.mode == "warm":
        out += ["**Warm mode:** prompts were repeated on purpose. These times measure the prefix cache, not prefill.", ""]
    if not run.complete:
        out += ["**The run was cut short:** what follows is what had been measured by then.", ""]
    reasons = all_reasons(run)
    if reasons:
        out += ["### Reasons", ""]
        for point, reason in reasons:
            where = "run" if point is None else point_name(point)
            out.append(f"- **{reason.verdict.value}** ({where}): {escape(reason.text)} `{_code(reason.code)}`")
        out.append("")
    if run.burnin is not None:
        rows = [
            [escape(c.name), escape(c.found), escape(c.required), c.verdict.value if c.verdict else "not judged"]
            for c in run.burnin.checks
        ]
        out += ["### Burn-in", "", *table(["Check", "Found", "Required", "Verdict"], rows, [False] * 4), ""]
    out += _points(run)
    if run.needles:
        out += _needles(run.needles)
    if run.needle_recall is not None:
        out += [f"Needle recall: {percent(run.needle_recall)}.", ""]
    out += _missed(run)
    if run.needle_note:
        out += [f"Needles: {escape(run.needle_note)}", ""]
    figures = capacity_rows(run.capacity)
    if figures:
        rows = [[escape(r.label), escape(r.predicted), escape(r.engine), r.difference] for r in figures]
        header = ["Quantity", "Predicted", "Engine", "Difference"]
        out += ["### Prediction against measurement", "", *table(header, rows, [False, True, True, True]), ""]
    return out


def _missed(run: RunResult) -> list[str]:
    """The first answers that do not hold what was planted; all of them stand in the HTML report."""
    missed = [a for a in run.needle_answers if not a.told.found]
    out = [
        f"- {count(a.input_tokens)} tokens, depth {percent(a.told.depth)} ({escape(a.told.kind)}): expected "
        f"`{_code(a.told.expected)}`, got `{_code(one_line(a.told.answer)[:160])}`"
        for a in missed[:_MOST_MISSED]
    ]
    if len(missed) > len(out):
        out.append(f"- and {len(missed) - len(out)} more, in the HTML report")
    return ["Not found:", "", *out, ""] if out else []


def _code(value: object) -> str:
    return one_line(value).replace("`", "'").replace("|", "/") or DASH


def _points(run: RunResult) -> list[str]:
    header = ["Input tokens", "Output tokens", "Requests", "TTFT p50", "TTFT p99", "Prefill tok/s", "TPOT p50", "Floor"]
    header += ["TTFT / floor", "MFU", "Cache", "Done / failed / timed out", "Verdict"]
    rows = [_point(run, p) for p in run.points]
    if not rows:
        return ["No point was run.", ""]
    right = [True] * 10 + [False, True, False]
    out = ["### Points", "", *table(header, rows, right), ""]
    if any(not stands(run, p) for p in run.points):
        out += ["~~Struck~~ figures are INVALID: they are shown as evidence of the fault and are no result.", ""]
    return out


def _point(run: RunResult, point: PointResult) -> list[str]:
    physics = point.physics
    figures = [
        seconds(p50(point.ttft_s)),
        seconds(finite(point.ttft_s.p99) if point.ttft_s else None),
        rate(prefill_rate(run, point)),
        seconds(p50(point.tpot_s)),
        seconds(physics.floor_s if physics else None),
        times(physics.ratio if physics else None),
        percent(physics.mfu if physics else None),
    ]
    if not stands(run, point):
        # The floor is computed, not measured: it stands.
        figures = [f if f == DASH or i == 4 else f"~~{f}~~" for i, f in enumerate(figures)]
    done = f"{point.completed} / {point.failed} / {point.timed_out}" if point.ran else DASH
    sizes = [count(point.input_tokens), count(point.output_tokens), count(point.concurrency)]
    return [*sizes, *figures, escape(cache_text(point)), done, state(point)]


def _needles(cells: Sequence[NeedleCell]) -> list[str]:
    out: list[str] = []
    for kind in dict.fromkeys(c.kind for c in cells):
        mine = [c for c in cells if c.kind == kind]
        depths = sorted({c.depth for c in mine})
        found = {(c.input_tokens, c.depth): c for c in mine}
        rows = []
        for length in sorted({c.input_tokens for c in mine}):
            row = [count(length)]
            for depth in depths:
                cell = found.get((length, depth))
                row.append(f"{cell.found} / {cell.asked}" if cell else DASH)
            rows.append(row)
        out += [f"### Needles found: {escape(kind)}", ""]
        header = ["Input tokens \\ depth", *[percent(d) for d in depths]]
        out += [*table(header, rows, [True] * (len(depths) + 1)), ""]
    return out
