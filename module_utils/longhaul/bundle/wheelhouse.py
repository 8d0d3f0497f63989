"""Wheelhouses for hosts without a package index: what goes in, checksums, pieces that fit a small carrier, and back.

A bundle is a folder: ``manifest.json``, ``SHA256SUMS`` and ``join.sh``, with either ``wheels/`` or, when split,
``pieces/``: one tar of ``wheels/`` cut into equal pieces. ``join.sh`` needs only sh and Python's standard library, so that a bare
host can put the bundle together; where there is an xz program, it is faster. Nothing here asks the network but
:func:`fetch_wheels`, which runs pip.

The tar may go through xz. A wheel is deflated already and would gain nothing, so its members are stored plain first
(:func:`store_wheels`): kernels compiled for many GPU generations repeat far beyond deflate's window of 32 KiB.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, Literal, Protocol, cast

from ..deploy.environments import Lock, parse_lock
from ..errors import UserError
from ..files import write_atomic

SCHEMA = "longhaul.bundle/1"
_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_CHUNK_BYTES = 1 << 20
# Levels above cost minutes more per GB; the repeats they would find lie mostly within 3's 4 MiB already.
_XZ_LEVEL = 3
_SAY_EVERY_S = 3.0
# PEP 600 tags pip must be given one by one; 2_17 is manylinux2014, 2_5 manylinux1.
_OLDEST_GLIBC_MINOR = 5
Say = Callable[[str], None]
Compression = Literal["none", "xz"]
COMPRESSIONS: tuple[Compression, ...] = ("none", "xz")

JOIN_SH = """#!/bin/sh
# Check the pieces, put wheels/ together and check every wheel. Needs sh and python3 (standard library only).
set -eu
cd "$(dirname "$0")"
exec "${PYTHON:-python3}" - "$@" <<'END'
import hashlib, json, os, shutil, subprocess, sys, tarfile, threading

def digest(path):
    sha = hashlib.sha256()
    with open(path, "rb") as file:
        for chunk in iter(lambda: file.read(1 << 20), b""):
            sha.update(chunk)
    return sha.hexdigest()

def check(rows, folder):
    bad = []
    for row in rows:
        path = os.path.join(folder, row["name"])
        if not os.path.exists(path):
            bad.append(row["name"] + " is missing")
        elif digest(path) != row["sha256"]:
            bad.append(row["name"] + " is damaged")
    if bad:
        sys.exit("found: " + "; ".join(bad) + " | required: files as manifest.json lists them | fix: copy them again")

class Pieces:
    # One stream over all pieces, so that no second copy of the whole is needed on the disk.
    def __init__(self, paths):
        self.paths, self.file = list(paths), None
    def read(self, size):
        while self.file or self.paths:
            self.file = self.file or open(self.paths.pop(0), "rb")
            data = self.file.read(size)
            if data:
                return data
            self.file.close()
            self.file = None
        return b""

class Xz:
    # What the xz program makes of the pieces. It works on as many blocks at a time as there are cores, lzma on one.
    def __init__(self, program, pieces):
        pipe = subprocess.PIPE
        self.process = subprocess.Popen([program, "-dc", "-T0"], stdin=pipe, stdout=pipe, stderr=pipe)
        self.error = None
        self.feeder = threading.Thread(target=self.feed, args=(pieces,))
        self.feeder.start()
    def feed(self, pieces):
        try:
            with self.process.stdin as file:
                for data in iter(lambda: pieces.read(1 << 20), b""):
                    file.write(data)
        except BrokenPipeError:
            pass  # xz has gone; its status says why.
        except OSError as error:
            self.error = error
    def read(self, size):
        data = self.process.stdout.read(size)
        if len(data) < size:
            # The end, or what looks like it: only xz knows.
            words = self.process.stderr.read().decode(errors="replace").split("\\n")
            status = self.process.wait()
            self.feeder.join()
            if status or self.error:
                raise EOFError(str(self.error or words[0] or "xz ended with " + str(status)))
        return data
    def close(self):
        self.process.kill()
        self.process.wait()
        self.feeder.join()

with open("manifest.json") as file:
    manifest = json.load(file)
compression = manifest.get("compression", "none")
program = shutil.which("xz")
if compression == "xz" and not program:
    # Optional when Python is built; said before the minutes of checksums.
    try:
        import lzma
    except ImportError:
        sys.exit("found: no xz program, and " + sys.executable + " without its lzma module | required: one of them, for a bundle"
                 " under xz | fix: install xz, or PYTHON=another-python3 sh join.sh, or build the bundle without --compress")
