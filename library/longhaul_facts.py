#!/usr/bin/python
"""Write the deployed section of the local facts."""

from __future__ import annotations

DOCUMENTATION = r"""
module: longhaul_facts
short_description: Write the deployed section of the local facts
description:
  - Keeps C(ansible_local.longhaul.deployed) equal to the spec that is current; a verdict that belongs to another spec is removed,
    because nobody has proven the new one yet.
author: [Longhaul]
options:
  home: {description: longhaul_home on the host., type: path, required: true}
  instance: {description: Name of the endpoint on this host., type: str, default: default}
  start: {description: "What M(longhaul_wait) returned; empty keeps what is known of the last start.", type: dict, default: {}}
  planned: {description: "The capacity plan, when there is one.", type: dict}
  drift: {description: "The engine's figures beside the plan.", type: dict}
  run_file: {description: "run.json of a validation run: its figures and verdict become facts.", type: path}
  state: {description: V(absent) removes the fact file., type: str, choices: [present, absent], default: present}
  progress_file: {description: Set by the action plugin., type: path}
"""

EXAMPLES = r"""
- name: Write the facts of the deployment
  longhaul_facts:
    home: /opt/longhaul
"""

RETURN = r"""
path: {description: The fact file., returned: always, type: str}
"""

from pathlib import Path

from ansible.module_utils.longhaul.deploy.hostfacts import deployed_facts, update_facts, validated_facts
from ansible.module_utils.longhaul.deploy.spec import load_spec
from ansible.module_utils.longhaul.results import load_run
from ansible.module_utils.longhaul_module import ENDPOINT, endpoint, run_module


def work(module, progress):
    """Write or leave alone."""
    options = module.params
    where = endpoint(module)
    if options["state"] == "absent":
        there = where.facts_file.exists()
        if there and not module.check_mode:
            where.facts_file.unlink()
        return {"changed": there, "path": str(where.facts_file)}
    spec = load_spec(where)
    if spec is None:
        return {"changed": module.check_mode, "path": str(where.facts_file)}
    if options["run_file"]:
        run = load_run(Path(options["run_file"]))
        changed, facts = update_facts(where, lambda before: validated_facts(before, run), dry_run=module.check_mode)
        return {"changed": changed, "path": str(where.facts_file), "ansible_facts": {"longhaul": facts}}
    changed, facts = update_facts(
        where,
        lambda before: deployed_facts(before, spec, options["start"], options["planned"], options["drift"]),
        dry_run=module.check_mode,
    )
    return {"changed": changed, "path": str(where.facts_file), "ansible_facts": {"longhaul": facts}}


def main():
    """Entry point."""
    run_module(
        {
            **ENDPOINT,
            "start": {"type": "dict", "default": {}},
            "planned": {"type": "dict"},
            "drift": {"type": "dict"},
            "run_file": {"type": "path"},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        work,
    )


if __name__ == "__main__":
    main()
