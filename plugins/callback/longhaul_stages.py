"""What scripts/deploy prints: one line for each stage with its live progress, instead of one for each task of each host."""

from __future__ import annotations

import atexit
import functools
import os
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import ansible.constants as C
import ansible.context as cli
from ansible.playbook.task_include import TaskInclude
from ansible.plugins.callback.default import CallbackModule as DefaultCallback

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "module_utils"))

from longhaul.progress import failure_text

DOCUMENTATION = r"""
name: longhaul_stages
type: stdout
short_description: One line for each stage, with live progress
description:
  - A stage is a play, or a step of it that changed something, failed, showed progress or took long.
  - Progress replaces itself on a terminal and is printed line by line elsewhere.
  - Failures, unreachable hosts, warnings, messages and diffs are printed when they come; the recap and the report's table at the end.
  - With C(-v) it is Ansible's default display.
author: [Longhaul]
extends_documentation_fragment: [default_callback, result_format_callback]
"""

# A person who sees nothing for longer wonders: a step that takes longer is announced and gets a line of its own.
SILENT_S = 2.0
# Without a terminal: a sign of life in a step that says nothing.
PULSE_S = 30.0
LABEL_WIDTH = 52
STATE_WIDTH = 26
# As the live actions (plugins/action/longhaul_live.py) write it.
PROGRESS = re.compile(r"  \[(?P<host>[^\]]+)\] (?P<text>.+)", re.DOTALL)

Line = Callable[[str, str | None], None]


def span(seconds: float) -> str:
    """A duration as people say it: ``3.2 s``, ``45 s``, ``2 min 05 s``."""
    if seconds < 59.5:
        return f"{seconds:.1f} s" if seconds < 9.95 else f"{seconds:.0f} s"
    whole = round(seconds)
    return f"{whole // 60} min {whole % 60:02d} s" if whole < 3600 else f"{whole // 3600} h {whole % 3600 // 60:02d} min"


@dataclass
class Step:
    """One step of a play: a task of the play itself with all that it includes."""

    name: str
    began: float
    hosts: dict[str, None] = field(default_factory=dict)
    changed: int = 0
    failed: dict[str, None] = field(default_factory=dict)
    unreachable: dict[str, None] = field(default_factory=dict)
    did_something: bool = False
    showed_progress: bool = False
    planned: int = 0


class Stages:
    """Turns what happens in a run into lines. Knows nothing of Ansible or of terminals."""

    def __init__(self, line: Line, clock: Callable[[], float]) -> None:
        self._line, self._clock = line, clock
        self._began = clock()
        self._hosts: dict[str, None] = {}
        self._play: Step | None = None
        self._step: Step | None = None
        self._play_has_lines = False
        self._changed = self._planned = 0
        self._said = ""

    def begin_play(self, name: str) -> None:
        """A play begins; the one before has ended."""
        self.end_play()
        self._play = Step(name, self._clock())
        self._play_has_lines = False

    def begin_step(self, name: str) -> None:
        """A step of the play begins, unless it is the one that runs."""
        if self._step is None or self._step.name != name:
            self._end_step()
            self._step = Step(name, self._clock())
            self._said = ""

    def result(self, host: str, state: str) -> None:
        """A task ended on a host: ok, changed, planned (a change that check mode left out), skipped, failed or unreachable."""
        for part in (self._play, self._step):
            if part is None or state == "skipped":
                continue
            part.did_something = True
            part.hosts[host] = None
            part.changed += state == "changed"
            part.planned += state == "planned"
            if state == "failed":
                part.failed[host] = None
            elif state == "unreachable":
                part.unreachable[host] = None
        if state != "skipped":
            self._hosts[host] = None
        self._changed += state == "changed"
        self._planned += state == "planned"

    def progress(self, host: str, text: str) -> None:
        """A long task says how far it is."""
        self._hosts[host] = None
        self._said = f"{host}: {text}" if len(self._hosts) > 1 else text
        if self._step:
            self._step.showed_progress = True

    def task(self, name: str) -> None:
        """A task begins: shown until something says more."""
        self._said = name

    def now(self) -> tuple[str, float, str] | None:
        """What runs: its label, for how many seconds, and its last word. None between two stages."""
        if self._play is None or self._step is None:
            return None
        return self._label(self._step), self._clock() - self._step.began, self._said if self._said != self._step.name else ""

    def end_play(self) -> None:
        """The play has ended."""
        self._end_step()
        play, self._play = self._play, None
        if play and play.did_something and not self._play_has_lines:
            self._print(play.name, play)

    def end(self) -> None:
        """The run has ended."""
        self.end_play()
        counts = [f"{self._changed} changed" if self._changed else "", f"{self._planned} would change" if self._planned else ""]
        changed = ", ".join(text for text in counts if text) or "nothing changed"
        self._line(self._columns("In all", changed, self._clock() - self._began), None)

    def _end_step(self) -> None:
        step, self._step = self._step, None
        if step is None or not step.did_something:
            return
        took_s = self._clock() - step.began
        if step.changed or step.planned or step.failed or step.unreachable or step.showed_progress or took_s >= SILENT_S:
            self._play_has_lines = True
            self._print(self._label(step), step)

    def _label(self, step: Step) -> str:
        return f"{self._play.name}: {step.name}" if self._play else step.name

    def _print(self, label: str, step: Step) -> None:
        parts = [
            *([f"{step.changed} changed"] if step.changed else []),
            *([f"{step.planned} would change"] if step.planned else []),
            *([f"{len(step.failed)} failed"] if step.failed else []),
            *([f"{len(step.unreachable)} unreachable"] if step.unreachable else []),
        ]
        color = C.COLOR_CHANGED if step.changed or step.planned else C.COLOR_OK
        color = C.COLOR_ERROR if step.failed or step.unreachable else color
        where = f" [{self._names(step.hosts)}]" if len(self._hosts) > 1 else ""
        self._line(self._columns(label + where, ", ".join(parts) or "ok", self._clock() - step.began), color)

    @staticmethod
    def _columns(label: str, state: str, took_s: float) -> str:
        return f"{label:<{LABEL_WIDTH}} {state:<{STATE_WIDTH}} {span(took_s):>11}"

    @staticmethod
    def _names(hosts: dict[str, None]) -> str:
        names = sorted(hosts)
        return ", ".join(names) if len(names) <= 3 else f"{len(names)} hosts"


