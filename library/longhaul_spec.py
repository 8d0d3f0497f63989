#!/usr/bin/python
"""Render an endpoint's spec and make it current."""

from __future__ import annotations

DOCUMENTATION = r"""
module: longhaul_spec
short_description: Render an endpoint's spec and make it current
description:
  - Turns settings into the engine's argv for that version and writes C(spec/current.json) atomically; the spec that it replaces
    becomes C(spec/previous.json). Reports a change exactly when the deployment changes.
author: [Longhaul]
options:
  home: {description: longhaul_home on the host., type: path, required: true}
  instance: {description: Name of the endpoint on this host., type: str, default: default}
  state:
    description:
      - V(present) renders and stores. V(read) only reads. V(previous) swaps current and previous (a rollback by hand).
      - V(returned) goes back from a spec that failed, by renames alone, and keeps it as C(spec/failed.json).
      - V(proven) ends a roll - the current spec is one to return to.
    type: str
    choices: [present, previous, read, returned, proven]
    default: present
  engine: {description: Engine name., type: str}
  version: {description: Engine version., type: str}
  runtime: {description: Where it runs., type: str, choices: [process, docker]}
  settings: {description: Engine settings (see longhaul.engines.base.EngineSettings)., type: dict, default: {}}
  python: {description: The interpreter that argv starts with., type: str}
  environment_hash: {description: Hash of the installed set (runtime process)., type: str}
  container: {description: "Image, digest, mounts, limits (runtime docker); see longhaul.deploy.runtimes.container.ContainerSettings.", type: dict}
  model: {description: "Where the model came from.", type: dict, default: {}}
  probe: {description: "Also ask whether the engine of the deployed spec runs, answers, and is in the facts.", type: bool, default: false}
  progress_file: {description: Set by the action plugin., type: path}
"""

EXAMPLES = r"""
- name: What is deployed?
  longhaul_spec:
    home: /opt/longhaul
    state: read
"""

RETURN = r"""
spec: {description: The spec that is current now., returned: always, type: dict}
previous: {description: The spec before., returned: when there was one, type: dict}
unproven: {description: Did a roll to this spec begin that never ended?, returned: always, type: bool}
healthy: {description: "Does the engine of the deployed spec run and answer?", returned: "with O(probe)", type: bool}
recorded: {description: Do the facts name the deployed spec?, returned: "with O(probe)", type: bool}
"""

from ansible.module_utils.longhaul.deploy.rolling import give_back, is_unproven, proven, unproven
from ansible.module_utils.longhaul.deploy.runtimes.container import as_options, container_from
from ansible.module_utils.longhaul.deploy.runtimes.registry import healthy
from ansible.module_utils.longhaul.deploy.spec import load_spec, render_spec, restore_previous, store_spec
from ansible.module_utils.longhaul.engines.settings import settings_from
from ansible.module_utils.longhaul.errors import UserError
from ansible.module_utils.longhaul.files import read_json, to_json
from ansible.module_utils.longhaul_module import ENDPOINT, endpoint, run_module


def answer(where, options, changed, spec, before):
    """What every state returns. The engine is only asked where the spec stays."""
    result = {"changed": changed, "spec": spec, "previous": before}
    result["unproven"] = spec is not None and is_unproven(where, spec["spec_id"])
    if options["probe"]:
        result["healthy"] = not changed and healthy(where, spec)
        facts = (read_json(where.facts_file) or {}).get("deployed") or {}
        result["recorded"] = spec is not None and facts.get("spec_id") == spec["spec_id"]
    return result


def work(module, progress):
    """Render, compare, store."""
    options = module.params
    where = endpoint(module)
    if options["state"] == "read":
        return answer(where, options, False, load_spec(where), load_spec(where, "previous"))
    if options["state"] == "proven":
        changed = unproven(where) is not None if module.check_mode else proven(where)
        return answer(where, options, changed, load_spec(where), load_spec(where, "previous"))
    if options["state"] == "returned":
        before = load_spec(where)
        spec = load_spec(where, "previous") if module.check_mode else give_back(where)
        return answer(where, options, True, spec, before)
    if options["state"] == "previous":
        spec, before = restore_previous(where, dry_run=module.check_mode)
        changed = True
    else:
        for name in ("engine", "version", "runtime", "python"):
            if not options[name]:
                raise UserError(f"no {name}", f"option {name} with state present", f"set engine_{name}")
        spec = render_spec(
            options["engine"],
            options["version"],
            options["runtime"],
            settings_from(options["settings"]),
            instance=where.instance,
            python=options["python"],
            environment_hash=options["environment_hash"],
            container=as_options(container_from(options["container"])) if options["runtime"] == "docker" else None,
            model=options["model"],
        )
        changed, before = store_spec(where, spec, dry_run=module.check_mode)
    result = answer(where, options, changed, spec, before)
    if module._diff and changed:
        result["diff"] = {
            "before": to_json(before) if before else "",
            "after": to_json(spec),
            "before_header": f"{where.current_spec} (deployed)",
            "after_header": f"{where.current_spec} (wanted)",
        }
    return result


def main():
    """Entry point."""
    run_module(
        {
            **ENDPOINT,
            "state": {"type": "str", "choices": ["present", "previous", "read", "returned", "proven"], "default": "present"},
            "engine": {"type": "str"},
            "version": {"type": "str"},
            "runtime": {"type": "str", "choices": ["process", "docker"]},
            "settings": {"type": "dict", "default": {}},
            "python": {"type": "str"},
            "environment_hash": {"type": "str"},
            "container": {"type": "dict"},
            "model": {"type": "dict", "default": {}},
            "probe": {"type": "bool", "default": False},
        },
        work,
    )


if __name__ == "__main__":
    main()
