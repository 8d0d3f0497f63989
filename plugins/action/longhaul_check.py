"""Checks of variables alone run here, in Ansible's own process: for twenty hosts that is twenty Pythons less to start."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase

# Imported once, by the process from which Ansible forks the workers.
sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "module_utils"))

from longhaul.deploy.preflight import as_result, run_checks


class ActionModule(ActionBase):
    """The module's arguments; on a host they go to the module, on the controller they are looked at here."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        if self._task.delegate_to != "localhost":
            result.update(self._execute_module(module_name="longhaul_check", task_vars=task_vars))
            return result
        found, warnings = as_result(run_checks(self._task.args))
        return {**result, **found, **({"warnings": warnings} if warnings else {})}
