"""scripts/dev/gpu-visit.sh on a machine without a GPU: the queue, the words that each play gets, and what is collected."""

from __future__ import annotations

import json
import os
import subprocess
import tarfile
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

SCRIPT = ROOT / "scripts" / "dev" / "gpu-visit.sh"
# Stands for ansible-playbook: one line of JSON per call; a play that is told to fail fails.
PLAYBOOK = """#!/usr/bin/env python3
import json, os, sys
with open(os.environ["VISIT_HOME"] + "/calls.jsonl", "a") as file:
    file.write(json.dumps(sys.argv[1:]) + "\\n")
sys.exit("fail=1" in sys.argv)
"""


class Visit:
    """A visit in a folder of its own, with a fake controller."""

    def __init__(self, folder: Path) -> None:
        self.home = folder / "home of a visit"
        programs = self.home / "controller" / "bin"
        programs.mkdir(parents=True)
        (programs / "ansible-playbook").write_text(PLAYBOOK, encoding="utf-8")
        (programs / "ansible-playbook").chmod(0o755)
        # Beside the tests' own variables, so that no visit of the developer's is touched.
        self.environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("VISIT_")},
            "VISIT_HOME": str(self.home),
            "VISIT_TREE": str(ROOT),
            "VISIT_GPUS": "2",
            "VISIT_MODEL": "llama-4-scout-text",
            "VISIT_CUDA": "/usr/local/cuda",
        }

    def __call__(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [str(SCRIPT), *words], env=self.environment, capture_output=True, text=True, check=False, timeout=60, cwd=self.home
        )

    def calls(self) -> list[list[str]]:
        return [json.loads(line) for line in (self.home / "calls.jsonl").read_text(encoding="utf-8").splitlines()]


@pytest.fixture
def visit(tmp_path: Path) -> Visit:
    return Visit(tmp_path)


def variables(call: list[str]) -> dict[str, Any]:
    """What ansible-playbook would make of the -e words: later ones win."""
    found: dict[str, Any] = {}
    for word in (call[at + 1] for at, flag in enumerate(call) if flag == "-e"):
        found.update(json.loads(word) if word.startswith("{") else dict([word.split("=", 1)]))
    return found


def test_jobs_run_in_the_order_of_their_names_with_the_gpus_and_the_model(visit: Visit) -> None:
    assert visit("add", "99-end", "end").returncode == 0
    assert visit("add", "30-load", "validate", "-e", '{"context_test_concurrency": [1, 4]}').returncode == 0
    assert visit("add", "20-pages", "deploy", "-e", '{"engine_block_size_tokens": 128, "gpu_run_gpus": 1}').returncode == 0
    assert visit("work").returncode == 0
    assert [call[0] for call in visit.calls()] == [
        "playbooks/stop.yml",
        "deploy.yml",
        "playbooks/validate.yml",
        "playbooks/stop.yml",
    ]
    _, deployed, validated, _ = (variables(call) for call in visit.calls())
    assert deployed["longhaul_run_id"] == "20-pages"
    assert deployed["longhaul_wheelhouse"] == f"{visit.home}/wheels"
    assert deployed["model_store_dummy"] == deployed["engine_served_model_name"] == "llama-4-scout-text"
    assert deployed["engine_extra_env"]["CUDA_HOME"] == "/usr/local/cuda"
    assert deployed["engine_extra_env"]["PYTHONPATH"] == f"{ROOT}/scripts/dev/gpu-visit"
    assert (deployed["engine_block_size_tokens"], deployed["gpu_run_gpus"]) == (128, 1), "a job's own words win"
    assert (validated["context_test_concurrency"], validated["gpu_run_gpus"]) == ([1, 4], 2)


def test_a_job_that_fails_is_noted_and_the_next_one_runs(visit: Visit) -> None:
    visit("add", "10-bad", "burnin", "-e", "fail=1")
    visit("add", "20-kernel", "run", "printf", "%s!", "two words")
    visit("add", "99-end", "end")
    visit("work")
    timeline = (visit.home / "out/timeline.txt").read_text(encoding="utf-8")
    assert "10-bad: exit 1" in timeline
    assert "job 10-bad failed" in timeline
    assert (visit.home / "out/20-kernel.log").read_text(encoding="utf-8") == "two words!"


def test_an_installation_waits_for_its_pieces_and_fills_the_wheelhouse(visit: Visit, tmp_path: Path) -> None:
    arriving = tmp_path / "arriving"
    arriving.mkdir()
    (arriving / "piece-001").write_bytes(b"1")
    (arriving / "manifest.json").write_text(json.dumps({"pieces": [{"name": "piece-001"}]}), encoding="utf-8")
    (arriving / "join.sh").write_text('cd "$(dirname "$0")" && mkdir -p wheels && touch wheels/a.whl\n', encoding="utf-8")
    assert "piece-001" in visit("receive", str(arriving), "sglang").stdout
    visit("add", "10-sglang", "install", "sglang", "-e", "engine_name=sglang")
    visit("add", "99-end", "end")
    visit("work")
    assert (visit.home / "wheels/a.whl").exists()
    assert variables(visit.calls()[0])["engine_name"] == "sglang"
    assert (visit.home / "out/host.txt").exists()


def test_what_was_measured_is_collected(visit: Visit, tmp_path: Path) -> None:
    visit("add", "99-end", "end")
    visit("work")
    (visit.home / "results/20-pages").mkdir(parents=True)
    (visit.home / "results/20-pages/gpu-run.json").write_text("{}", encoding="utf-8")
    assert visit("collect", str(tmp_path / "collected")).returncode == 0
    with tarfile.open(tmp_path / "collected/results.tar.gz") as archive:
        assert "results/20-pages/gpu-run.json" in archive.getnames()
    assert "99-end: exit 0" in (tmp_path / "collected/timeline.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("words", [["add", "10-x", "dance"], ["add", "10-x", "install"], ["add", "10-x", "run"], ["nothing"]])
def test_a_wrong_word_is_refused_with_the_usage(visit: Visit, words: list[str]) -> None:
    done = visit(*words)
    assert done.returncode == 2
    assert "add NAME" in done.stdout + done.stderr
    assert list(visit.home.glob("queue/*")) == []


def test_nobody_waits_for_a_visit_that_never_began(visit: Visit, tmp_path: Path) -> None:
    done = visit("follow", str(tmp_path / "out"), "30")
    assert done.returncode == 9
