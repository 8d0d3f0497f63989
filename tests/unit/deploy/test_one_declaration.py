"""A new setting is one declaration (and a row in the folder of each engine that has it): a copy of the tree gets one and shows it everywhere.

This is what docs/contributing.md tells a maintainer to do.
"""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.paths import CONFIGS, ROOT

DECLARATION = """    thought_tokens: int | None = field(
        default=None, metadata=about("Tokens that the model may think.", least=1, most=4096, empty="as many as it likes")
    )
"""
ROW = '    Flag("thought_tokens", "--thought-tokens"),\n'
# What the copy's own package says, as one JSON object.
QUESTIONS = """
import json
from longhaul.deploy.compare_sets import KNOWN, side
from longhaul.deploy.engine_variables import inputs, setting_options, unknown_variables
from longhaul.deploy.preflight import check_engine
from longhaul.deploy.spec import render_spec
from longhaul.capacity.gate import settings_from_engine
from longhaul.engines.settings import settings_from
from longhaul.errors import UserError
from longhaul.version import Version

plain = {"model_path": "/models/m", "served_model_name": "m", "context_tokens": 8192}
chosen = {f"engine_{name}": value for name, value in plain.items()} | {"engine_thought_tokens": "512"}

def spec(engine, version, **more):
    wanted = settings_from({**plain, **more})
    found = render_spec(engine, version, "process", wanted, instance="default", python="/e/bin/python", environment_hash="h")
    return {"id": found.spec_id, "settings": dict(found.document["settings"]), "argv": list(found.argv)}

def refused(engine, version):
    options = {"name": engine, "version": version, "runtime": "process", "settings": {
        **plain, "port": 1, "tensor_parallel": 1, "pipeline_parallel": 1, "thought_tokens": 512}}
    return [str(finding) for finding in check_engine(options)]

def bounds(value):
    options = {"name": "vllm", "version": "0.12.0", "runtime": "process", "settings": {
        **plain, "port": 1, "tensor_parallel": 1, "pipeline_parallel": 1, "thought_tokens": value}}
    return [str(finding) for finding in check_engine(options)]

print(json.dumps({
    "unset": spec("vllm", "0.12.0"),
    "set": spec("vllm", "0.12.0", thought_tokens="512"),
    "refused": refused("sglang", "0.5.6.post2"),
    "bounds": bounds(5000),
    "module": setting_options(chosen),
    "read": "engine_thought_tokens" in inputs("settings"),
    "compared": "engine_thought_tokens" in KNOWN,
    "side": side({}, {})["engine_thought_tokens"],
    "unknown": [str(finding) for finding in unknown_variables(["engine_thought_tokens", "engine_thougt_tokens"])],
    "plan": settings_from_engine(settings_from({**plain, "thought_tokens": 512}), "vllm", Version.parse("0.12.0")).thought_tokens,
}))
"""


def run(tree: Path, *words: str) -> str:
    """A Python program with the copy's package; its output."""
    env = {"PATH": "/usr/bin:/bin", "PYTHONPATH": str(tree / "module_utils"), "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run([sys.executable, *words], capture_output=True, text=True, env=env, cwd=tree, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The repository with one setting more: declared once, with a row in one engine's folder, and the files written again."""
    copy: Path = tmp_path_factory.mktemp("tree")
    ignore = shutil.ignore_patterns("__pycache__")
    for folder in ("module_utils", "roles", "scripts", "docs/variables"):
        shutil.copytree(ROOT / folder, copy / folder, ignore=ignore)
    for file, before, added in (
        ("engines/settings.py", "    block_size_tokens: int | None = field(\n", DECLARATION),
        ("engines/vllm/adapter.py", '    Flag("max_num_seqs", "--max-num-seqs"),\n', ROW),
    ):
        path = copy / "module_utils/longhaul" / file
        text = path.read_text(encoding="utf-8")
        assert text.count(before) == 1, f"{file}: the place that this test adds to has gone"
        path.write_text(text.replace(before, added + before), encoding="utf-8")
    run(copy, "scripts/dev/engine-variables.py", "--write")
    return copy


@pytest.fixture(scope="module")
def answers(tree: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(run(tree, "-c", QUESTIONS))
    return found


def test_the_roles_files_and_the_documentation_have_it(tree: Path) -> None:
    role = tree / "roles/engine"
    assert yaml.safe_load((role / "defaults/main.yml").read_text())["engine_thought_tokens"] is None
    option = yaml.safe_load((role / "meta/argument_specs.yml").read_text())["argument_specs"]["main"]["options"]
    sentence = "Tokens that the model may think. Only for vllm. Empty means as many as it likes."
    assert option["engine_thought_tokens"] == {"description": sentence, "type": "int"}
    assert f"| `engine_thought_tokens` | int | empty | {sentence} |" in (tree / "docs/variables/engine.md").read_text()
    run(tree, "scripts/dev/engine-variables.py", "--check")
    run(tree, "scripts/dev/variables-docs.py", "--check")


def test_modules_and_the_spec_have_it(answers: dict[str, Any]) -> None:
    assert answers["read"]
    assert answers["module"]["thought_tokens"] == "512"
    assert answers["set"]["settings"]["thought_tokens"] == 512
    assert answers["set"]["argv"][-3:] != answers["unset"]["argv"][-3:]
    place = answers["set"]["argv"].index("--thought-tokens")
    assert answers["set"]["argv"][place + 1] == "512"


def test_where_nobody_sets_it_no_spec_changes(answers: dict[str, Any]) -> None:
    before = json.loads(run(ROOT, "-c", QUESTIONS.split("print(", maxsplit=1)[0] + 'print(json.dumps(spec("vllm", "0.12.0")))'))
    assert answers["unset"]["id"] == before["id"]
    assert answers["set"]["id"] != before["id"]
    assert "--thought-tokens" not in answers["unset"]["argv"]


def test_an_engine_without_a_row_refuses_it_by_name(answers: dict[str, Any]) -> None:
    assert answers["refused"] == [
        "found: engine_thought_tokens with sglang | required: a setting that this engine has | fix: remove engine_thought_tokens"
    ]


def test_preflight_knows_its_bounds_and_its_name(answers: dict[str, Any]) -> None:
    assert answers["bounds"] == ["found: engine_thought_tokens 5000 | required: 1 to 4096 | fix: set engine_thought_tokens"]
    (slip,) = answers["unknown"]
    assert "write engine_thought_tokens;" in slip


def test_a_comparison_takes_it_from_a_set(answers: dict[str, Any]) -> None:
    assert answers["compared"]
    assert answers["side"] is None, "without it in the set it is as the role's defaults have it"


def test_the_plan_has_it_as_input_and_option(tree: Path, answers: dict[str, Any]) -> None:
    assert answers["plan"] == 512
    assert "--thought-tokens N" in " ".join(run(tree, "-m", "longhaul", "plan", "--help").split())
    config = str(CONFIGS / "llama-3.1-8b.json")
    words = ("--model", config, "--gpu", "h200", "--engine", "vllm==0.12.0", "--thought-tokens", "512", "--json")
    assert json.loads(run(tree, "-m", "longhaul", "plan", *words))["fits"]
