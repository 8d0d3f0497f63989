"""What goes into a bundle: the requirements of its locks that the host lacks, each as a wheel from pip.

Nothing in this room asks the network but :func:`fetch_wheels`, which runs pip.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from ..deploy.environments import Lock, parse_lock
from ..errors import UserError
from .manifest import Say, Target


def parse_installed(text: str) -> dict[str, str]:
    """``pip list --format=json`` or ``pip freeze`` -> canonical name -> version. UserError for anything else."""
    try:
        rows = json.loads(text)
    except ValueError:
        rows = None
    if isinstance(rows, list) and all(isinstance(r, Mapping) and "name" in r and "version" in r for r in rows):
        return {canonical(r["name"]): str(r["version"]) for r in rows}
    found = {}
    for line in (x.strip() for x in text.splitlines()):
        if line and not line.startswith(("#", "-e")):
            name, _, version = line.partition("==")
            if " @ " not in line:
                if not version or not re.fullmatch(r"[A-Za-z0-9._-]+", name):
                    required = "output of pip list --format=json or pip freeze"
                    raise UserError(f"line {line[:80]!r}", required, "run one of them on the host")
                found[canonical(name)] = version
    return found


def canonical(name: str) -> str:
    """A distribution's name as indexes compare it (PEP 503), without extras."""
    return re.sub(r"[-_.]+", "-", name.partition("[")[0]).lower()


def needed(locks: Iterable[Lock], installed: Mapping[str, str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """(requirements to carry, lock lines that the host satisfies already), each once.

    A host's local version satisfies the public one (2.11.0+cu130 is ``==2.11.0``, PEP 440), not the other way round.
    """
    carry: dict[str, None] = {}
    left_out: dict[str, None] = {}
    for line in (r for lock in locks for r in lock.requirements):
        name, _, version = line.partition("==")
        there = installed.get(canonical(name))
        same = there is not None and (there == version or there.partition("+")[0] == version)
        (left_out if same else carry)[line] = None
    return tuple(carry), tuple(left_out)


def default_locks(root: Path, engine: str, device: str) -> tuple[Path, tuple[Path, ...]]:
    """(the engine's shipped lock, the other locks of every bundle: supervisord, test client, controller)."""
    name, _, version = engine.partition("==")
    folder = root / "roles" / "engine" / "files" / "locks"
    path = folder / f"{name}-{device}-{version}.lock"
    if not path.exists():
        shipped = sorted(p.stem for p in folder.glob("*-*.lock"))
        fix = "give --lock FILE, one name==version a line"
        raise UserError(f"no shipped lock for {engine} on {device}", "one of " + ", ".join(shipped), fix)
    return path, common_locks(root)


def common_locks(root: Path) -> tuple[Path, ...]:
    """The locks of what every host needs beside its engine."""
    locks = root / "roles" / "engine" / "files" / "locks"
    return locks / "supervisor.lock", root / "roles" / "client_env" / "files" / "client.lock", locks / "controller.lock"


def read_lock(path: Path) -> Lock:
    """A lock file. UserError where it cannot be read."""
    try:
        return parse_lock(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"lock {path} ({error.strerror})", "a readable lock file", "correct --lock") from error


def fetch_command(target: Target, folder: Path, *, python: str = sys.executable) -> list[str]:
    """The pip command without its requirements: it downloads wheels for ``target`` only."""
    command = [python, "-m", "pip", "download", "--quiet", "--quiet", "--disable-pip-version-check", "--no-input", "--no-deps"]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", f"{target.python[0]}.{target.python[1]}"]
    return [*command, *(w for p in target.platforms() for w in ("--platform", p)), "--dest", str(folder)]


def fetch_wheels(
    requirements: Sequence[str],
    target: Target,
    folder: Path,
    *,
    sources: Sequence[str] = (),
    say: Say,
    extra_index_urls: Sequence[str] = (),
) -> None:
    """Download a wheel of every requirement into ``folder`` with pip. ``sources``: folders to look in before the index.

    Two pins of one package (the engine's and the client's) are fetched in two calls: pip takes one version at a time.
    UserError names the requirement that has no wheel.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rounds: list[list[str]] = []
    for line in requirements:
        name = canonical(line.partition("==")[0])
        place = next((r for r in rounds if name not in {canonical(x.partition("==")[0]) for x in r}), None)
        if place is None:
            rounds.append(place := [])
        place.append(line)
    for batch in rounds:
        say(f"fetching {len(batch)} packages")
        command = [*fetch_command(target, folder), *(w for s in sources for w in ("--find-links", s))]
        command += [w for u in extra_index_urls for w in ("--extra-index-url", u)]
        done = subprocess.run(
            [*command, *batch], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace", check=False
        )
        if done.returncode != 0:
            errors = [x for x in done.stdout.splitlines() if "ERROR" in x] or done.stdout.splitlines()[-1:] or ["no output"]
            found, required = f"pip download failed: {errors[-1][:300]}", f"a wheel of every package for {target}"
            raise UserError(found, required, "check the lock and the index; a newer --glibc takes newer wheels")
