#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
{
  "module": "longhaul_spec",
  "short_description": "Render an endpoint's spec and make it current",
  "description": [
    "Turns settings into the engine's argv for its version and writes C(spec/current.json) atomically.",
    "The spec that it replaces becomes C(spec/previous.json). Reports a change exactly when the deployment changes."],
  "attributes": {
    "check_mode": {"support": "full", "description": "Writes no file."},
    "diff_mode": {"support": "full", "description": "Shows the spec that is replaced and the one that replaces it."}},
  "options": {
    "home": {"description": "longhaul_home on the host.", "type": "path", "required": true},
    "instance": {"description": "Name of the endpoint on this host.", "type": "str", "default": "default"},
    "state": {"description": [
      "V(present) renders and stores. V(read) only reads. V(previous) swaps current and previous (a rollback by hand).",
      "V(returned) goes back from a spec that failed and keeps it as C(spec/failed.json).",
      "V(proven) ends a roll; from now on a rollback may return to the current spec."],
      "type": "str", "choices": ["present", "previous", "read", "returned", "proven"], "default": "present"},
    "engine": {"description": "Engine name.", "type": "str"},
    "version": {"description": "Engine version.", "type": "str"},
    "runtime": {"description": "Where it runs.", "type": "str", "choices": ["process", "docker"]},
    "settings": {"description": "Engine settings (see longhaul.engines.settings.EngineSettings).", "type": "dict", "default": {}},
    "python": {"description": "The interpreter that argv starts with.", "type": "str"},
    "environment_hash": {"description": "Hash of the installed set (runtime process).", "type": "str"},
    "container": {"description": [
      "Image, digest, mounts, limits (longhaul.deploy.runtimes.container.ContainerSettings).",
      "A runtime without containers ignores it."],
      "type": "dict"},
    "model": {"description": "Where the model came from.", "type": "dict", "default": {}},
    "probe": {"description": "Also ask whether the engine of the deployed spec runs, answers, and is in the facts.",
      "type": "bool", "default": false},
    "progress_file": {"description": "Set by the action plugin.", "type": "path"}}}
"""

EXAMPLES = r"""
- name: What is deployed?
  longhaul_spec: {home: /opt/longhaul, state: read}
"""

RETURN = r"""
spec: {description: The spec that is current now., returned: always, type: dict}
previous: {description: The spec before., returned: when there was one, type: dict}
unproven: {description: Whether a roll to this spec began and never ended., returned: always, type: bool}
healthy: {description: Whether the engine of the deployed spec runs and answers., returned: "with O(probe)", type: bool}
recorded: {description: Whether the facts name the deployed spec., returned: "with O(probe)", type: bool}
"""

from ansible.module_utils.longhaul_module import AnsibleModule, ProgressWriter, diff_of, endpoint, run_module

from typing import Any

from ansible.module_utils.longhaul.deploy.layout import Layout
from ansible.module_utils.longhaul.deploy.rolling import is_unproven, proven, unproven
from ansible.module_utils.longhaul.deploy.runtimes.registry import healthy, runtime_kind
from ansible.module_utils.longhaul.deploy.spec import Spec, give_back, load_spec, render_spec, restore_previous, store_spec
from ansible.module_utils.longhaul.engines.settings import settings_from
from ansible.module_utils.longhaul.errors import UserError
from ansible.module_utils.longhaul.files import read_json, to_json


def answer(where: Layout, options: dict[str, Any], changed: bool, spec: Spec | None, before: Spec | None) -> dict[str, Any]:
    """What every state returns. The engine is only asked where the spec stays."""
    result: dict[str, Any] = {
        "changed": changed,
        "spec": dict(spec.document) if spec else None,
        "previous": dict(before.document) if before else None,
        "unproven": spec is not None and is_unproven(where, spec.spec_id),
    }
    if options["probe"]:
        result["healthy"] = not changed and healthy(where, spec)
        facts = (read_json(where.facts_file) or {}).get("deployed") or {}
        result["recorded"] = spec is not None and facts.get("spec_id") == spec.spec_id
    return result


def rendered(where: Layout, options: dict[str, Any]) -> Spec:
    """The spec that the options ask for."""
    for name in ("engine", "version", "runtime", "python"):
        if not options[name]:
            raise UserError(f"no {name}", f"option {name} with state present", f"set engine_{name}")
    return render_spec(
        options["engine"],
        options["version"],
        options["runtime"],
        settings_from(options["settings"]),
        instance=where.instance,
        python=options["python"],
        environment_hash=options["environment_hash"],
        container=runtime_kind(options["runtime"]).part_of_spec(options["container"]),
        model=options["model"],
    )


def work(module: AnsibleModule, progress: ProgressWriter) -> dict[str, Any]:
    options = module.params
    where = endpoint(module)
    state, dry_run = options["state"], module.check_mode
    if state == "read":
        return answer(where, options, False, load_spec(where), load_spec(where, "previous"))
    if state == "proven":
        doubtful = unproven(where)
        changed = doubtful is not None if dry_run else proven(where)
        result = answer(where, options, changed, load_spec(where), load_spec(where, "previous"))
        return {**result, "diff": diff_of("unproven spec", f"{doubtful}\n" if doubtful else "", "")}
    if state == "returned":
        before = load_spec(where)
        spec: Spec | None = load_spec(where, "previous") if dry_run else give_back(where)
        changed = True
    elif state == "previous":
        spec, before = restore_previous(where, dry_run=dry_run)
        changed = True
    else:
        spec = rendered(where, options)
        changed, before = store_spec(where, spec, dry_run=dry_run)
    result = answer(where, options, changed, spec, before)
    if changed and spec is not None:
        result["diff"] = diff_of(str(where.current_spec), to_json(before.document) if before else "", to_json(spec.document))
    return result


def main() -> None:
    run_module(DOCUMENTATION, work)


if __name__ == "__main__":
    main()
