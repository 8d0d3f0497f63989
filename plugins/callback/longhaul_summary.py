"""At the end of a playbook: which hosts did not make it, and why, in one line each."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.plugins.callback import CallbackBase

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "module_utils"))

from longhaul.progress import failure_text

DOCUMENTATION = r"""
name: longhaul_summary
type: notification
short_description: Name the hosts that failed or could not be reached, with the reason
description: Prints nothing when every host made it.
author: [Longhaul]
"""


class CallbackModule(CallbackBase):
    """Collects the last failure of each host."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "notification"
    CALLBACK_NAME = "longhaul_summary"
    CALLBACK_NEEDS_ENABLED = True

    def __init__(self) -> None:
        super().__init__()
        self._why: dict[str, str] = {}

    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """A task failed."""
        if not ignore_errors:
            self._note(result, "failed")

    def v2_runner_on_unreachable(self, result: Any) -> None:
        """A host did not answer."""
        self._note(result, "unreachable")

    def _note(self, result: Any, how: str) -> None:
        data = getattr(result, "result", None) or getattr(result, "_result", {})
        host = getattr(result, "host", None) or getattr(result, "_host", None)
        task = getattr(result, "task", None) or getattr(result, "_task", None)
        name = task.get_name() if task is not None else "?"
        self._why[host.get_name() if host is not None else "?"] = f"{how} at '{name}': {failure_text(data)}"

    def v2_playbook_on_stats(self, stats: Any) -> None:
        """The end."""
        # A rescued failure is none.
        lost = [h for h in sorted(self._why) if stats.failures.get(h) or stats.dark.get(h)]
        if not lost:
            return
        self._display.display(f"\nHOSTS THAT DID NOT MAKE IT ({len(lost)})", color="red")
        for host in lost:
            self._display.display(f"  {host}: {self._why[host]}", color="red")
        others = sorted(set(stats.processed) - set(lost))
        if others:
            self._display.display(f"  the others went on: {', '.join(others)}")
