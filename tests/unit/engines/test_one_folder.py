"""An engine is one folder and one line: nothing outside its folder knows its name. The proof that it works: tests/e2e/test_third_engine.py."""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from longhaul.engines.base import EngineAdapter
from longhaul.engines.registry import ENGINES, get_engine
from longhaul.errors import UserError
from longhaul.version import Version
from support.paths import ROOT

ENGINES_FOLDER = ROOT / "module_utils/longhaul/engines"
PLACES = ("module_utils", "roles", "library", "plugins", "playbooks", "deploy.yml")
# The name of an engine in quotes: what a comparison, a list to look in and a key of a table have in common. An inventory group, a
# lock's file name and a default (engine_name: vllm) stand without quotes, and words for people name engines as they like.
QUOTED = re.compile("""(["'])(""" + "|".join(ENGINES) + r")\1")
OWN_MODULES = re.compile(r"\bengines\.(" + "|".join(ENGINES) + r")\b")


def sources() -> Iterator[Path]:
    """Every text of the product outside the engines' own folders."""
    own = [ENGINES_FOLDER / name for name in ENGINES]
    for place in PLACES:
        top = ROOT / place
        for path in [top] if top.is_file() else sorted(top.rglob("*")):
            if path.suffix in {".py", ".yml", ".yaml", ".j2", ".json", ".sh"} and not any(
                folder in path.parents for folder in own
            ):
                yield path


def test_no_other_place_knows_an_engine_by_name() -> None:
    found = []
    for path in sources():
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
            # Not "from .vllm.adapter import": those lines are the registry.
            if QUOTED.search(line) or OWN_MODULES.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()}")
    assert found == []


def test_the_search_sees_what_it_is_for() -> None:
    for line in ('if spec["engine"] == "vllm":', "when: engine_name in ['vllm', 'sglang']", 'PATHS = {"sglang": 1}'):
        assert QUOTED.search(line)
    assert OWN_MODULES.search("from ..engines.vllm.sizing import VllmSizing")
    assert len(list(sources())) > 100


def test_every_folder_is_registered_by_one_line() -> None:
    folders = {path.parent.name for path in ENGINES_FOLDER.glob("*/adapter.py")}
    registry = (ENGINES_FOLDER / "registry.py").read_text(encoding="utf-8").splitlines()
    lines = [line for line in registry if re.search(r"from \.\w+\.adapter import", line)]
    assert {name for name in folders for line in lines if f".{name}." in line} == folders == set(ENGINES)
    assert len(lines) == len(folders)


@pytest.mark.parametrize("engine", ENGINES.values(), ids=list(ENGINES))
def test_an_adapter_answers_everything(engine: EngineAdapter) -> None:
    assert get_engine(engine.name) is engine
    oldest, newest = (Version.parse(text) for text in engine.verified)
    assert oldest < newest
    assert engine.image(engine.verified[0]).endswith((engine.verified[0], f"{engine.verified[0]}-runtime"))
    assert engine.phases[0].needle == engine.log_opening
    assert engine.log_opening in engine.log_signatures
    assert engine.info_paths
    assert sum(engine.stage_layers(47, 3)) == 47
    assert engine.chat("m", "Hello", 8).body is not None
    assert engine.count_tokens("m", "Hello").body is not None
    assert [engine.parse_count(x) for x in ({"count": 7}, {"count": None}, "no")] == [7, None, None]
    assert (ROOT / "roles/model_store/files/models" / engine.scout_config / "config.json").is_file()


def test_an_unknown_engine_is_refused_with_the_known_ones() -> None:
    with pytest.raises(UserError, match="one of " + ", ".join(ENGINES)):
        get_engine("llamacpp")


def test_the_roles_filters_ask_the_adapter() -> None:
    path = ROOT / "plugins/filter/longhaul.py"
    spec = importlib.util.spec_from_file_location("longhaul_engine_filters", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    filters = module.FilterModule().filters()
    for name, engine in ENGINES.items():
        assert filters["longhaul_engine_image"](name, "1.2.3") == engine.image("1.2.3")
        assert filters["longhaul_scout_config"](name) == engine.scout_config
    # Preflight names an unknown engine; until then nothing may stumble over it.
    assert filters["longhaul_engine_image"]("llamacpp", "1.2.3") == ""
    assert filters["longhaul_scout_config"]("") == EngineAdapter.scout_config
