"""What the tests of whole runs share: a configuration, stand-in flags, a slow made-up device."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from longhaul.models.reader import load_architecture
from longhaul.physics.hardware import Gpu
from longhaul.results import RunResult
from longhaul.validate.config import Point, ValidateConfig
from longhaul.validate.verdict import Limits
from support.paths import CONFIGS

ARCHITECTURE = load_architecture(CONFIGS / "smollm2-135m.json")

# A device on which 4,000 tokens of this model cannot take less than about 0.14 s, and on which the stand-in's honest
# prefill (20,000 tokens/s: 0.2 s) is possible.
SLOW_GPU = Gpu("test device", 2**30, 1e12, {"bf16": 8e12}, "made up for this test")

HONEST = ("--ttft", "0.02", "--prefill-rate", "20000", "--gap", "0.002")

CALM = Limits(tolerance=20.0)  # repeats may disagree here: these tests run on busy machines

QUICK = ("--ttft", "0.02", "--gap", "0.002")


def config(url: str, out: Path, **changes: Any) -> ValidateConfig:
    values: dict[str, Any] = {
        "url": url, "engine": "vllm", "host": "h1", "out_dir": out, "run_id": "run-1", "points": (Point(4000, 8, 1),),
        "vocab_size": 50_000, "seed": 7, "warmup": False, "timeout_floor_s": 0.3, "limits": CALM,
    }  # fmt: skip
    return ValidateConfig(**(values | changes))


def codes(result: RunResult) -> set[str]:
    return {reason.code for point in result.points for reason in point.reasons}


PHYSICS: dict[str, Any] = {"hardware": (SLOW_GPU, 1), "architecture": ARCHITECTURE}

# Wide margins, where a busy machine could blur too quick into honest: floor 0.5 s, honest 0.8 s, from the cache 0.02 s.
SLOWER: dict[str, Any] = {"hardware": (replace(SLOW_GPU, peak_flop_per_s={"bf16": 2.8e12}), 1), "architecture": ARCHITECTURE}
