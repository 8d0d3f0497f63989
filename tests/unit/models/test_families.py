"""A model family is one file: what a new one needs, and that no file is forgotten."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

from longhaul.models import families
from longhaul.models.registry import family_of
from support.paths import ROOT

NEW_FAMILY = '''
from ..family import Family


class Twice(Family):
    """Two norms more per layer, and biases on Q, K and V."""

    model_types = {"twice": {"norms_per_layer": 4, "qkv_bias": True}}
    aliases = {"two": "twice"}


FAMILIES = (Twice(),)
'''
ASK = """
import json
from longhaul.models.reader import load_architecture
sizes = {"vocab_size": 10, "hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 16}
read = [load_architecture({"model_type": name, **sizes}) for name in ("two", "llama")]
print(json.dumps([[m.model_type, m.layers[0].norm_parameters, m.layers[0].attention_parameters] for m in read]))
"""


def test_a_new_family_is_one_file_and_its_name_in_the_registry(tmp_path: Path) -> None:
    package = tmp_path / "longhaul"
    shutil.copytree(ROOT / "module_utils" / "longhaul", package, ignore=shutil.ignore_patterns("__pycache__"))
    (package / "models" / "families" / "twice.py").write_text(NEW_FAMILY, encoding="utf-8")
    registry = package / "models" / "registry.py"
    registry.write_text(registry.read_text(encoding="utf-8").replace(" qwen", " qwen, twice"), encoding="utf-8")
    found = subprocess.run(
        [sys.executable, "-c", ASK], env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True
    )
    assert found.stdout.strip() == '[["twice", 32, 280], ["llama", 16, 256]]'


def test_every_family_file_is_in_the_registry() -> None:
    folder = Path(families.__path__[0])
    files = {p.stem for p in folder.glob("*.py")} - {"__init__"}
    registry = (folder.parent / "registry.py").read_text(encoding="utf-8")
    (listed,) = (line for line in registry.splitlines() if line.startswith("_MODULES = "))
    assert {name.strip(" ,()") for name in listed.removeprefix("_MODULES = ").split(",")} == files


def test_an_unknown_model_type_is_read_as_a_plain_decoder() -> None:
    name, family = family_of("never-heard-of")
    assert (name, dict(family.model_types)) == ("never-heard-of", {})
