"""Models, GPUs and plan settings that the tests of capacity and of sizing share."""

from __future__ import annotations

from typing import Any

from longhaul.engines.sizing import PlanSettings
from longhaul.models.architecture import ModelArchitecture
from longhaul.models.reader import load_architecture
from longhaul.physics.hardware import get_gpu
from longhaul.version import Version
from support.paths import CONFIGS

H200 = get_gpu("h200")
CPU = get_gpu("cpu")


def model(name: str) -> ModelArchitecture:
    return load_architecture(CONFIGS / f"{name}.json")


SCOUT = model("llama-4-scout")


def vllm(release: str = "0.12.0", context: int = 8_388_608, **changes: Any) -> PlanSettings:
    changes.setdefault("tensor_parallel", 8)
    return PlanSettings("vllm", Version.parse(release), context_tokens=context, **changes)


def sglang(release: str = "0.5.23", context: int = 2_097_152, **changes: Any) -> PlanSettings:
    changes.setdefault("tensor_parallel", 8)
    return PlanSettings("sglang", Version.parse(release), context_tokens=context, **changes)
