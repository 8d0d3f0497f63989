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
    description: V(present) renders and stores; V(previous) swaps current and previous (rollback); V(read) only reads.
    type: str
    choices: [present, previous, read]
    default: present
  engine: {description: Engine name., type: str}
  version: {description: Engine version., type: str}
  runtime: {description: Where it runs., type: str, choices: [process, docker]}
  settings: {description: Engine settings (see longhaul.engines.base.EngineSettings)., type: dict, default: {}}
  python: {description: The interpreter that argv starts with., type: str}
  environment_hash: {description: Hash of the installed set (runtime process)., type: str}
  container: {description: "Image, digest, mounts, limits (runtime docker).", type: dict}
  model: {description: "Where the model came from.", type: dict, default: {}}
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
"""

from ansible.module_utils.longhaul.errors import UserError
from ansible.module_utils.longhaul.files import to_json
from ansible.module_utils.longhaul.spec import load_spec, render_spec, restore_previous, settings_from, store_spec
from ansible.module_utils.longhaul_module import ENDPOINT, endpoint, run_module


def work(module, progress):
    """Render, compare, store."""
    options = module.params
    where = endpoint(module)
    if options["state"] == "read":
        return {"changed": False, "spec": load_spec(where), "previous": load_spec(where, "previous")}
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
            container=options["container"],
            model=options["model"],
        )
        changed, before = store_spec(where, spec, dry_run=module.check_mode)
    result = {"changed": changed, "spec": spec, "previous": before}
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
            "state": {"type": "str", "choices": ["present", "previous", "read"], "default": "present"},
            "engine": {"type": "str"},
            "version": {"type": "str"},
            "runtime": {"type": "str", "choices": ["process", "docker"]},
            "settings": {"type": "dict", "default": {}},
            "python": {"type": "str"},
            "environment_hash": {"type": "str"},
            "container": {"type": "dict"},
            "model": {"type": "dict", "default": {}},
        },
        work,
    )


if __name__ == "__main__":
    main()
