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
# Short at first: most jobs end within seconds. A file that is followed for minutes is asked for less often.
POLL_FIRST_S = 0.3
POLL_LOCAL_S = 0.5
POLL_REMOTE_S = 1.5
POLL_GROWTH = 1.4
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

    def _is_long(self) -> bool:
        """Whether it may take long enough to be worth a job in the background."""
        return not self._task.check_mode

    def _arguments(self, task_vars: dict[str, Any]) -> dict[str, Any]:
        """The module's arguments. A plugin may prepare the host for them."""
        return dict(self._task.args)

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        task_vars = task_vars or {}
        name = self._task.action.rsplit(".", 1)[-1]
        arguments = self._arguments(task_vars)
        if not self._is_long():
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
        left = [file, *([str(started["results_file"])] if started.get("results_file") else [])]
        self._low_level_execute_command(f"rm -f {shlex.join(left)}", sudoable=True)
        return result

    def _follow(self, started: dict[str, Any], file: str, task_vars: dict[str, Any], progress: Any) -> dict[str, Any]:
        host = task_vars.get("inventory_hostname", "")
        longest_s = POLL_LOCAL_S if self._connection.transport == "local" else POLL_REMOTE_S
        wait_s = POLL_FIRST_S
        display = Display()
        offset = 0
        ended = False
        heard = time.monotonic()
        while True:
            time.sleep(wait_s)
            wait_s = min(longest_s, wait_s * POLL_GROWTH)
            read = self._low_level_execute_command(
                f"tail -c +{offset + 1} {shlex.quote(file)} 2>/dev/null || true", sudoable=True
            )
            # Over SSH these commands have a terminal, which ends lines with two characters: counted, they would push the
            # offset past what was read, and the rest of the file would be read in halves.
            texts, done, used = progress.parse_progress(read.get("stdout", "").replace("\r\n", "\n"))
            offset += used
            if done and not ended:
                # The word comes a moment before the result: ask again soon if it is not there yet.
                ended, wait_s = True, POLL_FIRST_S
            for text in texts:
                display.display(f"  [{host}] {text}")
            if used:
                heard = time.monotonic()
            if ended or time.monotonic() - heard > SILENCE_S:
                heard = time.monotonic()
                result = self._collect(started["ansible_job_id"], task_vars)
                if result is not None:
                    return result

    def _collect(self, job: str, task_vars: dict[str, Any]) -> dict[str, Any] | None:
        """The job's result, or None while it runs."""
        folder = self.get_shell_option("async_dir", default="~/.ansible_async")
        status: dict[str, Any] = self._execute_module(
            module_name="ansible.legacy.async_status",
            module_args={"jid": job, "mode": "status", "_async_dir": folder},
            task_vars=task_vars,
        )
        if not status.get("finished"):
            # An answer without "started" is about a job that the host does not know (any more).
            if status.get("started"):
                return None
            return {"failed": True, "msg": f"the job vanished from the host: {status.get('msg', json.dumps(status)[:300])}"}
        for key in ("ansible_job_id", "finished", "started", "results_file", "_async_dir"):
            status.pop(key, None)
        return status


class ActionModule(LiveAction):
    """Not used by itself."""
