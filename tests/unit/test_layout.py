"""The rooms of the package: imports go only downward in the design's table, no circle, no Ansible, no empty-handed ``__init__``."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
from support.paths import ROOT

PACKAGE = ROOT / "module_utils" / "longhaul"
# A room imports itself and the rooms before it. "" is the package's root: words that everybody uses.
ROOMS = (
    "", "models", "physics", "engines", "capacity", "prompts", "client", "validate", "deploy", "host", "burnin",
    "gateway", "monitoring", "bundle", "report", "commands",
)  # fmt: skip
# The command line stands in the root and drives all of them.
COMMAND_LINE = ("cli", "__main__")
# A module this long must say why in its docstring.
LONG_LINES = 450


def modules() -> list[Path]:
    return sorted(path for path in PACKAGE.rglob("*.py") if path.name != "__init__.py")


def name_of(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


def room_of(module: str) -> str:
    return module.split(".", maxsplit=1)[0] if "." in module else ""


def imports_of(path: Path, *, everywhere: bool = True) -> Iterator[str]:
    """The package's modules that a module imports; with ``everywhere`` also those inside functions."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    base = path.relative_to(PACKAGE).with_suffix("").parts
    for node in ast.walk(tree) if everywhere else tree.body:
        if not isinstance(node, ast.ImportFrom) or not node.level:
            continue
        parts = [*base[: -node.level], *(node.module.split(".") if node.module else [])]
        if PACKAGE.joinpath(*parts).with_suffix(".py").exists() and parts:
            yield ".".join(parts)
        else:
            # ``from . import name``: a module of a room.
            yield from (".".join([*parts, alias.name]) for alias in node.names)


def test_the_table_names_every_room() -> None:
    found = {path.name for path in PACKAGE.iterdir() if path.is_dir() and path.name != "__pycache__"}
    assert found <= set(ROOMS)
    assert len(modules()) > 80


def test_imports_go_only_downward() -> None:
    rank = {room: number for number, room in enumerate(ROOMS)}
    upward = [
        f"{name_of(path)} imports {target}"
        for path in modules()
        if name_of(path) not in COMMAND_LINE
        for target in imports_of(path)
        if rank[room_of(target)] > rank[room_of(name_of(path))] or target in COMMAND_LINE
    ]
    assert upward == []


def test_every_import_is_of_a_module_that_is_there() -> None:
    known = {name_of(path) for path in modules()}
    assert {target for path in modules() for target in imports_of(path)} <= known


def test_there_are_no_circles() -> None:
    graph = {name_of(path): set(imports_of(path, everywhere=False)) for path in modules()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def test_inside_the_package_imports_are_relative_and_ansible_is_unknown() -> None:
    """The package has two names and one body; only a relative import is right under both."""
    for path in modules():
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and not node.level:
                names = [node.module or ""]
            assert not [n for n in names if n.split(".")[0] in ("longhaul", "ansible")], path


def test_init_files_are_empty() -> None:
    """Ansible ships what they import."""
    rooms = [path for path in PACKAGE.rglob("*") if path.is_dir() and list(path.glob("*.py"))]
    assert [path for path in rooms if (path / "__init__.py").read_bytes()] == []


def test_a_long_module_says_why() -> None:
    for path in modules():
        text = path.read_text(encoding="utf-8")
        said = ast.get_docstring(ast.parse(text)) or ""
        lines = len(text.splitlines())
        assert lines <= LONG_LINES or "one file" in said.lower(), (
            f"{name_of(path)}, {lines} lines: split it, or say why it is one file"
        )
