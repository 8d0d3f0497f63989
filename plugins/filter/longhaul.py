"""Filters of the playbooks."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any


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
    row = {"host": str(hostvars["inventory_hostname"])}
    if not isinstance(status, Mapping) or "state" not in status:
        return {**row, "state": "unreachable"}
    return {
        **row,
        **{k: status.get(k) for k in ("state", "deployed", "health", "verdict", "verdict_age_s", "kv_usage", "running")},
    }


def longhaul_at_most(value: int, limit: int) -> int:
    """The smaller of both."""
    return min(int(value), int(limit))


def longhaul_checksums(folder: str) -> dict[str, str]:
    """A folder on the controller -> relative path: SHA-256 of every file in it."""
    root = Path(folder)
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {path.relative_to(root).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


class FilterModule:
    """Registered by ansible.cfg."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name -> function."""
        return {
            "longhaul_at_most": longhaul_at_most,
            "longhaul_checksums": longhaul_checksums,
            "longhaul_endpoint": longhaul_endpoint,
            "longhaul_status_row": longhaul_status_row,
        }
