"""Whole runs against the stand-in: a healthy server passes, and every way to fool or fail us gets its verdict and reason."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from longhaul.client.control import ServerUnreachable
from longhaul.client.load import LagMonitor, read_records
from longhaul.errors import UserError
from longhaul.models.reader import load_architecture
from longhaul.physics import roofline
from longhaul.physics.hardware import Gpu
from longhaul.results import Counters, RequestStatus, RunResult, Verdict, load_run
from longhaul.validate.config import NeedleSettings, Point, ValidateConfig
from longhaul.validate.progress import Progress
from longhaul.validate.run import validate
from longhaul.validate.server import Server
from longhaul.validate.verdict import Limits
from standin.fixture import StandIn
from support.paths import CONFIGS, LOGS, ROOT
from tiny_tokenizer import write_tokenizer

ARCHITECTURE = load_architecture(CONFIGS / "smollm2-135m.json")
# A device on which 4,000 tokens of this model cannot take less than about 0.14 s, and on which the stand-in's honest
# prefill (20,000 tokens/s: 0.2 s) is possible.
SLOW_GPU = Gpu("test device", 2**30, 1e12, {"bf16": 8e12}, "made up for this test")
HONEST = ("--ttft", "0.02", "--prefill-rate", "20000", "--gap", "0.002")
CALM = Limits(tolerance=20.0)  # repeats may disagree here: these tests run on busy machines
QUICK = ("--ttft", "0.02", "--gap", "0.002")


def config(url: str, out: Path, **changes: Any) -> ValidateConfig:
    values: dict[str, Any] = {
        "url": url, "engine": "vllm", "host": "h1", "out_dir": out, "run_id": "run-1", "points": (Point(4000, 8, 1),),
        "vocab_size": 50_000, "seed": 7, "warmup": False, "timeout_floor_s": 0.3, "limits": CALM,
    }  # fmt: skip
    return ValidateConfig(**(values | changes))


@pytest.fixture(autouse=True)
def calm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """A busy machine makes the client lag, and it rightly says so; only the test of that shall depend on it."""
    if "lags" not in request.node.name:
        monkeypatch.setattr(LagMonitor, "at", lambda self, instant: 0.0)
        monkeypatch.setattr(LagMonitor, "share", lambda self, begin, end, **_: 0.0)


@pytest.fixture(scope="module")
def shared() -> Iterator[StandIn]:
    """One stand-in process for all tests whose server survives them; ``become`` gives it a new command line."""
    with StandIn() as server:
        yield server


@pytest.fixture
def run(shared: StandIn) -> Callable[..., RunResult]:
    """One validation against a fresh stand-in with these flags."""

    def act(standin: Sequence[str], out: Path, **changes: Any) -> RunResult:
        shared.become("--engine", changes.get("engine", "vllm"), *standin)
        return validate(config(shared.url, out, **changes), lambda step: None)

    return act


def codes(result: RunResult) -> set[str]:
    return {reason.code for point in result.points for reason in point.reasons}


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_healthy_server_passes_and_leaves_everything_on_disk(engine: str, tmp_path: Path) -> None:
    points = (Point(1000, 8, 1), Point(2000, 8, 4))
    with StandIn("--engine", engine, "--served-model-name", "m", "--serial-prefill", *HONEST) as server:
        steps: list[Progress] = []
        result = validate(
            config(server.url, tmp_path, engine=engine, points=points, repeats=2, warmup=True, hardware=(SLOW_GPU, 1),
                   architecture=ARCHITECTURE),
            steps.append,
        )  # fmt: skip
    assert result.verdict is Verdict.PASS, result.reasons
    assert result.model == "m"
    assert [p.cache_state for p in result.points] == ["COLD", "COLD"]
    first, second = result.points
    assert (first.completed, second.completed, first.failed, first.timed_out) == (2, 8, 0, 0)
    assert first.token_error_max == 0
    assert first.ttft_s is not None
    assert 0.07 <= first.ttft_s.p50 < 0.3
    assert first.tpot_s is not None
    assert 0.001 < first.tpot_s.p50 < 0.02
    assert first.physics is not None
    assert first.physics.ratio > 1
    assert first.before is not None
    assert first.after is not None
    assert (first.after.prompt_tokens or 0) - (first.before.prompt_tokens or 0) == 2000
    assert load_run(tmp_path / "run.json") == result
    records = read_records(tmp_path / "requests.jsonl")
    assert [r.warmup for r in records].count(True) == 1
    timed = [r for r in records if not r.warmup]
    assert len(timed) == 10
    assert len({r.nonce for r in records}) == len({r.prompt_sha256 for r in records}) == 11, "no prompt is sent twice"
    assert {s.stage for s in steps} >= {"connect", "plan", "warm-up", "point", "done"}
    assert any(s.left_s is not None and s.stage == "plan" for s in steps)


def test_the_same_seed_gives_both_engines_the_same_prompts(tmp_path: Path, run: Callable[..., RunResult]) -> None:
    sent = []
    for engine in ("vllm", "sglang"):
        run(QUICK, tmp_path / engine, engine=engine, points=(Point(500, 4, 2),))
        sent.append({(r.index, r.prompt_sha256) for r in read_records(tmp_path / engine / "requests.jsonl")})
    assert sent[0] == sent[1]


PHYSICS: dict[str, Any] = {"hardware": (SLOW_GPU, 1), "architecture": ARCHITECTURE}
# Wide margins, where a busy machine could blur too quick into honest: floor 0.5 s, honest 0.8 s, from the cache 0.02 s.
SLOWER: dict[str, Any] = {"hardware": (replace(SLOW_GPU, peak_flop_per_s={"bf16": 2.8e12}), 1), "architecture": ARCHITECTURE}

# The stand-in's fault -> verdict, reason, words. One row a way to fool or fail a validation.
FAULTS = [
    pytest.param([*HONEST, "--too-fast"], SLOWER, Verdict.INVALID, "below_floor", "cached share of", id="too fast"),
    pytest.param([*QUICK, "--drop-usage"], {}, Verdict.INCONCLUSIVE, "no_usage", "no usage", id="drops usage"),
    pytest.param([*QUICK, "--miscount-prompt", "13"], {}, Verdict.INVALID, "token_error", "+13", id="miscounts the prompt"),
    pytest.param(
        [*QUICK, "--miscount-prompt", "-500"], {}, Verdict.INVALID, "token_error", "3,500 prompt tokens where 4,000", id="truncates the prompt"
    ),
    pytest.param([*QUICK, "--miscount-completion", "3"], {}, Verdict.INVALID, "output_token_error", "11 output", id="miscounts output"),
    pytest.param(
        [*QUICK, "--stall-after", "3", "--fault-from", "2"], {"warmup": True}, Verdict.FAIL, "request_failed", "stalled", id="stalls"
    ),
    pytest.param([*QUICK, "--reject-over", "5000"], {}, Verdict.FAIL, "request_failed", "HTTP 413", id="413"),
    pytest.param([*QUICK, "--close-after", "3"], {}, Verdict.FAIL, "request_failed", "after 3 token events", id="closes early"),
    pytest.param([*QUICK, "--broken-sse-after", "3"], {}, Verdict.FAIL, "request_failed", "no JSON", id="broken SSE"),
    pytest.param([*QUICK, "--error-after", "3"], {}, Verdict.FAIL, "request_failed", "EngineCore", id="error in the stream"),
    pytest.param([*QUICK, "--http-error", "400"], {}, Verdict.FAIL, "request_failed", "HTTP 400: stand-in", id="HTTP 400"),
    pytest.param([*QUICK, "--http-error", "500"], {}, Verdict.FAIL, "request_failed", "HTTP 500: stand-in", id="HTTP 500"),
    pytest.param(
        ["--ttft", "0.3", "--gap", "0.002", "--foreign-every", "0.05"],
        {}, Verdict.INCONCLUSIVE, "foreign_traffic", "beyond ours", id="another client",
    ),
    pytest.param([*QUICK, "--no-metrics"], {}, Verdict.INCONCLUSIVE, "no_metrics", "no counters", id="no metrics"),
]  # fmt: skip


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize(("standin", "changes", "verdict", "code", "words"), FAULTS)
def test_the_table_of_faults(
    engine: str,
    standin: list[str],
    changes: dict[str, Any],
    verdict: Verdict,
    code: str,
    words: str,
    tmp_path: Path,
    run: Callable[..., RunResult],
) -> None:
    result = run(standin, tmp_path, engine=engine, **changes)
    point = result.points[0]
    found = {r.code: r for r in point.reasons}
    assert result.verdict is point.verdict is verdict, point.reasons
    assert code in found, point.reasons
    assert words in found[code].text
    timed = [r for r in read_records(tmp_path / "requests.jsonl") if not r.warmup]
    assert point.attempts == (3 if code == "foreign_traffic" else 1), "only circumstances are worth another attempt"
    assert len(timed) == point.attempts, "the evidence of a failure, and of every attempt, is kept"
    assert len({r.prompt_sha256 for r in timed}) == point.attempts, "no attempt repeats a prompt"


# How a server that remembers a prompt tells it: (stand-in, physics known) -> code, cached share by the words.
CACHES = [
    pytest.param(HONEST, {}, "cached_prompt", "by usage.cached_tokens", id="it says so"),
    pytest.param((*HONEST, "--cache-silent", "usage"), {}, "cached_prompt", "by cache counters", id="only the counters say so"),
    pytest.param(
        (*HONEST, "--prefill-rate", "5000", "--cache-silent", "all"),
        SLOWER,
        "below_floor",
        "would explain it",
        id="nothing says so",
    ),
]


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


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize(("standin", "changes", "code", "words"), CACHES)
def test_the_same_prompt_twice_is_invalid(
    engine: str, standin: tuple[str, ...], changes: dict[str, Any], code: str, words: str, tmp_path: Path
) -> None:
    careless: dict[str, Any] = {"engine": engine, "cache_salt": False, "flush": False, **changes}
    with StandIn("--engine", engine, *standin) as server:
        cold = validate(config(server.url, tmp_path / "a", **careless), lambda s: None)
        warm = validate(config(server.url, tmp_path / "b", **careless), lambda s: None)
    assert cold.verdict is Verdict.PASS, cold.reasons
    assert warm.verdict is Verdict.INVALID
    reason = next(r for r in warm.points[0].reasons if r.code == code)
    assert words in reason.text
    if code == "cached_prompt":
        assert warm.points[0].cache_state == "WARM"
        assert warm.points[0].cached_share == pytest.approx(3984 / 4000, abs=0.005)
    else:
        physics = warm.points[0].physics
        assert physics is not None
        assert (physics.explaining_cached_share or 0) > 0.4


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_salt_or_flush_makes_the_same_prompt_cold_again(engine: str, tmp_path: Path) -> None:
    with StandIn("--engine", engine, *HONEST) as server:
        for number in (1, 2):
            result = validate(config(server.url, tmp_path / str(number), engine=engine), lambda s: None)
            assert result.verdict is Verdict.PASS, result.reasons


def test_warm_mode_measures_the_cache_and_says_so(tmp_path: Path, run: Callable[..., RunResult]) -> None:
    result = run(HONEST, tmp_path, mode="warm", **PHYSICS)
    assert result.verdict is Verdict.PASS, result.reasons
    assert result.mode == "warm"
    assert result.points[0].cache_state == "WARM"
    assert result.points[0].cached_share == pytest.approx(0.996, abs=0.01)


def test_many_short_distinct_prompts_give_no_false_alarm(tmp_path: Path, run: Callable[..., RunResult]) -> None:
    for engine in ("vllm", "sglang"):
        result = run(QUICK, tmp_path / engine, engine=engine, points=(Point(40, 2, 50),), repeats=2)
        assert result.points[0].completed == 100
        assert not codes(result) & {"cached_prompt", "token_error", "below_floor", "cache_unknown"}


def test_a_point_that_fails_does_not_stop_the_ladder(tmp_path: Path, run: Callable[..., RunResult]) -> None:
    points = (Point(100, 4, 1), Point(2000, 4, 1), Point(300, 4, 1))
    result = run((*QUICK, "--close-after", "1", "--fault-min-input", "1000"), tmp_path, points=points)
    assert [p.verdict for p in result.points] == [Verdict.PASS, Verdict.FAIL, Verdict.PASS]
    assert result.verdict is Verdict.FAIL


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


NCCL_LOG = LOGS / "vllm-0.25.1-nccl-no-memory.log"
NCCL_FULL = "no GPU memory left for NCCL's buffers (Failed to CUDA calloc async 40 bytes) | fix: lower gpu_memory_utilization"


def dying_words(path: Path) -> Path:
    """What the real engine said between its first request and its end."""
    lines = NCCL_LOG.read_text(encoding="utf-8").splitlines()
    begin = next(i for i, line in enumerate(lines) if "WorkerProc hit an exception" in line)
    path.write_text("\n".join(lines[begin:-1]) + "\n", encoding="utf-8")
    return path


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


def test_a_calibrated_floor_is_timed_again_before_it_condemns(
    tmp_path: Path, run: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    peaks = [1e12, 8e12]  # the first time the host was busy: its floor would be 1.1 s

    def calibrate(python: str | None) -> Gpu:
        return replace(SLOW_GPU, vendor="cpu", peak_flop_per_s={"bf16": peaks.pop(0)})

    monkeypatch.setattr(roofline, "calibrate_cpu", calibrate)
    result = run(HONEST, tmp_path, architecture=ARCHITECTURE, calibrate=True)
    assert result.verdict is Verdict.PASS, result.reasons
    assert not peaks


def test_a_cancellation_that_the_sampler_never_sees_does_not_hang_the_run(
    tmp_path: Path, run: Callable[..., RunResult], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Before Python 3.12 asyncio.wait_for can swallow a cancellation: the run must end all the same."""
    real = Server.counters

    async def deaf(self: Server) -> Counters | None:
        try:
            await asyncio.sleep(0.3)
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if sys.version_info >= (3, 11) and task is not None:
                task.uncancel()
        return await real(self)

    monkeypatch.setattr("longhaul.validate.measure._SAMPLE_LEAST_S", 0.01)
    monkeypatch.setattr(Server, "counters", deaf)
    result = run(("--ttft", "0.5", "--gap", "0.002"), tmp_path)
    assert result.points[0].completed == 1


