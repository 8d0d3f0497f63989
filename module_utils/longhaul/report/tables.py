"""The plain-text table that a playbook ends with: at most 100 columns, one row for each point, the reasons below it."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from ..results import RunResult
from .figures import (
    all_reasons,
    cache_text,
    engine_name,
    p50,
    prefill_rate,
    run_only_reasons,
    stands,
    state,
    tally,
    unique_reasons,
)
from .wording import DASH, WITHHELD, duration, one_line, percent, rate, seconds

WIDTH = 100
_GAP = "  "


def align(header: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[bool], widths: Sequence[int]) -> list[str]:
    """Lines of a table: cells cut to ``widths`` with an ellipsis, numbers to the right, no white space at line ends."""
    lines = []
    for row in [header, *rows]:
        cells = [_cut(c, w).rjust(w) if r else _cut(c, w).ljust(w) for c, w, r in zip(row, widths, right, strict=True)]
        lines.append(_GAP.join(cells).rstrip())
    return lines


def _cut(text: str, width: int) -> str:
    return text if len(text) <= width else text[: max(width - 1, 0)] + "\N{HORIZONTAL ELLIPSIS}"


def fit(header: Sequence[str], rows: Sequence[Sequence[str]], shrink: Sequence[int]) -> list[int]:
    """Column widths that keep the table within 100 characters: columns named in ``shrink`` give way first, the widest
    of them first, down to 6 characters; then the widest of all."""
    widths = [max(len(r[i]) for r in [header, *rows]) for i in range(len(header))]
    while sum(widths) + len(_GAP) * (len(widths) - 1) > WIDTH:
        widest = max(shrink, key=lambda i: widths[i])
        if widths[widest] <= 6:
            widest = max(range(len(widths)), key=lambda i: widths[i])
        widths[widest] -= 1
    return widths


def summary_table(runs: Sequence[RunResult]) -> str:
    """All points of all hosts as plain text, at most 100 columns wide; ends without a newline.

    Figures of an INVALID point are withheld (``void``): a table that is copied into a message must not carry them.
    """
    if not runs:
        return "No results."
    header = ["HOST", "ENGINE", "TOKENS IN+OUT", "REQ", "TTFT p50", "PREFILL tok/s", "TPOT", "CACHE", "VERDICT"]
    right = [False, False, True, True, True, True, True, False, False]
    rows: list[list[str]] = []
    notes: list[list[str]] = []
    for run in runs:
        head = [one_line(run.host), engine_name(run)]
        if not run.points:
            rows.append([*head, *[DASH] * 6, run.verdict.value])
            notes.append([])
        for point in run.points:
            figures = [seconds(p50(point.ttft_s)), rate(prefill_rate(run, point)), seconds(p50(point.tpot_s))]
            if not stands(run, point):
                figures = [DASH if f == DASH else WITHHELD for f in figures]
            sizes = [f"{point.input_tokens:,}+{point.output_tokens:,}", f"{point.concurrency:,}"]
            rows.append([*head, *sizes, *figures, cache_text(point), state(point)])
            notes.append([f"{r.verdict.value}: {one_line(r.text)}" for r in unique_reasons(point.reasons)])
        notes[-1] = notes[-1] + [f"run {r.verdict.value}: {one_line(r.text)}" for r in run_only_reasons(run)]
    lines = align(header, rows, right, fit(header, rows, shrink=(0, 1)))
    out = [lines[0], "-" * max(len(line) for line in lines)]
    for line, texts in zip(lines[1:], notes, strict=True):
        out.append(line)
        for text in texts:
            out += textwrap.wrap(text, WIDTH, initial_indent="    > ", subsequent_indent="      ", break_on_hyphens=False)
    out.append("")
    for run in runs:
        out += textwrap.wrap(_closing(run), WIDTH, subsequent_indent="  ", break_on_hyphens=False)
    if any(not stands(run, p) for run in runs for p in run.points):
        out.append(f'"{WITHHELD}": measured, but INVALID; no result.')
    return "\n".join(out)


def _closing(run: RunResult) -> str:
    parts = [f"{one_line(run.host)}: {run.verdict.value}"]
    if run.mode == "warm":
        parts.append("WARM mode, times measure the prefix cache")
    parts.append(", ".join(f"{n} {word.lower()}" for word, n in tally(run.points)) or "no point")
    if run.needle_recall is not None:
        parts.append(f"needles {percent(run.needle_recall)} found")
    elif run.needle_note:
        parts.append(f"needles: {one_line(run.needle_note)}")
    if not run.complete:
        parts.append("the run was cut short")
    parts.append(duration(run.finished_unix_s - run.started_unix_s))
    reasons = len(all_reasons(run))
    if reasons:
        parts.append(f"{reasons} reason{'s' if reasons > 1 else ''} above")
    return " | ".join(parts)
