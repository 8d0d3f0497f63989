"""HTML: well-formed, self-contained, complete, and honest about INVALID figures."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ET
from html.parser import HTMLParser

import pytest
from longhaul.report.compare import compare_runs
from longhaul.report.compare_views import render_compare_html
from longhaul.report.figures import all_reasons
from longhaul.report.html import render_html
from longhaul.report.wording import clean, seconds
from longhaul.results import NeedleCell, Reason, RunResult, Verdict
from unit.report import fixtures

PAGES = {
    "fleet": fixtures.fleet,
    "passing": lambda: [fixtures.passing()],
    "mixed": lambda: [fixtures.mixed()],
    "minimal": lambda: [fixtures.minimal()],
    "none": list,
    "many": lambda: [dataclasses.replace(fixtures.mixed(), host=f"h{i:02d}") for i in range(12)],
}


def tree(text: str) -> ET.Element:
    """The page as XML: it is written so that both kinds of parser read it."""
    assert text.startswith("<!DOCTYPE html>")
    return ET.fromstring(text)  # noqa: S314 - our own text


def visible(root: ET.Element) -> str:
    body = root.find("body")
    assert body is not None
    return " ".join(" ".join(body.itertext()).split())


class Strict(HTMLParser):
    """Every tag that an HTML parser opens is closed in order."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: object) -> None:
        pass

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


@pytest.mark.parametrize("name", PAGES)
def test_page_is_well_formed_for_xml_and_html_parsers(name: str) -> None:
    text = render_html(PAGES[name]())
    tree(text)
    parser = Strict()
    parser.feed(text)
    assert parser.open == []


@pytest.mark.parametrize("name", PAGES)
def test_page_fetches_nothing(name: str) -> None:
    text = render_html(PAGES[name]())
    for element in tree(text).iter():
        for attribute in ("src", "href", "xlink:href", "srcset", "action", "data", "poster", "background"):
            assert element.get(attribute, "#").startswith("#"), (element.tag, attribute)
        assert element.tag not in {"link", "img", "iframe", "object", "embed", "base"}
    assert not re.search(r"url\((?!#)", text)
    assert "@import" not in text
    assert "default-src 'none'" in text


@pytest.mark.parametrize("name", PAGES)
def test_ids_are_unique_and_every_reference_has_a_target(name: str) -> None:
    root = tree(render_html(PAGES[name]()))
    ids = [e.get("id") for e in root.iter() if e.get("id")]
    assert len(ids) == len(set(ids))
    wanted = {(e.get("href") or "")[1:] for e in root.iter() if e.get("href")}
    wanted |= set(re.findall(r"url\(#([\w-]+)\)", ET.tostring(root, encoding="unicode")))
    assert wanted <= set(ids)


@pytest.mark.parametrize("name", PAGES)
def test_missing_values_are_dashes(name: str) -> None:
    text = visible(tree(render_html(PAGES[name]())))
    assert not re.search(r"\b(None|nan|NaN|inf|-inf)\b", text)


def test_every_reason_is_in_the_banner() -> None:
    runs = fixtures.fleet()
    text = visible(tree(render_html(runs)))
    for run in runs:
        for _, reason in all_reasons(run):
            assert " ".join(clean(reason.text).split()) in text
            assert reason.code in text


def test_hundred_reasons_are_all_there() -> None:
    reasons = tuple(Reason(Verdict.FAIL, f"code{i}", f"reason number {i}") for i in range(100))
    text = visible(tree(render_html([dataclasses.replace(fixtures.passing(), reasons=reasons, verdict=Verdict.FAIL)])))
    assert all(f"reason number {i} code{i}" in text for i in range(100))


def test_markup_in_server_text_stays_text() -> None:
    evil = "<script>alert(1)</script> & \" ' </style> \x00\x1b[31m \ud800 javascript:"
    point = fixtures.point(1_000, verdict=Verdict.FAIL, reasons=(Reason(Verdict.FAIL, evil, evil),), cache_state=evil)
    run = fixtures.run([point], host=evil, model=evil, url=evil, engine=evil, settings={evil: evil}, needle_note=evil)
    text = render_html([run, run])
    root = tree(text)
    assert len(list(root.iter("script"))) == 1
    assert "<script>alert" not in text
    text.encode("utf-8")


def struck(root: ET.Element) -> list[str]:
    return ["".join(e.itertext()) for e in root.iter("s")]


def test_invalid_figures_appear_only_struck() -> None:
    run = fixtures.mixed()
    root = tree(render_html([run]))
    void = next(p for p in run.points if p.verdict is Verdict.INVALID)
    assert void.ttft_s is not None
    assert void.prefill_tokens_per_s is not None
    figures = {seconds(void.ttft_s.p50), f"{void.prefill_tokens_per_s.p50:,.0f}", "1,270%"}
    assert figures <= set(struck(root))
    for element in root.iter("s"):
        for child in element.iter():
            child.text = None
    rest = visible(root).replace(void.reasons[1].text, "")
    marks = [
        e
        for e in root.iter("title")
        if e.text and any(f in e.text for f in figures) and not e.text.startswith("INVALID, no result.")
    ]
    assert marks == []
    for figure in figures - {seconds(void.ttft_s.p50)}:
        assert not re.search(rf"(?<!\S){re.escape(figure)}(?!\S)", re.sub(r"INVALID, no result.*?\(p\d+ of \d+\)", "", rest))


