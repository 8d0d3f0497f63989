"""The server beside the measured requests: its load without counters, its settings, its end and what its log says of that."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from longhaul.client.control import ServerUnreachable
from longhaul.errors import UserError
from longhaul.results import RequestStatus, RunResult, Verdict, load_run
from longhaul.validate.config import Point
from longhaul.validate.progress import Progress
from longhaul.validate.run import validate
from longhaul.validate.server import Server
from standin.fixture import StandIn
from support.last_words import NCCL_FULL, dying_words
from support.records import read_records
from unit.validate.runs import QUICK, codes, config


@pytest.mark.parametrize(("lacks", "path"), [("/none", "/v1/loads"), ("/v1/loads", "/get_load")])
def test_sglang_without_metrics_is_watched_by_its_load(
    lacks: str, path: str, tmp_path: Path, run: Callable[..., RunResult]
) -> None:
    silent = ["--ttft", "0.8", "--gap", "0.002", "--no-metrics", "--without-path", lacks]
    quiet = run(silent, tmp_path / "quiet", engine="sglang")
    assert quiet.verdict is Verdict.INCONCLUSIVE
    assert codes(quiet) == {"no_metrics"}, "alone, by all that can be seen"
    assert path in quiet.points[0].reasons[0].text
    assert "--enable-metrics" in quiet.points[0].reasons[0].text
    assert any(s.running == 1.0 and s.kv_usage is not None for s in quiet.points[0].kv_series)
    shared = run([*silent, "--foreign-every", "0.1"], tmp_path / "shared", engine="sglang", attempts=1)
    assert codes(shared) == {"no_metrics", "foreign_traffic"}


def test_sglangs_lagging_gauge_is_no_stranger_but_its_load_tells_one(tmp_path: Path, run: Callable[..., RunResult]) -> None:
    # Back to back, as on a real server: the gauge still shows the request before. A foreign one that has not ended moves no counter.
    points = (Point(1000, 4, 1), Point(1000, 4, 3), Point(1200, 4, 1))
    alone = run(QUICK, tmp_path / "alone", engine="sglang", points=points, attempts=1)
    assert "foreign_traffic" not in codes(alone), alone.reasons
    assert all(p.before is not None and p.before.running == 0 for p in alone.points)
    slow = ["--ttft", "0.8", "--gap", "0.002", "--foreign-every", "100"]
    shared = run(slow, tmp_path / "shared", engine="sglang", attempts=1)
    assert codes(shared) == {"foreign_traffic"}
    assert "requests of someone else" in shared.points[0].reasons[0].text


def test_sglang_that_does_not_tell_its_load_keeps_its_counters(
    tmp_path: Path, run: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def late(self: Any) -> None:
        raise ServerUnreachable("GET /v1/loads", "no answer within 10 s", timed_out=True)

    monkeypatch.setattr(Server, "gauges", late)
    result = run(QUICK, tmp_path, engine="sglang", attempts=1)
    assert not codes(result) & {"no_metrics", "foreign_traffic"}, result.reasons
    assert result.points[0].cache_state == "COLD"


def test_sglang_without_a_radix_cache_is_cold_by_its_own_settings(tmp_path: Path, run: Callable[..., RunResult]) -> None:
    silent = [*QUICK, "--no-metrics", "--no-details", "--without-path", "/v1/loads"]
    unknown = run(silent, tmp_path / "on", engine="sglang")
    off = run([*silent, "--disable-radix-cache"], tmp_path / "off", engine="sglang")
    assert unknown.points[0].cache_state == "UNKNOWN"
    assert off.points[0].cache_state == "COLD"


def test_a_dead_server_fails_the_rest_at_once_and_keeps_what_was_measured(tmp_path: Path) -> None:
    points = (Point(100, 4, 1), Point(2000, 4, 2), Point(300, 4, 1), Point(400, 4, 50))
    began = time.perf_counter()
    with StandIn(*QUICK, "--die-after", "2", "--fault-min-input", "1000") as server:
        result = validate(config(server.url, tmp_path, points=points), lambda s: None)
    assert time.perf_counter() - began < 30, "nobody waits for the time-outs of 53 requests"
    assert [p.verdict for p in result.points] == [Verdict.PASS, Verdict.FAIL, Verdict.FAIL, Verdict.FAIL]
    assert [p.ran for p in result.points] == [True, True, False, False]
    assert "gone" in result.points[3].reasons[0].text
    assert [r.status for r in read_records(tmp_path / "requests.jsonl")].count(RequestStatus.OK) == 1


def test_a_dead_servers_own_words_are_the_first_reason_and_said_once(tmp_path: Path) -> None:
    points = (Point(100, 4, 1), Point(2000, 4, 2), Point(300, 4, 1))
    words = dying_words(tmp_path / "words")
    steps: list[Progress] = []
    with StandIn(*QUICK, "--die-after", "2", "--fault-min-input", "1000", "--die-saying", str(words)) as server:
        read = list(server.log)

        def new_lines() -> list[str]:
            fresh = server.log[len(read) :]
            read.extend(fresh)
            return fresh

        result = validate(config(server.url, tmp_path, points=points), steps.append, new_lines)
    assert [p.verdict for p in result.points] == [Verdict.PASS, Verdict.FAIL, Verdict.FAIL]
    first = result.reasons[0]
    assert (first.verdict, first.code) == (Verdict.FAIL, "server_dead")
    assert first.text.startswith(f"the server is gone, its log says: {NCCL_FULL}")
    assert [r for r in result.reasons if "NCCL" in r.text] == [first], "points that were not run need not repeat it"
    assert result.points[2].reasons[0].text == "not run: the server is gone (connection refused)"
    assert first.text in [s.message for s in steps if s.stage == "server"], "said at once"
    assert load_run(tmp_path / "run.json").reasons[0] == first


@pytest.mark.parametrize("said", [["INFO one", "INFO two"], UserError("Docker", "an answer", "start it")])
def test_a_dead_server_whose_log_tells_nothing_is_judged_as_ever(tmp_path: Path, said: Any) -> None:
    def new_lines() -> list[str]:
        if isinstance(said, UserError):
            raise said
        return list(said)

    with StandIn(*QUICK, "--die-after", "2") as server:
        result = validate(config(server.url, tmp_path, points=(Point(300, 4, 1),)), lambda s: None, new_lines)
    assert [r.code for r in result.reasons] == ["request_failed", "server_dead"]


def test_an_engine_that_died_behind_a_server_that_still_answers_is_named_too(tmp_path: Path, shared: StandIn) -> None:
    """vLLM's API server outlives its engine by seconds: the last point would end before it is gone."""
    shared.become("--engine", "vllm", *QUICK, "--error-after", "1")
    lines = dying_words(tmp_path / "words").read_text(encoding="utf-8").splitlines()
    made = config(shared.url, tmp_path, points=(Point(300, 4, 1),))
    result = validate(made, lambda s: None, lambda: lines)
    assert [r.code for r in result.reasons] == ["request_failed", "request_failed"]
    assert result.reasons[0].text.startswith(f"the server's log says: {NCCL_FULL}")
    harmless = validate(made, lambda s: None, lambda: ["ERROR this was nothing"])
    assert [r.code for r in harmless.reasons] == ["request_failed"]


