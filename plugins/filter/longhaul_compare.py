"""The filter of playbooks/compare.yml."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

if importlib.util.find_spec("longhaul") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "module_utils"))

from longhaul.deploy.compare_sets import side


def longhaul_compare_side(chosen: Mapping[str, Any], hostvars: Mapping[str, Any]) -> dict[str, Any]:
    """A set of variables and a host's inventory -> every variable that a set may give, as it holds for this side."""
    return side(chosen, hostvars)


class FilterModule:
    """Registered by ansible.cfg."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name -> function."""
        return {"longhaul_compare_side": longhaul_compare_side}