class Screen:
    """Where lines go: above a live line on a terminal, one below the other elsewhere.

    ``write`` gets raw text for standard output; ``now`` answers what runs. Whoever prints something else calls ``clear`` first.
    """

    def __init__(self, write: Callable[[str], None], now: Callable[[], tuple[str, float, str] | None], *, terminal: bool) -> None:
        self._write, self._now, self._terminal = write, now, terminal
        self._drawn = False
        self._last: tuple[str, float] = ("", 0.0)
        self.paused = False
        self.lock = threading.RLock()

    def clear(self) -> None:
        """Take the live line away: something is about to be printed."""
        if self._drawn:
            self._write("\r\033[K")
            self._drawn = False

    def tick(self) -> None:
        """Draw the live line; without a terminal, say now and then what runs."""
        with self.lock:
            found = None if self.paused else self._now()
            if found is None:
                return
            label, took_s, said = found
            if self._terminal:
                text = f"{label}  {span(took_s)}  {' '.join(said.split())}".rstrip()
                self._write("\r\033[K" + text[: shutil.get_terminal_size().columns - 1])
                self._drawn = True
                return
            last_s = self._head(label, took_s, SILENT_S)
            if last_s is not None and took_s - last_s >= PULSE_S:
                self._last = (label, took_s)
                self._write(f"  {label}: {span(took_s)}\n")

    def _head(self, label: str, took_s: float, after_s: float) -> float | None:
        """Without a terminal: print a stage's name before its first word. Returns when something was last said of it."""
        last_label, last_s = self._last
        # The same stage again, of the next batch of hosts.
        if last_label == label and took_s >= last_s:
            return last_s
        if took_s < after_s:
            return None
        self._last = (label, took_s)
        self._write(f"{label} ...\n")
        return took_s

    def progress(self) -> bool:
        """Something is said of what runs: True where it must be printed, because there is no live line to show it in."""
        found = self._now()
        if found and not self._terminal:
            self._head(found[0], found[1], 0.0)
            self._last = found[:2]
        return not self._terminal


def unless_verbose(method: Callable[..., None]) -> Callable[..., None]:
    """With -v the default display's method runs instead of ours."""

    @functools.wraps(method)
    def chosen(self: CallbackModule, *words: Any, **more: Any) -> None:
        if self.verbose:
            getattr(DefaultCallback, method.__name__)(self, *words, **more)
        else:
            method(self, *words, **more)

    return chosen


