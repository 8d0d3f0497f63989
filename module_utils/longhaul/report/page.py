"""The shell of every HTML page: style sheet, sorting script, icons, and tables. One file, nothing fetched.

Only the controller renders pages: Ansible would ship this module to a host without the files beside it.
"""

from __future__ import annotations

import string
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from .svg import Series, esc, legend_mark
from .wording import DASH, finite

# page.js sorts on data-v (a number) where a cell has one, else on its text; empty values stay last in both directions.
_CSS, _JS, _HTML = (Path(__file__).with_name(f"page.{kind}").read_text(encoding="utf-8") for kind in ("css", "js", "html"))
_PAGE = string.Template(_HTML)

_ICONS = {
    "PASS": '<path d="M7.2 12.6l3.2 3.2 6.6-7.2"/>',
    "FAIL": '<path d="M8.2 8.2l7.6 7.6M15.8 8.2l-7.6 7.6"/>',
    "INVALID": '<path d="M5.8 18.2L18.2 5.8"/>',
    "INCONCLUSIVE": '<path d="M9.4 9.6a2.7 2.7 0 1 1 3.9 2.5c-.9.4-1.3 1-1.3 1.9M12 17.2v.2"/>',
    "NOT RUN": '<path d="M8 12h8"/>',
}


def icon(word: str) -> str:
    """The sign of a verdict; the word always stands beside it."""
    body = _ICONS.get(word, "")
    return (
        '<svg viewBox="0 0 24 24" aria-hidden="true" fill="none" stroke="currentColor" stroke-width="2.2" '
        f'stroke-linecap="round" stroke-linejoin="round"><circle cx="12" cy="12" r="9.6"/>{body}</svg>'
    )


def verdict_class(word: str) -> str:
    """The CSS class that sets a verdict's colours."""
    return "v-" + word.replace(" ", "")


def chip(word: str) -> str:
    """A verdict as a small label."""
    return f'<span class="chip {verdict_class(word)}">{icon(word)}{esc(word)}</span>'


@dataclass(frozen=True)
class Cell:
    """One table cell: safe HTML, and the number it sorts by (``sort`` None with ``number`` True: sorts last)."""

    html: str
    sort: float | None = None
    number: bool = False
    long: bool = False


def number(text: str, value: float | None, struck: bool = False) -> Cell:
    """A right-aligned figure; ``struck``: measured but INVALID, shown struck and hatched, and not sortable as a number."""
    if struck and text != DASH:
        return Cell(f'<s title="INVALID: no result">{esc(text)}</s>', None, True)
    return Cell(esc(text), value, True)


def amount(text: Callable[[object], str], value: object, struck: bool = False) -> Cell:
    """:func:`number` of a value that ``text`` writes."""
    return number(text(value), finite(value), struck)


def words(text: object, long: bool = False) -> Cell:
    """A left-aligned text; ``long``: it may take several lines."""
    return Cell(esc(text), long=long)


@dataclass(frozen=True)
class Column:
    """A column: its title, and the unit or meaning shown when the pointer rests on it."""

    title: str
    number: bool = False
    hint: str = ""


def table(columns: Sequence[Column], rows: Sequence[Sequence[Cell]], label: str) -> str:
    """A sortable table in a box that scrolls sideways on a narrow screen."""
    out = [f'<div class="scroll"><table class="sortable sticky" aria-label="{esc(label)}"><thead><tr>']
    for column in columns:
        kind = ' class="num"' if column.number else ""
        hint = f' title="{esc(column.hint)}"' if column.hint else ""
        out.append(f'<th scope="col"{kind}{hint}><button type="button">{esc(column.title)}</button></th>')
    out.append("</tr></thead><tbody>")
    for row in rows:
        out.append("<tr>")
        for cell in row:
            value = f' data-v="{"" if cell.sort is None else repr(cell.sort)}"' if cell.number or cell.sort is not None else ""
            kind = ' class="num"' if cell.number else ' class="t"' if cell.long else ""
            out.append(f"<td{kind}{value}>{cell.html}</td>")
        out.append("</tr>")
    out.append("</tbody></table></div>")
    return "".join(out)


TitledCell = tuple[Column, Cell]


def titled_table(rows: Sequence[Sequence[TitledCell]], label: str) -> str:
    """:func:`table` of at least one row, whose cells come with their columns."""
    return table([column for column, _ in rows[0]], [[cell for _, cell in row] for row in rows], label)


def facts(pairs: Sequence[tuple[str, str]]) -> str:
    """Names and values, in as many columns as the width allows; long values come last and take a line of their own."""
    ordered = sorted(pairs, key=lambda pair: len(pair[1]) > 40)
    inner = ""
    for name, value in ordered:
        kind = ' class="long"' if len(value) > 40 else ""
        inner += f"<div{kind}><dt>{esc(name)}</dt><dd>{esc(value)}</dd></div>"
    return f'<dl class="kv">{inner}</dl>'


def page(title: str, body: str) -> str:
    """A whole document. Its content security policy forbids every fetch; it is also well-formed XML."""
    return _PAGE.substitute(title=esc(title), body=body, css=_CSS, js=_JS)


def figure(title: str, note: str, drawing: str, series: Sequence[Series] = (), *, wide: bool = False, legend: str = "") -> str:
    """A drawing with its title, a sentence on how to read it, and the legend of its series; nothing where there is no drawing."""
    if not drawing:
        return ""
    keys = legend
    kinds = {m.kind for s in series if not s.computed for m in s.marks}
    for one in series:
        if one.marks and (len([s for s in series if s.marks]) > 1):
            keys += f"<span>{legend_mark('pass', one.index, one.computed)}{esc(one.name)}</span>"
    names = {"fail": "FAIL", "unsure": "INCONCLUSIVE: not proven", "void": "INVALID: no result"}
    for kind, name in names.items():
        if kind in kinds:
            keys += f"<span>{legend_mark(kind, 0)}{esc(name)}</span>"
    keys = f'<div class="legend">{keys}</div>' if keys else ""
    kind = "card wide" if wide else "card"
    caption = f'<figcaption><h3>{esc(title)}</h3><p class="sub">{esc(note)}</p></figcaption>'
    return f'<figure class="{kind}">{caption}{keys}{drawing}</figure>'
