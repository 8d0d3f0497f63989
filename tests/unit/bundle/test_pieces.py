"""Pieces of a bundle come back exactly or not at all, with and without xz."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from longhaul.bundle import pieces as module
from longhaul.bundle.manifest import Compression, Manifest, Target, file_of, join_bundle, write_bundle
from longhaul.bundle.pieces import parse_size, split_wheels, store_wheels
from longhaul.cli import main
from longhaul.errors import UserError


def bundle(out: Path, most_bytes: int) -> dict[str, bytes]:
    """A split bundle of two made-up wheels; returns their contents."""
    wheels = out / "wheels"
    wheels.mkdir(parents=True)
    contents = {"a-1-py3-none-any.whl": bytes(range(256)) * 900, "b-2-py3-none-any.whl": b"b" * 70_001}
    for name, data in contents.items():
        (wheels / name).write_bytes(data)
    files = tuple(file_of(p) for p in sorted(wheels.iterdir()))
    pieces = split_wheels(wheels, out / "pieces", most_bytes)
    for path in wheels.iterdir():
        path.unlink()
    wheels.rmdir()
    write_bundle(out, Manifest("x==1", Target((3, 12)), files, pieces))
    return contents


def test_pieces_come_back_exactly(tmp_path: Path) -> None:
    contents = bundle(tmp_path, 65_536)
    pieces = sorted((tmp_path / "pieces").iterdir())
    assert len(pieces) > 3
    assert all(p.stat().st_size <= 65_536 for p in pieces)
    assert "2 wheels" in join_bundle(tmp_path)
    assert {p.name: p.read_bytes() for p in (tmp_path / "wheels").iterdir()} == contents


@pytest.mark.parametrize("harm", ["damaged", "missing"])
def test_a_bad_piece_is_named(tmp_path: Path, harm: str) -> None:
    bundle(tmp_path, 65_536)
    piece = tmp_path / "pieces" / "piece-001"
    if harm == "missing":
        piece.unlink()
    else:
        piece.write_bytes(b"?" + piece.read_bytes()[1:])
    with pytest.raises(UserError, match=f"piece-001 is {harm}"):
        join_bundle(tmp_path)
    assert not (tmp_path / "wheels").exists()


def test_sizes() -> None:
    assert (parse_size("60MB"), parse_size("60MiB"), parse_size("4g")) == (60_000_000, 62_914_560, 4_000_000_000)
    for bad in ("60 apples", "0MB", "-1MB", ""):
        with pytest.raises(UserError):
            parse_size(bad)


RECORD = "kernels-1.dist-info/RECORD"


def kernels_wheel(path: Path) -> dict[str, bytes]:
    """A deflated wheel whose library repeats at a distance that deflate cannot see; returns its members."""
    block = os.urandom(200_000)
    members = {"kernels/ops.so": block * 8, "kernels/__init__.py": b"ARCHS = (80, 90)\n", "kernels/data/": b""}
    hashes = {n: base64.urlsafe_b64encode(hashlib.sha256(d).digest()).rstrip(b"=").decode() for n, d in members.items() if d}
    members[RECORD] = "".join(f"{n},sha256={h},{len(members[n])}\n" for n, h in hashes.items()).encode()
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as wheel:
        for name, data in members.items():
            info = zipfile.ZipInfo(name, (2024, 2, 29, 12, 30, 10))
            info.external_attr, info.compress_type = (0o755 if name.endswith(".so") else 0o644) << 16, zipfile.ZIP_DEFLATED
            wheel.writestr(info, data)
    return members


def xz_bundle(out: Path, original: Path, compression: Compression = "xz") -> None:
    """What the command does after fetching, for one wheel."""
    wheels = out / "wheels"
    wheels.mkdir(parents=True)
    copy = wheels / original.name
    copy.write_bytes(original.read_bytes())
    if compression == "xz":
        store_wheels(wheels, say=print)
    files = (file_of(copy),)
    pieces = split_wheels(wheels, out / "pieces", 65_536, compression=compression, say=print)
    copy.unlink()
    wheels.rmdir()
    write_bundle(out, Manifest("x==1", Target((3, 12)), files, pieces, compression=compression))


def carried_bytes(out: Path) -> int:
    return sum(p.stat().st_size for p in (out / "pieces").iterdir())


@pytest.fixture
def wheel(tmp_path: Path) -> Path:
    path = tmp_path / "kernels-1-py3-none-any.whl"
    kernels_wheel(path)
    return path


@pytest.fixture(params=["xz", "lzma"])
def host(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A host with an xz program and a Python that never got its lzma, and one with neither more nor less than lzma."""
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "dirname", *(("xz",) if request.param == "xz" else ())):
        program = shutil.which(name)
        if program is None:
            pytest.skip(f"no {name} here")
        (tools / name).symlink_to(program)
    python = python_without_lzma(tmp_path) if request.param == "xz" else Path(sys.executable)
    monkeypatch.setenv("PATH", str(tools))
    return str(python)