class CallbackModule(DefaultCallback):
    """Ansible's events to Stages; what Stages says to Screen."""

    CALLBACK_VERSION = 2.0
    CALLBACK_TYPE = "stdout"
    CALLBACK_NAME = "longhaul_stages"

    def __init__(self) -> None:
        super().__init__()
        self.verbose = self._display.verbosity > 0
        self._task: Any = None
        self._held: list[str] = []
        self._checks = bool(cli.CLIARGS.get("check"))
        self._failed = False
        self._stages = Stages(self._say, time.monotonic)
        # --step asks before each task, on the line that would be drawn over.
        asks = bool(cli.CLIARGS.get("step"))
        terminal = sys.stdout.isatty() and os.environ.get("TERM", "dumb") != "dumb" and not asks
        self._screen = Screen(self._raw, self._stages.now, terminal=terminal)
        self._print = self._display.display
        self._process = os.getpid()
        self._ended = threading.Event()

    # --- the screen ---

    @staticmethod
    def _raw(text: str) -> None:
        sys.stdout.write(text)
        sys.stdout.flush()

    def _say(self, text: str, color: str | None = None) -> None:
        self._display.display(text, color=color)

    def _shown(self, msg: str, *words: Any, **more: Any) -> None:
        """Every text of Ansible and of our actions comes through here; that of a worker process over a queue."""
        if os.getpid() != self._process:
            self._print(msg, *words, **more)
            return
        with self._screen.lock:
            progress = PROGRESS.fullmatch(msg) if self._is_ours() and not words and not more else None
            if progress:
                self._stages.progress(progress["host"], progress["text"])
                if not self._screen.progress():
                    return
            elif self._is_ours("longhaul_report") and not more.get("stderr"):
                # The table is what a person looks for: it comes last.
                self._held.append(msg)
                return
            self._screen.clear()
            self._print(msg, *words, **more)
            sys.stdout.flush()

    def _is_ours(self, name: str = "longhaul_") -> bool:
        return self._task is not None and str(self._task.action).startswith(name)

    def _watch(self) -> None:
        while not self._ended.wait(1.0):
            self._screen.tick()

    def _leave(self) -> None:
        self._ended.set()
        if os.getpid() == self._process:
            with self._screen.lock:
                self._screen.clear()

    # --- plays, steps, tasks ---

    @unless_verbose
    def v2_playbook_on_start(self, playbook: Any) -> None:
        """The run begins."""
        self._display.display = self._shown
        threading.Thread(target=self._watch, daemon=True).start()
        # Interrupted, a run ends without its statistics.
        atexit.register(self._leave)

    @unless_verbose
    def v2_playbook_on_vars_prompt(self, *words: Any, **more: Any) -> None:
        """A question stands between two plays: nothing may be drawn over it."""
        with self._screen.lock:
            self._stages.end_play()
            self._screen.clear()

    @unless_verbose
    def v2_playbook_on_play_start(self, play: Any) -> None:
        """A play, or one batch of it."""
        with self._screen.lock:
            self._task = None
            self._play = play
            self._stages.begin_play(play.get_name().strip() or "Play")

    @unless_verbose
    def v2_playbook_on_task_start(self, task: Any, is_conditional: bool) -> None:
        """A task begins on all hosts."""
        with self._screen.lock:
            self._stages.begin_step(step_name(task))
            self._on_task(task)

    @unless_verbose
    def v2_playbook_on_handler_task_start(self, task: Any) -> None:
        """A handler runs in the step that flushed it."""
        with self._screen.lock:
            self._on_task(task)

    @unless_verbose
    def v2_playbook_on_cleanup_task_start(self, task: Any) -> None:
        """Not sent by current Ansible; part of the default display."""

    def _on_task(self, task: Any) -> None:
        self._task = task
        # A prompt waits on this line.
        self._screen.paused = str(task.action).endswith("pause")
        if self._screen.paused:
            self._screen.clear()
        self._stages.task(plain_name(task))

    # --- results ---

    @unless_verbose
    def v2_runner_on_ok(self, result: Any) -> None:
        """A task ended well on a host."""
        self._handle_warnings(result.result)
        changed = bool(result.result.get("changed"))
        # In a real run a task may look in check mode, too: what it reports is no plan of the run's.
        planned = changed and self._checks and bool(result.task.check_mode)
        with self._screen.lock:
            if not isinstance(result.task, TaskInclude):
                self._stages.result(result.host.get_name(), "planned" if planned else "changed" if changed else "ok")
            if planned:
                self._say(f"  [{result.host.get_name()}] would change: {plain_name(result.task)}", C.COLOR_CHANGED)
            elif result.task.action in C._ACTION_DEBUG and "msg" in result.result:
                self._say(f"  [{result.host.get_name()}] {result.result['msg']}")

    @unless_verbose
    def v2_runner_on_failed(self, result: Any, ignore_errors: bool = False) -> None:
        """A task failed on a host."""
        self._handle_warnings(result.result)
        host, said = result.host.get_name(), failure_text(result.result)
        with self._screen.lock:
            if ignore_errors:
                self._stages.result(host, "ok")
                self._say(f"  [{host}] ignored: {plain_name(result.task)}: {said}", C.COLOR_SKIP)
                return
            self._failed = True
            self._stages.result(host, "failed")
            self._say(f"FAILED [{host}] {plain_name(result.task)}: {said}", C.COLOR_ERROR)

    @unless_verbose
    def v2_runner_on_unreachable(self, result: Any) -> None:
        """A host did not answer."""
        self._handle_warnings(result.result)
        with self._screen.lock:
            self._failed = True
            self._stages.result(result.host.get_name(), "unreachable")
            said = failure_text(result.result)
            self._say(f"UNREACHABLE [{result.host.get_name()}] {plain_name(result.task)}: {said}", C.COLOR_UNREACHABLE)

    @unless_verbose
    def v2_runner_on_skipped(self, result: Any) -> None:
        """A task did not concern a host."""
        self._handle_warnings(result.result)

    @unless_verbose
    def v2_runner_item_on_ok(self, result: Any) -> None:
        """One item of a loop; the loop's own result follows."""
        self._handle_warnings(result.result)

    @unless_verbose
    def v2_runner_item_on_failed(self, result: Any) -> None:
        """One item of a loop; the loop's own result names the reason."""
        self._handle_warnings(result.result)

    @unless_verbose
    def v2_runner_item_on_skipped(self, result: Any) -> None:
        """One item of a loop."""

    @unless_verbose
    def v2_runner_retry(self, result: Any) -> None:
        """A task is tried again."""
        left = result.result.get("retries", 0) - result.result.get("attempts", 0)
        with self._screen.lock:
            self._stages.progress(result.host.get_name(), f"{plain_name(result.task)}: trying again, {left} tries left")

    @unless_verbose
    def v2_runner_on_start(self, host: Any, task: Any) -> None:
        """Nothing is said of a start."""

    @unless_verbose
    def v2_runner_on_async_poll(self, result: Any) -> None:
        """The live line shows that it runs."""

    @unless_verbose
    def v2_runner_on_async_ok(self, result: Any) -> None:
        """The task's own result follows."""

    @unless_verbose
    def v2_runner_on_async_failed(self, result: Any) -> None:
        """The task's own result follows."""

    @unless_verbose
    def v2_playbook_on_include(self, included_file: Any) -> None:
        """What is included shows itself."""

    @unless_verbose
    def v2_playbook_on_notify(self, handler: Any, host: Any) -> None:
        """The handler shows itself."""

    @unless_verbose
    def v2_playbook_on_no_hosts_remaining(self) -> None:
        """Each host's reason has been printed."""

    @unless_verbose
    def v2_playbook_on_stats(self, stats: Any) -> None:
        """The end: totals, recap, the report's table."""
        self._ended.set()
        with self._screen.lock:
            self._task = None
            self._stages.end()
            self._screen.clear()
        DefaultCallback.v2_playbook_on_stats(self, stats)
        if self._failed:
            self._say("Every task and its result: run it again with -v")
        for text in self._held:
            self._say(text)


def step_name(task: Any) -> str:
    """The step of the play that a task belongs to: the outermost include, or the task itself."""
    top, above = task, getattr(task, "_parent", None)
    while above is not None:
        if isinstance(above, TaskInclude):
            top = above
        above = getattr(above, "_parent", None)
    return plain_name(top)


def plain_name(task: Any) -> str:
    """A task's name without the role's before it."""
    name: str = task.get_name().strip()
    role = getattr(task, "_role", None)
    return name.removeprefix(f"{role.get_name()} : ") if role is not None else name