if manifest["pieces"]:
    check(manifest["pieces"], "pieces")
    known = {row["name"] for row in manifest["wheels"]}
    os.makedirs("wheels", exist_ok=True)
    stream = Pieces(os.path.join("pieces", row["name"]) for row in manifest["pieces"])
    unreadable = (tarfile.TarError, EOFError)
    if compression == "xz" and program:
        stream = Xz(program, stream)
    elif compression == "xz":
        stream, unreadable = lzma.open(stream), unreadable + (lzma.LZMAError,)
    try:
        with tarfile.open(fileobj=stream, mode="r|", bufsize=1 << 20) as tar:
            for member in tar:
                name = member.name[len("wheels/"):]
                if not member.isfile() or name not in known:
                    sys.exit("found: " + member.name + " in the pieces | required: wheels of manifest.json | fix: build the bundle again")
                with open(os.path.join("wheels", name), "wb") as out:
                    source = tar.extractfile(member)
                    for chunk in iter(lambda: source.read(1 << 20), b""):
                        out.write(chunk)
        # The tar ends before its last block does.
        while stream.read(1 << 20):
            pass
    except unreadable as error:
        sys.exit("found: pieces that cannot be unpacked (" + str(error) + ") | required: a whole archive | fix: build the bundle again")
    finally:
        if isinstance(stream, Xz):
            stream.close()
check(manifest["wheels"], "wheels")
print(os.path.abspath("wheels") + ": " + str(len(manifest["wheels"])) + " wheels, all as manifest.json says")
END
"""


@dataclass(frozen=True)
class Target:
    """What the wheels must run on. ``glibc`` is the oldest C library they may meet, (2, minor)."""

    python: tuple[int, int]
    machine: str = "x86_64"
    glibc: tuple[int, int] = (2, 34)

    def __str__(self) -> str:
        return f"Python {self.python[0]}.{self.python[1]}, {self.machine}, glibc {self.glibc[0]}.{self.glibc[1]}"

    def platforms(self) -> tuple[str, ...]:
        """Platform tags, best first; pip matches them exactly, so every older one is named."""
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
    """``manifest.json``. ``left_out`` are lock lines that the host has already; ``pieces`` is empty when not split."""

    engine: str
    target: Target
    wheels: tuple[File, ...]
    pieces: tuple[File, ...] = ()
    left_out: tuple[str, ...] = ()
    compression: Compression = "none"

    @property
    def size_bytes(self) -> int:
        """Of all wheels."""
        return sum(f.size_bytes for f in self.wheels)


def parse_size(text: str) -> int:
    """``60MB`` -> 60,000,000; ``60MiB`` -> 62,914,560. UserError otherwise."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmg]i?)?b?)\s*", text.lower())
    size = int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if size < 1 << 16:
        raise UserError(f"--split {text!r}", "a size of at least 64 KiB, such as 60MB or 4GiB", "give one")
    return size


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
                    raise UserError(
                        f"line {line[:80]!r}", "output of pip list --format=json or pip freeze", "make it on the host"
                    )
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
    """(the engine's shipped lock, the locks that every bundle needs besides): supervisord, test client, controller."""
    name, _, version = engine.partition("==")
    folder = root / "roles" / "engine" / "files" / "locks"
    path = folder / f"{name}-{device}-{version}.lock"
    if not path.exists():
        shipped = sorted(p.stem for p in folder.glob("*-*.lock"))
        raise UserError(
            f"no shipped lock for {engine} on {device}",
            "one of " + ", ".join(shipped),
            "give --lock FILE, one name==version a line",
        )
    return path, common_locks(root)


def common_locks(root: Path) -> tuple[Path, ...]:
    """What any host needs beside its engine."""
    locks = root / "roles" / "engine" / "files" / "locks"
    return locks / "supervisor.lock", root / "roles" / "client_env" / "files" / "client.lock", locks / "controller.lock"


def read_lock(path: Path) -> Lock:
    """A lock file. UserError where it cannot be read."""
    try:
        return parse_lock(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"lock {path} ({error.strerror})", "a readable lock file", "correct --lock") from error