def test_a_missed_limit_fails_and_goodput_counts_only_what_meets_it(tmp_path: Path, run: Callable[..., RunResult]) -> None:
    result = run(("--ttft", "0.1", "--gap", "0.002"), tmp_path, limits=replace(CALM, ttft_s=0.05, e2e_s=30))
    point = result.points[0]
    assert point.verdict is Verdict.FAIL
    assert codes(result) == {"slo_missed"}
    assert point.goodput_per_s == 0
    assert (point.requests_per_s or 0) > 0


def test_repeats_that_disagree_are_inconclusive(tmp_path: Path, run: Callable[..., RunResult]) -> None:
    result = run(
        ("--ttft", "0.15", "--gap", "0.002", "--jitter", "3"), tmp_path, points=(Point(500, 4, 1),), repeats=4, limits=Limits()
    )
    assert result.verdict is Verdict.INCONCLUSIVE
    assert codes(result) == {"repeats_disagree"}


def test_a_client_that_lags_says_so_of_itself(tmp_path: Path) -> None:
    with StandIn("--ttft", "0.6", "--gap", "0.002") as server:

        def slow_screen(step: Progress) -> None:
            if step.stage == "running":
                time.sleep(0.4)  # blocks the event loop over the first token's arrival

        result = validate(config(server.url, tmp_path), slow_screen)
    assert result.verdict is Verdict.INCONCLUSIVE
    assert codes(result) == {"client_lag"}
    assert (result.points[0].client_lag_s or 0) > 0.2


