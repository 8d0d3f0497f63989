"""A server that dies of a request: the play that measures it says why. The stand-in dies in the engine's place, under supervisord."""

from __future__ import annotations

import json
import shutil
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from longhaul.deploy.layout import Layout
from longhaul.deploy.runtimes.supervisor import Supervisor
from longhaul.deploy.spec import render_spec, store_spec
from longhaul.deploy.startup import http_status
from longhaul.engines.settings import settings_from
from longhaul.results import Verdict, load_run
from support.environments import client_env, supervisor_env
from support.last_words import NCCL_FULL, dying_words
from support.runner import run_playbook

from e2e.conftest import free_port
from e2e.test_bad_input import SMOLLM2, inventory

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def home() -> Iterator[Path]:
    """A short path, for supervisord's socket. Environments come from the cache."""
    made = Path(tempfile.mkdtemp(prefix="lh-"))
    try:
        (made / "supervisor").mkdir()
        (made / "supervisor" / "env").symlink_to(supervisor_env())
        (made / "client").symlink_to(client_env())
        (made / "bin").mkdir()
        shutil.copy(ROOT / "roles/engine/files/launch.py", made / "bin")
        yield made
    finally:
        Supervisor(Layout(made)).shutdown()
        shutil.rmtree(made, ignore_errors=True)


def serve(home: Path, port: int, *faults: str) -> Layout:
    """The engine's own command line, started as the role starts it; what answers is the stand-in."""
    where = Layout(home)
    (home / "m").mkdir()
    shutil.copy(SMOLLM2, home / "m" / "config.json")
    path = f"{ROOT / 'tests'}:{ROOT / 'tests/testbed/shims'}"
    settings = settings_from(
        {
            "model_path": str(home / "m"),
            "served_model_name": "m",
            "context_tokens": 8192,
            "port": port,
            "pipeline_parallel": 2,
            "gpu_memory_utilization": 0.96,
            "extra_env": {"PYTHONPATH": path, "STANDIN_ARGS": " ".join(("--ttft 0.05 --gap 0.002", *faults))},
        }
    )
    store_spec(where, render_spec("vllm", "0.25.1", "process", settings, instance="default", python=sys.executable))
    where.log.parent.mkdir()
    where.log.write_text("torch.OutOfMemoryError: CUDA out of memory, in an older start\n", encoding="utf-8")
    supervisor = Supervisor(where)
    supervisor.write_config(10)
    supervisor.ensure_running()
    supervisor.load_programs()
    supervisor.start()
    return where


def test_the_failure_line_names_the_cause_from_the_engines_log(home: Path, tmp_path: Path) -> None:
    port = free_port()
    words = dying_words(tmp_path / "words")
    where = serve(home, port, "--die-after", "1", "--fault-min-input", "1500", "--die-saying", str(words))
    variables: dict[str, Any] = {
        "longhaul_home": str(home),
        "engine_port": port,
        "context_test_ladder_tokens": [1000, 2000, 3000],
        "context_test_concurrency": [1],
        "context_test_points": [],
        "context_test_output_tokens": 8,
        "context_test_results_dir": str(tmp_path / "results"),
        "report_results_dir": str(tmp_path / "results"),
    }
    made = inventory(tmp_path / "hosts.yml", {"gpu": variables}, tmp_path)
    deadline = time.monotonic() + 60
    while http_status(f"http://127.0.0.1:{port}/health") != 200:
        assert time.monotonic() < deadline, where.log.read_text(encoding="utf-8")
        time.sleep(0.1)
    done = run_playbook("playbooks/validate.yml", {}, inventory=made)
    assert done.rc != 0
    line = done.messages[-1]
    assert line.startswith(f"FAIL: the server is gone, its log says: {NCCL_FULL}"), done.text[-3000:]
    assert "\n" not in line
    assert "in2000-out8-c1: 1 of 1 requests failed" in line
    assert "older start" not in done.text
    run = load_run(tmp_path / "results" / "latest" / "gpu.json")
    assert [p.verdict for p in run.points[1:]] == [Verdict.FAIL, Verdict.FAIL]
    assert [r.text for r in run.reasons if "NCCL" in r.text] == [run.reasons[0].text]
    facts = json.loads(where.facts_file.read_text(encoding="utf-8"))
    assert NCCL_FULL in facts["verdict"]["reasons"][0]
    assert NCCL_FULL in (tmp_path / "results" / "latest" / "report.md").read_text(encoding="utf-8").replace("\\", "")
