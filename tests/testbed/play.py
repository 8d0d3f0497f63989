"""Run a playbook as an operator would, read its recap, or kill its controller in the middle."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

REPO = Path(__file__).resolve().parents[2]
# A folder for the output of every run, with what each task took: where the time goes.
PROFILE = os.environ.get("LONGHAUL_TESTBED_PROFILE", "")
_RECAP = re.compile(r"^(\S+)\s+:\s+(ok=\d+.*)$", re.MULTILINE)


@dataclass(frozen=True)
class Played:
    """What a run said: exit code, all of its output, and the recap's counts by host (``ok``, ``changed``, ``failed``, …)."""

    code: int
    text: str
    recap: Mapping[str, Mapping[str, int]]

    @property
    def changed(self) -> int:
        """Changed tasks over all hosts."""
        return sum(counts["changed"] for counts in self.recap.values())

    def changes(self) -> str:
        """The tasks that reported a change, for the message of a failed assertion."""
        task, found = "", []
        for line in self.text.splitlines():
            if line.startswith(("TASK [", "RUNNING HANDLER [")):
                task = line
            elif line.startswith("changed: "):
                found.append(f"{task} {line}")
        return "\n".join(found)


def command(playbook: str | Path, inventory: Path, *words: str) -> list[str]:
    """The command line of a run; ``playbook`` is relative to the repository's root."""
    return [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(inventory), str(REPO / playbook), *words]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """The caller's environment with the repository's ansible.cfg and nothing that would colour or page the output."""
    clean = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    profiled = {"ANSIBLE_CALLBACKS_ENABLED": "longhaul_summary,ansible.posix.profile_tasks"} if PROFILE else {}
    return {
        **clean,
        **profiled,
        "ANSIBLE_CONFIG": str(REPO / "ansible.cfg"),
        "ANSIBLE_NOCOLOR": "1",
        "PYTHONUNBUFFERED": "1",
        **(extra or {}),
    }


def read(code: int, text: str) -> Played:
    """Recap lines -> counts."""
    recap = {
        host: {name: int(value) for name, value in (pair.split("=") for pair in counts.split())}
        for host, counts in _RECAP.findall(text)
    }
    return Played(code, text, recap)


def play(
    playbook: str | Path,
    inventory: Path,
    *words: str,
    timeout_s: float = 900,
    env: Mapping[str, str] | None = None,
) -> Played:
    """Run to the end. Never raises for a failed run: the exit code is the caller's to judge."""
    with Running(playbook, inventory, *words, env=env) as run:
        return run.finish(timeout_s)


class Running:
    """A controller in the middle of a run. It has a session of its own, and so has each of its workers: Ansible detaches them."""

    def __init__(self, playbook: str | Path, inventory: Path, *words: str, env: Mapping[str, str] | None = None) -> None:
        self.child = subprocess.Popen(
            command(playbook, inventory, *words),
            cwd=REPO,
            env=environment(env),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._seen: list[str] = []
        self._what = f"{Path(playbook).stem} {' '.join(words)}"
        self._begun = time.monotonic()

    def __enter__(self) -> Running:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        if self.child.stdout:
            self.child.stdout.close()

    def until(self, text: str) -> bool:
        """Read output until a line holds ``text``; False when the run ended first."""
        assert self.child.stdout is not None
        for line in self.child.stdout:
            self._seen.append(line)
            if text in line:
                return True
        return False

    def finish(self, timeout_s: float = 900) -> Played:
        """Wait for the end."""
        try:
            rest, _ = self.child.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            self.kill()
            rest, _ = self.child.communicate()
            rest += f"\n(killed after {timeout_s:.0f} s)"
        said = "".join(self._seen) + rest
        if PROFILE:
            self._keep(said)
        return read(self.child.returncode, said)

    def _keep(self, said: str) -> None:
        folder = Path(PROFILE)
        folder.mkdir(parents=True, exist_ok=True)
        took = time.monotonic() - self._begun
        number = len(list(folder.glob("*.log")))
        header = f"{took:.1f} s  rc {self.child.returncode}  {os.environ.get('PYTEST_CURRENT_TEST', '')}  {self._what}\n"
        (folder / f"{number:03d}.log").write_text(header + said)

    def kill(self, number: int = signal.SIGKILL) -> None:
        """SIGKILL (or another signal) to the controller and all its workers, as when its machine goes away."""
        if self.child.poll() is None:
            # Stopped first: it must start no worker while we look for them.
            os.kill(self.child.pid, signal.SIGSTOP)
            for pid in (*descendants(self.child.pid), self.child.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, number)
                    os.kill(pid, signal.SIGCONT)
        self.child.wait()


def descendants(pid: int) -> list[int]:
    """Children of a process, their children, and so on."""
    parents: dict[int, list[int]] = {}
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            parents.setdefault(int(path.read_text().rpartition(")")[2].split()[1]), []).append(int(path.parent.name))
    found, new = [], [pid]
    while new:
        new = [child for parent in new for child in parents.get(parent, [])]
        found += new
    return found


def ansible(inventory: Path, pattern: str, *words: str, timeout_s: float = 300) -> subprocess.CompletedProcess[str]:
    """An ad-hoc ``ansible`` call: ``ansible(inventory, "all", "-m", "setup")``."""
    argv = [str(Path(sys.executable).parent / "ansible"), "-i", str(inventory), pattern, *words]
    return subprocess.run(
        argv,
        cwd=REPO,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=timeout_s,
        check=False,
    )
