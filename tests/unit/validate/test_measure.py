"""Measuring a point: the sampler, the client's own lag, what the server's queue and the limits make of it."""

from __future__ import annotations

import asyncio
import re
import sys
import time
import urllib.request
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from longhaul.results import Counters, RunResult, Verdict
from longhaul.validate.config import Point
from longhaul.validate.progress import Progress
from longhaul.validate.run import validate
from longhaul.validate.server import Server
from longhaul.validate.verdict import Limits
from standin.fixture import StandIn
from unit.validate.runs import CALM, codes, config


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


def test_a_client_that_lags_says_so_of_itself(tmp_path: Path) -> None:
    blocked = []
    with StandIn("--ttft", "1.5", "--gap", "0.002") as server:

        def slow_screen(step: Progress) -> None:
            if step.stage != "running":
                return
            with urllib.request.urlopen(f"{server.url}/metrics", timeout=30) as answer:
                metrics = answer.read().decode()
            # The request is with the server, so its first token comes while the event loop stands still.
            if re.search(r"^vllm:num_requests_running\S* 1", metrics, re.MULTILINE):
                blocked.append(step)
                time.sleep(1.7)  # every time: a point that was spoilt is measured again

        result = validate(config(server.url, tmp_path), slow_screen)
    assert blocked
    assert result.verdict is Verdict.INCONCLUSIVE
    assert codes(result) == {"client_lag"}
    assert (result.points[0].client_lag_s or 0) > 0.2


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
