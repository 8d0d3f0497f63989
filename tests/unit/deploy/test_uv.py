"""uv in pip's place: pip's configuration is handed over or uv is not used, and what stops uv leaves the work to pip."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from longhaul.deploy import environments, uv
from longhaul.deploy.environments import build_environment, is_built, missing_from, parse_lock
from longhaul.deploy.uv import PipConfiguration, UvCounter, fetch_uv, install_with_uv, parse_pip_configuration
from unit.deploy.test_environments import BASE, make_wheel


@pytest.fixture(scope="module")
def wheels(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("wheels")
    make_wheel(folder, "lhalpha", "1.0", needs="lh-not-there-at-all")
    make_wheel(folder, "lhbeta", "2.0+cpu")
    return folder


class TestPipConfiguration:
    def test_the_environment_wins_over_the_command_and_that_over_all_commands(self) -> None:
        said = (
            "global.index-url='https://a/simple'\ninstall.index-url='https://b/simple'\n:env:.index-url='https://c/simple'\n"
            "global.extra-index-url='https://d/simple https://e/simple'\nglobal.find-links='\\n/wheels\\n/more'\n"
            "install.trusted-host='b'\nglobal.cert='/ca.pem'\n:env:.proxy='http://p:3128'\n:env:.default-timeout='180'\n"
            "download.index-url='https://other/simple'\n"
        )
        found = parse_pip_configuration(said)
        assert found == PipConfiguration(
            index_url="https://c/simple",
            extra_index_urls=("https://d/simple", "https://e/simple"),
            find_links=("/wheels", "/more"),
            trusted_hosts=("b",),
            cert="/ca.pem",
            proxy="http://p:3128",
            timeout_s="180",
        )
        words = " ".join(found.arguments())
        assert words == (
            "--default-index https://c/simple --extra-index-url https://d/simple --extra-index-url https://e/simple "
            "--find-links /wheels --find-links /more --allow-insecure-host b"
        )
        assert found.environment() == {
            "SSL_CERT_FILE": "/ca.pem",
            "UV_HTTP_TIMEOUT": "180",
            **dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), "http://p:3128"),
        }

    def test_no_configuration_is_one(self) -> None:
        assert parse_pip_configuration("") == PipConfiguration()
        assert PipConfiguration().arguments() == []
        assert PipConfiguration().environment() == {}

    def test_what_changes_no_package_is_passed_over(self) -> None:
        said = ":env:.disable-pip-version-check='1'\nglobal.no-cache-dir='true'\n:env:.no-compile='1'\nglobal.no-index='yes'\n"
        assert parse_pip_configuration(said) == PipConfiguration(no_index=True)

    @pytest.mark.parametrize(
        "line",
        [
            "global.constraint='/c.txt'",
            "install.no-binary=':all:'",
            ":env:.pre='1'",
            "global.target='/x'",
            "global.index-url=oops(",
        ],
    )
    def test_a_setting_that_uv_cannot_be_told_leaves_it_to_pip(self, line: str) -> None:
        assert parse_pip_configuration(line) is None


class TestProgress:
    def test_large_packages_are_counted_and_the_slow_ones_named(self) -> None:
        said: list[str] = []
        now = 0.0
        counter = UvCounter(said.append, lambda: now)
        for line in ("Resolved 147 packages in 1.18s", "Downloading torch (183.0MiB)", "Downloading triton (272.5MiB)"):
            counter(line)
        counter("Downloading numba (3.6MiB)")
        counter("Downloaded numba")
        assert said == ["installing: 147 packages"], "nothing more within two seconds"
        now = 3.0
        counter("Downloaded torch")
        counter("Downloaded triton")
        assert said[1:] == ["installing: fetched 2 of 3 large packages; waiting for triton"]


class TestInstall:
    """A program of our own stands for uv: what it is told and what becomes of its answer."""

    def program(self, folder: Path, body: str) -> Path:
        path = folder / "uv"
        path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
        path.chmod(0o755)
        return path

    def test_every_index_is_asked_and_nothing_else_is_configured(self, tmp_path: Path) -> None:
        told = tmp_path / "told"
        program = self.program(tmp_path, f'echo "$@" "$UV_CACHE_DIR" "$SSL_CERT_FILE" > {told}')
        configuration = PipConfiguration(extra_index_urls=("file:///a",), cert="/ca.pem")
        assert install_with_uv(
            program, "/env/bin/python", ["--no-deps", "a==1"], configuration, say=lambda _: None, cache=tmp_path / "cache"
        )
        assert told.read_text(encoding="utf-8") == (
            "pip install --no-config --python /env/bin/python --index-strategy unsafe-best-match --extra-index-url file:///a "
            f"--no-deps a==1 {tmp_path / 'cache'} /ca.pem\n"
        )

    def test_a_failure_is_told(self, tmp_path: Path) -> None:
        program = self.program(tmp_path, "exit 1")
        assert not install_with_uv(program, "python", ["a==1"], PipConfiguration(), say=lambda _: None)

    def test_an_index_without_uv_leaves_nothing_behind(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(uv, "UV", "lh-no-such-package==1.0")
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        assert fetch_uv(sys.executable, tmp_path / "tools") is None
        assert list((tmp_path / "tools").iterdir()) == []

    def test_a_program_that_does_not_run_is_none(self, tmp_path: Path) -> None:
        home = tmp_path / uv.UV.replace("==", "-") / "bin"
        home.mkdir(parents=True)
        self.program(home, "exit 126")
        assert fetch_uv(sys.executable, tmp_path) is None


class TestEnvironment:
    """build_environment with a real venv and pip; a program of our own stands for uv."""

    def build(self, path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch, install: Any, **more: Any) -> list[str]:
        """Build the lock; returns what was said."""
        monkeypatch.setenv("PIP_NO_INDEX", "1")
        monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
        monkeypatch.setattr(environments, "fetch_uv", lambda _python, tools: tools / "uv")
        monkeypatch.setattr(environments, "install_with_uv", install)
        said: list[str] = []
        lock = parse_lock("lhalpha==1.0\nlhbeta==2.0+cpu\n")
        build_environment(path, lock, [BASE], say=said.append, tools=path.parent / "tools", **more)
        assert is_built(path, lock)
        assert missing_from(path, lock) == []
        return said

    def test_what_uv_installed_is_compared_with_the_lock(
        self, tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """It says that all went well and brings one package of two: pip brings the rest."""
        asked: list[tuple[Any, ...]] = []

        def half(_uv: Path, python: str, words: list[str], configuration: PipConfiguration, **more: Any) -> bool:
            asked.append((words, configuration.find_links, more["cache"]))
            more["cache"].mkdir()
            pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check", "--no-deps", "lhalpha==1.0"]
            return subprocess.run(pip, check=False).returncode == 0

        said = self.build(tmp_path / "env", wheels, monkeypatch, half)
        assert asked == [(["--no-deps", "lhalpha==1.0", "lhbeta==2.0+cpu"], (str(wheels),), tmp_path / ".env.uv")]
        assert any("lhbeta==2.0+cpu" in text for text in said), "pip installed it"
        assert not (tmp_path / ".env.uv").exists(), "the cache ends with the installation"

    @pytest.mark.parametrize("works", [True, False])
    def test_an_environment_without_pip_gets_one_only_where_uv_fails(
        self, works: bool, tmp_path: Path, wheels: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def from_outside(_uv: Path, python: str, words: list[str], *_: Any, **_more: Any) -> bool:
            assert subprocess.run([python, "-m", "pip", "--version"], capture_output=True, check=False).returncode != 0
            pip = [BASE, "-m", "pip", "--python", python, "install", "-q", "--disable-pip-version-check", *words]
            return works and subprocess.run(pip, check=False).returncode == 0

        monkeypatch.setattr(environments, "is_fetched", lambda _tools: True)
        self.build(tmp_path / "env", wheels, monkeypatch, from_outside, with_pip=False)
        assert (tmp_path / "env" / "bin" / "pip").exists() is not works

    def test_the_extra_index_is_asked_only_for_what_it_alone_may_have(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        asked: list[list[str]] = []

        def refuse_all_at_once(_uv: Path, _python: str, words: list[str], _configuration: Any, **_more: Any) -> bool:
            asked.append(words[1:])
            return len(asked) > 1

        monkeypatch.setattr(environments, "read_pip_configuration", lambda _python: PipConfiguration())
        monkeypatch.setattr(environments, "fetch_uv", lambda _python, tools: tools)
        monkeypatch.setattr(environments, "install_with_uv", refuse_all_at_once)
        lock = parse_lock("lhalpha==1.0\nlhbeta==2.0+cpu\n")
        assert not environments._install_quickly(tmp_path / "env", "python", lock, tmp_path, None, ["https://x/cpu"], print), (
            "nothing was installed, whatever it says"
        )
        assert asked == [
            ["lhalpha==1.0", "lhbeta==2.0+cpu"],
            ["--extra-index-url", "https://x/cpu", "lhbeta==2.0+cpu"],
            ["lhalpha==1.0"],
        ]


def test_names_are_compared_as_indexes_do(tmp_path: Path) -> None:
    site = tmp_path / "lib" / "python3.11" / "site-packages"
    for name in ("huggingface_hub-2.4.0", "Jinja2-3.1.6", "torch-2.13.0+cpu", "mistral_common-1.9", "zope.interface-8.1"):
        (site / f"{name}.dist-info").mkdir(parents=True)
    lock = parse_lock(
        "huggingface-hub==2.4.0\njinja2==3.1.6\ntorch==2.13.0+cpu\nmistral_common[audio]==1.9\nZope-Interface==8.1\n"
    )
    assert missing_from(tmp_path, lock) == []
    assert missing_from(tmp_path, parse_lock("jinja2==3.1.5\nabsent==1\n")) == ["jinja2==3.1.5", "absent==1"]
