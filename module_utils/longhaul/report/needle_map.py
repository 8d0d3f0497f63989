"""Which needles were found at which depth and length, and what was asked and answered."""

from __future__ import annotations

from ..results import NeedleAnswer, RunResult, Verdict
from . import svg
from .page import figure, icon, verdict_class
from .svg import esc
from .wording import DASH, finite, one_line, percent, short_count

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


def needles_section(run: RunResult, place: int) -> list[str]:
    """One map for each kind of needle: rows are input lengths, columns depths."""
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
        out.append(figure(f"Needle recall: {one_line(kind)}", note, drawing if lengths else ""))
    return out


def answers_section(run: RunResult, place: int) -> str:
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
