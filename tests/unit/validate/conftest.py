"""A stand-in server for the tests of whole runs, and a client that no busy machine makes lag."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from longhaul.client.load import LagMonitor
from longhaul.results import RunResult
from longhaul.validate.run import validate
from standin.fixture import StandIn
from unit.validate.runs import config


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
