"""Installs packages with uv where that gives the same set as pip, in about a fifth of the time.

uv is a wheel on the package index; pip fetches it into a folder of its own. uv reads none of pip's configuration, so what
``pip config list`` says is handed over. Where a setting has no counterpart, or uv is not to be had, or uv fails, the caller uses
pip: its result and its error messages are the ones that count.

``python -m longhaul.deploy.uv FILE`` installs a requirements file into the interpreter that runs it (scripts/bootstrap).
"""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

Say = Callable[[str], None]

UV = "uv==0.13.9"
# Long enough for a 20 MB wheel on a slow line; a host that reaches no index must not wait long for a shortcut.
_FETCH_TIMEOUT_S = 15
# pip's settings that change nothing about which packages are installed, or from where.
_HARMLESS = {
    *("break-system-packages", "cache-dir", "disable-pip-version-check", "no-cache-dir", "no-color", "no-compile", "no-input"),
    *("no-python-version-warning", "no-warn-script-location", "prefer-binary", "progress-bar", "quiet", "require-virtualenv"),
    *("retries", "root-user-action", "verbose"),
}
_SCOPES = ("global", "install", ":env:")


@dataclass(frozen=True)
class PipConfiguration:
    """What pip was told about where packages come from. Lists are in pip's order."""

    index_url: str | None = None
    extra_index_urls: tuple[str, ...] = ()
    find_links: tuple[str, ...] = ()
    trusted_hosts: tuple[str, ...] = ()
    no_index: bool = False
    cert: str | None = None
    client_cert: str | None = None
    proxy: str | None = None
    timeout_s: str | None = None

    def arguments(self) -> list[str]:
        """The same as arguments of ``uv pip install``."""
        words = ["--default-index", self.index_url] if self.index_url else []
        words += [w for url in self.extra_index_urls for w in ("--extra-index-url", url)]
        words += [w for place in self.find_links for w in ("--find-links", place)]
        words += [w for host in self.trusted_hosts for w in ("--allow-insecure-host", host)]
        return [*words, *(["--no-index"] if self.no_index else [])]

    def environment(self) -> dict[str, str]:
        """What uv takes from its environment only."""
        proxies = dict.fromkeys(("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"), self.proxy)
        wanted = {"SSL_CERT_FILE": self.cert, "SSL_CLIENT_CERT": self.client_cert, "UV_HTTP_TIMEOUT": self.timeout_s, **proxies}
        return {name: value for name, value in wanted.items() if value}


def parse_pip_configuration(text: str) -> PipConfiguration | None:
    """Read ``pip config list``. None where a setting is in force that uv cannot be told."""
    found: dict[str, dict[str, str]] = {scope: {} for scope in _SCOPES}
    for line in text.splitlines():
        key, equals, value = line.partition("=")
        scope, _, name = key.strip().rpartition(".")
        # Sections of other commands (download.*) do not concern an installation.
        if equals and scope in found:
            try:
                found[scope][name] = str(ast.literal_eval(value.strip()))
            except (SyntaxError, ValueError):
                return None
    # The environment wins over the section of the command, and that over the one for all commands.
    settings = {name: value for scope in _SCOPES for name, value in found[scope].items() if value}

    def words(name: str) -> tuple[str, ...]:
        return tuple(settings.pop(name, "").split())

    configuration = PipConfiguration(
        index_url=settings.pop("index-url", None),
        extra_index_urls=words("extra-index-url"),
        find_links=words("find-links"),
        trusted_hosts=words("trusted-host"),
        no_index=settings.pop("no-index", "0").lower() in ("1", "true", "yes", "on"),
        cert=settings.pop("cert", None),
        client_cert=settings.pop("client-cert", None),
        proxy=settings.pop("proxy", None),
        timeout_s=settings.pop("default-timeout", settings.pop("timeout", None)),
    )
    return configuration if settings.keys() - {"timeout"} <= _HARMLESS else None


def read_pip_configuration(python: str) -> PipConfiguration | None:
    """The configuration of this interpreter's pip. None where there is no pip, or uv cannot be told."""
    listed = _output([python, "-m", "pip", "--disable-pip-version-check", "config", "list"])
    return None if listed is None else parse_pip_configuration(listed)


