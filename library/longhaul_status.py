#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
{
  "module": "longhaul_status",
  "short_description": "Read the status of an endpoint, or the end of its log",
  "description": ["Deployed, healthy, last verdict and its age, KV use. Changes nothing."],
  "attributes": {
    "check_mode": {"support": "full", "description": "Changes nothing with or without it."},
    "diff_mode": {"support": "none", "description": "It changes nothing."}},
  "options": {
    "home": {"description": "longhaul_home on the host.", "type": "path", "required": true},
    "instance": {"description": "Name of the endpoint on this host.", "type": "str", "default": "default"},
    "log_lines": {"description": "How many lines of the log to return.", "type": "int", "default": 0},
    "log_grep": {"description": "Only lines that match this expression.", "type": "str", "default": ""},
    "progress_file": {"description": "Set by the action plugin.", "type": "path"}}}
"""

EXAMPLES = r"""
- name: How is it?
  longhaul_status: {home: /opt/longhaul}
"""

RETURN = r"""
state: {description: "absent, up or down.", returned: always, type: str}
log_tail: {description: Lines., returned: when log_lines is given, type: list}
"""

from ansible.module_utils.longhaul_module import AnsibleModule, ProgressWriter, endpoint, run_module

import dataclasses
import re
from typing import Any

from ansible.module_utils.longhaul.deploy.status import endpoint_status, log_tail
from ansible.module_utils.longhaul.errors import UserError


def work(module: AnsibleModule, progress: ProgressWriter) -> dict[str, Any]:
    options = module.params
    where = endpoint(module)
    result = {"changed": False, "log": str(where.log)}
    if options["log_lines"]:
        try:
            result["log_tail"] = log_tail(where, options["log_lines"], options["log_grep"])
        except re.error as exc:
            raise UserError(f"logs_grep {options['log_grep']!r}: {exc}", "a regular expression", "correct logs_grep") from exc
        return {**result, "state": "read"}
    return {**result, **dataclasses.asdict(endpoint_status(where))}


def main() -> None:
    run_module(DOCUMENTATION, work)


if __name__ == "__main__":
    main()
