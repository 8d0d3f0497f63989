"""Filters that ask an engine's adapter: what differs between engines stands in no role."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable
from pathlib import Path

if importlib.util.find_spec("longhaul") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "module_utils"))

from longhaul.engines.base import EngineAdapter
from longhaul.engines.registry import ENGINES


def longhaul_engine_image(name: str, version: str) -> str:
    """The container image of an engine's release. Empty for an unknown engine, which preflight refuses in its own words."""
    return ENGINES[name].image(str(version)) if name in ENGINES else ""


def longhaul_scout_config(name: str) -> str:
    """The shipped configuration whose attention this engine runs as it does that of the real Llama-4-Scout."""
    return ENGINES[name].scout_config if name in ENGINES else EngineAdapter.scout_config


class FilterModule:
    """Registered by ansible.cfg."""

    def filters(self) -> dict[str, Callable[..., str]]:
        """Name -> function."""
        return {"longhaul_engine_image": longhaul_engine_image, "longhaul_scout_config": longhaul_scout_config}
