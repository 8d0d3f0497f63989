"""Filters of the playbooks."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any


def longhaul_endpoint(hostvars: Mapping[str, Any]) -> list[str]:
    """A host's variables -> [inventory name, address, home, instance]: what makes an endpoint unique."""
    name = str(hostvars["inventory_hostname"])
    return [
        name,
        str(hostvars.get("ansible_host", name)) + ":" + str(hostvars.get("ansible_port", "")),
        str(hostvars.get("longhaul_home", "")),
        str(hostvars.get("longhaul_instance", "default")),
    ]


class FilterModule:
    """Registered by ansible.cfg."""

    def filters(self) -> dict[str, Callable[..., Any]]:
        """Name -> function."""
        return {"longhaul_endpoint": longhaul_endpoint}
