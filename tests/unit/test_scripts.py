"""scripts/deploy and scripts/bootstrap: what they run, with what display, and what they say when they cannot."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from support.paths import ROOT


def run(script: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("ANSIBLE_", "LONGHAUL_"))}
    return subprocess.run([script, *words], env=kept | environment, capture_output=True, text=True, check=False)


class TestDeploy:
    @pytest.fixture
    def script(self, tmp_path: Path) -> Path:
        """scripts/deploy in a tree whose bootstrap has nothing to do and whose ansible-playbook tells what it was given."""
        (tmp_path / "scripts").mkdir()
        shutil.copy(ROOT / "scripts" / "deploy", tmp_path / "scripts" / "deploy")
        programs = {"scripts/bootstrap": "exit 0", ".venv/bin/ansible-playbook": 'echo "$ANSIBLE_STDOUT_CALLBACK $*"; exit 3'}
        for name, body in programs.items():
            path = tmp_path / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
            path.chmod(0o755)
        return tmp_path / "scripts" / "deploy"

    def test_one_line_for_each_stage_and_the_arguments_as_they_are(self, script: Path) -> None:
        done = run(script, "-i", "inventory/h200", "--check", "-e", "a=b c")
        assert (done.returncode, done.stdout) == (3, "longhaul_stages deploy.yml -i inventory/h200 --check -e a=b c\n")

    def test_another_display_is_the_users_choice(self, script: Path) -> None:
        done = run(script, ANSIBLE_STDOUT_CALLBACK="ansible.builtin.minimal")
        assert done.stdout == "ansible.builtin.minimal deploy.yml\n"


class TestBootstrap:
    @pytest.fixture
    def tree(self, tmp_path: Path) -> Path:
        """The script and the package, with a requirements file that pip satisfies from nothing."""
        (tmp_path / "scripts").mkdir()
        shutil.copy(ROOT / "scripts" / "bootstrap", tmp_path / "scripts" / "bootstrap")
        (tmp_path / "module_utils").symlink_to(ROOT / "module_utils")
        (tmp_path / "requirements.txt").write_text("# nothing\n", encoding="utf-8")
        return tmp_path

    def test_from_nothing_then_quick_then_again_when_the_file_changes(self, tree: Path) -> None:
        settings = {"LONGHAUL_PYTHON": sys.executable, "PIP_NO_INDEX": "1"}
        first = run(tree / "scripts" / "bootstrap", **settings)
        assert first.returncode == 0, first.stderr
        said = first.stdout.splitlines()
        assert said[0].startswith("bootstrap: making .venv with Python 3.")
        assert said[1] == "bootstrap: installing requirements.txt"
        assert said[-1] == "bootstrap: ready"
        assert all(line.startswith("bootstrap: ") for line in said)
        again = run(tree / "scripts" / "bootstrap", **settings)
        assert (again.returncode, again.stdout, again.stderr) == (0, "", "")
        (tree / "requirements.txt").write_text("lh-no-such-package\n", encoding="utf-8")
        failed = run(tree / "scripts" / "bootstrap", **settings)
        assert failed.returncode == 1
        assert "lh-no-such-package" in failed.stderr, "pip's reason"
        last = failed.stderr.splitlines()[-1]
        assert last.startswith("bootstrap: found: pip could not install requirements.txt")
        assert "| required: " in last
        assert "| fix: " in last
        half = run(tree / "scripts" / "bootstrap", **settings)
        assert half.returncode == 1, "what failed is not taken for done"

    def test_a_wrong_argument_and_no_python_are_one_line(self, tree: Path) -> None:
        wrong = run(tree / "scripts" / "bootstrap", "--devel")
        assert (wrong.returncode, wrong.stdout) == (2, "")
        assert wrong.stderr.startswith("bootstrap: found: argument '--devel' | required: ")
        none = run(tree / "scripts" / "bootstrap", LONGHAUL_PYTHON="lh-no-python")
        assert none.returncode == 2
        assert none.stderr.count("\n") == 1
        assert "fix: install python3.11 and python3-venv" in none.stderr