def test_invalid_marks_are_never_joined_to_the_line() -> None:
    run = fixtures.mixed()
    root = tree(render_html([run]))
    plots = [e for e in root.iter("svg") if (e.get("aria-label") or "").startswith("TTFT against input length")]
    (line,) = [e for e in plots[0].iter("polyline") if e.get("class") == "line"]
    standing = sum(p.ran and p.concurrency == 1 and p.verdict in (Verdict.PASS, Verdict.FAIL) for p in run.points)
    assert len((line.get("points") or "").split()) == standing
    assert len([e for e in plots[0].iter("g") if e.get("class") == "mark void"]) == 1


def test_a_run_invalid_as_a_whole_strikes_every_figure() -> None:
    run = dataclasses.replace(
        fixtures.passing(), verdict=Verdict.INVALID, reasons=(Reason(Verdict.INVALID, "clock", "clock jumped"),)
    )
    text = visible(tree(render_html([run])))
    assert "no prompt length is proven" in text
    point = run.points[0]
    assert point.ttft_s is not None
    assert seconds(point.ttft_s.p50) in struck(tree(render_html([run])))


@pytest.mark.parametrize(
    "title",
    [
        "TTFT against input length",
        "Prefill rate against input length",
        "Decode latency against input length",
        "Needle recall: single",
        "Concurrency and queueing",
        "TTFT against concurrency",
        "KV cache use over time",
        "Prediction against measurement",
        "Evidence and client",
    ],
)
def test_a_full_run_shows_every_section(title: str) -> None:
    assert title in visible(tree(render_html([fixtures.passing()])))


def test_ticks_are_round_and_in_order() -> None:
    root = tree(render_html([fixtures.passing()]))
    plot = next(e for e in root.iter("svg") if e.get("aria-label") == "TTFT against input length")
    texts = [e.text for e in plot.iter("text") if e.get("class") == "tick"]
    assert [t for t in texts if t and not t.endswith("s")] == ["1K", "10K", "100K", "1M"]
    assert [t for t in texts if t and t.endswith("s")] == ["10 ms", "100 ms", "1 s", "10 s", "100 s"]


def test_every_needle_cell_leads_to_what_was_asked_expected_and_got() -> None:
    run = fixtures.passing()
    root = tree(render_html([run]))
    cells = {e.get("id"): e for e in root.iter("details") if "needle" in (e.get("class") or "").split()}
    asked = {(c.input_tokens, c.depth) for c in run.needles if c.asked}
    assert len(cells) == len(asked)
    linked = [(a.get("href") or "#")[1:] for a in root.iter() if a.tag.endswith("a") and (a.get("href") or "")[1:] in cells]
    assert sorted(linked) == sorted(name for name in cells if name)
    for cell in cells.values():
        text = " ".join(" ".join(cell.itertext()).split())
        assert "Asked What is the secret code of Arvena?" in text
        assert "Expected 48213 (of Arvena)" in text
        assert "Got 4821" in text
    wrong = next(c for c in run.needles if c.found < c.asked)
    words = " ".join(visible(root).split())
    assert f"{wrong.input_tokens:,} tokens, depth {round(100 * wrong.depth)}% {wrong.found} of {wrong.asked} found" in words


def test_an_answer_stays_text_whatever_it_holds() -> None:
    evil = "</dd></details><script>alert(1)</script> \x00\x1b[31m & 'x' \ud800"
    cells = (NeedleCell("single", 800, 0.5, 1, 0),)
    run = dataclasses.replace(fixtures.passing(), needles=cells, needle_answers=fixtures.asked(cells, evil))
    text = render_html([run])
    assert "<script>alert" not in text
    assert clean(evil).strip().replace("\n", " ") in visible(tree(text))


def test_an_older_result_without_answers_shows_the_map_alone() -> None:
    text = render_html([dataclasses.replace(fixtures.passing(), needle_answers=())])
    assert "Needle recall" in text
    assert "Needle answers" not in text


def test_hosts_come_worst_first_with_a_summary() -> None:
    root = tree(render_html(fixtures.fleet()))
    links = [e.text for e in root.iter("a") if (e.get("href") or "").startswith("#h")]
    assert links == ["h200-b", "bare", "h200-a", "h200-c"]


def test_warm_mode_is_labelled_and_shows_no_prefill_rate() -> None:
    run = dataclasses.replace(fixtures.passing(), mode="warm")
    text = visible(tree(render_html([run])))
    assert "Warm mode." in text
    assert "longest proven prompt" not in text
    assert "Prefill rate against input length" not in text


def test_kv_series_of_any_length_keeps_the_page_small() -> None:
    point = fixtures.point(100_000)
    series = tuple(
        dataclasses.replace(point.kv_series[1], t_s=float(i), kv_usage=0.9 if i == 71_003 else 0.1) for i in range(100_000)
    )
    text = render_html([fixtures.run([dataclasses.replace(point, kv_series=series)])])
    assert len(text) < 80_000
    assert "peak 90%" in visible(tree(text))


@pytest.mark.parametrize("other", [fixtures.mixed, fixtures.sglang, fixtures.minimal])
def test_comparison_page_is_well_formed(other: object) -> None:
    assert callable(other)
    b: RunResult = other()
    tree(render_compare_html([compare_runs(fixtures.passing(), b), compare_runs(b, fixtures.passing())]))


def test_a_large_fleet_is_folded_and_only_the_first_that_failed_are_open() -> None:
    runs = [dataclasses.replace([fixtures.passing(), fixtures.mixed()][i % 2], host=f"h{i:02d}") for i in range(20)]
    root = tree(render_html(runs))
    folds = [s.find("details") for s in root.iter("section") if s.get("class") == "host fold"]
    assert len(folds) == 20
    assert [f is not None and f.get("open") is not None for f in folds] == [True] * 5 + [False] * 15
