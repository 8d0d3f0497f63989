#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
{
  "module": "longhaul_gpu_facts",
  "short_description": "Check a host's GPUs, driver, memory and clock, and return facts",
  "description": [
    "Looks at the PCI bus, the driver, the fabric, memory and the clock, and compares them with what is expected.",
    "Changes nothing on the host except the fact file, when O(facts_dir) is given.",
    "Never fails because of a check. The caller decides by V(status)."],
  "attributes": {
    "check_mode": {"support": "full", "description": "Writes no file."},
    "diff_mode": {"support": "full", "description": "Shows the fact file before and after."}},
  "options": {
    "expected": {"description": [
      "What the inventory promises (longhaul.host.checks.Expected).",
      "What is not given is not judged."],
      "type": "dict", "default": {}},
    "driver": {"description": "Plan the packages of a driver (longhaul.host.driver.plan_for).",
      "type": "dict"},
    "facts_dir": {"description": "Where to keep the facts as C(longhaul_host.fact).", "type": "path"},
    "progress_file": {"description": "Set by the action plugin.", "type": "path"}}}
"""

EXAMPLES = r"""
- name: Look at the GPUs
  longhaul_gpu_facts: {expected: {gpus: 8, gpu: h200}}
"""

RETURN = r"""
ansible_facts: {description: "C(longhaul_host): devices, driver, GPUs, checks, status.", returned: always, type: dict}
status: {description: The worst of the checks., returned: always, type: str}
problems: {description: "One line for each check that failed.", returned: always, type: list}
warnings_found: {description: "One line for each check that warns.", returned: always, type: list}
driver_plan: {description: The packages to install., returned: with driver and an NVIDIA device, type: dict}
driver_missing: {description: "Planned packages that are absent or of another version.", returned: with driver_plan, type: list}
driver_replaces: {description: Whether installing them replaces packages., returned: with driver_plan, type: bool}
driver_unheld: {description: Planned packages that are not on hold., returned: with driver_plan, type: list}
driver_loaded: {description: Version of the running kernel module., returned: always, type: str}
driver_installed: {description: Version of the kernel module on disk., returned: always, type: str}
reboot_reason: {description: Why the driver works only after a reboot; empty when it works now., returned: always, type: str}
"""

from ansible.module_utils.longhaul_module import AnsibleModule, ProgressWriter, diff_of, run_module

import dataclasses
from pathlib import Path
from typing import Any

from ansible.module_utils.longhaul.errors import UserError
from ansible.module_utils.longhaul.files import read_json, to_json, write_atomic
from ansible.module_utils.longhaul.host.checks import FAIL, WARN, as_facts, check_host, expected_from
from ansible.module_utils.longhaul.host.driver import compare_installed, plan_for, reboot_needed
from ansible.module_utils.longhaul.host.read import installed_packages, kernel_module_versions, read_host


def work(module: AnsibleModule, progress: ProgressWriter) -> dict[str, Any]:
    options = module.params
    expected = expected_from(options["expected"])
    state = read_host()
    checks = check_host(state, expected)
    facts = as_facts(state, checks)
    loaded, installed = kernel_module_versions() if state.has_nvidia else ("", "")
    result = {
        "changed": False,
        "ansible_facts": {"longhaul_host": facts},
        "status": facts["status"],
        "problems": [str(check) for check in checks if check.status == FAIL],
        "warnings_found": [str(check) for check in checks if check.status == WARN],
        "driver_loaded": loaded,
        "driver_installed": installed,
        "reboot_reason": reboot_needed(loaded=loaded, installed=installed, nouveau_loaded=state.nouveau_loaded),
    }
    if options["driver"] and state.has_nvidia:
        plan, version = plan_for(state, options["driver"])
        present, held = installed_packages(plan.names)
        found = compare_installed(plan, version, present, held)
        result["driver_plan"] = dataclasses.asdict(plan)
        result["driver_missing"] = list(found.missing)
        result["driver_replaces"] = found.replaces
        result["driver_unheld"] = list(found.unheld)
    if options["facts_dir"]:
        path = Path(options["facts_dir"]) / "longhaul_host.fact"
        try:
            before = read_json(path)
        except UserError:
            before = None  # a torn or foreign file is written anew
        result["changed"] = before != facts
        result["diff"] = diff_of(str(path), to_json(before) if before else "", to_json(facts))
        if result["changed"] and not module.check_mode:
            write_atomic(path, to_json(facts))
    return result


def main() -> None:
    run_module(DOCUMENTATION, work)


if __name__ == "__main__":
    main()
