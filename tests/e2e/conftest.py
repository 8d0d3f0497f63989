"""One real deployment of the embedded default, shared by the end-to-end tests; ended whatever happens."""

from __future__ import annotations

import contextlib
import shutil
import socket
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from longhaul.deploy.layout import Layout
from longhaul.deploy.runtimes.supervisor import Supervisor
from support.engine import bring_engine, keep_model
from support.runner import Outcome, run_playbook

# For runs whose figures are not looked at.
LADDER: dict[str, Any] = {
    "context_test_ladder_tokens": [1000],
    "context_test_points": [],
    "context_test_concurrency": [1],
    "context_test_output_tokens": 8,
}
# The shipped ladder with shorter answers: a short prompt, the longest that fits, and four at once that together are more than one
# context.
FIRST: dict[str, Any] = {
    "context_test_ladder_tokens": [1000, 7900],
    "context_test_concurrency": [1],
    "context_test_points": [{"input_tokens": 2100, "output_tokens": 8, "concurrency": 4}],
    "context_test_output_tokens": 8,
}


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass
class Deployment:
    """A home of its own, a port of its own, results of its own."""

    home: Path
    port: int
    results: Path
    first: Outcome | None = None
    more: dict[str, Any] = field(default_factory=dict)

    @property
    def layout(self) -> Layout:
        """Paths on the host."""
        return Layout(self.home)

    @property
    def url(self) -> str:
        """The server."""
        return f"http://127.0.0.1:{self.port}"

    def variables(self, **changes: Any) -> dict[str, Any]:
        """Extra variables of every run."""
        return {
            "longhaul_home": str(self.home),
            "engine_port": self.port,
            "context_test_results_dir": str(self.results),
            "report_results_dir": str(self.results),
            **self.more,
            **changes,
        }

    def run(self, playbook: str, cmdline: str = "", **changes: Any) -> Outcome:
        """One playbook against this deployment."""
        return run_playbook(playbook, self.variables(**changes), cmdline=cmdline)

    def starts(self) -> int:
        """How often the engine was started, by its own log."""
        return self.layout.log.read_text(encoding="utf-8", errors="replace").count("longhaul: starting spec")


@contextlib.contextmanager
def new_home() -> Iterator[Path]:
    """A short path: supervisord's socket must fit. Environment and model come from the cache, as on a second deployment."""
    home = Path(tempfile.mkdtemp(prefix="lh-"))
    try:
        bring_engine(home)
        yield home
    finally:
        Supervisor(Layout(home)).shutdown()
        shutil.rmtree(home, ignore_errors=True)


@pytest.fixture(scope="session")
def deployment() -> Iterator[Deployment]:
    """The embedded default, deployed once through ansible-runner with the shipped inventory."""
    with new_home() as home, tempfile.TemporaryDirectory(prefix="lh-results-") as results:
        made = Deployment(home, free_port(), Path(results))
        made.first = made.run("deploy.yml", **FIRST)
        keep_model(home)
        yield made
