"""One tar of all wheels, cut into pieces that fit a small carrier, with or without xz.

A wheel is deflated already and would gain nothing under xz, so its members are stored plain first (:func:`store_wheels`):
kernels compiled for many GPU generations repeat far beyond deflate's window of 32 KiB.
"""

from __future__ import annotations

import re
import shutil
import subprocess
import tarfile
import time
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import IO, BinaryIO, Protocol, cast

from ..errors import UserError
from .manifest import CHUNK_BYTES, Compression, File, Say, file_of

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
# Levels above cost minutes more per GB; the repeats they would find lie mostly within 3's 4 MiB already.
_XZ_LEVEL = 3
_SAY_EVERY_S = 3.0


def parse_size(text: str) -> int:
    """``60MB`` -> 60,000,000; ``60MiB`` -> 62,914,560. UserError otherwise."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:([kmg]i?)?b?)\s*", text.lower())
    size = int(float(match[1]) * _UNITS[match[2] or ""]) if match else 0
    if size < 1 << 16:
        raise UserError(f"--split {text!r}", "a size of at least 64 KiB, such as 60MB or 4GiB", "give one")
    return size


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
                while chunk := reader.read(CHUNK_BYTES):
                    writer.write(chunk)
                    progress.add(len(chunk))


def split_wheels(
    wheels: Path, pieces: Path, most_bytes: int, *, compression: Compression = "none", say: Say = lambda _: None
) -> tuple[File, ...]:
    """Write one tar of ``wheels`` as pieces of at most ``most_bytes``. The same wheels give the same tar.

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
    """Says every few seconds how much of the whole is done."""

    def __init__(self, what: str, whole_bytes: int, say: Say) -> None:
        self._what, self._whole, self._say = what, whole_bytes, say
        self._done, self._last = 0, time.monotonic()

    def add(self, size: int) -> None:
        """Count ``size`` more bytes as done."""
        self._done += size
        if time.monotonic() - self._last >= _SAY_EVERY_S:
            self._last = time.monotonic()
            self._say(f"{self._what}: {self._done / 1e6:.0f} of {self._whole / 1e6:.0f} MB")


@dataclass(frozen=True)
class _Through:
    """A sink made of one function."""

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
    """Compress what is written and pass it on to ``sink``: with the xz program on all cores, else with Python's lzma on one."""
    program = shutil.which("xz")
    if program is None:
        try:
            import lzma
        except ImportError as error:
            found = "no xz program, and a Python without lzma"
            raise UserError(found, "either of them for --compress xz", "install xz") from error
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
        found = f"xz ended with {process.returncode}: {words[-1][:200] if words else 'no output'}"
        required = "an xz that works, with about 100 MB of memory per core"
        raise UserError(found, required, "reinstall xz, or leave --compress out")


def _pump(source: IO[bytes], sink: _Sink) -> None:
    # Closed on failure too: xz then ends, and the writer gets a broken pipe.
    with source:
        while chunk := source.read(CHUNK_BYTES):
            sink.write(chunk)


class _PieceWriter:
    """Writes one stream of bytes to numbered files, each full before the next begins."""

    def __init__(self, folder: Path, most_bytes: int) -> None:
        self._folder, self._most, self._number, self._left = folder, most_bytes, 0, 0
        self._file: BinaryIO | None = None

    def write(self, data: bytes) -> int:
        """Write all of ``data``, over as many pieces as needed."""
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
        """Close the current piece."""
        if self._file is not None:
            self._file.close()
