"""Run a Longhaul module in the background of the host and show its progress lines as they come.

A module's output appears only at its end; a ten-minute start must not be silent. The module is started as an async job
and appends lines to a progress file, which this plugin follows. The plugins beside it (longhaul_wait, ...) are this class
under the module's own name. In check mode the module runs plainly: Ansible allows no async there.
"""

from __future__ import annotations

import importlib.util
import json
import shlex
import sys
import time
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

DOCUMENTATION = r"""
name: longhaul_live
short_description: Run a Longhaul module with live progress
description: The shared body of the live action plugins. Not called by itself.
author: [Longhaul]
"""

LONGEST_S = 7 * 86400
POLL_LOCAL_S = 0.5
POLL_REMOTE_S = 1.5
# How long a job may be silent in its file before we ask whether it still lives.
SILENCE_S = 20.0


def _package() -> Any:
    """Longhaul's progress module, from this repository."""
    root = str(Path(__file__).resolve().parents[2] / "module_utils")
    if importlib.util.find_spec("longhaul") is None:
        sys.path.insert(0, root)
    from longhaul import progress

    return progress


class LiveAction(ActionBase):
    """Start async, follow, collect. ``module_name`` is the task's own action."""

    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        name = self._task.action.rsplit(".", 1)[-1]
        arguments = dict(self._task.args)
        if self._task.check_mode:
            result.update(self._execute_module(module_name=name, module_args=arguments, task_vars=task_vars))
            return result
        progress = _package()
        if not self._connection._shell.tmpdir:
            self._make_tmp_path()
        # Beside the module's own temporary folder, which is gone before a long job ends.
        file = f"{self._connection._shell.tmpdir.rstrip('/')}.progress"
        arguments["progress_file"] = file
        before = self._task.async_val
        self._task.async_val = LONGEST_S
        try:
            started = self._execute_module(module_name=name, module_args=arguments, task_vars=task_vars, wrap_async=True)
        finally:
            self._task.async_val = before
        if started.get("failed") or "ansible_job_id" not in started:
            result.update(started)
            return result
        result.update(self._follow(started, file, task_vars, progress))
        self._low_level_execute_command(f"rm -f {shlex.quote(file)}", sudoable=True)
        return result

    def _follow(self, started: dict[str, Any], file: str, task_vars: dict[str, Any], progress: Any) -> dict[str, Any]:
        host = task_vars.get("inventory_hostname", "")
        wait_s = POLL_LOCAL_S if self._connection.transport == "local" else POLL_REMOTE_S
        display = Display()
        offset = 0
        heard = time.monotonic()
        while True:
            time.sleep(wait_s)
            read = self._low_level_execute_command(
                f"tail -c +{offset + 1} {shlex.quote(file)} 2>/dev/null || true", sudoable=True
            )
            texts, done, used = progress.parse_progress(read.get("stdout", ""))
            offset += used
            for text in texts:
                display.display(f"  [{host}] {text}")
            if used:
                heard = time.monotonic()
            if done or time.monotonic() - heard > SILENCE_S:
                heard = time.monotonic()
                result = self._collect(started["ansible_job_id"], task_vars)
                if result is not None:
                    return result

    def _collect(self, job: str, task_vars: dict[str, Any]) -> dict[str, Any] | None:
        """The job's result, or None while it runs."""
        status = self._async_status(job, "status", task_vars)
        if not status.get("finished"):
            # An answer without "started" is about a job that the host does not know (any more).
            if status.get("started"):
                return None
            return {"failed": True, "msg": f"the job vanished from the host: {status.get('msg', json.dumps(status)[:300])}"}
        self._async_status(job, "cleanup", task_vars)
        for key in ("ansible_job_id", "finished", "started", "results_file", "_async_dir"):
            status.pop(key, None)
        return status

    def _async_status(self, job: str, mode: str, task_vars: dict[str, Any]) -> dict[str, Any]:
        folder = self.get_shell_option("async_dir", default="~/.ansible_async")
        status: dict[str, Any] = self._execute_module(
            module_name="ansible.legacy.async_status",
            module_args={"jid": job, "mode": mode, "_async_dir": folder},
            task_vars=task_vars,
        )
        return status


class ActionModule(LiveAction):
    """Not used by itself."""