def test_points_over_the_budget_are_listed_not_run(tmp_path: Path, run: Callable[..., RunResult]) -> None:
    points = (Point(200, 4, 1), Point(200_000, 4, 1), Point(300, 4, 1))
    result = run((*QUICK, "--prefill-rate", "100000"), tmp_path, points=points, budget_s=4.0, warmup=True)
    assert [p.ran for p in result.points] == [True, False, True]
    assert result.points[1].verdict is Verdict.INCONCLUSIVE
    assert result.points[1].reasons[0].code == "not_run"
    assert (result.points[1].expected_s or 0) > 4.0


def test_concurrency_points_say_what_will_queue(tmp_path: Path) -> None:
    steps: list[str] = []
    with StandIn("--engine", "sglang", "--kv-tokens", "2100", *QUICK) as server:
        wanted = config(server.url, tmp_path, engine="sglang", points=(Point(1000, 4, 5),))
        result = validate(wanted, lambda s: steps.append(s.message))
    assert (result.points[0].fits_at_once, result.points[0].will_queue) == (2, 3)
    assert any("2 fit at once, 3 will queue" in s for s in steps)


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_the_servers_queue_is_told_apart_from_its_prefill(engine: str, tmp_path: Path, run: Callable[..., RunResult]) -> None:
    slow = ("--ttft", "0.2", "--gap", "0.002")
    points = (Point(1000, 4, 3),)
    one_by_one = run((*slow, "--kv-tokens", "1100"), tmp_path / "1", engine=engine, points=points).points[0]
    at_once = run(slow, tmp_path / "2", engine=engine, points=points).points[0]
    assert one_by_one.server_queue_s is not None
    assert at_once.server_queue_s is not None
    assert 0.18 < one_by_one.server_queue_s < 1.0, "of three, one waits for none, one for one, one for two prefills"
    assert at_once.server_queue_s < 0.05


