"""``scripts/rollout``: a playbook under ansible-runner with a live table of hosts x stages, artifacts kept, exit codes kept.

The state is pure: events in, rows out. Only :func:`main` touches ansible-runner, the terminal and the disk.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from ..errors import UserError
from ..results import Verdict

OK, FAIL, USAGE = 0, 1, 2
# Worst first: a server that erred says more than a figure that must not be published.
VERDICT_CODES = ((Verdict.FAIL.value, 1), (Verdict.INVALID.value, 3), (Verdict.INCONCLUSIVE.value, 4))
WIDTH_STAGE = 11


@dataclass
class HostRow:
    """One host: stage -> word, the task it is at, and why it failed."""

    stages: dict[str, str] = field(default_factory=dict)
    task: str = ""
    why: str = ""
    verdict: str = ""
    # Every verdict since the run began: a host that was brought back ends with the PASS of what it was brought back to.
    verdicts: list[str] = field(default_factory=list)


@dataclass
class Board:
    """Hosts x stages, from ansible-runner's events. ``take`` returns a plain line where an event is worth one."""

    stages: list[str] = field(default_factory=list)
    hosts: dict[str, HostRow] = field(default_factory=dict)

    def take(self, event: Mapping[str, Any]) -> str | None:
        """Take one event; return a plain line where it is worth one."""
        kind, data = str(event.get("event", "")), event.get("event_data") or {}
        stage, host, task = str(data.get("play", "")), str(data.get("host", "")), str(data.get("task", ""))
        if kind == "playbook_on_play_start":
            name = str(data.get("name") or stage)
            if name and name not in self.stages:
                self.stages.append(name)
            return f"stage {name}" if name else None
        if not host or not kind.startswith("runner_on_"):
            return None
        row = self.hosts.setdefault(host, HostRow())
        found = data.get("res")
        result: Mapping[str, Any] = found if isinstance(found, Mapping) else {}
        if kind == "runner_on_start":
            row.task = task
            row.stages.setdefault(stage, "running")
            return None
        if kind == "runner_on_ok":
            if result.get("verdict") in Verdict.__members__:
                row.verdict = str(result["verdict"])
                row.verdicts.append(row.verdict)
            changed = bool(result.get("changed"))
            if row.stages.get(stage) != "FAILED":
                row.stages[stage] = "changed" if changed or row.stages.get(stage) == "changed" else "ok"
            return f"{host}: {task}: changed" if changed else None
        if kind == "runner_on_unreachable" or (kind == "runner_on_failed" and not data.get("ignore_errors")):
            word = "LOST" if kind == "runner_on_unreachable" else "FAILED"
            row.stages[stage] = word
            row.why = reason(result)
            return f"{host}: {task}: {word}: {row.why}"
        return None

    def stopping_verdicts(self) -> list[str]:
        """Verdicts of the hosts that failed."""
        lost = [row for row in self.hosts.values() if {"FAILED", "LOST"} & set(row.stages.values())]
        return [verdict for row in lost for verdict in row.verdicts]

    def table(self, width: int = 120) -> list[str]:
        """The table as lines no wider than ``width``."""
        first = max([4, *(len(h) for h in self.hosts)])
        lines = ["HOST".ljust(first) + "  " + "  ".join(s[:WIDTH_STAGE].ljust(WIDTH_STAGE) for s in self.stages) + "  NOW"]
        for name, row in sorted(self.hosts.items()):
            cells = "  ".join(row.stages.get(s, "-").ljust(WIDTH_STAGE) for s in self.stages)
            lines.append(f"{name.ljust(first)}  {cells}  {row.why or row.task}")
        return [line[:width].rstrip() for line in lines]


def reason(result: Mapping[str, Any]) -> str:
    """Why a task failed, in one line. A loop's own message says only that an item failed; the reason stands in the item."""
    items = [item for item in result.get("results") or [] if isinstance(item, Mapping) and item.get("failed")]
    said = dict.fromkeys(str(item.get("msg", "no message")) for item in items) or [str(result.get("msg", "no message"))]
    return " ".join("; ".join(said).split())


def exit_code(ansible_code: int, verdicts: Sequence[str], *, stopped: bool = False) -> int:
    """0 PASS, 1 FAIL, 2 usage, 3 INVALID, 4 INCONCLUSIVE. A verdict that stopped the play speaks for itself."""
    if stopped:
        return 130
    for word, code in VERDICT_CODES:
        if word in verdicts:
            # A verdict that the operator accepts let the play go on.
            return code if ansible_code else OK
    # ansible-playbook: 2 a task failed, 4 unreachable; 1, 5 and above are mistakes in what it was asked to do.
    return OK if ansible_code == 0 else USAGE if ansible_code in (1, 5, 250) else FAIL


