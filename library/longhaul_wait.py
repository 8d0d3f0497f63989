#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
{
  "module": "longhaul_wait",
  "short_description": "Watch an engine start until it is ready, dead or late",
  "description": [
    "Follows the engine's log and shows its phases.",
    "When the process dies, ends within a second with cause, evidence and advice."],
  "attributes": {
    "check_mode": {"support": "full", "description": "Watches nothing and returns at once."},
    "diff_mode": {"support": "none", "description": "It changes nothing."}},
  "options": {
    "home": {"description": "longhaul_home on the host.", "type": "path", "required": true},
    "instance": {"description": "Name of the endpoint on this host.", "type": "str", "default": "default"},
    "timeout_s": {"description": "Seconds until a start that is neither ready nor dead is given up.",
      "type": "int", "default": 3600},
    "log_offset": {"description": "Where this start begins in the log.", "type": "int", "default": 0},
    "api_key_file": {"description": "A file on the host that holds the API key.", "type": "path"},
    "progress_file": {"description": "Set by the action plugin.", "type": "path"}}}
"""

EXAMPLES = r"""
- name: Wait until the engine is ready
  longhaul_wait: {home: /opt/longhaul, timeout_s: 1800}
"""

RETURN = r"""
ready: {description: Whether it is ready., returned: always, type: bool}
elapsed_s: {description: Seconds watched., returned: always, type: float}
phases: {description: "Phases with the second they were seen.", returned: always, type: list}
capacity: {description: "The engine's own capacity figures.", returned: when its log shows them, type: dict}
diagnosis: {description: "cause, evidence, advice.", returned: failure, type: dict}
"""

from ansible.module_utils.longhaul_module import AnsibleModule, ProgressWriter, endpoint, run_module

from typing import Any

from ansible.module_utils.longhaul.deploy.service import wait_until_ready
from ansible.module_utils.longhaul.keys import read_key
from ansible.module_utils.longhaul.results import to_jsonable


def work(module: AnsibleModule, progress: ProgressWriter) -> dict[str, Any]:
    options = module.params
    where = endpoint(module)
    if module.check_mode:
        return {"changed": False, "ready": False, "elapsed_s": 0.0, "phases": []}
    key = read_key(options["api_key_file"], "engine_api_key_file") if options["api_key_file"] else None
    outcome, log_name, why = wait_until_ready(
        where, log_position=options["log_offset"], timeout_s=options["timeout_s"], api_key=key, say=progress.say
    )
    result = {"changed": False, **to_jsonable(outcome), "log": log_name}
    return result if outcome.ready else {**result, "failed": True, "msg": why}


def main() -> None:
    run_module(DOCUMENTATION, work)


if __name__ == "__main__":
    main()