def test_needles_are_asked_for_in_the_timed_request(tmp_path: Path, run: Callable[..., RunResult]) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    known = ("--tokenizer-json", str(tokenizer / "tokenizer.json"), *QUICK)
    wanted: dict[str, Any] = {
        "tokenizer_dir": tokenizer, "vocab_size": None, "corpus_dir": tmp_path / "cache", "points": (Point(1500, 40, 1),),
        "needles": NeedleSettings(enabled=True, kinds=("multi", "single"), depths=(0.1, 0.9)), "limits": replace(CALM, needle_recall=0.9),
    }  # fmt: skip
    right = run(known, tmp_path / "right", **wanted)
    assert right.verdict is Verdict.PASS, right.reasons
    assert right.needle_recall == 1.0
    assert {(c.kind, c.depth, c.asked, c.found) for c in right.needles} == {
        ("multi", 0.1, 1, 1), ("multi", 0.9, 1, 1), ("single", 0.1, 1, 1), ("single", 0.9, 1, 1),
    }  # fmt: skip
    wrong = run((*known, "--needles", "wrong"), tmp_path / "wrong", **wanted)
    assert wrong.verdict is Verdict.FAIL
    assert [r.code for r in wrong.reasons] == ["needle_recall"]
    assert wrong.needle_recall == 0.0
    kept = read_records(tmp_path / "wrong" / "requests.jsonl")[0].needles
    assert kept[0].expected != kept[0].answer.split(",")[0].strip(), "the raw answer is kept"
    told = [asked.told for asked in wrong.needle_answers]
    assert len(told) == sum(cell.asked for cell in wrong.needles), "every answer is in the result too, for its report"
    assert all(t.subject is not None and t.subject in (t.question or "") and t.answer and not t.found for t in told)


