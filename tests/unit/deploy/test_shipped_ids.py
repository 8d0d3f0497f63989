"""Spec ids of what is shipped, as the release before rendered them: an upgrade must restart no engine.

An id that differs restarts every engine of that inventory at the next run. Change one here only with what it describes.
"""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from longhaul.deploy.compare_sets import side
from longhaul.deploy.runtimes.registry import runtime_kind
from longhaul.deploy.spec import render_spec
from longhaul.engines.settings import settings_from
from support.paths import ROOT
from support.role_variables import role_variables

# inventory (or the role's defaults alone), then the variable set given with -e.
SHIPPED = {
    ("defaults", ""): "e8a74196d64d",
    ("defaults", "sglang-1m-2x-h200"): "6d5b59e214fd",
    ("defaults", "sglang-2m"): "e1769e8e9473",
    ("defaults", "vllm-10m"): "48aec2938ed8",
    ("defaults", "vllm-1m-2x-h200"): "493b87022d0b",
    ("defaults", "vllm-1m-pp2-2x-h200"): "b43597abfcc4",
    ("defaults", "vllm-2.9m"): "998dafddeac5",
    ("defaults", "vllm-2m"): "cc717606b35b",
    ("defaults", "vllm-500k-2x-h100"): "6be87a27e5ef",
    ("defaults", "vllm-5m"): "dcaf18867f97",
    ("defaults", "vllm-8m"): "1ab6c3e4c966",
    ("gpu-run", ""): "220fdc728d61",
    ("h200", ""): "498bb77c71ff",
    ("h200", "sglang-1m-2x-h200"): "6bcd9dbeebdb",
    ("h200", "sglang-2m"): "206243c6ef47",
    ("h200", "vllm-10m"): "fa13e2a9b9f0",
    ("h200", "vllm-1m-2x-h200"): "e4a01b70f024",
    ("h200", "vllm-1m-pp2-2x-h200"): "bf455512b776",
    ("h200", "vllm-2.9m"): "cbc2fcaa7497",
    ("h200", "vllm-2m"): "00ea8a0ff6fe",
    ("h200", "vllm-500k-2x-h100"): "1e7ea100d6eb",
    ("h200", "vllm-5m"): "89cbd8faa112",
    ("h200", "vllm-8m"): "5523970dd983",
    ("local", ""): "7f48202f0e96",
    ("scout-mini", ""): "c0bdc8a56c95",
}
# Settings in the spellings that operators use, on top of inventory/h200 (or local).
CHANGED: dict[str, tuple[str, dict[str, Any], str]] = {
    "two GPUs of a process": (
        "h200",
        {"engine_runtime": "process", "engine_gpus": [0, 1], "engine_extra_env": {"A": 1}},
        "2cd7867c0a0d",
    ),
    "two GPUs of a container": (
        "h200",
        {"engine_gpus": [0, 1], "engine_container_mounts": ["/a:/b"], "engine_container_ulimits": {"memlock": -1}},
        "dc73cd5eeca2",
    ),
    "numbers and booleans as text": (
        "h200",
        {
            "engine_api_key_file": "/etc/key",
            "engine_port": "9000",
            "engine_enforce_eager": "true",
            "engine_gpu_memory_utilization": "0.85",
            "engine_context_tokens": "1048576",
            "engine_extra_args": ["--seed", 1],
        },
        "c6876677ed20",
    ),
    "a bare off": ("h200", {"engine_hybrid_kv": False, "engine_prefix_caching": False}, "0fb4cf39eb3e"),
    "a CPU in a container": (
        "local",
        {"engine_runtime": "docker", "engine_image": "x:1", "engine_image_digest": "sha256:" + "a" * 64},
        "7e15e21b4e24",
    ),
}

# What playbooks/compare.yml starts: inventory, side, set.
COMPARED = {
    ("defaults", "a", "vllm-10m"): "4c00c96b346b",
    ("defaults", "a", "vllm-2m"): "92a729d4ae6e",
    ("defaults", "b", "sglang-2m"): "7c96ba90d267",
    ("defaults", "b", "vllm-500k-2x-h100"): "628996494a8b",
    ("h200", "a", "vllm-10m"): "b2a476f1e357",
    ("h200", "a", "vllm-2m"): "ee248a1603ab",
    ("h200", "b", "sglang-2m"): "98b875df3c00",
    ("h200", "b", "vllm-500k-2x-h100"): "0f9527a891f0",
}


def spec_id_of(inventory: str, chosen: str = "", **more: Any) -> str:
    """The id of what the role would deploy."""
    files = [ROOT / "inventory" / inventory / "group_vars/all.yml"] if inventory != "defaults" else []
    files += [ROOT / "vars/sets" / f"{chosen}.yml"] if chosen else []
    found = role_variables(*files, **more)
    spec = render_spec(
        found["engine_name"],
        found["engine_version"],
        found["engine_runtime"],
        settings_from(found["__engine_settings"]),
        instance=found["engine_instance"],
        python="/e/bin/python",
        environment_hash="h",
        container=runtime_kind(found["engine_runtime"]).part_of_spec(found["__engine_container"]),
        model={"revision": "abc"},
    )
    return spec.spec_id


@pytest.mark.parametrize(("inventory", "chosen"), sorted(SHIPPED))
def test_what_is_shipped_keeps_its_id(inventory: str, chosen: str) -> None:
    assert spec_id_of(inventory, chosen) == SHIPPED[inventory, chosen]


def test_every_set_and_inventory_is_held() -> None:
    sets = {path.stem for path in (ROOT / "vars/sets").glob("*.yml")}
    inventories = {path.parents[1].name for path in (ROOT / "inventory").glob("*/group_vars/all.yml")}
    assert {chosen for _, chosen in SHIPPED} - {""} == sets
    assert {inventory for inventory, _ in SHIPPED} - {"defaults"} == inventories


@pytest.mark.parametrize("name", sorted(CHANGED))
def test_an_operators_spelling_keeps_its_id(name: str) -> None:
    inventory, changes, expected = CHANGED[name]
    assert spec_id_of(inventory, **changes) == expected


@pytest.mark.parametrize(("inventory", "which", "chosen"), sorted(COMPARED))
def test_a_side_of_a_comparison_keeps_its_id(inventory: str, which: str, chosen: str) -> None:
    path = ROOT / "inventory" / inventory / "group_vars/all.yml"
    host = yaml.safe_load(path.read_text()) if inventory != "defaults" else {}
    taken = side(yaml.safe_load((ROOT / "vars/sets" / f"{chosen}.yml").read_text()), host)
    assert spec_id_of(inventory, **taken, engine_instance=f"compare-{which}") == COMPARED[inventory, which, chosen]
