"""The noise rule and what is refused; the command line of compare and report."""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from longhaul.cli import main
from longhaul.errors import UserError
from longhaul.report.compare import compare_runs, pair_runs
from longhaul.report.compare_views import render_compare_markdown, render_compare_text
from longhaul.results import PointResult, RunResult, Stats, Verdict, dump_run
from longhaul.stats import high_noise
from longhaul.validate.verdict import judge_regression
from unit.report import fixtures


def scaled(run: RunResult, factor: float) -> RunResult:
    """The same run with every time multiplied by ``factor``."""

    def times(stats: Stats | None, f: float) -> Stats | None:
        if stats is None:
            return None
        values = {k: v * f for k, v in dataclasses.asdict(stats).items() if k != "n"}
        return Stats(n=stats.n, **values)

    def one(p: PointResult) -> PointResult:
        return dataclasses.replace(
            p,
            ttft_s=times(p.ttft_s, factor),
            tpot_s=times(p.tpot_s, factor),
            e2e_s=times(p.e2e_s, factor),
            prefill_tokens_per_s=times(p.prefill_tokens_per_s, 1 / factor),
        )

    return dataclasses.replace(run, points=tuple(one(p) for p in run.points))


def test_the_same_run_twice_shows_no_difference() -> None:
    result = compare_runs(fixtures.passing(), fixtures.passing())
    assert result.compared == 8
    assert result.regressions == ()
    assert all(c.direction == "same" and c.beyond is False for p in result.points for c in p.changes)


@pytest.mark.parametrize(("factor", "direction"), [(1.5, "slower"), (1 / 1.5, "faster")])
def test_a_large_difference_is_beyond_noise_and_has_its_direction(factor: float, direction: str) -> None:
    result = compare_runs(fixtures.passing(), scaled(fixtures.passing(), factor))
    alone = [c for p in result.points if p.concurrency == 1 for c in p.changes]
    assert alone
    for change in alone:
        assert (change.direction, change.beyond) == (direction, True), change
        assert change.ratio == pytest.approx(1.5)
    assert bool(result.regressions) == (direction == "slower")
    assert bool(result.improvements) == (direction == "faster")


def test_two_per_cent_is_never_a_regression() -> None:
    assert compare_runs(fixtures.passing(), scaled(fixtures.passing(), 1.02)).regressions == ()


@pytest.mark.parametrize("n", [2, 3, 5, 12, 50])
@pytest.mark.parametrize("shape", ["normal", "long tail", "queue"])
def test_equal_servers_are_rarely_called_different(n: int, shape: str) -> None:
    """At most one false alarm in ten (aim: one in twenty), before the 3 % floor helps."""
    rng = random.Random(f"{n} {shape}")
    draw: dict[str, Callable[[], float]] = {
        "normal": lambda: rng.gauss(100, 12),
        "long tail": lambda: 100 * rng.lognormvariate(0, 0.4),
        "queue": lambda: rng.uniform(10, 500),
    }
    alarms = 0
    for _ in range(300):
        a, b = (fixtures.stats([draw[shape]() for _ in range(n)]) for _ in "ab")
        noise = high_noise(a, b)
        assert noise is not None
        alarms += abs(a.p50 - b.p50) > noise
    assert alarms <= 30


def test_noise_of_a_single_request_is_unknown_and_not_judged() -> None:
    one = fixtures.run([fixtures.point(1_000, repeats=1)])
    (point,) = compare_runs(one, scaled(one, 3)).points
    assert {c.beyond for c in point.changes if c.metric == "TTFT p50"} == {None}
    assert compare_runs(one, scaled(one, 3)).regressions == ()


@pytest.mark.parametrize("repeats", [1, 2, 3, 12])
@pytest.mark.parametrize("factor", [1.0, 1.02, 1.04, 1.06, 1.1, 1.3, 3.0])
def test_compare_and_the_baseline_of_a_validation_judge_alike(repeats: int, factor: float) -> None:
    then = fixtures.run([fixtures.point(1_000, repeats=repeats)])
    now = scaled(then, factor)
    (point,) = compare_runs(then, now).points
    told = [c for c in point.changes if c.metric in ("TTFT p50", "TPOT p50")]
    reasons = judge_regression(now.points, then)
    assert len(told) == 2
    assert sum(c.beyond is True for c in told) == sum(r.verdict is Verdict.FAIL for r in reasons)
    assert sum(c.beyond is None for c in told) == sum(r.verdict is Verdict.INCONCLUSIVE for r in reasons)
    assert all(any(c.note in r.text for c in told) for r in reasons)