def python_without_lzma(folder: Path) -> Path:
    (folder / "lzma.py").write_text("raise ImportError('not built')\n", encoding="utf-8")
    python = folder / "python"
    python.write_text(f'#!/bin/sh\nPYTHONPATH={folder} exec {sys.executable} "$@"\n', encoding="utf-8")
    python.chmod(0o755)
    return python


@pytest.mark.parametrize("way", ["join.sh", "--join"])
def test_a_bundle_under_xz_is_smaller_and_its_wheels_are_whole(
    tmp_path: Path, wheel: Path, way: str, capsys: pytest.CaptureFixture[str]
) -> None:
    plain, small = tmp_path / "plain", tmp_path / "small"
    xz_bundle(plain, wheel, "none")
    xz_bundle(small, wheel)
    assert carried_bytes(small) < carried_bytes(plain) / 4
    assert len(list((small / "pieces").iterdir())) > 2
    assert "compression" not in json.loads((plain / "manifest.json").read_text(encoding="utf-8"))
    if way == "join.sh":
        done = subprocess.run(["sh", str(small / "join.sh")], capture_output=True, text=True, check=True)
        said = done.stdout
    else:
        assert main(["bundle", "--join", str(small)]) == 0
        said = capsys.readouterr().out
    assert "1 wheels, all as manifest.json says" in said
    joined = small / "wheels" / wheel.name
    with zipfile.ZipFile(wheel) as before, zipfile.ZipFile(joined) as after:
        assert after.testzip() is None
        assert {i.compress_type for i in after.infolist()} == {zipfile.ZIP_STORED}
        described = [
            [(i.filename, i.date_time, i.external_attr, i.create_system, i.file_size, i.CRC) for i in z.infolist()]
            for z in (before, after)
        ]
        assert described[0] == described[1]
        assert after.read(RECORD) == before.read(RECORD)
        for line in after.read(RECORD).decode().splitlines():
            name, sha, size = line.split(",")
            data = after.read(name)
            assert (len(data), hashlib.sha256(data).digest()) == (
                int(size),
                base64.urlsafe_b64decode(sha[len("sha256=") :] + "="),
            )


