"""Filters of playbooks and roles. What differs between engines is asked of their adapters: it stands in no role."""

from __future__ import annotations

import hashlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

if importlib.util.find_spec("longhaul") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "module_utils"))

from longhaul.deploy.compare_sets import side
from longhaul.engines.base import EngineAdapter
from longhaul.engines.registry import ENGINES


def longhaul_endpoint(hostvars: Mapping[str, Any]) -> list[str]:
    """A host's variables -> [inventory name, address, home, instance, port]: what makes an endpoint unique."""
    name = str(hostvars["inventory_hostname"])
    # Whatever their names, hosts with a local connection are all this machine.
    local = hostvars.get("ansible_connection") in ("local", "ansible.builtin.local")
    address = str(hostvars.get("ansible_host", name)) + ":" + str(hostvars.get("ansible_port", ""))
    return [
        name,
        "localhost" if local else address,
        str(hostvars.get("longhaul_home", "")),
        str(hostvars.get("longhaul_instance", "default")),
        # The default of role engine, which no play has read yet.
        str(hostvars.get("engine_port", 8000)),
    ]


def longhaul_status_row(hostvars: Mapping[str, Any]) -> dict[str, Any]:
    """A host's variables -> one row of the status table (see longhaul_show)."""
    status = hostvars.get("engine_result_status")
    row: dict[str, Any] = {"host": str(hostvars["inventory_hostname"])}
    if not isinstance(status, Mapping) or "state" not in status:
        return row | {"state": "unreachable"}
    columns = ("state", "deployed", "health", "verdict", "verdict_age_s", "kv_usage", "running")
    return row | {name: status.get(name) for name in columns}


def longhaul_at_most(value: int, limit: int) -> int:
    """The smaller of both."""
    return min(int(value), int(limit))


def longhaul_checksums(folder: str) -> dict[str, str]:
    """A folder on the controller -> relative path: SHA-256 of every file in it."""
    root = Path(folder)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def longhaul_pin(name: str, versions: Mapping[str, str] | None = None, separator: str = "=") -> str:
    """``name`` with its version, in the package manager's words, where one is given for it."""
    version = (versions or {}).get(name)
    return f"{name}{separator}{version}" if version else name


def longhaul_engine_image(name: str, version: str) -> str:
    """The container image of an engine's release. Empty for an unknown engine, which preflight refuses in its own words."""
    return ENGINES[name].image(str(version)) if name in ENGINES else ""


def longhaul_scout_config(name: str) -> str:
    """The shipped configuration whose attention this engine runs as it does that of the real Llama-4-Scout."""
    return ENGINES[name].scout_config if name in ENGINES else EngineAdapter.scout_config


class FilterModule:
    """Registered by ansible.cfg."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name -> function."""
        return {
            "longhaul_at_most": longhaul_at_most,
            "longhaul_checksums": longhaul_checksums,
            "longhaul_compare_side": side,
            "longhaul_endpoint": longhaul_endpoint,
            "longhaul_engine_image": longhaul_engine_image,
            "longhaul_pin": longhaul_pin,
            "longhaul_scout_config": longhaul_scout_config,
            "longhaul_status_row": longhaul_status_row,
        }
