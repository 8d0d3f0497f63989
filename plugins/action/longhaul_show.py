"""Show lines, or the status table of all hosts, as plain text instead of as a YAML dump."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "module_utils"))

from longhaul.deploy.status import status_table


class ActionModule(ActionBase):
    """Arguments: text (list of lines) or table (list of rows as longhaul.status.status_table takes them)."""

    TRANSFERS_FILES = False
    _supports_check_mode = True

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        result["changed"] = False
        lines = [str(x) for x in self._task.args.get("text") or []]
        if "table" in self._task.args:
            lines = ["", *status_table(self._task.args["table"]), ""]
        Display().display("\n".join(lines))
        result["lines"] = lines
        return result
