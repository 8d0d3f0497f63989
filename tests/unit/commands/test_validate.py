"""``longhaul validate`` as a person or a script runs it: exit codes, one-line errors, what is left in --out."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from longhaul.cli import main
from longhaul.client.load import LagMonitor
from longhaul.results import load_run
from standin.fixture import StandIn
from support.paths import CONFIGS

CONFIG = CONFIGS / "smollm2-135m.json"


@pytest.fixture(scope="module")
def server() -> Iterator[StandIn]:
    with StandIn() as standin:
        yield standin


@pytest.fixture(autouse=True)
def calm(monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine must not decide these verdicts."""
    monkeypatch.setattr(LagMonitor, "at", lambda self, instant: 0.0)
    monkeypatch.setattr(LagMonitor, "share", lambda self, begin, end, **_: 0.0)
    monkeypatch.delenv("LONGHAUL_API_KEY", raising=False)


def longhaul(server: StandIn, out: Path, *more: str) -> int:
    words = ["validate", "--url", server.url, "--engine", "vllm", "--vocab-size", "5000", "--no-warmup", "--out", str(out)]
    return main([*words, "--ladder", "300", "--output-length", "4", *more])


@pytest.mark.parametrize(
    ("standin", "more", "code", "words"),
    [
        ((), (), 0, "verdict: PASS"),
        (("--close-after", "1"), (), 1, "FAIL request_failed"),
        ((), ("--slo-ttft", "0.001"), 1, "FAIL slo_missed: in300-out4-c1: TTFT p90"),
        (("--miscount-prompt", "1"), (), 3, "INVALID token_error"),
        (("--no-metrics",), (), 4, "INCONCLUSIVE no_metrics"),
    ],
)
def test_the_exit_code_is_the_verdict(
    standin: tuple[str, ...], more: tuple[str, ...], code: int, words: str,
    server: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    server.become("--ttft", "0.02", "--gap", "0.002", *standin)
    assert longhaul(server, tmp_path, *more) == code
    out, err = capsys.readouterr()
    assert words in out
    assert "plan in300-out4-c1" in err, "progress goes to stderr, so that stdout can be piped"
    assert load_run(tmp_path / "run.json").complete
    assert len((tmp_path / "requests.jsonl").read_text().splitlines()) == 1


@pytest.mark.parametrize(("more", "times"), [((), 3), (("--attempts", "1"), 1)])
def test_a_point_that_strangers_spoilt_is_measured_as_often_as_wanted(
    more: tuple[str, ...], times: int, server: StandIn, tmp_path: Path
) -> None:
    server.become("--ttft", "0.4", "--gap", "0.002", "--foreign-every", "0.1")
    assert longhaul(server, tmp_path, *more) == 4
    assert load_run(tmp_path / "run.json").points[0].attempts == times
    assert len((tmp_path / "requests.jsonl").read_text().splitlines()) == times


def test_ladder_times_concurrency(server: StandIn, tmp_path: Path) -> None:
    server.become("--ttft", "0.02", "--gap", "0.002")
    longhaul(server, tmp_path, "--ladder", "100,2_00", "--concurrency", "1,3", "--quiet")
    ids = [p.point_id for p in load_run(tmp_path / "run.json").points]
    assert ids == ["in100-out4-c1", "in200-out4-c1", "in100-out4-c3", "in200-out4-c3"]


def test_floor_and_warm_mode_are_shown(server: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    server.become("--ttft", "0.05", "--gap", "0.002")
    assert longhaul(server, tmp_path, "--gpu", "h200", "--model-config", str(CONFIG), "--warm", "--quiet") == 0
    out, err = capsys.readouterr()
    assert "measure the prefix cache, not the prefill" in out
    assert err == ""
    physics = load_run(tmp_path / "run.json").points[0].physics
    assert physics is not None
    assert "H200" in physics.peak_source


def test_the_key_comes_from_a_file_and_is_written_nowhere(server: StandIn, tmp_path: Path) -> None:
    server.become("--ttft", "0.02", "--gap", "0.002", "--api-key", "s3kr3t-key")
    key = tmp_path / "key"
    key.write_text("s3kr3t-key\n")
    assert longhaul(server, tmp_path / "out", "--api-key-file", str(key), "--quiet") == 0
    assert all("s3kr3t" not in p.read_text() for p in (tmp_path / "out").iterdir())


@pytest.mark.parametrize(
    ("more", "words"),
    [
        (("--ladder", "8M"), "8M"),
        (("--ladder", ""), "empty ladder"),
        (("--ladder", "4000", "--context", "4000"), "4,000 + 4"),
        (("--engine", "tgi"), "'tgi'"),
        (("--needles",), "tokenizer"),
        (("--needle-kinds", "many"), "many"),
        (("--gpu", "h200"), "--model-config"),
        (("--api-key-file", "/nonexistent"), "/nonexistent"),
        (("--baseline", "/nonexistent"), "/nonexistent"),
        (("--model", "other"), "standin-model"),
    ],
)
def test_wrong_flags_are_one_line_and_exit_2(
    more: tuple[str, ...], words: str, server: StandIn, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    server.become()
    assert longhaul(server, tmp_path / "out", *more, "--quiet") == 2
    err = capsys.readouterr().err
    assert err.count("\n") == 1
    assert words in err
    assert err.startswith("longhaul validate: found: ")


def test_the_baseline_may_be_a_folder(server: StandIn, tmp_path: Path) -> None:
    server.become("--ttft", "0.02", "--gap", "0.002")
    twice = ("--repeats", "2", "--tolerance", "20", "--quiet")  # one repeat tells no noise
    longhaul(server, tmp_path / "a", *twice)
    server.become("--ttft", "0.4", "--gap", "0.002")
    assert longhaul(server, tmp_path / "b", "--baseline", str(tmp_path / "a"), *twice) == 1
    reasons = json.loads((tmp_path / "b" / "run.json").read_text())["reasons"]
    assert {r["code"] for r in reasons} == {"regression"}, "TTFT, and on a busy machine perhaps TPOT too"
