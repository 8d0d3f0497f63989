"""Terminal table, Markdown, JUnit, Prometheus: counts, escapes, and what must never be in them."""

from __future__ import annotations

import dataclasses
import re
import xml.etree.ElementTree as ET

import pytest
from longhaul.report.figures import all_reasons
from longhaul.report.html import render_html
from longhaul.report.junit import render_junit
from longhaul.report.markdown import render_markdown
from longhaul.report.prometheus import render_prometheus
from longhaul.report.tables import summary_table
from longhaul.report.wording import duration, one_line, percent, seconds
from longhaul.results import BurninCheck, BurninFacts, NeedleCell, PointResult, Reason, RunResult, Verdict
from unit.report import fixtures

SAMPLE = re.compile(r'^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{(?:[a-zA-Z_]\w*="(?:[^"\\\n]|\\[\\"n])*",?)*\})? (-?[0-9.e+-]+)$')


def samples(text: str) -> dict[str, float]:
    """Parse the text exposition format strictly: HELP and TYPE once, before the samples of one family, no series twice."""
    assert text.endswith("\n")
    found: dict[str, float] = {}
    family = ""
    seen: set[str] = set()
    for line in text.splitlines():
        if line.startswith("# HELP "):
            family = line.split(" ")[2]
            assert family not in seen
            seen.add(family)
        elif line.startswith("# TYPE "):
            assert line == f"# TYPE {family} gauge"
        else:
            match = SAMPLE.match(line)
            assert match, line
            assert match[1] == family
            key = match[1] + (match[2] or "")
            assert key not in found
            found[key] = float(match[3])
    return found


def test_verdict_is_one_hot() -> None:
    for run in fixtures.fleet():
        found = {k: v for k, v in samples(render_prometheus(run)).items() if k.startswith("longhaul_validation_verdict{")}
        assert len(found) == 4
        assert sum(found.values()) == 1
        (hot,) = [k for k, v in found.items() if v == 1]
        assert f'verdict="{run.verdict.value}"' in hot


def test_invalid_and_unproven_figures_are_not_exported() -> None:
    run = fixtures.mixed()
    text = render_prometheus(run)
    exported = {
        k for k in samples(text) if k.startswith(("longhaul_ttft", "longhaul_prefill", "longhaul_tpot", "longhaul_output"))
    }
    for point in run.points:
        here = [k for k in exported if f'input_tokens="{point.input_tokens}"' in k and f'concurrency="{point.concurrency}"' in k]
        assert bool(here) == (point.ran and point.verdict in (Verdict.PASS, Verdict.FAIL)), point.point_id
    void = next(p for p in run.points if p.verdict is Verdict.INVALID)
    assert void.ttft_s is not None
    assert not any(f"{v}" in text for v in (void.ttft_s.p50, void.ttft_s.p99, void.ttft_s.max))


def test_a_failed_point_with_an_invalid_reason_is_not_exported() -> None:
    point = fixtures.point(
        1_000,
        verdict=Verdict.FAIL,
        reasons=(Reason(Verdict.FAIL, "limit", "too slow"), Reason(Verdict.INVALID, "cached_prompt", "cached")),
    )
    assert "longhaul_ttft_seconds" not in render_prometheus(fixtures.run([point]))


def test_exported_figures_are_the_measured_ones() -> None:
    run = fixtures.passing()
    found = samples(render_prometheus(run))
    for point in run.points:
        assert point.ttft_s is not None
        labels = f'input_tokens="{point.input_tokens}",output_tokens="200",concurrency="{point.concurrency}",quantile="0.5"'
        (key,) = [k for k in found if k.startswith("longhaul_ttft_seconds") and labels in k]
        assert found[key] == point.ttft_s.p50
    (proven,) = [v for k, v in found.items() if k.startswith("longhaul_proven_input_tokens")]
    assert proven == 2_096_900
    (when,) = [v for k, v in found.items() if k.startswith("longhaul_validation_timestamp_seconds")]
    assert when == run.finished_unix_s


def test_warm_figures_have_their_own_names() -> None:
    found = samples(render_prometheus(dataclasses.replace(fixtures.passing(), mode="warm")))
    assert not [k for k in found if k.startswith(("longhaul_ttft_seconds", "longhaul_prefill", "longhaul_proven"))]
    assert [k for k in found if k.startswith("longhaul_warm_ttft_seconds")]


