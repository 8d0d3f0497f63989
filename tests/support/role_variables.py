"""What role ``engine`` makes of an inventory and a set of variables, templated by Ansible itself without a host."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.parsing.dataloader import DataLoader
from ansible.plugins.loader import filter_loader, lookup_loader
from ansible.template import Templar

from support.paths import ROOT

# As in ansible.cfg, which is not read here.
lookup_loader.add_directory(str(ROOT / "plugins" / "lookup"))
filter_loader.add_directory(str(ROOT / "plugins" / "filter"))

# What Ansible and the roles before this one would know of the host.
HOST = {
    "ansible_facts": {"user_uid": 0, "env": {"HOME": "/root"}},
    "inventory_hostname": "gpu-01",
    "role_path": "/roles/engine",
    "model_store_result_path": "/data/models/scout",
    "__engine_image": {},
}


def role_variables(*files: Path, **more: Any) -> Mapping[str, Any]:
    """Every variable of the role, templated: its defaults and vars, then ``files`` in order (inventory, set), then ``more``."""
    loader = DataLoader()
    role = ROOT / "roles" / "engine"
    variables: dict[str, Any] = dict(HOST)
    for path in (role / "defaults/main.yml", role / "vars/main.yml", *files):
        variables |= loader.load_from_file(str(path), trusted_as_template=True) or {}
    variables |= more
    templar = Templar(loader, variables=variables)
    return {name: templar.template(value) for name, value in variables.items() if name.startswith(("engine_", "__engine_"))}
