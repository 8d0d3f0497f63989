"""What a bundle is on disk: ``manifest.json``, ``SHA256SUMS`` and ``join.sh``, written and put together again.

``join.sh`` needs only sh and Python's standard library, so that a bare host can put the bundle together; where there is an xz
program, it is faster.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from ..errors import UserError
from ..files import write_atomic

SCHEMA = "longhaul.bundle/1"
CHUNK_BYTES = 1 << 20
# PEP 600 tags pip must be given one by one; 2_17 is manylinux2014, 2_5 manylinux1.
_OLDEST_GLIBC_MINOR = 5
_JOIN_SH = Path(__file__).with_name("join.sh")
Say = Callable[[str], None]
Compression = Literal["none", "xz"]
COMPRESSIONS: tuple[Compression, ...] = ("none", "xz")


@dataclass(frozen=True)
class Target:
    """What the wheels must run on. ``glibc`` is the oldest C library among the hosts, as (2, minor)."""

    python: tuple[int, int]
    machine: str = "x86_64"
    glibc: tuple[int, int] = (2, 34)

    def __str__(self) -> str:
        return f"Python {self.python[0]}.{self.python[1]}, {self.machine}, glibc {self.glibc[0]}.{self.glibc[1]}"

    def platforms(self) -> tuple[str, ...]:
        """Platform tags, best first. pip matches tags exactly, so every older one is listed."""
        newer = [f"manylinux_2_{n}_{self.machine}" for n in range(self.glibc[1], _OLDEST_GLIBC_MINOR - 1, -1)]
        return (*newer, *(f"manylinux{name}_{self.machine}" for name in ("2014", "2010", "1")), f"linux_{self.machine}")


@dataclass(frozen=True)
class File:
    """A file of the bundle."""

    name: str
    sha256: str
    size_bytes: int


@dataclass(frozen=True)
class Manifest:
    """``manifest.json``. ``left_out``: lock lines that the host satisfies already. ``pieces``: empty when not split."""

    engine: str
    target: Target
    wheels: tuple[File, ...]
    pieces: tuple[File, ...] = ()
    left_out: tuple[str, ...] = ()
    compression: Compression = "none"

    @property
    def size_bytes(self) -> int:
        """Bytes of all wheels together."""
        return sum(f.size_bytes for f in self.wheels)


def file_of(path: Path) -> File:
    """Name, SHA-256 and size."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            sha.update(chunk)
    return File(path.name, sha.hexdigest(), path.stat().st_size)


def write_bundle(out: Path, manifest: Manifest) -> None:
    """Write ``manifest.json``, ``SHA256SUMS`` (for sha256sum -c) and ``join.sh``. A manifest without "compression" has none."""
    rows = {
        "schema": SCHEMA,
        "engine": manifest.engine,
        "python": ".".join(map(str, manifest.target.python)),
        "machine": manifest.target.machine,
        "glibc": ".".join(map(str, manifest.target.glibc)),
        **({} if manifest.compression == "none" else {"compression": manifest.compression}),
        "left_out": list(manifest.left_out),
        "pieces": [asdict(f) for f in manifest.pieces],
        "wheels": [asdict(f) for f in manifest.wheels],
    }
    write_atomic(out / "manifest.json", json.dumps(rows, indent=1) + "\n")
    folder, files = ("pieces", manifest.pieces) if manifest.pieces else ("wheels", manifest.wheels)
    write_atomic(out / "SHA256SUMS", "".join(f"{f.sha256}  {folder}/{f.name}\n" for f in files))
    write_atomic(out / "join.sh", _JOIN_SH.read_text(encoding="utf-8"))
    (out / "join.sh").chmod(0o755)


def join_bundle(folder: Path, *, python: str = sys.executable) -> str:
    """Run the bundle's own ``join.sh`` and return its last line. UserError says what is missing or damaged."""
    script = folder / "join.sh"
    if not script.exists() or not (folder / "manifest.json").exists():
        raise UserError(f"{folder} without join.sh or manifest.json", "a folder that longhaul bundle made", "copy all of it")
    env = {"PYTHON": python, "PATH": os.environ.get("PATH", os.defpath)}
    done = subprocess.run(["sh", str(script)], capture_output=True, text=True, check=False, env=env)
    if done.returncode != 0:
        words = (done.stderr.strip().splitlines() or ["join.sh failed"])[-1]
        parts = re.fullmatch(r"found: (.*) \| required: (.*) \| fix: (.*)", words)
        raise UserError(*(parts.groups() if parts else (words, "a complete bundle", "copy it again")))
    return done.stdout.strip().splitlines()[-1]
