"""docs/results-schema.md says what results.py holds: the same classes and fields, in order, with type, default and a meaning."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest
from longhaul import results
from support.paths import ROOT

DOC = (ROOT / "docs" / "results-schema.md").read_text(encoding="utf-8")
CLASSES = {n: c for n, c in vars(results).items() if isinstance(c, type) and dataclasses.is_dataclass(c)}
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", DOC, re.S | re.M))


def rows(name: str) -> list[tuple[str, str, str, str]]:
    found = []
    for line in SECTIONS[name].splitlines():
        if line.startswith("| `"):
            field, kind, default, meaning = (c.strip().replace("\\|", "|") for c in re.split(r"(?<!\\)\|", line)[1:-1])
            found.append((field.strip("`"), kind.strip("`"), default.strip("`"), meaning))
    return found


def default_text(field: dataclasses.Field[object]) -> str:
    if field.default is not dataclasses.MISSING:
        return json.dumps(results.to_jsonable(field.default))
    return "required" if field.default_factory is dataclasses.MISSING else json.dumps(field.default_factory())


def test_every_class_has_a_section() -> None:
    assert set(SECTIONS) == set(CLASSES)


@pytest.mark.parametrize("name", sorted(CLASSES))
def test_fields_are_documented_as_they_are(name: str) -> None:
    expected = [(f.name, str(f.type), default_text(f)) for f in dataclasses.fields(CLASSES[name])]
    assert [row[:3] for row in rows(name)] == expected
    assert all(len(row[3]) > 5 for row in rows(name))


def test_the_version_is_the_one_in_force() -> None:
    assert DOC.startswith(f"# The result schema, version {results.SCHEMA_VERSION}\n")
    for verdict, code in results.EXIT_CODES.items():
        assert f"{verdict.value} {code}" in DOC