def test_labels_are_escaped() -> None:
    run = dataclasses.replace(fixtures.passing(), host='a"b\\c\nd')
    found = samples(render_prometheus(run))
    assert all('host="a\\"b\\\\c\\nd"' in k for k in found)


def test_points_with_the_same_shape_do_not_repeat_a_series() -> None:
    samples(render_prometheus(fixtures.run([fixtures.point(1_000), fixtures.point(1_000, seed=2)])))


def suite(runs: list[RunResult]) -> ET.Element:
    return ET.fromstring(render_junit(runs).encode())  # noqa: S314 - our own text


def test_junit_counts_follow_the_verdicts() -> None:
    root = suite([fixtures.mixed()])
    (one,) = root
    assert {k: int(one.get(k, "-1")) for k in ("tests", "failures", "errors", "skipped")} == {
        "tests": 7,
        "failures": 1,
        "errors": 2,
        "skipped": 1,
    }
    assert len(one.findall("testcase")) == 7
    assert [f.get("type") for f in one.iter("failure")] == ["FAIL"]
    assert sorted(e.get("type") or "" for e in one.iter("error")) == ["INCONCLUSIVE", "INVALID"]
    assert len(list(one.iter("skipped"))) == 1


def test_junit_totals_are_the_sums_of_the_hosts() -> None:
    root = suite(fixtures.fleet())
    for name in ("tests", "failures", "errors", "skipped"):
        assert int(root.get(name, "-1")) == sum(int(s.get(name, "-1")) for s in root)
    assert len(root) == 4


def test_junit_names_are_unique_and_hold_every_reason() -> None:
    run = fixtures.mixed()
    root = suite([run])
    names = [(c.get("classname"), c.get("name")) for c in root.iter("testcase")]
    assert len(names) == len(set(names))
    text = "\n".join("".join(c.itertext()) for c in root.iter("testcase"))
    for _, reason in all_reasons(run):
        assert reason.text in text


@pytest.mark.parametrize(
    "run",
    [
        fixtures.run([], verdict=Verdict.FAIL, reasons=(Reason(Verdict.FAIL, "unreachable", "connection refused"),)),
        dataclasses.replace(
            fixtures.passing(), verdict=Verdict.FAIL, reasons=(Reason(Verdict.FAIL, "needle_recall", "recall 0.4"),)
        ),
        dataclasses.replace(fixtures.passing(), verdict=Verdict.INCONCLUSIVE),
    ],
)
def test_a_run_that_did_not_pass_is_never_green_in_junit(run: RunResult) -> None:
    root = suite([run])
    assert int(root.get("failures", "0")) + int(root.get("errors", "0")) == 1
    (case,) = [c for c in root.iter("testcase") if c.get("name") == "run"]
    assert all(r.text in "".join(case.itertext()) for r in run.reasons)


def test_junit_withholds_invalid_figures() -> None:
    run = fixtures.mixed()
    case = next(c for c in suite([run]).iter("testcase") if c.get("name", "").startswith("500,000"))
    assert case.findtext("system-out") == "figures withheld: INVALID"


def test_control_characters_do_not_break_junit() -> None:
    evil = "a\x00b\x1bc\ud800d]]>&<"
    point = fixtures.point(1_000, verdict=Verdict.FAIL, reasons=(Reason(Verdict.FAIL, evil, evil),))
    suite([fixtures.run([point], host=evil)])


def test_table_fits_a_hundred_columns_and_has_every_reason() -> None:
    long = dataclasses.replace(
        fixtures.run([fixtures.point(10_485_760, concurrency=1000, verdict=Verdict.INCONCLUSIVE)]),
        host="a-very-long-inventory-host-name.example.internal",
        engine_version="0.5.6.post2+cu130.nightly",
    )
    runs = [*fixtures.fleet(), long]
    text = summary_table(runs)
    assert max(map(len, text.splitlines())) <= 100
    flat = " ".join(text.split())
    for run in runs:
        for _, reason in all_reasons(run):
            assert one_line(reason.text) in flat
    assert "None" not in text