def test_a_corpus_that_repeats_itself_is_noted_and_no_ground_for_needles(tmp_path: Path, run: Callable[..., RunResult]) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    tiled, fresh = tmp_path / "tiled.txt", tmp_path / "fresh.txt"
    words = [f"{chr(97 + i % 26)}{chr(97 + i * 7 % 26)}{i}" for i in range(60_000)]
    tiled.write_text(" ".join(words[:200]) * 400, encoding="utf-8")
    fresh.write_text(" ".join(words), encoding="utf-8")
    needles = NeedleSettings(enabled=True, kinds=("single",), depths=(0.5,))
    given: dict[str, Any] = {
        "tokenizer_dir": tokenizer, "vocab_size": None, "corpus_dir": tmp_path / "cache", "points": (Point(6000, 40, 1),),
    }  # fmt: skip
    known = ("--tokenizer-json", str(tokenizer / "tokenizer.json"), *QUICK)
    asked = run(known, tmp_path / "1", corpus_source=tiled, needles=needles, **given)
    assert asked.verdict is Verdict.INCONCLUSIVE
    assert codes(asked) == {"repeated_text"}
    assert "required for needles" in asked.points[0].reasons[0].text
    timed = run(known, tmp_path / "2", corpus_source=tiled, **given)
    assert timed.verdict is Verdict.PASS, "the time of a dense prefill does not depend on its text"
    assert "the corpus repeats itself" in timed.settings["corpus_note"]
    other = run(known, tmp_path / "3", corpus_source=fresh, needles=needles, **given)
    assert other.verdict is Verdict.PASS, other.reasons
    assert other.settings["corpus_note"] is None


