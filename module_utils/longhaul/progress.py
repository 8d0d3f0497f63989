"""Progress lines from a long task to whoever watches: one JSON object a line, flushed at once.

On a host the Ansible module writes the file, on the controller the action plugin follows it; a line is
``{"t": unix seconds, "text": ...}`` and the last one has ``"done": true``.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

Say = Callable[[str], None]


class ProgressWriter:
    """Append progress to ``path``; with ``None`` every call is a no-op. Never raises: progress must not stop work."""

    def __init__(self, path: str | None) -> None:
        self._path = Path(path) if path else None

    def say(self, text: str) -> None:
        """One line for a person."""
        self._write({"t": time.time(), "text": text})

    def done(self) -> None:
        """Tell the follower that the task's result is about to be there."""
        self._write({"t": time.time(), "done": True})

    def _write(self, event: dict[str, object]) -> None:
        if self._path is None:
            return
        try:
            with self._path.open("a", encoding="utf-8") as out:
                out.write(json.dumps(event) + "\n")
        except OSError:
            self._path = None


def parse_progress(chunk: str) -> tuple[list[str], bool, int]:
    """Read complete lines of ``chunk``: (texts, done?, characters consumed). A half-written last line is left for later."""
    texts: list[str] = []
    done = False
    consumed = 0
    # Newlines only: splitlines() also breaks at characters that a line may hold.
    for line in chunk.split("\n")[:-1]:
        consumed += len(line) + 1
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if not isinstance(event, dict):
            continue
        if event.get("done"):
            done = True
        elif event.get("text"):
            texts.append(str(event["text"]))
    return texts, done, consumed


def failure_text(result: Mapping[str, Any]) -> str:
    """Why an Ansible task failed, in one line: its message, or those of a loop's items; a command's last words after them."""
    # A loop's own message only says that an item failed, that of the facts only which module: those inside know why.
    inner = [*(result.get("results") or []), *(result.get("failed_modules") or {}).values()]
    failed = [part for part in inner if isinstance(part, Mapping) and part.get("failed")]
    return "; ".join(dict.fromkeys(_said(part) for part in failed or [result]))


def _said(result: Mapping[str, Any]) -> str:
    message = " ".join(str(result.get("msg") or result.get("censored") or "no message").split())
    message = message.removeprefix("Task failed: ")
    # A command's message is its exit status, a broken module's that it broke; what they printed says more.
    printed = [str(result.get(f"{of}std{stream}") or "") for of in ("module_", "") for stream in ("err", "out")]
    lines = [line.strip() for line in next((text for text in printed if text.strip()), "").split("\n") if line.strip()]
    if not result.get("rc") or not lines:
        return message
    telling = [line for line in lines if re.search(r"error|not found|denied|no such", line, re.IGNORECASE)] or lines
    return message if telling[-1] in message else f"{message}: {telling[-1]}"
