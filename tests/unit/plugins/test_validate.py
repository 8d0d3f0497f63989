"""A host's model without tokenizer.json: it is made on the controller, brought to the host's cache, and the run uses it."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest
from longhaul.deploy.layout import Layout
from longhaul.deploy.spec import render_spec, store_spec
from longhaul.engines.settings import settings_from
from longhaul.prompts.convert import files_to_convert
from longhaul.prompts.tokenizer import load_tokenizer
from standin.fixture import StandIn
from support.paths import ROOT
from tiny_tokenizer import without_tokenizer_json, write_tokenizer


@pytest.mark.parametrize(
    ("names", "wanted"),
    [
        (["config.json", "tokenizer.json", "tokenizer.model"], ()),
        (["config.json", "model.safetensors"], ()),
        (["model.safetensors", "tokenizer.model", "config.json", "notes.txt"], ("tokenizer.model", "config.json")),
        (["vocab.json", "merges.txt", "chat_template.jinja"], ("vocab.json", "merges.txt", "chat_template.jinja")),
        (["qwen.tiktoken"], ("qwen.tiktoken",)),
    ],
)
def test_only_tokenizer_files_of_a_model_without_tokenizer_json_are_fetched(names: list[str], wanted: tuple[str, ...]) -> None:
    assert files_to_convert(names) == wanted


def test_a_run_on_a_host_without_transformers_gets_its_tokenizer_from_the_controller(tmp_path: Path) -> None:
    where = Layout(tmp_path / "home")
    model = without_tokenizer_json(write_tokenizer(where.home / "model"))
    # The host's Python finds a transformers that cannot be used: only what the controller brings is read there.
    host_python = tmp_path / "python" / "transformers"
    host_python.mkdir(parents=True)
    (host_python / "__init__.py").write_text("raise ImportError('a host has none')\n")
    with StandIn("--ttft", "0.02", "--gap", "0.002") as server:
        port = int(server.url.rsplit(":", 1)[1])
        settings = {"model_path": str(model), "served_model_name": "standin-model", "context_tokens": 8192, "port": port}
        settings |= {"device": "cpu", "cpu_kv_cache_gib": 1}
        spec = render_spec("vllm", "0.32.0", "process", settings_from(settings), instance="default", python="/p")
        store_spec(where, spec)
        task = {
            "longhaul_validate": {
                "spec": spec.document,
                "name": "host-a",
                "run_id": "r",
                "out_dir": str(tmp_path / "out"),
                "cache_dir": str(tmp_path / "cache" / "corpus"),
                "remote": False,
                "options": {"ladder_tokens": [300], "concurrency": [1], "output_tokens": 4, "warmup": False},
            },
            "environment": {"PYTHONPATH": str(host_python.parent)},
        }
        play = {"hosts": "localhost", "connection": "local", "gather_facts": False, "tasks": [task]}
        variables = {"ansible_python_interpreter": sys.executable}
        (tmp_path / "play.yml").write_text(json.dumps([{**play, "vars": variables}]), encoding="utf-8")
        environment = os.environ | {"ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "LONGHAUL_CACHE": str(tmp_path / "controller")}
        command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "localhost,", str(tmp_path / "play.yml")]
        done = subprocess.run(
            command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
    assert done.returncode == 0, done.stdout
    assert json.loads((tmp_path / "out" / "run.json").read_text(encoding="utf-8"))["verdict"] == "PASS", done.stdout
    (brought,) = (tmp_path / "cache" / "corpus" / "tokenizers").iterdir()
    (made,) = (tmp_path / "controller" / "tokenizers").iterdir()
    assert (brought / "tokenizer.json").read_bytes() == (made / "tokenizer.json").read_bytes()
    fingerprint = load_tokenizer(brought).fingerprint
    assert list((tmp_path / "cache" / "corpus" / "corpus").glob(f"words-{fingerprint[:16]}-*")), "the prompts are cut from it"
    assert sorted(f.name for f in model.iterdir()) == ["merges.txt", "tokenizer_config.json", "vocab.json"]


@pytest.mark.parametrize("name", ["longhaul_wait", "longhaul_venv", "longhaul_model"])
def test_the_other_live_plugins_prepare_nothing(name: str) -> None:
    """Plugins share a body, some of them a file: what one prepares for its module is no business of the others."""
    assert "_arguments" not in vars(load_plugin(name).ActionModule)
    assert "_arguments" in vars(load_plugin("longhaul_validate").ActionModule)


def load_plugin(name: str) -> ModuleType:
    """A plugin as Ansible loads it: from its file."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "plugins" / "action" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
