"""Drive playbooks through ansible-runner, as a service would, and read what happened."""

from __future__ import annotations

import json
import os
import shutil
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import ansible_runner

ROOT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    """One playbook run. ``stats``: word ("changed", "failures", ...) -> host -> count. ``tasks``: (task, host, event)."""

    rc: int
    text: str
    stats: Mapping[str, Mapping[str, int]]
    tasks: tuple[tuple[str, str, str], ...]
    messages: tuple[str, ...]
    events: str = ""

    @property
    def changed(self) -> int:
        """Changed tasks over all hosts."""
        return sum(self.stats.get("changed", {}).values())

    @property
    def changes(self) -> list[str]:
        """Names of the tasks that reported a change."""
        return [task for task, _, event in self.tasks if event == "changed"]


def run_playbook(
    playbook: str,
    extravars: Mapping[str, Any],
    *,
    inventory: str | Path = "inventory/local",
    cmdline: str = "",
    timeout_s: int = 1500,
    root: Path = ROOT,
) -> Outcome:
    """Run one playbook to its end; never raises for a failed run. ``root``: this repository, or a changed copy of it."""
    private = Path(tempfile.mkdtemp(prefix="lh-runner-"))
    try:
        done = ansible_runner.run(
            private_data_dir=str(private),
            project_dir=str(root),
            playbook=playbook,
            inventory=str(root / inventory) if not str(inventory).startswith("/") else str(inventory),
            extravars=dict(extravars),
            cmdline=cmdline or None,
            quiet=True,
            timeout=timeout_s,
            suppress_env_files=True,
            envvars={
                "ANSIBLE_CONFIG": str(root / "ansible.cfg"),
                "ANSIBLE_NOCOLOR": "1",
                "ANSIBLE_HOST_KEY_CHECKING": "True",
                # ansible-runner sets this for its own plugin; ours is added, or the summary would be missing.
                "ANSIBLE_CALLBACK_PLUGINS": str(root / "plugins/callback"),
                # The interpreter's own ansible-playbook, also where nobody activated the environment.
                "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
            },
        )
        tasks: list[tuple[str, str, str]] = []
        messages: list[str] = []
        events: list[str] = []
        for event in done.events:
            events.append(json.dumps(event, default=str))
            data = event.get("event_data") or {}
            kind = event.get("event", "")
            result = data.get("res") or {}
            if kind == "runner_on_ok":
                tasks.append((data.get("task", ""), data.get("host", ""), "changed" if result.get("changed") else "ok"))
            elif kind in ("runner_on_failed", "runner_on_unreachable"):
                tasks.append((data.get("task", ""), data.get("host", ""), kind.removeprefix("runner_on_")))
                messages.append(str(result.get("msg", "")))
        # Not done.stdout: it opens the file anew at each look and leaves it open.
        stdout = Path(str(done.config.artifact_dir)) / "stdout"
        text = stdout.read_text(encoding="utf-8", errors="replace") if stdout.exists() else ""
        return Outcome(done.rc, text, done.stats or {}, tuple(tasks), tuple(messages), "\n".join(events))
    finally:
        shutil.rmtree(private, ignore_errors=True)