def fetch_command(target: Target, folder: Path, *, python: str = sys.executable) -> list[str]:
    """pip's words without the requirements: wheels only, for another machine than this one."""
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
    """Bring a wheel of every requirement into ``folder`` with pip. ``sources``: folders to look in before the index.

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
            raise UserError(
                f"pip download failed: {errors[-1][:300]}",
                f"a wheel of every package for {target}",
                "check the lock and the index; a newer --glibc takes newer wheels",
            )


def file_of(path: Path) -> File:
    """Name, SHA-256 and size."""
    sha = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            sha.update(chunk)
    return File(path.name, sha.hexdigest(), path.stat().st_size)


def store_wheels(wheels: Path, *, say: Say) -> None:
    """Pack every wheel of ``wheels`` anew, its members stored, so that a compressor over all of them sees their contents.

    Names, order, dates and modes stay, and RECORD with them: it hashes contents, not the archive. UserError for a broken wheel.
    """
    paths = sorted(wheels.glob("*.whl"))
    whole = 0
    for path in paths:
        with _readable(path), zipfile.ZipFile(path) as wheel:
            whole += sum(i.file_size for i in wheel.infolist())
    progress = _Progress("unpacking wheels", whole, say)
    for path in paths:
        part = path.with_name(f"{path.name}.part")
        with _readable(path):
            _store(path, part, progress)
        part.replace(path)


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    try:
        yield
    except (zipfile.BadZipFile, zlib.error, EOFError, NotImplementedError) as error:
        raise UserError(f"{path.name} ({error})", "a readable wheel", "fetch it again") from error


def _store(source: Path, target: Path, progress: _Progress) -> None:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as new:
        new.comment = old.comment
        for there in old.infolist():
            info = zipfile.ZipInfo(there.filename, there.date_time)
            info.external_attr, info.create_system, info.comment = there.external_attr, there.create_system, there.comment
            # Known before the first byte, so that zipfile chooses ZIP64 by itself.
            info.file_size = there.file_size
            with old.open(there) as reader, new.open(info, "w") as writer:
                while chunk := reader.read(_CHUNK_BYTES):
                    writer.write(chunk)
                    progress.add(len(chunk))


def split_wheels(
    wheels: Path, pieces: Path, most_bytes: int, *, compression: Compression = "none", say: Say = lambda _: None
) -> tuple[File, ...]:
    """One tar of ``wheels`` as pieces of at most ``most_bytes``; the same wheels give the same tar.

    Under xz the pieces' bytes depend on the xz at hand; what comes out of them does not.
    """
    if pieces.exists():
        shutil.rmtree(pieces)
    pieces.mkdir(parents=True)
    paths = sorted(wheels.glob("*.whl"))
    writer = _PieceWriter(pieces, most_bytes)
    if compression == "xz":
        progress = _Progress("compressing", sum(p.stat().st_size for p in paths), say)
        with _xz(writer) as stream:
            _write_tar(paths, stream, progress)
    else:
        _write_tar(paths, writer)
    writer.close()
    return tuple(file_of(p) for p in sorted(pieces.iterdir()))


class _Sink(Protocol):
    """Where bytes go."""

    def write(self, data: bytes, /) -> object: ...


class _Progress:
    """A line now and then: how much is done of how much."""

    def __init__(self, what: str, whole_bytes: int, say: Say) -> None:
        self._what, self._whole, self._say = what, whole_bytes, say
        self._done, self._last = 0, time.monotonic()

    def add(self, size: int) -> None:
        """So much more is done."""
        self._done += size
        if time.monotonic() - self._last >= _SAY_EVERY_S:
            self._last = time.monotonic()
            self._say(f"{self._what}: {self._done / 1e6:.0f} of {self._whole / 1e6:.0f} MB")


@dataclass(frozen=True)
class _Through:
    """A place to write to that is one function."""

    write: Callable[[bytes], object]


def _write_tar(paths: Sequence[Path], sink: _Sink, progress: _Progress | None = None) -> None:
    def counted(data: bytes) -> None:
        sink.write(data)
        if progress:
            progress.add(len(data))

    with tarfile.open(fileobj=cast(BinaryIO, _Through(counted)), mode="w|", format=tarfile.PAX_FORMAT) as tar:
        for path in paths:
            info = tarfile.TarInfo(f"wheels/{path.name}")
            info.size, info.mode = path.stat().st_size, 0o644
            with path.open("rb") as file:
                tar.addfile(info, file)


@contextmanager
def _xz(sink: _Sink) -> Iterator[_Sink]:
    """What is written comes to ``sink`` compressed: by the xz program, which uses every core, else by Python's lzma on one."""
    program = shutil.which("xz")
    if program is None:
        try:
            import lzma
        except ImportError as error:
            raise UserError(
                "no xz program, and a Python without lzma", "either of them for --compress xz", "install xz"
            ) from error
        compressor = lzma.LZMACompressor(preset=_XZ_LEVEL)
        yield _Through(lambda data: sink.write(compressor.compress(data)))
        sink.write(compressor.flush())
        return
    command = [program, "-T0", f"-{_XZ_LEVEL}", "-c"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        given, taken, said = (cast(IO[bytes], x) for x in (process.stdin, process.stdout, process.stderr))
        with ThreadPoolExecutor(max_workers=1) as pool:
            pump = pool.submit(_pump, taken, sink)
            try:
                yield given
                given.close()
            except BrokenPipeError:
                # xz has gone, by itself or because nobody took its output; the reason comes below.
                with suppress(OSError):
                    given.close()
            except BaseException:
                process.kill()
                with suppress(OSError):
                    given.close()
                raise
            pump.result()
            words = said.read().decode(errors="replace").strip().splitlines()
    if process.returncode != 0:
        raise UserError(
            f"xz ended with {process.returncode}: {words[-1][:200] if words else 'no output'}",
            "an xz that works, with about 100 MB of memory a core",
            "mend it, or leave --compress out",
        )


def _pump(source: IO[bytes], sink: _Sink) -> None:
    # Closed on failure too: xz then ends, and so does whoever writes to it.
    with source:
        while chunk := source.read(_CHUNK_BYTES):
            sink.write(chunk)


class _PieceWriter:
    """A file whose bytes go on in the next piece when one is full."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder, self._most, self._number, self._left = folder, most_bytes, 0, 0
        self._file: BinaryIO | None = None

    def write(self, data: bytes) -> int:
        """All of ``data``, over as many pieces as it takes."""
        view = memoryview(data)
        while view:
            if self._left == 0:
                self.close()
                self._file = (self._folder / f"piece-{self._number:03d}").open("wb")
                self._number, self._left = self._number + 1, self._most
            part = view[: self._left]
            if self._file is not None:
                self._file.write(part)
            self._left -= len(part)
            view = view[len(part) :]
        return len(data)

    def close(self) -> None:
        """End the current piece."""
        if self._file is not None:
            self._file.close()


def write_bundle(out: Path, manifest: Manifest) -> None:
    """``manifest.json``, ``SHA256SUMS`` (for sha256sum -c) and ``join.sh``. No "compression" means none."""
    rows = {
        "schema": SCHEMA,
        "engine": manifest.engine,
        "python": ".".join(map(str, manifest.target.python)),
        "machine": manifest.target.machine,
        "glibc": ".".join(map(str, manifest.target.glibc)),
        **({} if manifest.compression == "none" else {"compression": manifest.compression}),
        "left_out": list(manifest.left_out),
        "pieces": [_row(f) for f in manifest.pieces],
        "wheels": [_row(f) for f in manifest.wheels],
    }
    write_atomic(out / "manifest.json", json.dumps(rows, indent=1) + "\n")
    files = [(f, "pieces") for f in manifest.pieces] if manifest.pieces else [(f, "wheels") for f in manifest.wheels]
    write_atomic(out / "SHA256SUMS", "".join(f"{f.sha256}  {folder}/{f.name}\n" for f, folder in files))
    write_atomic(out / "join.sh", JOIN_SH)
    (out / "join.sh").chmod(0o755)


def _row(file: File) -> dict[str, object]:
    return {"name": file.name, "sha256": file.sha256, "size_bytes": file.size_bytes}


def join_bundle(folder: Path, *, python: str = sys.executable) -> str:
    """Check and put together a bundle with its own ``join.sh``, so that both ways are one. Returns its last line."""
    script = folder / "join.sh"
    if not script.exists() or not (folder / "manifest.json").exists():
        raise UserError(f"{folder} without join.sh or manifest.json", "a folder that longhaul bundle made", "copy all of it")
    done = subprocess.run(
        ["sh", str(script)],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHON": python, "PATH": os.environ.get("PATH", os.defpath)},
    )
    if done.returncode != 0:
        words = (done.stderr.strip().splitlines() or ["join.sh failed"])[-1]
        parts = re.fullmatch(r"found: (.*) \| required: (.*) \| fix: (.*)", words)
        raise UserError(*(parts.groups() if parts else (words, "a complete bundle", "copy it again")))
    return done.stdout.strip().splitlines()[-1]