def test_invalid_points_are_refused_either_way_round() -> None:
    for a, b, side in ((fixtures.passing(), fixtures.mixed(), "B"), (fixtures.mixed(), fixtures.passing(), "A")):
        result = compare_runs(a, b)
        (point,) = [p for p in result.points if p.input_tokens == 500_000]
        assert point.changes == ()
        assert point.refused is not None
        assert point.refused.startswith(f"INVALID in {side}: 98.7%")
        for render in (render_compare_text, render_compare_markdown):
            text = render([result])
            assert "1,017,845" not in text
            assert "491" not in text


def test_a_lost_pass_is_a_regression_even_without_figures() -> None:
    result = compare_runs(fixtures.passing(), fixtures.mixed())
    assert any("PASS became INVALID" in r for r in result.regressions)
    assert any("PASS became FAIL" in r for r in result.regressions)
    assert not any("PASS became" in r for r in compare_runs(fixtures.mixed(), fixtures.passing()).regressions)


def test_warm_and_cold_runs_are_not_compared() -> None:
    result = compare_runs(fixtures.passing(), dataclasses.replace(fixtures.passing(), mode="warm"))
    assert result.compared == 0
    assert all(p.refused and "warm" in p.refused for p in result.points)


def test_inconclusive_figures_are_shown_but_not_judged() -> None:
    a = fixtures.run([fixtures.point(1_000)])
    b = scaled(fixtures.run([fixtures.point(1_000, verdict=Verdict.INCONCLUSIVE)]), 5)
    (point,) = compare_runs(a, b).points
    assert point.changes
    assert {c.beyond for c in point.changes} == {None}


def test_settings_that_differ_are_named() -> None:
    b = dataclasses.replace(fixtures.passing(), settings={**fixtures.passing().settings, "kv_cache_dtype": "fp8"})
    assert ("kv_cache_dtype", "auto", "fp8") in compare_runs(fixtures.passing(), b).differences


def test_text_fits_a_hundred_columns() -> None:
    text = render_compare_text(
        [compare_runs(fixtures.passing(), fixtures.mixed()), compare_runs(fixtures.mixed(), fixtures.sglang())]
    )
    assert max(map(len, text.splitlines())) <= 100


def test_hosts_are_paired_by_name_or_alone() -> None:
    pairs, alone = pair_runs(fixtures.fleet(), [fixtures.mixed(), fixtures.minimal()])
    assert [(a.host, b.host) for a, b in pairs] == [("h200-b", "h200-b"), ("bare", "bare")]
    assert alone == ["h200-a", "h200-c"]
    assert len(pair_runs([fixtures.passing()], [fixtures.sglang()])[0]) == 1
    with pytest.raises(UserError, match="same name"):
        pair_runs([fixtures.passing(), fixtures.mixed()], [fixtures.sglang()])


def put(folder: Path, run: RunResult) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / f"{run.host}.json").write_text(dump_run(run))
    return folder


def test_compare_command_exit_codes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    a = put(tmp_path / "a", fixtures.passing())
    b = put(tmp_path / "b", scaled(fixtures.passing(), 1.5))
    assert main(["compare", str(a), str(b)]) == 0
    assert "1.50\N{MULTIPLICATION SIGN} slower" in capsys.readouterr().out
    assert main(["compare", str(a), str(b), "--fail-on-regression"]) == 1
    assert main(["compare", str(b), str(a), "--fail-on-regression"]) == 0
    capsys.readouterr()
    assert main(["compare", str(a), str(tmp_path / "missing")]) == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert "missing" in err


@pytest.mark.parametrize("kind", ["text", "markdown", "html"])
def test_compare_command_writes_each_format(tmp_path: Path, kind: str) -> None:
    a = put(tmp_path / "a", fixtures.passing())
    out = tmp_path / "out.file"
    assert main(["compare", str(a), str(a / "h200-a.json"), "--format", kind, "--out", str(out)]) == 0
    assert out.read_text().endswith("\n")
    assert "h200-a" in out.read_text()
