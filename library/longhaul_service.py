#!/usr/bin/python
"""Start, stop, restart or remove an endpoint's program under supervisord."""

from __future__ import annotations

DOCUMENTATION = r"""
module: longhaul_service
short_description: Start, stop, restart or remove an endpoint's program under supervisord
description:
  - Keeps supervisord's configuration, starts it when needed, and drives the one program of this endpoint.
  - A start returns at once; M(longhaul_wait) watches it. The port is checked before any start.
author: [Longhaul]
options:
  home: {description: longhaul_home on the host., type: path, required: true}
  instance: {description: Name of the endpoint on this host., type: str, default: default}
  state:
    description: Wanted state. V(restarted) always stops and starts; V(configured) only writes the configuration.
    type: str
    choices: [configured, started, stopped, restarted, absent]
    required: true
  stop_timeout_s: {description: Seconds until a stopping engine is killed., type: int, default: 60}
  progress_file: {description: Set by the action plugin., type: path}
"""

EXAMPLES = r"""
- name: Stop the engine
  longhaul_service:
    home: /opt/longhaul
    state: stopped
"""

RETURN = r"""
state: {description: "supervisord's word for the program.", returned: always, type: str}
pid: {description: Its process id., returned: when it has a process, type: int}
log_offset: {description: Size of the log just before this start., returned: always, type: int}
"""

import contextlib

from ansible.module_utils.longhaul.errors import UserError
from ansible.module_utils.longhaul.ports import port_holder, port_is_free
from ansible.module_utils.longhaul.spec import load_spec, require_spec
from ansible.module_utils.longhaul.supervisor import Supervisor
from ansible.module_utils.longhaul_module import ENDPOINT, endpoint, run_module


def check_port(where):
    """Refuse to start onto a port that somebody holds."""
    settings = require_spec(where)["settings"]
    port, host = int(settings["port"]), str(settings["host"])
    if not port_is_free(port, host):
        holder = port_holder(port)
        raise UserError(
            f"port {port} on {host} is held by {holder or 'an unknown process'}",
            f"port {port} free",
            "stop that process, or set engine_port",
        )


def work(module, progress):
    """Reach the wanted state."""
    options = module.params
    where = endpoint(module)
    supervisor = Supervisor(where)
    wanted = options["state"]
    dry = module.check_mode
    changed = False
    offset = where.log.stat().st_size if where.log.exists() else 0
    if wanted == "absent":
        changed = supervisor.stop(options["stop_timeout_s"]) if not dry else supervisor.state().alive
        program = where.supervisor / "conf.d" / f"{where.instance}.ini"
        if program.exists():
            changed = True
            if not dry:
                program.unlink()
                if supervisor.running():
                    supervisor.load_programs()
        if not dry and not list((where.supervisor / "conf.d").glob("*.ini")):
            changed = supervisor.shutdown() or changed
        return {"changed": changed, "state": "ABSENT", "log_offset": offset}
    if wanted == "stopped":
        alive = supervisor.state().alive
        if alive and not dry:
            supervisor.stop(options["stop_timeout_s"])
        return {"changed": alive, "state": supervisor.state().state, "log_offset": offset}
    changed = supervisor.write_config(options["stop_timeout_s"], dry_run=dry)
    if wanted == "configured" or (dry and load_spec(where) is None):
        return {"changed": changed or wanted != "configured", "state": supervisor.state().state, "log_offset": offset}
    before = supervisor.state()
    if dry:
        return {"changed": changed or wanted == "restarted" or not before.alive, "state": before.state, "log_offset": offset}
    where.log.parent.mkdir(parents=True, exist_ok=True)
    if wanted == "restarted" and before.alive:
        supervisor.stop(options["stop_timeout_s"])
    if not supervisor.state().alive:
        check_port(where)
    # A fresh supervisord starts every program by itself, so the log's size is taken before.
    fresh = supervisor.ensure_running()
    supervisor.load_programs()
    started = supervisor.start()
    after = supervisor.state()
    with contextlib.suppress(OSError):
        if not (fresh or started):
            offset = where.log.stat().st_size
    return {
        "changed": changed or fresh or started or wanted == "restarted",
        "state": after.state,
        "pid": after.pid,
        "started": fresh or started,
        "log_offset": offset,
    }


def main():
    """Entry point."""
    run_module(
        {
            **ENDPOINT,
            "state": {"type": "str", "choices": ["configured", "started", "stopped", "restarted", "absent"], "required": True},
            "stop_timeout_s": {"type": "int", "default": 60},
        },
        work,
    )


if __name__ == "__main__":
    main()
