#!/usr/bin/python
"""Watch an engine start until it is ready, dead or late."""

from __future__ import annotations

DOCUMENTATION = r"""
module: longhaul_wait
short_description: Watch an engine start until it is ready, dead or late
description:
  - Follows the engine's log, shows its phases, and ends within a second of the process's death with cause, evidence and advice.
author: [Longhaul]
options:
  home: {description: longhaul_home on the host., type: path, required: true}
  instance: {description: Name of the endpoint on this host., type: str, default: default}
  timeout_s: {description: Seconds until a start that is neither ready nor dead is given up., type: int, default: 3600}
  log_offset: {description: Where this start begins in the log., type: int, default: 0}
  api_key_file: {description: A file on the host that holds the API key., type: path}
  progress_file: {description: Set by the action plugin., type: path}
"""

EXAMPLES = r"""
- name: Wait until the engine is ready
  longhaul_wait:
    home: /opt/longhaul
    timeout_s: 1800
"""

RETURN = r"""
ready: {description: Is it ready?, returned: always, type: bool}
elapsed_s: {description: Seconds watched., returned: always, type: float}
phases: {description: "Phases with the second they were seen.", returned: always, type: list}
capacity: {description: "The engine's own capacity figures.", returned: when its log shows them, type: dict}
diagnosis: {description: "cause, evidence, advice.", returned: failure, type: dict}
"""


from ansible.module_utils.longhaul.deploy.runtimes.registry import watched
from ansible.module_utils.longhaul.deploy.spec import require_spec
from ansible.module_utils.longhaul.deploy.startup import watch_start
from ansible.module_utils.longhaul.engines.registry import get_engine
from ansible.module_utils.longhaul.errors import UserError
from ansible.module_utils.longhaul.keys import read_key
from ansible.module_utils.longhaul.results import to_jsonable
from ansible.module_utils.longhaul_module import ENDPOINT, endpoint, run_module


def work(module, progress):
    """Watch."""
    options = module.params
    where = endpoint(module)
    if module.check_mode:
        return {"changed": False, "ready": False, "elapsed_s": 0.0, "phases": []}
    spec = require_spec(where)
    start = watched(where, spec, options["log_offset"])
    key = read_key(options["api_key_file"], "engine_api_key_file") if options["api_key_file"] else None
    outcome = watch_start(
        get_engine(spec["engine"]),
        spec["url"],
        start.new_lines,
        start.alive,
        progress.say,
        options["timeout_s"],
        api_key=key,
    )
    result = {"changed": False, **to_jsonable(outcome), "log": start.log_name}
    if outcome.ready:
        names = [m.name for m in outcome.served]
        if names and spec["settings"]["served_model_name"] not in names:
            raise UserError(
                f"{spec['url']} serves {', '.join(names)}",
                f"it to serve {spec['settings']['served_model_name']}",
                "another server answers on that port: stop it, or set engine_port",
            )
        return result
    # Left alone it would be started again and again, or hold its memory for nothing.
    start.give_up()
    why = outcome.diagnosis
    how = "died" if outcome.died else "was stopped"
    result["failed"] = True
    result["msg"] = (
        f"{spec['engine']} {spec['version']} {how} after {outcome.elapsed_s:.0f} s while {why.phase.value if why.phase else 'starting'}: "
        f"{why.cause} | evidence: {why.evidence} | advice: {why.advice} | log: {start.log_name}"
    )
    return result


def main():
    """Entry point."""
    run_module(
        {
            **ENDPOINT,
            "timeout_s": {"type": "int", "default": 3600},
            "log_offset": {"type": "int", "default": 0},
            "api_key_file": {"type": "path", "no_log": False},
        },
        work,
    )


if __name__ == "__main__":
    main()
