#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
{
  "module": "longhaul_runtime_facts",
  "short_description": "Find out what a host has of a container runtime",
  "description": ["Asks the package database, systemd and the PCI bus in one task. Never changes anything."],
  "attributes": {
    "check_mode": {"support": "full", "description": "Changes nothing with or without it."},
    "diff_mode": {"support": "none", "description": "It changes nothing."}},
  "options": {
    "argv": {"description": "Asks the package database. The names are appended; it exits with at most their number.",
      "type": "list", "elements": "str", "required": true},
    "names": {"description": "Names of the packages.", "type": "list", "elements": "str", "required": true},
    "unit": {"description": "The unit that must run now and at boot.", "type": "str", "default": "docker.service"},
    "progress_file": {"description": "Set by the action plugin.", "type": "path"}}}
"""

EXAMPLES = r"""
- name: Ask
  longhaul_runtime_facts:
    argv: [dpkg-query, -W, '-f=${Package} ${db:Status-Abbrev} ${Version}\n']
    names: [docker.io]
"""

RETURN = r"""
stdout_lines: {description: One line for each package that the database knows., returned: always, type: list}
unit_ready: {description: "Whether the unit runs, now and at boot.", returned: always, type: bool}
nvidia: {description: Whether there is an NVIDIA device on the PCI bus., returned: always, type: bool}
"""

from ansible.module_utils.longhaul_module import AnsibleModule, ProgressWriter, run_module

from typing import Any

from ansible.module_utils.longhaul.errors import UserError
from ansible.module_utils.longhaul.host.read import nvidia_devices


def work(module: AnsibleModule, progress: ProgressWriter) -> dict[str, Any]:
    argv, names, unit = (module.params[name] for name in ("argv", "names", "unit"))
    code, out, err = module.run_command([*argv, *names])
    if code > len(names):
        raise UserError(f"{argv[0]} exited {code}: {err.strip()[-200:]}", "a package database that answers", "repair it")
    ready = all(module.run_command(["systemctl", "-q", question, unit])[0] == 0 for question in ("is-active", "is-enabled"))
    nvidia = any(device.kind in {"gpu", "nvswitch"} for device in nvidia_devices())
    return {"changed": False, "stdout_lines": out.splitlines(), "unit_ready": ready, "nvidia": nvidia}


def main() -> None:
    run_module(DOCUMENTATION, work)


if __name__ == "__main__":
    main()
