#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
{
  "module": "longhaul_check",
  "short_description": "Check variables or a host before anything changes",
  "description": [
    "A check runs where all options that it needs are given (longhaul.deploy.preflight). Never changes anything.",
    "Delegated to localhost it runs inside Ansible itself (plugins/action), which saves a process per host."],
  "attributes": {
    "check_mode": {"support": "full", "description": "Changes nothing with or without it."},
    "diff_mode": {"support": "none", "description": "It changes nothing."}},
  "options": {
    "home": {"description": "longhaul_home on the host.", "type": "path"},
    "instance": {"description": "Name of the endpoint on this host.", "type": "str", "default": "default"},
    "engine": {"description": "name, version, runtime, settings; variables: names of all C(engine_*) variables of the host.",
      "type": "dict"},
    "compare": {"description": "files and sets: the two sets of variables of a comparison.", "type": "dict"},
    "model_store": {"description": "source, path, hub_repo, dummy.", "type": "dict"},
    "ladder": {"description": "ladder_tokens, concurrency, points, output_tokens, context_tokens, deployed_context_tokens (counts first).",
      "type": "dict"},
    "needed_bytes": {"description": "Free disk that the home needs.", "type": "int"},
    "port": {"description": "Port that must be free or our own.", "type": "int"},
    "host": {"description": "Address of that port.", "type": "str", "default": "127.0.0.1"},
    "model_path": {"description": "A model folder that must hold config.json.", "type": "path"},
    "model_path_required": {"description": "Refuse when O(model_path) is not there.", "type": "bool", "default": false},
    "model_config": {"description": "config.json as data, where it is known already.", "type": "dict"},
    "context_tokens": {"description": "The context to hold against the model's positions.", "type": "str"},
    "shm": {"description": "engine, version, runtime, device, ranks, ipc, shm_size.", "type": "dict"},
    "endpoints": {"description": "Lists of inventory name, address, home, instance, port.", "type": "list", "elements": "list"},
    "progress_file": {"description": "Set by the action plugin.", "type": "path"}}}
"""

EXAMPLES = r"""
- name: Check the ladder
  longhaul_check:
    ladder: {ladder_tokens: [1000], concurrency: [1], output_tokens: 100, context_tokens: 8192}
"""

RETURN = r"""
findings: {description: "found, required, fix, severity.", returned: always, type: list}
"""

from ansible.module_utils.longhaul_module import AnsibleModule, ProgressWriter, run_module

from typing import Any

from ansible.module_utils.longhaul.deploy.preflight import as_result, run_checks


def work(module: AnsibleModule, progress: ProgressWriter) -> dict[str, Any]:
    result, warnings = as_result(run_checks(module.params))
    for warning in warnings:
        module.warn(warning)
    return result


def main() -> None:
    run_module(DOCUMENTATION, work)


if __name__ == "__main__":
    main()
