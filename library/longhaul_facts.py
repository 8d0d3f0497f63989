#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
{
  "module": "longhaul_facts",
  "short_description": "Write the deployed section of the local facts",
  "description": [
    "Keeps C(ansible_local.longhaul.deployed) equal to the current spec.",
    "Removes a verdict of another spec, because nobody has proven the new one yet."],
  "attributes": {
    "check_mode": {"support": "full", "description": "Writes no file."},
    "diff_mode": {"support": "full", "description": "Shows the fact file before and after."}},
  "options": {
    "home": {"description": "longhaul_home on the host.", "type": "path", "required": true},
    "instance": {"description": "Name of the endpoint on this host.", "type": "str", "default": "default"},
    "start": {"description": "What M(longhaul_wait) returned; empty keeps what is known of the last start.",
      "type": "dict", "default": {}},
    "planned": {"description": "The capacity plan, when there is one.", "type": "dict"},
    "drift": {"description": "The engine's figures beside the plan.", "type": "dict"},
    "run_file": {"description": "run.json of a validation run: its figures and verdict become facts.", "type": "path"},
    "state": {"description": "V(absent) removes the fact file.",
      "type": "str", "choices": ["present", "absent"], "default": "present"},
    "progress_file": {"description": "Set by the action plugin.", "type": "path"}}}
"""

EXAMPLES = r"""
- name: Write the facts of the deployment
  longhaul_facts: {home: /opt/longhaul}
"""

RETURN = r"""
path: {description: The fact file., returned: always, type: str}
"""

from ansible.module_utils.longhaul_module import AnsibleModule, ProgressWriter, diff_of, endpoint, run_module

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.module_utils.longhaul.deploy.hostfacts import deployed_facts, update_facts, validated_facts
from ansible.module_utils.longhaul.deploy.spec import load_spec
from ansible.module_utils.longhaul.files import read_json, to_json
from ansible.module_utils.longhaul.results import load_run


def work(module: AnsibleModule, progress: ProgressWriter) -> dict[str, Any]:
    options = module.params
    where = endpoint(module)
    path = str(where.facts_file)
    if options["state"] == "absent":
        there = where.facts_file.exists()
        before = where.facts_file.read_text(encoding="utf-8", errors="replace") if there else ""
        if there and not module.check_mode:
            where.facts_file.unlink()
        return {"changed": there, "path": path, "diff": diff_of(path, before, "")}
    spec = load_spec(where)
    if spec is None:
        return {"changed": module.check_mode, "path": path}
    run = load_run(Path(options["run_file"])) if options["run_file"] else None

    def change(before: Mapping[str, Any]) -> dict[str, Any]:
        if run is not None:
            return validated_facts(before, run)
        return deployed_facts(before, spec, options["start"], options["planned"], options["drift"])

    old = read_json(where.facts_file)
    changed, facts = update_facts(where, change, dry_run=module.check_mode)
    diff = diff_of(path, to_json(old) if old else "", to_json(facts))
    return {"changed": changed, "path": path, "ansible_facts": {"longhaul": facts}, "diff": diff}


def main() -> None:
    run_module(DOCUMENTATION, work)


if __name__ == "__main__":
    main()
