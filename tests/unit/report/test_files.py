"""Run directories: what is read, what is refused, what is written; and no run of the schema can break a renderer."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from longhaul.cli import main
from longhaul.errors import UserError
from longhaul.report.compare import compare_runs
from longhaul.report.compare_views import render_compare_html, render_compare_markdown, render_compare_text
from longhaul.report.files import load_run_dir, write_reports
from longhaul.report.html import render_html
from longhaul.report.junit import render_junit
from longhaul.report.markdown import render_markdown
from longhaul.report.prometheus import render_prometheus
from longhaul.report.tables import summary_table
from longhaul.results import (
    CapacityFacts,
    Counters,
    KvSample,
    NeedleCell,
    Physics,
    PointResult,
    Reason,
    RunResult,
    Stats,
    Verdict,
    dump_run,
)
from unit.report import fixtures
from unit.report.test_formats import samples


def run_dir(folder: Path) -> Path:
    folder.mkdir(exist_ok=True)
    for run in fixtures.fleet():
        (folder / f"{run.host}.json").write_text(dump_run(run))
        (folder / run.host).mkdir()
        (folder / run.host / "requests.jsonl").write_text("{}\n")
    return folder


def test_reports_are_written_whole_and_readable(tmp_path: Path) -> None:
    paths = write_reports(run_dir(tmp_path / "run"))
    assert [p.name for p in paths] == [
        "report.html",
        "report.md",
        "junit.xml",
        "bare.prom",
        "h200-a.prom",
        "h200-b.prom",
        "h200-c.prom",
    ]
    for path in paths:
        assert path.stat().st_size > 100
        assert path.stat().st_mode & 0o777 == 0o644
    left = {p.name for p in (tmp_path / "run").iterdir() if p.is_file()} - {p.name for p in paths}
    assert left == {"bare.json", "h200-a.json", "h200-b.json", "h200-c.json"}


def test_writing_again_gives_the_same_files(tmp_path: Path) -> None:
    folder = run_dir(tmp_path / "run")
    first = {p: p.read_bytes() for p in write_reports(folder)}
    assert {p: p.read_bytes() for p in write_reports(folder)} == first


def test_a_run_survives_the_file(tmp_path: Path) -> None:
    assert load_run_dir(run_dir(tmp_path / "run")) == sorted(fixtures.fleet(), key=lambda r: r.host)
    assert load_run_dir(tmp_path / "run" / "bare.json") == [fixtures.minimal()]


def test_other_json_is_passed_over(tmp_path: Path) -> None:
    folder = run_dir(tmp_path / "run")
    (folder / "plan.json").write_text('{"fits": true}')
    assert len(load_run_dir(folder)) == 4


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"schema": "longhaul.results", "schema_ver', "cannot be read as JSON"),
        ('{"schema": "longhaul.results", "schema_version": 99}', "schema version 99"),
        ('{"schema": "longhaul.results", "schema_version": 1}', "does not follow the result schema"),
        ('{"schema": "longhaul.results", "schema_version": 1, "points": 3, "verdict": "GOOD"}', "does not follow"),
    ],
)
def test_a_damaged_result_is_refused_in_one_line(tmp_path: Path, text: str, part: str) -> None:
    folder = run_dir(tmp_path / "run")
    (folder / "broken.json").write_text(text)
    with pytest.raises(UserError, match=part) as caught:
        load_run_dir(folder)
    assert "broken.json" in caught.value.found
    assert "\n" not in str(caught.value)


def test_a_run_that_was_killed_is_named_as_such(tmp_path: Path) -> None:
    (tmp_path / "h1").mkdir()
    (tmp_path / "h1" / "requests.jsonl").write_text("{}\n")
    with pytest.raises(UserError, match="raw evidence of h1"):
        load_run_dir(tmp_path)


def test_report_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = run_dir(tmp_path / "run")
    assert main(["report", str(folder)]) == 0
    out = capsys.readouterr().out
    assert str(folder / "report.html") in out
    assert "h200-b: FAIL" in out


def test_report_command_refuses_what_is_no_run_directory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "empty").mkdir()
    for path in (tmp_path / "missing", tmp_path / "empty"):
        assert main(["report", str(path)]) == 2
        err = capsys.readouterr().err
        assert err.count("\n") == 1
        assert path.name in err


def test_host_names_cannot_leave_the_directory(tmp_path: Path) -> None:
    run = fixtures.run([fixtures.point(1_000)], host="../../etc/x")
    (tmp_path / "h.json").write_text(dump_run(run))
    assert all(p.parent == tmp_path for p in write_reports(tmp_path))


NUMBERS = st.floats(width=64) | st.floats(0, 1e6) | st.integers(-5, 10**7).map(float)
COUNTS = st.integers(0, 20_000_000)
TEXT = st.text(max_size=12)


def maybe(strategy: st.SearchStrategy[Any]) -> st.SearchStrategy[Any]:
    return st.none() | strategy


STATS = st.builds(Stats, st.integers(0, 30), NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS)
REASONS = st.lists(st.builds(Reason, st.sampled_from(Verdict), TEXT, TEXT), max_size=2).map(tuple)
PHYSICS = st.builds(Physics, NUMBERS, NUMBERS, NUMBERS, NUMBERS, NUMBERS, TEXT, maybe(NUMBERS), maybe(NUMBERS))
POINTS = st.builds(
    PointResult,
    TEXT,
    COUNTS,
    st.integers(0, 500),
    st.integers(0, 60),
    st.sampled_from(Verdict),
    REASONS,
    ran=st.booleans(),
    completed=st.integers(0, 60),
    cache_state=st.sampled_from(["COLD", "WARM", "UNKNOWN", ""]),
    cached_share=maybe(NUMBERS),
    token_error_max=maybe(st.integers(-5, 5)),
    ttft_s=maybe(STATS),
    tpot_s=maybe(STATS),
    itl_s=maybe(STATS),
    e2e_s=maybe(STATS),
    prefill_tokens_per_s=maybe(STATS),
    output_tokens_per_s=maybe(NUMBERS),
    before=maybe(st.builds(Counters, NUMBERS, preemptions=maybe(NUMBERS))),
    after=maybe(st.builds(Counters, NUMBERS, preemptions=maybe(NUMBERS))),
    kv_series=st.lists(st.builds(KvSample, NUMBERS, maybe(NUMBERS), maybe(NUMBERS), maybe(NUMBERS)), max_size=4).map(tuple),
    physics=maybe(PHYSICS),
    fits_at_once=maybe(st.integers(0, 100)),
    will_queue=maybe(st.integers(0, 100)),
    expected_s=maybe(NUMBERS),
    wall_s=maybe(NUMBERS),
)
VALUES = st.none() | st.booleans() | st.integers() | st.floats() | TEXT | st.lists(st.integers(), max_size=2)
KEYS = st.sampled_from(["kv_cache_tokens", "max_concurrency", "weights_gib_per_gpu", "x", ""])
FACTS = st.dictionaries(KEYS, VALUES, max_size=4)
RUNS = st.builds(
    RunResult,
    run_id=TEXT,
    host=TEXT,
    url=TEXT,
    engine=TEXT,
    engine_version=TEXT,
    model=TEXT,
    started_unix_s=NUMBERS,
    finished_unix_s=NUMBERS,
    verdict=st.sampled_from(Verdict),
    reasons=REASONS,
    points=st.lists(POINTS, max_size=4).map(tuple),
    settings=FACTS,
    capacity=maybe(st.builds(CapacityFacts, FACTS, FACTS, maybe(NUMBERS), st.booleans())),
    needles=st.lists(st.builds(NeedleCell, TEXT, COUNTS, NUMBERS, st.integers(0, 4), st.integers(0, 4)), max_size=4).map(tuple),
    needle_recall=maybe(NUMBERS),
    needle_note=maybe(TEXT),
    mode=st.sampled_from(["cold", "warm"]),
    complete=st.booleans(),
)


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large])
@given(st.lists(RUNS, max_size=3))
def test_no_run_of_the_schema_breaks_a_renderer(runs: list[RunResult]) -> None:
    ET.fromstring(render_html(runs))  # noqa: S314 - our own text
    ET.fromstring(render_junit(runs).encode())  # noqa: S314 - our own text
    assert max(map(len, summary_table(runs).splitlines())) <= 100
    render_markdown(runs).encode()
    for run in runs:
        samples(render_prometheus(run))
        both = [compare_runs(run, runs[0])]
        ET.fromstring(render_compare_html(both))  # noqa: S314 - our own text
        assert max(map(len, render_compare_text(both).splitlines())) <= 100
        render_compare_markdown(both).encode()


def test_json_with_lone_surrogates_still_gives_a_file(tmp_path: Path) -> None:
    raw = json.loads(dump_run(fixtures.minimal()))
    raw["model"] = "\ud800"
    (tmp_path / "h.json").write_text(json.dumps(raw))
    assert len(write_reports(tmp_path)) == 4