def test_without_the_xz_program_the_same_wheels_come_back(tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    xz_bundle(tmp_path / "a", wheel)
    monkeypatch.setattr("shutil.which", lambda _: None)
    xz_bundle(tmp_path / "b", wheel)
    a, b = (tmp_path / x / "wheels" / wheel.name for x in "ab")
    for path in (a, b):
        join_bundle(path.parents[1])
    assert a.read_bytes() == b.read_bytes()


def test_a_host_joins_with_what_it_has(tmp_path: Path, wheel: Path, host: str) -> None:
    xz_bundle(tmp_path / "x", wheel)
    assert "1 wheels" in join_bundle(tmp_path / "x", python=host)
    with zipfile.ZipFile(wheel) as before, zipfile.ZipFile(tmp_path / "x" / "wheels" / wheel.name) as after:
        assert {n: after.read(n) for n in after.namelist()} == {n: before.read(n) for n in before.namelist()}


def test_a_damaged_piece_under_xz_is_named(tmp_path: Path, wheel: Path, host: str) -> None:
    xz_bundle(tmp_path / "x", wheel)
    piece = tmp_path / "x" / "pieces" / "piece-001"
    piece.write_bytes(piece.read_bytes()[:-1])
    with pytest.raises(UserError, match="piece-001 is damaged"):
        join_bundle(tmp_path / "x", python=host)
    assert not (tmp_path / "x" / "wheels").exists()


@pytest.mark.parametrize("harm", ["short", "changed", "end"])
def test_an_archive_that_was_made_wrong_is_one_line(tmp_path: Path, wheel: Path, host: str, harm: str) -> None:
    """Pieces that are as the manifest says, which is wrong: not all there are, other bytes, or without the stream's last ones."""
    out = tmp_path / "x"
    xz_bundle(out, wheel)
    path = out / "manifest.json"
    manifest = json.loads(path.read_text(encoding="utf-8"))
    if harm == "short":
        manifest["pieces"].pop()
    else:
        row = manifest["pieces"][1 if harm == "changed" else -1]
        piece = out / "pieces" / row["name"]
        data = piece.read_bytes()
        piece.write_bytes(data[:-1] if harm == "end" else data[:1000] + bytes(b ^ 1 for b in data[1000:2000]) + data[2000:])
        row["sha256"] = hashlib.sha256(piece.read_bytes()).hexdigest()
    path.write_text(json.dumps(manifest), encoding="utf-8")
    with pytest.raises(UserError, match="pieces that cannot be unpacked") as caught:
        join_bundle(out, python=host)
    assert caught.value.fix == "build the bundle again"


def test_an_xz_that_fails_is_not_overlooked(tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All the right bytes came, and it ends in failure all the same."""
    real = shutil.which("xz")
    if real is None:
        pytest.skip("no xz here")
    xz_bundle(tmp_path / "x", wheel)
    tools = tmp_path / "bin"
    tools.mkdir()
    xz = tools / "xz"
    xz.write_text(f'#!/bin/sh\n{real} "$@"\necho "xz: no memory" >&2\nexit 1\n', encoding="utf-8")
    xz.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tools}:{os.environ['PATH']}")
    with pytest.raises(UserError, match="xz: no memory"):
        join_bundle(tmp_path / "x")


def test_a_host_with_neither_xz_nor_lzma_is_told_so(tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    xz_bundle(tmp_path / "x", wheel)
    tools = tmp_path / "bin"
    tools.mkdir()
    for name in ("sh", "dirname"):
        (tools / name).symlink_to(str(shutil.which(name)))
    monkeypatch.setenv("PATH", str(tools))
    with pytest.raises(UserError, match=r"no xz program, and .* without its lzma module") as caught:
        join_bundle(tmp_path / "x", python=str(python_without_lzma(tmp_path)))
    assert "PYTHON=" in caught.value.fix


def test_what_goes_wrong_while_compressing_is_one_line(
    tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["bundle", "--engine", "vllm==0.25.1", "--compress", "xz", "--out", str(tmp_path / "o")]) != 0
    assert "--compress xz without --split" in capsys.readouterr().err
    xz = tmp_path / "xz"
    xz.write_text("#!/bin/sh\necho 'xz: no memory' >&2\nexit 1\n", encoding="utf-8")
    xz.chmod(0o755)
    monkeypatch.setattr("shutil.which", lambda _: str(xz))
    with pytest.raises(UserError, match="xz ended with 1: xz: no memory"):
        xz_bundle(tmp_path / "x", wheel)
    wheel.write_bytes(wheel.read_bytes()[:-100])
    with pytest.raises(UserError, match=wheel.name):
        xz_bundle(tmp_path / "y", wheel)


def test_progress_is_said(tmp_path: Path, wheel: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "_SAY_EVERY_S", 0.0)
    said: list[str] = []
    wheels = wheel.parent
    store_wheels(wheels, say=said.append)
    split_wheels(wheels, tmp_path / "pieces", 65_536, compression="xz", say=said.append)
    assert said[0] == "unpacking wheels: 1 of 2 MB"
    assert said[-1] == "compressing: 2 of 2 MB"
