"""What the tests fetch or build once, in the user's cache folder: every clone on the machine shares it.

``${XDG_CACHE_HOME:-~/.cache}/longhaul-test``. Every entry is named after a digest of what it is made from, so two clones with
different locks do not overwrite each other's. Whoever fills an entry holds its lock. An entry appears under its name when it is
whole, and a killed fill leaves only a ``.partial`` that the next one removes. Deleting the folder is always safe while no test runs.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

# An entry that no test has asked for in this time belongs to an old lock.
UNUSED_S = 30 * 86400


def root() -> Path:
    """The folder. Resolved: the kernel's list of mounts knows no links."""
    base = os.environ.get("XDG_CACHE_HOME", "")
    # The XDG specification ignores a relative path.
    return ((Path(base) if base.startswith("/") else Path.home() / ".cache") / "longhaul-test").resolve()


def digest(*parts: str | bytes) -> str:
    """A short name for what an entry is made from."""
    made = hashlib.sha256()
    for part in parts:
        data = part.encode() if isinstance(part, str) else part
        made.update(len(data).to_bytes(8, "big") + data)
    return made.hexdigest()[:12]


@contextlib.contextmanager
def locked(name: str) -> Iterator[None]:
    """Hold the lock ``name`` of the cache; other processes wait. The kernel releases it when the holder dies."""
    path = root() / "locks" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def entry(name: str, fill: Callable[[Path], object]) -> Path:
    """The file or folder ``name`` (``kind/DIGEST``). Calls ``fill`` with a path beside it where it is missing."""
    target = root() / name
    with locked(_lock_name(name)):
        if not target.exists():
            partial = target.with_name(f"{target.name}.partial")
            remove(partial)
            target.parent.mkdir(parents=True, exist_ok=True)
            fill(partial)
            partial.rename(target)
        used(target)
    return target


@contextlib.contextmanager
def in_place(name: str) -> Iterator[Path]:
    """The path of an entry that cannot be moved once it is made, under its lock. Its maker marks it as complete by itself."""
    target = root() / name
    with locked(_lock_name(name)):
        target.parent.mkdir(parents=True, exist_ok=True)
        yield target
        used(target)


def used(path: Path) -> None:
    """Note that an entry was asked for, and remove its neighbours that nobody has asked for in a month."""
    os.utime(path)
    for other in path.parent.iterdir():
        with contextlib.suppress(OSError):
            if other != path and other.stat().st_mtime < time.time() - UNUSED_S:
                remove(other)


def remove(path: Path) -> None:
    """Remove a file or a folder, or nothing."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def link(source: Path, target: Path) -> None:
    """Put a file, or every file of a folder, in a second place. Costs no space where the file system can link."""
    if source.is_dir():
        for path in source.rglob("*"):
            if not path.is_dir():
                link(path, target / path.relative_to(source))
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    try:
        os.link(source, target)
    except OSError:
        shutil.copy2(source, target)


def _lock_name(name: str) -> str:
    return name.replace("/", "-")