def test_our_own_dropped_request_is_not_taken_for_someone_elses(tmp_path: Path, run: Callable[..., RunResult]) -> None:
    points = (Point(3000, 4, 1), Point(300, 4, 1))
    result = run(
        (*QUICK, "--stall-after", "2", "--fault-min-input", "1000", "--linger", "1.5"), tmp_path, points=points, warmup=True
    )
    assert [p.verdict for p in result.points] == [Verdict.FAIL, Verdict.PASS], result.reasons


def test_no_server_wrong_model_wrong_key_and_too_long_for_it(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no server"):
        validate(config("http://127.0.0.1:1", tmp_path), lambda s: None)
    with StandIn("--api-key", "right", "--max-model-len", "4096", *QUICK) as server:
        with pytest.raises(UserError, match="refused the key"):
            validate(config(server.url, tmp_path, api_key="wrong"), lambda s: None)
        with pytest.raises(UserError, match="standin-model"):
            validate(config(server.url, tmp_path, api_key="right", model="other"), lambda s: None)
        with pytest.raises(UserError, match="4,096"):
            validate(config(server.url, tmp_path, api_key="right", points=(Point(4090, 7),)), lambda s: None)
        good = validate(config(server.url, tmp_path, api_key="right", points=(Point(400, 7),)), lambda s: None)
    assert good.verdict is Verdict.PASS
    assert "right" not in json.dumps(json.loads((tmp_path / "run.json").read_text())["settings"])
