"""Ansible's modules: their documentation, their options, and the refusal of a Python that is too old."""

from __future__ import annotations

import ast
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from longhaul.deploy.model_store import SOURCES
from longhaul.deploy.runtimes.registry import RUNTIMES
from longhaul.deploy.service import STATES
from support.paths import ROOT

MODULES = sorted((ROOT / "library").glob("*.py"))
NAMES = [path.stem for path in MODULES]
# What each module answers to is a part of its documentation that Ansible itself knows.
OPTION_KEYS = {"description", "type", "required", "default", "choices", "elements"}


def texts(path: Path) -> dict[str, str]:
    """The module's constants of text."""
    tree = ast.parse(path.read_text(encoding="utf-8"))
    found = {}
    for node in tree.body:
        if isinstance(node, ast.Assign) and isinstance(node.value, ast.Constant) and isinstance(node.targets[0], ast.Name):
            found[node.targets[0].id] = str(node.value.value)
    return found


def argument_spec(path: Path, tmp_path: Path) -> dict[str, Any]:
    """What the module hands to AnsibleModule, from a run of its main() with a made-up one."""
    program = f"""
import json, runpy, sys, types
import ansible.module_utils
sys.path.insert(0, {str(ROOT / "module_utils")!r})
ansible.module_utils.__path__.append({str(ROOT / "module_utils")!r})
import ansible.module_utils.basic as basic
class Stop(Exception): pass
def made(argument_spec, **more):
    print(json.dumps(argument_spec)); raise Stop
basic.AnsibleModule = made
try:
    runpy.run_path({str(path)!r}, run_name="__main__")
except Stop:
    pass
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout)
    return found


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_the_documentation_is_plain_yaml_and_says_what_ansible_asks(path: Path) -> None:
    found = texts(path)
    document = yaml.safe_load(found["DOCUMENTATION"])
    assert document["module"] == path.stem
    assert document["short_description"]
    assert all(isinstance(line, str) for line in document["description"])
    for name in ("check_mode", "diff_mode"):
        attribute = document["attributes"][name]
        assert attribute["support"] in ("full", "partial", "none")
        assert isinstance(attribute["description"], str)
    assert document["attributes"]["check_mode"]["support"] == "full"
    assert yaml.safe_load(found["EXAMPLES"])
    returned = yaml.safe_load(found["RETURN"])
    for name, value in returned.items():
        # A comma in a description without quotes would begin a key of its own.
        assert set(value) == {"description", "returned", "type"}, name


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_the_documented_options_are_the_modules_arguments(path: Path, tmp_path: Path) -> None:
    documented = yaml.safe_load(texts(path)["DOCUMENTATION"])["options"]
    arguments = argument_spec(path, tmp_path)
    assert set(documented) == set(arguments)
    for name, option in documented.items():
        assert set(option) <= OPTION_KEYS, name
        argument = arguments[name]
        assert option["type"] == argument.get("type", "str"), name
        for key in ("required", "default", "choices", "elements"):
            assert option.get(key) == argument.get(key), f"{name}: {key}"


def test_the_documented_choices_are_those_of_the_package() -> None:
    for module, option, known in (("spec", "runtime", RUNTIMES), ("service", "state", STATES), ("model", "source", SOURCES)):
        documented = json.loads(texts(ROOT / "library" / f"longhaul_{module}.py")["DOCUMENTATION"])["options"]
        assert sorted(documented[option]["choices"]) == sorted(known)


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_what_changes_something_shows_it(path: Path) -> None:
    """A module that can report a change and supports diff_mode returns a diff; one that does not says so."""
    text = path.read_text(encoding="utf-8")
    shows = yaml.safe_load(texts(path)["DOCUMENTATION"])["attributes"]["diff_mode"]["support"] != "none"
    assert shows == ("diff_of(" in text)


@pytest.mark.parametrize("path", MODULES, ids=NAMES)
def test_a_modules_first_import_refuses_an_old_python(path: Path) -> None:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    imports = [node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)]
    first = imports[1]
    assert isinstance(first, ast.ImportFrom)
    assert first.module == "ansible.module_utils.longhaul_module"
    # The file itself must be read by the old one.
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 8))


def test_an_old_python_is_refused_in_ansibles_own_form() -> None:
    place = ROOT / "module_utils" / "longhaul_module.py"
    ast.parse(place.read_text(encoding="utf-8"), feature_version=(3, 8))
    program = f"import sys, runpy; sys.version_info = (3, 9, 2); runpy.run_path({str(place)!r})"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    assert json.loads(done.stdout) == {
        "failed": True,
        "msg": "found: Python 3.9 on the host | required: Python 3.10 or newer | "
        "fix: install a newer python3 and set ansible_python_interpreter",
    }
