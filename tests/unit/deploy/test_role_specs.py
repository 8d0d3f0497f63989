"""Every role says what it takes: defaults, argument_specs, comments and uses agree. The pages of docs: tests/unit/test_docs.py."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml
from support.paths import ROOT

ROLES = sorted(p.name for p in (ROOT / "roles").iterdir() if (p / "defaults" / "main.yml").exists())
KINDS: dict[str, tuple[type, ...]] = {
    "str": (str,),
    "path": (str,),
    "int": (int,),
    "float": (int, float),
    "bool": (bool,),
    "list": (list,),
    "dict": (dict,),
    "raw": (object,),
}


def load(role: str, path: str) -> dict[str, Any]:
    """A YAML mapping of the role; empty where the file is not there."""
    file = ROOT / "roles" / role / path
    return (yaml.safe_load(file.read_text(encoding="utf-8")) or {}) if file.exists() else {}


def options(role: str) -> dict[str, Any]:
    found: dict[str, Any] = load(role, "meta/argument_specs.yml")["argument_specs"]["main"].get("options") or {}
    return found


def is_literal(value: Any) -> bool:
    return "{{" not in str(value)


@pytest.mark.parametrize("role", ROLES)
def test_defaults_and_specs_have_the_same_variables(role: str) -> None:
    assert set(load(role, "defaults/main.yml")) == set(options(role))


@pytest.mark.parametrize("role", ROLES)
def test_a_stated_default_is_the_real_one_and_types_match(role: str) -> None:
    for name, value in load(role, "defaults/main.yml").items():
        option = options(role)[name]
        kind = option.get("type", "str")
        assert option.get("description") not in (None, "", name), f"{name}: say what it means"
        if "default" in option:
            assert option["default"] == value, name
            assert type(option["default"]) is type(value), name
        if is_literal(value) and value is not None:
            assert isinstance(value, KINDS[kind]), (name, kind, value)
            assert kind == "bool" or not isinstance(value, bool), name
            for choice in [value] if "choices" in option else []:
                assert choice in option["choices"], name
        if kind == "list":
            assert option.get("elements"), name


def comments(role: str) -> dict[str, str]:
    """The comment directly above each default, in one line. Titles of sections ("# --- ...") do not count."""
    found: dict[str, str] = {}
    above: list[str] = []
    for line in (ROOT / "roles" / role / "defaults/main.yml").read_text(encoding="utf-8").splitlines():
        if line.startswith("# ") and not line.startswith("# ---"):
            above.append(line[2:].strip())
            continue
        if variable := re.match(r"([a-z]\w*):", line):
            found[variable[1]] = " ".join(above)
        above = []
    return found


@pytest.mark.parametrize("role", ROLES)
def test_the_comment_above_a_default_is_its_description(role: str) -> None:
    """Two texts for one variable drift apart, and one that was cut off stays so. Quotes may differ: YAML has its own."""
    said = comments(role)
    for name, option in options(role).items():
        text = " ".join(option["description"]) if isinstance(option["description"], list) else option["description"]
        assert " ".join(text.split()).replace("'", '"') == said[name].replace("'", '"'), name


@pytest.mark.parametrize("role", ROLES)
def test_variables_carry_the_roles_prefix_and_none_is_used_that_is_not_declared(role: str) -> None:
    folder = ROOT / "roles" / role
    declared = set(load(role, "defaults/main.yml"))
    assert {n for n in declared if not n.startswith(f"{role}_")} == set()
    internal: set[str] = set()
    files = [p for kind in ("tasks", "handlers", "vars", "templates") for p in folder.glob(f"{kind}/**/*") if p.is_file()]
    texts = {p: p.read_text(encoding="utf-8") for p in files}
    for path, text in texts.items():
        if path.parent.name == "vars":
            internal |= set(yaml.safe_load(text) or {})
        internal |= set(re.findall(r"register: (\w+)", text)) | set(re.findall(r"loop_var: (\w+)", text))
        # set_fact and vars: a key of its own on a line.
        internal |= set(re.findall(rf"^\s+((?:__)?{role}_\w+):", text, re.MULTILINE))
    assert {n for n in internal if not n.startswith((f"__{role}_", f"{role}_")) and "vars" in n} == set()
    for path, text in texts.items():
        code = re.sub(r"^\s*#.*$", "", text, flags=re.MULTILINE)
        used = set(re.findall(rf"(?<![\w./'\"-])((?:__)?{role}_\w+)", code))
        unknown = {n for n in used if n not in declared and n not in internal}
        assert unknown == set(), path.relative_to(ROOT)
