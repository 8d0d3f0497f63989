"""The report as one self-contained HTML file: verdict and every reason first, then plots, tables, evidence."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence

from ..results import SEVERITY, Reason, RunResult, Verdict
from .figures import all_reasons, engine_name, headline_point, p50, point_name, prefill_rate, tally
from .needle_map import answers_section
from .page import Cell, Column, TitledCell, amount, chip, icon, number, page, titled_table, verdict_class, words
from .plots import overlay, plots_of
from .sections import burnin_section, capacity_section, evidence_section, points_section, settings_section
from .svg import esc
from .wording import DASH, clean, count, finite, instant, one_line, percent, rate, seconds, short_count

_FOLD_HOSTS_FROM = 5
_MOST_REASONS_OPEN = 12
_FOOTER = (
    "<footer><p>TTFT: from the first byte of the request sent to the first token received. "
    "TPOT: (end to end - TTFT) / (output tokens - 1). ITL: gap between two token events. "
    "Prefill rate: prompt tokens as the server counted them / TTFT, one request at a time. "
    "Floor: the least time a cold prompt of that length can take on this hardware. MFU: floor / TTFT. "
    "Cold: the server's own counters show that no prompt token came from its cache.</p></footer>"
)


def render_html(runs: Sequence[RunResult]) -> str:
    """One HTML document for all runs, the worst verdict first. It fetches nothing, and it is well-formed XML."""
    ordered = sorted(runs, key=lambda r: (-SEVERITY.index(r.verdict), r.host, r.engine))
    alone, fold = len(ordered) == 1, len(ordered) >= _FOLD_HOSTS_FROM
    fleet = [_fleet(ordered)] if len(ordered) > 1 else []
    hosts = [_host(run, place, alone=alone, fold=fold) for place, run in enumerate(ordered)]
    return page(f"Longhaul: {_title(ordered)}", "\n".join([_top(ordered), *fleet, *hosts, _FOOTER]))


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


def _fleet(runs: Sequence[RunResult]) -> str:
    several = len({r.model for r in runs}) > 1
    rows = [_fleet_row(run, place, several) for place, run in enumerate(runs)]
    tally_text = ", ".join(f"{n} {v}" for v, n in Counter(r.verdict.value for r in runs).most_common())
    out = [f'<section class="card"><div class="head"><h3>All hosts</h3><p class="sub">{esc(tally_text)}</p></div>']
    out.append(titled_table(rows, "All hosts") + "</section>")
    drawn = overlay(runs, [f"{one_line(r.host)} ({engine_name(r)})" for r in runs])
    return "".join(out) + (f'<div class="grid2">{drawn}</div>' if drawn else "")


def _fleet_row(run: RunResult, place: int, several_models: bool) -> list[TitledCell]:
    best = headline_point(run)
    speed = prefill_rate(run, best) if best else None
    recall = number(percent(run.needle_recall), finite(run.needle_recall), struck=run.verdict is Verdict.INVALID)
    ended = ", ".join(f"{n} {word.lower()}" for word, n in tally(run.points)) or DASH
    model = [(Column("Model"), words(one_line(run.model), long=True))] if several_models else []
    return [
        (Column("Host"), Cell(f'<a href="#h{place}">{esc(one_line(run.host))}</a>')),
        (Column("Verdict"), Cell(chip(run.verdict.value), float(SEVERITY.index(run.verdict)))),
        (Column("Engine"), words(engine_name(run))),
        *model,
        (Column("Proven prompt", True, "Longest prompt that PASSed, tokens"), amount(count, best and best.input_tokens)),
        (Column("TTFT p50", True, "at that length"), amount(seconds, best and p50(best.ttft_s))),
        (Column("Prefill, tok/s", True, "at that length, one request at a time"), amount(rate, speed)),
        (Column("TPOT p50", True, "at that length"), amount(seconds, best and p50(best.tpot_s))),
        (Column("Needles", True, "Share of planted facts found"), recall),
        (Column("Points"), words(ended, long=True)),
        (Column("Finished, UTC"), Cell(esc(instant(run.finished_unix_s)[:16]), finite(run.finished_unix_s))),
    ]


def _host(run: RunResult, place: int, *, alone: bool, fold: bool) -> str:
    body = _banner(run) + _flags(run) + _tiles(run) + burnin_section(run) + plots_of(run, place) + answers_section(run, place)
    body += points_section(run) + evidence_section(run) + capacity_section(run) + settings_section(run)
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
    shown, rest = items[:_MOST_REASONS_OPEN], items[_MOST_REASONS_OPEN:]
    if shown:
        out.append(f'<ul class="why">{"".join(shown)}</ul>')
    if rest:
        out.append(f'<details><summary>{len(rest)} more</summary><ul class="why">{"".join(rest)}</ul></details>')
    return "".join([*out, "</div>"])


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
    text = "; ".join(parts) + "."
    if run.mode == "cold" and 0 < passed == len(ran) and all(p.token_error_max == 0 and p.cache_state == "COLD" for p in ran):
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
        note = one_line(run.settings["corpus_note"])
        out += f'<p class="flag"><b>Text.</b> {esc(note[:1].upper() + note[1:])}.</p>'
    return out


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