def test_table_withholds_invalid_figures() -> None:
    rows = [line for line in summary_table([fixtures.mixed()]).splitlines() if "INVALID" in line and "500,000+200" in line]
    assert len(rows) == 1
    assert rows[0].split()[5:8] == ["void", "void", "void"]


def test_table_of_nothing_says_so() -> None:
    assert summary_table([]) == "No results."


def test_markdown_strikes_invalid_figures_and_has_every_reason() -> None:
    run = fixtures.mixed()
    text = render_markdown([run])
    (row,) = [line for line in text.splitlines() if line.startswith("| 500,000 |") and "INVALID" in line]
    cells = [c.strip() for c in row.strip("|").split("|")]
    assert [c for c in cells[3:7] if not c.startswith("~~")] == []
    assert cells[7] == "6.22 s"
    plain = text.replace("\\", "")
    for _, reason in all_reasons(run):
        assert reason.text in plain


def test_markdown_tables_are_rectangular_whatever_the_text() -> None:
    evil = "a|b\n| c `d` <img src=x> [x](http://example.org) ~~"
    run = fixtures.run([fixtures.point(1_000, cache_state=evil)], host=evil, model=evil, engine=evil)
    text = render_markdown([run, fixtures.mixed()])
    width = 0
    for line in text.splitlines():
        if line.startswith("|"):
            cells = len(re.findall(r"(?<!\\)\|", line))
            assert width in (0, cells), line
            width = cells
        else:
            width = 0
    assert not re.search(r"(?<!\\)<", text)
    assert "http://example" not in text


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "—"),
        (float("nan"), "—"),
        (float("inf"), "—"),
        (0.0, "0 s"),
        (0.000_012, "12 µs"),
        (0.008_16, "8.16 ms"),
        (0.0123, "12.3 ms"),
        (0.1829, "183 ms"),
        (0.9996, "1.00 s"),
        (3.874, "3.87 s"),
        (520.3, "520.3 s"),
        (12_345.0, "12,345.0 s"),
    ],
)
def test_seconds_have_a_unit_and_sensible_digits(value: float | None, text: str) -> None:
    assert seconds(value) == text


@pytest.mark.parametrize(
    ("value", "text"), [(45.0, "45.0 s"), (520.0, "8 min 40 s"), (3599.9, "1 h 00 min"), (7500.0, "2 h 05 min")]
)
def test_durations_read_like_a_clock(value: float, text: str) -> None:
    assert duration(value) == text


def test_percent() -> None:
    assert percent(0.987) == "99%"
    assert percent(None) == "—"


def test_a_point_not_run_has_no_figures() -> None:
    point: PointResult = fixtures.not_run(2_000_000)
    line = next(x for x in summary_table([fixtures.run([point])]).splitlines() if "NOT RUN" in x)
    assert line.count("—") == 4


def test_markdown_shows_the_first_answers_that_missed_their_needle() -> None:
    run = fixtures.passing()
    text = render_markdown([run])
    missed = sum(not a.told.found for a in run.needle_answers)
    assert text.count("expected `48213`, got `48214. The text says so.`") == 10
    assert f"and {missed - 10} more, in the HTML report" in text
    evil = fixtures.asked((NeedleCell("single", 800, 0.5, 1, 0),), "`x`|\n# y")
    assert "got `'x'/ # y`" in render_markdown([dataclasses.replace(run, needle_answers=evil)])


def test_a_burn_in_shows_every_check_judged_or_not() -> None:
    checks = (
        BurninCheck("clocks", "GPU 0: <100> of 1980 MHz | slow", "at least 0.6 of the maximum", Verdict.FAIL),
        BurninCheck("all-reduce", "one GPU", "recorded, not judged", None),
    )
    run = dataclasses.replace(fixtures.mixed(), burnin=BurninFacts(checks, start_s=132.0))
    markdown, page = render_markdown([run]), render_html([run])
    for name, word in (("clocks", "FAIL"), ("all-reduce", "not judged")):
        assert re.search(rf"^\| {name} \| .* \| {word} \|$", markdown, re.MULTILINE), name
        assert re.search(rf"<tr><td[^>]*>{name}</td>.*?{word}.*?</tr>", page), name
    assert "GPU 0: &lt;100&gt; of 1980 MHz" in page
    assert "Burn-in" not in render_markdown([fixtures.mixed()])