def is_fetched(folder: Path) -> bool:
    """Does uv lie below ``folder``?"""
    return (folder / UV.replace("==", "-") / "bin" / "uv").exists()


def fetch_uv(python: str, folder: Path) -> Path | None:
    """The uv program below ``folder``, brought there by this interpreter's pip if need be. None where it is not to be had."""
    home = folder / UV.replace("==", "-")
    program = home / "bin" / "uv"
    if not is_fetched(folder):
        try:
            folder.mkdir(parents=True, exist_ok=True)
            partial = Path(tempfile.mkdtemp(dir=folder, prefix=".uv-"))
        except OSError:
            return None
        pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "--quiet", "--quiet", "--no-compile"]
        pip += ["--no-deps", "--only-binary", ":all:", "--retries", "0", "--timeout", str(_FETCH_TIMEOUT_S)]
        try:
            # A second run at the same time may have been quicker: then its folder is in place, and as good.
            if _output([*pip, "--target", str(partial), UV]) is not None and not home.exists():
                partial.rename(home)
        except OSError:
            pass
        shutil.rmtree(partial, ignore_errors=True)
    # A file system without execution, or another C library: asked before anything depends on it.
    return program if _output([str(program), "--version"]) is not None else None


def install_with_uv(
    uv: Path,
    python: str,
    arguments: Sequence[str],
    configuration: PipConfiguration,
    *,
    say: Say,
    cache: Path | None = None,
) -> bool:
    """``uv pip install`` into an environment; ``cache``: where uv keeps what it unpacks. False where uv failed."""
    command = [str(uv), "pip", "install", "--no-config", "--python", python]
    # pip looks at every index and takes the best; uv's default is to stop at the first that knows the name.
    command += ["--index-strategy", "unsafe-best-match", *configuration.arguments()]
    environment = {**os.environ, **configuration.environment()}
    if cache:
        environment.setdefault("UV_CACHE_DIR", str(cache))
    process = subprocess.Popen(
        [*command, *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=environment,
    )
    if process.stdout is None:
        raise RuntimeError("no pipe")
    counter = UvCounter(say)
    with process.stdout as out:
        for line in out:
            counter(line.strip())
    return process.wait() == 0


class UvCounter:
    """Turns uv's own lines into progress. uv names only the packages that take a while to fetch."""

    def __init__(self, say: Say, clock: Callable[[], float] = time.monotonic) -> None:
        self._say, self._clock = say, clock
        self._open: list[str] = []
        self._done = 0
        self._said = clock()

    def __call__(self, line: str) -> None:
        """One line of uv."""
        word, _, rest = line.partition(" ")
        if word == "Resolved":
            self._say(f"installing: {rest.partition(' in ')[0]}")
        elif word == "Downloading":
            self._open.append(rest.partition(" (")[0])
        elif word == "Downloaded":
            self._done += 1
            if rest in self._open:
                self._open.remove(rest)
            if self._open and self._clock() - self._said >= 2:
                self._said = self._clock()
                total = self._done + len(self._open)
                self._say(f"installing: fetched {self._done} of {total} large packages; waiting for {', '.join(self._open[:3])}")


def _output(command: Sequence[str], environment: Mapping[str, str] | None = None) -> str | None:
    """What a program prints; None where it cannot be run or fails."""
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, env=environment, timeout=300)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout if done.returncode == 0 else None


def main(requirements: str) -> int:
    """Install a requirements file into this interpreter's environment, with uv or else with pip. Returns pip's exit status."""

    def say(text: str) -> None:
        print(f"bootstrap: {text}", flush=True)

    began = time.monotonic()
    configuration = read_pip_configuration(sys.executable)
    uv = fetch_uv(sys.executable, Path(sys.prefix) / "tools") if configuration else None
    if uv and configuration and install_with_uv(uv, sys.executable, ["--requirement", requirements], configuration, say=say):
        say(f"installed with {UV.replace('==', ' ')} in {time.monotonic() - began:.0f} s")
        return 0
    say("installing with pip (about a minute when new)")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check", "--requirement", requirements]
    return subprocess.run(pip, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1]))
