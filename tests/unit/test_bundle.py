"""Bundles: what is carried, and that pieces come back exactly or not at all."""

from __future__ import annotations

from pathlib import Path

import pytest
from longhaul.bundle import (
    Manifest,
    Target,
    file_of,
    join_bundle,
    needed,
    parse_installed,
    parse_size,
    split_wheels,
    write_bundle,
)
from longhaul.environments import parse_lock
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


def test_what_the_host_has_is_left_out() -> None:
    lock = parse_lock("torch==2.11.0\nPy_YAML==6.0\nnumpy==2.2.6\n")
    there = parse_installed('[{"name": "torch", "version": "2.11.0+cu130"}, {"name": "py-yaml", "version": "6.0"}]')
    assert needed([lock], there) == (("numpy==2.2.6",), ("torch==2.11.0", "Py_YAML==6.0"))
    assert parse_installed("numpy==2.2.6\nx @ file:///x.whl\n") == {"numpy": "2.2.6"}
    local = parse_lock("torch==2.11.0+cpu\n")
    assert needed([local], {"torch": "2.11.0"})[0] == ("torch==2.11.0+cpu",), "a local version is asked for and not there"


def test_sizes() -> None:
    assert (parse_size("60MB"), parse_size("60MiB"), parse_size("4g")) == (60_000_000, 62_914_560, 4_000_000_000)
    for bad in ("60 apples", "0MB", "-1MB", ""):
        with pytest.raises(UserError):
            parse_size(bad)