def test_needles_do_not_apply_to_random_weights(tmp_path: Path, run: Callable[..., RunResult]) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    result = run(
        QUICK, tmp_path / "out", tokenizer_dir=tokenizer, vocab_size=None, corpus_dir=tmp_path / "cache",
        points=(Point(1500, 4, 1),), needles=NeedleSettings(enabled=True, dummy_weights=True), limits=replace(CALM, needle_recall=0.9),
    )  # fmt: skip
    assert result.verdict is Verdict.PASS, result.reasons
    assert result.needle_recall is None
    assert "not applicable" in (result.needle_note or "")


def test_text_mode_aligns_with_the_servers_own_count(tmp_path: Path, run: Callable[..., RunResult]) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    result = run(
        QUICK, tmp_path / "out", tokenizer_dir=tokenizer, vocab_size=None, corpus_dir=tmp_path / "cache",
        transport="text", points=(Point(300, 4, 1), Point(700, 4, 2)),
    )  # fmt: skip
    assert [p.token_error_max for p in result.points] == [0, 0]
    assert result.verdict is Verdict.PASS, result.reasons


def test_slower_than_the_baseline_beyond_noise_fails(tmp_path: Path, run: Callable[..., RunResult]) -> None:
    points = (Point(500, 10, 2),)
    run(("--ttft", "0.05", "--gap", "0.01"), tmp_path / "then", points=points, repeats=2)
    baseline = tmp_path / "then" / "run.json"
    slow = run(("--ttft", "0.25", "--gap", "0.01"), tmp_path / "slow", points=points, repeats=2, baseline=baseline)
    assert slow.verdict is Verdict.FAIL
    assert "TTFT" in next(r.text for r in slow.reasons if r.code == "regression")


def test_a_killed_run_loses_nothing_it_measured(tmp_path: Path) -> None:
    script = (
        "import sys; from pathlib import Path; from longhaul.validate.config import *; from longhaul.validate.run import validate\n"
        "validate(ValidateConfig(url=sys.argv[1], engine='vllm', host='h', out_dir=Path(sys.argv[2]), run_id='r', vocab_size=5000,\n"
        " points=(Point(100, 4, 1), Point(5000, 4, 1)), warmup=False), lambda s: print(s.stage, s.done, flush=True))\n"
    )
    with StandIn("--ttft", "0.02", "--gap", "0.002", "--stall-after", "1", "--fault-min-input", "1000") as server:
        env = os.environ | {"PYTHONPATH": str(ROOT / "module_utils")}
        command = [sys.executable, "-c", script, server.url, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("running"):
                    break  # the second point is stalled now
            process.send_signal(signal.SIGKILL)
    records = read_records(tmp_path / "requests.jsonl")
    assert [(r.input_tokens, r.status) for r in records] == [(100, RequestStatus.OK)]
    kept = load_run(tmp_path / "run.json")
    assert not kept.complete
    assert [p.verdict for p in kept.points] == [Verdict.PASS]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"points": ()}, "empty ladder"),
        ({"points": (Point(0, 5, 1),)}, "input 0"),
        ({"points": (Point(8000, 193, 1),), "context_tokens": 8192}, "8,000 + 193"),
        ({"points": (Point(5, 5), Point(5, 5))}, "same point twice"),
        ({"engine": "tgi"}, "tgi"),
        ({"engine_version": "latest"}, "latest"),
        ({"mode": "hot"}, "hot"),
        ({"vocab_size": None}, "tokenizer"),
        ({"url": "ftp://x"}, "ftp://x"),
        ({"needles": NeedleSettings(enabled=True)}, "needles"),
        ({"baseline": Path("/nonexistent/run.json")}, "no result file"),
    ],
)
def test_wrong_input_is_one_line_before_anything_is_sent(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        validate(replace(config("http://127.0.0.1:1", tmp_path), **changes), lambda s: None)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


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
