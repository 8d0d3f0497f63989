"""Ready-made configurations, the request's and measured ones: each must pass the capacity plan and render for its version."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from longhaul.capacity.gate import gate
from longhaul.deploy.compare_sets import check_sets, side
from longhaul.deploy.engine_variables import VARIABLES, setting_options
from longhaul.engines.registry import get_engine
from longhaul.engines.settings import EngineSettings, settings_from
from longhaul.physics.hardware import get_gpu
from longhaul.version import Version
from support.paths import ROOT

SETS = sorted((ROOT / "vars" / "sets").glob("*.yml"))
# Measured on two GPUs, each with its run; the others are the request's, for eight.
RUNS = {
    "vllm-1m-2x-h200": "2026-11-25-2x-h200-tuned/vllm-tp2-tuned",
    "vllm-1m-pp2-2x-h200": "2026-11-25-2x-h200-tuned/vllm-pp2",
    "sglang-1m-2x-h200": "2026-11-25-2x-h200-tuned/sglang-tp2",
    "vllm-500k-2x-h100": "2026-11-25-2x-h100/vllm-chunk32k",
}
MEASURED = [path for path in SETS if "-2x-" in path.stem]
REQUESTED = [path for path in SETS if path not in MEASURED]
SCOUT = json.loads((ROOT / "tests" / "data" / "configs" / "llama-4-scout.json").read_text())
# What the measured servers were given for their bare machine: random weights and hooks.
OF_THE_MACHINE = ("extra_env", "extra_args", "load_format")


def load(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load(path.read_text())
    return found


def settings(values: dict[str, Any]) -> EngineSettings:
    """The engine's part of a set; the rest is the container's and the test's."""
    return settings_from(
        {"model_path": "/data/models/scout", "served_model_name": "scout", "host": "gpu-01", **setting_options(values)}
    )


def test_every_configuration_of_the_request_is_there() -> None:
    assert {path.stem for path in REQUESTED} == {"vllm-2m", "vllm-2.9m", "vllm-5m", "vllm-8m", "vllm-10m", "sglang-2m"}


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)
def test_compare_takes_all_that_the_set_says(path: Path) -> None:
    said = load(path)
    assert check_sets([str(path), str(path)], [said, said]) == []
    taken = side(said, {})
    assert {name: taken[name] for name in said} == said


@pytest.mark.parametrize("path", SETS, ids=lambda path: path.stem)
def test_the_set_fits_its_gpus(path: Path) -> None:
    values = load(path)
    gpus = 2 if path in MEASURED else 8
    model = dict(SCOUT)
    if path.stem == "sglang-1m-2x-h200":
        model["quantization_config"] = {"quant_method": "fp8", "activation_scheme": "dynamic"}
    ladder = [(tokens + 200, 1) for tokens in values["context_test_ladder_tokens"]]
    result = gate(
        values["engine_name"],
        values["engine_version"],
        settings(values),
        model,
        gpu=get_gpu("h100" if path.stem.endswith("h100") else "h200"),
        host_gpus=gpus,
        ladder=ladder,
    )
    assert result.plan is not None, result.skipped
    assert not result.refusals, [str(f) for f in result.refusals]
    assert result.plan.max_concurrency >= 1.0
    assert max(tokens for tokens, _ in ladder) <= values["engine_context_tokens"]


@pytest.mark.parametrize("path", REQUESTED, ids=lambda path: path.stem)
def test_the_set_says_what_the_request_says(path: Path) -> None:
    values = load(path)
    launch = get_engine(values["engine_name"]).launch(settings(values), Version.parse(values["engine_version"]))
    words = " ".join(launch.argv)
    assert str(values["engine_context_tokens"]) in launch.argv
    if values["engine_name"] == "sglang":
        assert "--disable-cuda-graph" in launch.argv
        assert "--max-running-requests 8" in words
        assert "--mem-fraction-static 0.8" in words
    else:
        hybrid = launch.env.get("VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE")
        assert (hybrid == "1") == (values["engine_hybrid_kv"] == "on")
        assert "--gpu-memory-utilization 0.9" in words
    assert ("--kv-cache-dtype fp8" in words) == (path.stem == "vllm-10m")


@pytest.mark.parametrize("path", MEASURED, ids=lambda path: path.stem)
def test_a_measured_set_renders_the_argv_that_was_measured(path: Path) -> None:
    """But for what belonged to the bare machine (addresses, dummy weights, no tokenizer, left-out extras) and what the set's comment names."""
    values = load(path)
    run = ROOT / "docs" / "results" / RUNS[path.stem] / "gpu-run.json"
    measured = json.loads(run.read_text())["environment"]["settings"]
    chosen = settings(values)
    for row in VARIABLES:
        if row.setting is not None and row.compare != "never" and row.setting.name not in OF_THE_MACHINE:
            name = row.setting.name
            assert getattr(chosen, name) == measured[name], name


def test_the_example_inventory_deploys_the_first_set() -> None:
    example = load(ROOT / "inventory" / "h200" / "group_vars" / "all.yml")
    first = load(ROOT / "vars" / "sets" / "vllm-2m.yml")
    same = ("engine_name", "engine_version", "engine_image", "engine_context_tokens", "engine_tensor_parallel")
    assert {name: example[name] for name in same} == {name: first[name] for name in same}
    assert example["context_test_ladder_tokens"] == first["context_test_ladder_tokens"]
