"""The front door without an engine: both ways in see the operator's choices, and check mode works on a clean host."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from support.runner import run_playbook

from e2e.conftest import free_port

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).resolve().parents[2]
SHOW = """
- name: Show
  hosts: all
  gather_facts: false
  tasks:
    - name: Show
      ansible.builtin.debug:
        msg: "chosen={{ lh_chosen | default('nothing') }}"
"""


@pytest.fixture(scope="module")
def copy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository's layout with an operator's choice in group_vars/all.yml and a play that prints it, in both places."""
    folder = tmp_path_factory.mktemp("layout")
    shutil.copytree(ROOT / "playbooks", folder / "playbooks", symlinks=True)
    (folder / "group_vars").mkdir()
    (folder / "group_vars" / "all.yml").write_text("lh_chosen: by-the-operator\n", encoding="utf-8")
    (folder / "playbooks" / "show.yml").write_text(SHOW, encoding="utf-8")
    (folder / "show.yml").write_text("- name: In\n  ansible.builtin.import_playbook: playbooks/show.yml\n", encoding="utf-8")
    (folder / "elsewhere.ini").write_text("here ansible_connection=local\n", encoding="utf-8")
    (folder / "ansible.cfg").write_text(f"[defaults]\ninventory = {ROOT / 'inventory/local'}\n", encoding="utf-8")
    return folder


@pytest.mark.parametrize("playbook", ["show.yml", "playbooks/show.yml"])
@pytest.mark.parametrize("inventory", [None, "elsewhere.ini"])
def test_both_ways_in_see_group_vars(copy: Path, playbook: str, inventory: str | None) -> None:
    words = [str(Path(sys.executable).parent / "ansible-playbook"), playbook, *(["-i", inventory] if inventory else [])]
    environment = {k: v for k, v in os.environ.items() if not k.startswith("ANSIBLE_")} | {"ANSIBLE_NOCOLOR": "1"}
    done = subprocess.run(words, cwd=copy, capture_output=True, text=True, check=False, env=environment)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "chosen=by-the-operator" in done.stdout


def test_the_link_is_committed_as_a_link() -> None:
    """A checkout that turns it into a folder of its own would have two truths."""
    link = ROOT / "playbooks" / "group_vars"
    assert link.is_symlink()
    assert str(link.readlink()) == "../group_vars"


def test_check_mode_on_a_clean_host_says_what_would_come_and_makes_nothing() -> None:
    with tempfile.TemporaryDirectory(prefix="lh-clean-") as name:
        home, results = Path(name) / "home", Path(name) / "results"
        done = run_playbook(
            "deploy.yml",
            {
                "longhaul_home": str(home),
                "engine_port": free_port(),
                "context_test_results_dir": str(results),
                "report_results_dir": str(results),
            },
            cmdline="--check --diff",
        )
        assert done.rc == 0, done.text[-4000:]
        assert list(Path(name).iterdir()) == []
        said = " ".join(done.changes)
        assert "Install the engine's environment" in said
        assert "Write the spec" in said
        assert '"max_model_len"' in done.text or "--max-model-len" in done.text, "the diff shows the argv that would run"


def test_stages_on_a_clean_host_are_lines_without_tasks() -> None:
    """What scripts/deploy prints, in check mode: a line for each stage, and each task that would change something."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    with tempfile.TemporaryDirectory(prefix="lh-clean-") as name:
        words = ["deploy.yml", "--check", "-e", f"longhaul_home={name}/home", "-e", f"engine_port={free_port()}"]
        done = subprocess.run(
            [str(Path(sys.executable).parent / "ansible-playbook"), *words, "-e", f"context_test_results_dir={name}/results"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=False,
            env=kept | {"ANSIBLE_STDOUT_CALLBACK": "longhaul_stages", "ANSIBLE_NOCOLOR": "1"},
        )
        assert list(Path(name).iterdir()) == []
    assert done.returncode == 0, done.stdout + done.stderr
    assert "TASK [" not in done.stdout
    assert "skipping:" not in done.stdout
    assert "[localhost] would change: Process | Install the engine's environment" in done.stdout
    lines = [" ".join(line.split()) for line in done.stdout.splitlines()]
    assert any(line.startswith("Provision: Install the engine ") and " would change " in line for line in lines)
    for stage in ("Preflight", "Provision", "Launch", "Validate"):
        assert any(line.startswith(stage) and line.endswith(" s") for line in lines), stage
