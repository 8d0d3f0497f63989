#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
{
  "module": "longhaul_service",
  "short_description": "Start, stop, restart or remove an endpoint's engine under its runtime",
  "description": [
    "The deployed spec names the runtime.",
    "Runtime process keeps supervisord's configuration, starts it when needed, and drives the one program of this endpoint.",
    "Runtime docker makes one container per spec and keeps the one before, stopped, to return to.",
    "A start returns at once; M(longhaul_wait) watches it. The port is checked before any start."],
  "attributes": {
    "check_mode": {"support": "full", "description": "Says what would change and changes nothing."},
    "diff_mode": {"support": "full", "description": "Shows the engine's state and the configuration files that change."}},
  "options": {
    "home": {"description": "longhaul_home on the host.", "type": "path", "required": true},
    "instance": {"description": "Name of the endpoint on this host.", "type": "str", "default": "default"},
    "state": {"description": [
      "Wanted state. V(restarted) always stops and starts; V(configured) only writes the configuration;",
      "V(pruned) removes what is kept for specs that are neither current nor previous."],
      "type": "str", "choices": ["configured", "started", "stopped", "restarted", "pruned", "absent"], "required": true},
    "stop_timeout_s": {"description": "Seconds until a stopping engine is killed.", "type": "int", "default": 60},
    "progress_file": {"description": "Set by the action plugin.", "type": "path"}}}
"""

EXAMPLES = r"""
- name: Stop the engine
  longhaul_service: {home: /opt/longhaul, state: stopped}
"""

RETURN = r"""
state: {description: "The engine's state, in supervisord's words.", returned: always, type: str}
pid: {description: Its process id., returned: when it has a process, type: int}
started: {description: Whether this task started it., returned: always, type: bool}
log_offset: {description: Where this start begins in the log., returned: always, type: int}
"""

from ansible.module_utils.longhaul_module import AnsibleModule, ProgressWriter, diff_of, endpoint, run_module

from typing import Any

from ansible.module_utils.longhaul.deploy.service import reach


def work(module: AnsibleModule, progress: ProgressWriter) -> dict[str, Any]:
    options = module.params
    reached = reach(endpoint(module), options["state"], stop_timeout_s=options["stop_timeout_s"], dry_run=module.check_mode)
    diff = [diff_of(file.path, file.before, file.after) for file in reached.files]
    if reached.changed:
        diff.append(diff_of("engine", *reached.words(options["state"])))
    return {
        "changed": reached.changed,
        "state": reached.after.state,
        "pid": reached.after.pid,
        "started": reached.started,
        "log_offset": reached.log_position,
        "diff": diff,
    }


def main() -> None:
    run_module(DOCUMENTATION, work)


if __name__ == "__main__":
    main()
