"""A new engine is one folder and one line: a made-up third one is planned for, deployed and validated without another change.

The folder is tests/third_engine/fake. It goes into a copy of this repository together with its line in the registry.
"""

from __future__ import annotations

import difflib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from longhaul.deploy.layout import Layout
from longhaul.deploy.runtimes.process import Supervisor
from longhaul.results import Verdict, load_run
from support.environments import client_env, supervisor_env
from support.runner import Outcome, run_playbook

from e2e.conftest import free_port

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).resolve().parents[2]
FAKE = ROOT / "tests" / "third_engine"
REGISTRY = "module_utils/longhaul/engines/registry.py"
LINE = "from .fake.adapter import ADAPTER as FAKE\n"
# What a deployment reads.
PARTS = ("ansible.cfg", "deploy.yml", "group_vars", "inventory", "library", "module_utils", "playbooks", "plugins", "roles")
CONTEXT = 8192


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """This repository with the folder and the line."""
    folder = tmp_path_factory.mktemp("repository")
    for name in PARTS:
        source = ROOT / name
        if source.is_dir():
            shutil.copytree(source, folder / name, symlinks=True, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, folder / name)
    shutil.copytree(FAKE / "fake", folder / "module_utils/longhaul/engines/fake", ignore=shutil.ignore_patterns("__pycache__"))
    before = (folder / REGISTRY).read_text(encoding="utf-8")
    after = before.replace("from .sglang", LINE + "from .sglang", 1)
    (folder / REGISTRY).write_text(after, encoding="utf-8")
    assert [x for x in difflib.ndiff(before.splitlines(), after.splitlines()) if x[0] in "+-"] == ["+ " + LINE.strip()]
    return folder


def longhaul(copy: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The copy's command line."""
    environment = os.environ | {"PYTHONPATH": str(copy / "module_utils")}
    command = [sys.executable, "-m", "longhaul", *words]
    return subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, check=False)


def planned(copy: Path, *words: str) -> subprocess.CompletedProcess[str]:
    """The plan of the model that is deployed below."""
    model = copy / "roles/model_store/files/models/scout-mini"
    return longhaul(copy, "plan", "--model", str(model), "--gpu", "cpu", "--context", str(CONTEXT), "--json", *words)


def wheel(folder: Path) -> None:
    """The engine's package as an index would have it: its server, and the stand-in on which that is built."""
    folder.mkdir()
    files = {"fake_server.py": (FAKE / "fake_server.py").read_text(encoding="utf-8")}
    files |= {f"standin/{path.name}": path.read_text(encoding="utf-8") for path in (ROOT / "tests/standin").glob("*.py")}
    info = "fake-1.0.dist-info"
    files[f"{info}/METADATA"] = "Metadata-Version: 2.1\nName: fake\nVersion: 1.0\n"
    files[f"{info}/WHEEL"] = "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
    files[f"{info}/RECORD"] = "".join(f"{name},,\n" for name in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / "fake-1.0-py3-none-any.whl", "w") as archive:
        for name, text in files.items():
            archive.writestr(name, text)


@pytest.fixture
def home() -> Iterator[Path]:
    """A short path, for supervisord's socket. Environments come from the cache, all but the engine's."""
    made = Path(tempfile.mkdtemp(prefix="lh-"))
    try:
        (made / "supervisor").mkdir()
        (made / "supervisor" / "env").symlink_to(supervisor_env())
        (made / "client").symlink_to(client_env())
        yield made
    finally:
        Supervisor(Layout(made)).shutdown()
        shutil.rmtree(made, ignore_errors=True)


def deploy(copy: Path, home: Path, results: Path, **changes: Any) -> Outcome:
    """deploy.yml with the variables of an engine of one's own."""
    wheel(home / "wheels")
    variables: dict[str, Any] = {
        "longhaul_home": str(home),
        "engine_name": "fake",
        "engine_version": "1.0",
        "engine_wheelhouse": str(home / "wheels"),
        "engine_context_tokens": CONTEXT,
        "engine_served_model_name": "scout-mini",
        "engine_enforce_eager": False,
        "engine_port": free_port(),
        "model_store_source": "dummy",
        "context_test_ladder_tokens": [1000],
        "context_test_points": [],
        "context_test_output_tokens": 8,
        "context_test_results_dir": str(results),
        "report_results_dir": str(results),
    }
    return run_playbook("deploy.yml", variables | changes, root=copy)


def test_it_is_planned_for_deployed_and_validated(copy: Path, home: Path, tmp_path: Path) -> None:
    plan = planned(copy, "--engine", "fake==1.0", "--available-kv-gib", "1")
    assert plan.returncode == 0, plan.stdout + plan.stderr
    tokens = json.loads(plan.stdout)["kv_cache_tokens"]
    assert tokens > CONTEXT
    done = deploy(copy, home, tmp_path / "results", engine_extra_args=["--kv-tokens", str(tokens), "--ttft", "0.05"])
    assert done.rc == 0, done.text[-4000:]
    run = load_run(next((tmp_path / "results" / "latest").glob("*.json")))
    assert run.engine == "fake"
    assert run.verdict is Verdict.PASS, run.reasons
    assert run.capacity is not None
    assert run.capacity.predicted["agrees"], "its printed pool beside the plan"
    facts = json.loads(Layout(home).facts_file.read_text(encoding="utf-8"))
    assert facts["deployed"]["engine"] == "fake"
    assert facts["planned"]["kv_cache_tokens"] == tokens
    log = longhaul(copy, "explain-log", str(Layout(home).log), "--json")
    assert json.loads(log.stdout)["engine"] == "fake", "known by its lines"
    assert json.loads(log.stdout)["ready"]


def test_its_own_words_reach_the_operator(copy: Path, home: Path, tmp_path: Path) -> None:
    unknown = planned(copy, "--engine", "other==1.0", "--available-kv-gib", "1")
    assert unknown.returncode == 2
    assert "fake==VERSION" in unknown.stderr
    done = deploy(copy, home, tmp_path / "results", engine_context_tokens=200_000)
    assert done.rc != 0
    assert "at most 100000, all that fake can count to" in done.messages[0], done.text[-3000:]
    assert not Layout(home).current_spec.exists()
