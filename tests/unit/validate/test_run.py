"""Whole runs against the stand-in: a healthy server passes, and every way to fool or fail us gets its verdict and reason."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from longhaul.results import RequestStatus, RunResult, Verdict, load_run
from longhaul.validate.config import Point
from longhaul.validate.progress import Progress
from longhaul.validate.run import validate
from standin.fixture import StandIn
from support.paths import ROOT
from support.records import read_records
from unit.validate.runs import ARCHITECTURE, HONEST, QUICK, SLOW_GPU, SLOWER, config


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


def test_a_point_that_fails_does_not_stop_the_ladder(tmp_path: Path, run: Callable[..., RunResult]) -> None:
    points = (Point(100, 4, 1), Point(2000, 4, 1), Point(300, 4, 1))
    result = run((*QUICK, "--close-after", "1", "--fault-min-input", "1000"), tmp_path, points=points)
    assert [p.verdict for p in result.points] == [Verdict.PASS, Verdict.FAIL, Verdict.PASS]
    assert result.verdict is Verdict.FAIL


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
        " points=(Point(100, 4, 1), Point(5000, 4, 1)), warmup=False), lambda s: print(s.stage, s.point_id, flush=True))\n"
    )
    with StandIn("--ttft", "0.02", "--gap", "0.002", "--stall-after", "1", "--fault-min-input", "1000") as server:
        env = os.environ | {"PYTHONPATH": str(ROOT / "module_utils")}
        command = [sys.executable, "-c", script, server.url, str(tmp_path)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=env) as process:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith("running in5000-"):
                    break  # it is stalled now
            process.send_signal(signal.SIGKILL)
    records = read_records(tmp_path / "requests.jsonl")
    assert [(r.input_tokens, r.status) for r in records] == [(100, RequestStatus.OK)]
    kept = load_run(tmp_path / "run.json")
    assert not kept.complete
    assert [p.verdict for p in kept.points] == [Verdict.PASS]