def parse(words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
    """Our own few options; everything else goes to ansible-playbook as it is."""
    parser = argparse.ArgumentParser(
        prog="scripts/rollout",
        allow_abbrev=False,
        description="Run a playbook with a live table; all else goes to ansible-playbook.",
    )
    parser.add_argument("--playbook", default="deploy.yml", help="default: %(default)s")
    parser.add_argument("-i", "--inventory", help="default: what ansible.cfg says")
    parser.add_argument("--results", type=Path, default=Path("results"), help="artifacts go to RESULTS/RUN_ID/rollout")
    parser.add_argument("--run-id", default=time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()), help="default: UTC time")
    parser.add_argument(
        "--keep-events", action="store_true", help="keep ansible-runner's job events as well: every task's arguments and results"
    )
    parser.add_argument("--plain", action="store_true", help="lines, also on a terminal")
    return parser.parse_known_args(words)


def environment(root: Path) -> dict[str, str]:
    """Environment that keeps our configuration, host keys, fact cache and callbacks: ansible-runner would override them."""
    return {
        "ANSIBLE_CONFIG": str(root / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "ANSIBLE_HOST_KEY_CHECKING": "True",
        "ANSIBLE_CACHE_PLUGIN": "memory",
        "ANSIBLE_CALLBACK_PLUGINS": str(root / "plugins" / "callback"),
        "PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", os.defpath)]),
    }


class Screen:
    """The table redrawn in place on a terminal, plain lines elsewhere."""

    def __init__(self, live: bool) -> None:
        self.live, self._drawn, self._last = live, 0, 0.0

    def show(self, board: Board, line: str | None, *, force: bool = False) -> None:
        """After an event."""
        if not self.live:
            if line:
                print(f"[{time.strftime('%H:%M:%S')}] {line}", flush=True)
            return
        if not force and time.monotonic() - self._last < 0.2:
            return
        self._last = time.monotonic()
        lines = board.table(shutil.get_terminal_size().columns)
        sys.stdout.write((f"\x1b[{self._drawn}F" if self._drawn else "") + "".join(f"\x1b[2K{x}\n" for x in lines))
        sys.stdout.flush()
        self._drawn = len(lines)


def keep(private: Path, target: Path, summary: Mapping[str, Any], *, events: bool = False) -> None:
    """Keep Ansible's output and the summary.

    Job events hold every task's arguments, so they are kept only with ``--keep-events``.
    """
    target.mkdir(parents=True, exist_ok=True)
    for found in private.rglob("stdout"):
        shutil.copy(found, target / "ansible.log")
    if events:
        for folder in private.rglob("job_events"):
            shutil.copytree(folder, target / "job_events", dirs_exist_ok=True)
    (target / "rollout.json").write_text(json.dumps(summary, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def main(words: Sequence[str], root: Path) -> int:
    """Run to the end. Ctrl-C asks Ansible to stop and waits for it. The next run proves or brings back a host that was in the middle."""
    import ansible_runner  # type: ignore[import-untyped, unused-ignore]

    options, rest = parse(words)
    if not (root / options.playbook).exists():
        raise UserError(f"no playbook {options.playbook}", "deploy.yml or one of playbooks/", "correct --playbook")
    inventory = options.inventory or str(root / "inventory" / "local")
    # ansible-runner wants an absolute path, but takes "host," lists and plain names as they are.
    if Path(inventory).exists():
        inventory = str(Path(inventory).resolve())
    board, screen = Board(), Screen(sys.stdout.isatty() and not options.plain)
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        if not stopped:
            print("\nstopping: the run that is under way ends first; run again to continue", file=sys.stderr, flush=True)
        stopped = True

    def event(data: dict[str, Any]) -> bool:
        screen.show(board, board.take(data))
        return bool(options.keep_events)  # ansible-runner writes what its handler says yes to

    before = signal.signal(signal.SIGINT, stop)
    private = Path(tempfile.mkdtemp(prefix="longhaul-rollout-"))
    try:
        done = ansible_runner.run(
            private_data_dir=str(private),
            project_dir=str(root),
            playbook=options.playbook,
            inventory=inventory,
            extravars={"longhaul_run_id": options.run_id},
            cmdline=shlex.join(rest) or None,
            quiet=True,
            suppress_env_files=True,
            envvars=environment(root),
            event_handler=event,
            cancel_callback=lambda: stopped,
        )
        screen.show(board, None, force=True)
        code = exit_code(int(done.rc), board.stopping_verdicts(), stopped=stopped)
        target = options.results / options.run_id / "rollout"
        summary = {
            "run_id": options.run_id,
            "playbook": options.playbook,
            "exit_code": code,
            "status": str(done.status),
            "hosts": {n: {"stages": r.stages, "verdict": r.verdict, "why": r.why} for n, r in sorted(board.hosts.items())},
        }
        keep(private, target, summary, events=options.keep_events)
        for name, row in sorted(board.hosts.items()):
            if row.why and any(w in ("FAILED", "LOST") for w in row.stages.values()):
                print(f"{name}: {row.why}")
        print(f"exit {code}; artifacts: {target}")
        return code
    finally:
        signal.signal(signal.SIGINT, before)
        shutil.rmtree(private, ignore_errors=True)
