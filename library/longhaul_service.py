#!/usr/bin/python
"""Start, stop, restart or remove an endpoint's program under supervisord."""

from __future__ import annotations

DOCUMENTATION = r"""
module: longhaul_service
short_description: Start, stop, restart or remove an endpoint's engine, under supervisord or in a container
description:
  - Runtime process keeps supervisord's configuration, starts it when needed, and drives the one program of this endpoint.
  - Runtime docker makes one container a spec; the one before is kept, stopped, to return to. The deployed spec says which runtime.
  - A start returns at once; M(longhaul_wait) watches it. The port is checked before any start.
author: [Longhaul]
options:
  home: {description: longhaul_home on the host., type: path, required: true}
  instance: {description: Name of the endpoint on this host., type: str, default: default}
  state:
    description: Wanted state. V(restarted) always stops and starts; V(configured) only writes the configuration;
      V(pruned) removes containers of specs that are neither current nor previous.
    type: str
    choices: [configured, started, stopped, restarted, pruned, absent]
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
import time

from ansible.module_utils.longhaul.deploy.ports import port_holder, port_is_free
from ansible.module_utils.longhaul.deploy.runtimes.docker import DockerRuntime
from ansible.module_utils.longhaul.deploy.runtimes.process import Supervisor
from ansible.module_utils.longhaul.deploy.runtimes.registry import docker_here, state_of, stop_other_runtime
from ansible.module_utils.longhaul.deploy.spec import load_spec, require_spec
from ansible.module_utils.longhaul.errors import UserError
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


def containers(module, where, spec):
    """Reach the wanted state with the docker runtime."""
    wanted, timeout_s, dry = module.params["state"], module.params["stop_timeout_s"], module.check_mode
    runtime = DockerRuntime(where)
    state = state_of(where, spec)
    result = {"changed": False, "state": state.state, "pid": state.pid, "log_offset": int(time.time())}
    if wanted in ("configured", "pruned"):
        keep = tuple(s["spec_id"] for s in (spec, load_spec(where, "previous")) if s)
        if wanted == "pruned" and not dry:
            result["changed"] = runtime.remove(keep)
        return result
    if wanted == "stopped":
        running = bool(runtime.running())
        if running and not dry:
            runtime.stop(timeout_s)
        return {**result, "changed": running, "state": state.state if dry else state_of(where, spec).state}
    if dry:
        return {**result, "changed": wanted == "restarted" or not state.alive}
    stopped = stop_other_runtime(where, spec, timeout_s)
    if not runtime.running():
        check_port(where)
    started, began = runtime.activate(spec, timeout_s, restart=wanted == "restarted")
    after = state_of(where, spec)
    return {
        "changed": started or stopped,
        "state": after.state,
        "pid": after.pid,
        "started": started,
        "log_offset": int(began),
    }


def work(module, progress):
    """Reach the wanted state."""
    options = module.params
    where = endpoint(module)
    supervisor = Supervisor(where)
    wanted = options["state"]
    dry = module.check_mode
    changed = False
    spec = load_spec(where)
    if spec and spec["runtime"] == "docker" and wanted != "absent":
        return containers(module, where, spec)
    if wanted == "pruned":
        return {"changed": False, "state": supervisor.state().state, "log_offset": 0}
    offset = where.log.stat().st_size if where.log.exists() else 0
    if wanted == "absent":
        if docker_here():
            runtime = DockerRuntime(where)
            changed = bool(runtime.all())
            if changed and not dry:
                runtime.stop(options["stop_timeout_s"])
                runtime.remove()
        changed = (supervisor.stop(options["stop_timeout_s"]) if not dry else supervisor.state().alive) or changed
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
    stop_other_runtime(where, require_spec(where), options["stop_timeout_s"])
    # A process that was started with another spec is not this endpoint as deployed.
    if before.alive and not state_of(where, spec).alive:
        wanted = "restarted"
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
            "state": {
                "type": "str",
                "choices": ["configured", "started", "stopped", "restarted", "pruned", "absent"],
                "required": True,
            },
            "stop_timeout_s": {"type": "int", "default": 60},
        },
        work,
    )


if __name__ == "__main__":
    main()
