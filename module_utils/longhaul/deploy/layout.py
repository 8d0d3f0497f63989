"""The paths of an endpoint on its host. One place, so that playbooks, modules and the command line agree.

``home`` is shared by all endpoints of a machine; the state of an endpoint lies in it directly when the instance is
called ``default`` and under ``instances/<name>`` otherwise.
"""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError

DEFAULT_INSTANCE = "default"
SYSTEM_HOME = Path("/opt/longhaul")
SYSTEM_FACTS = Path("/etc/ansible/facts.d")
# A Unix socket's path must fit sockaddr_un (108 bytes with the NUL on Linux).
SOCKET_PATH_MAX = 107


@dataclass(frozen=True)
class Layout:
    """Paths of one endpoint."""

    home: Path
    instance: str = DEFAULT_INSTANCE

    @property
    def state(self) -> Path:
        """The endpoint's own folder."""
        return self.home if self.instance == DEFAULT_INSTANCE else self.home / "instances" / self.instance

    @property
    def current_spec(self) -> Path:
        """What is deployed."""
        return self.state / "spec" / "current.json"

    @property
    def previous_spec(self) -> Path:
        """What was deployed before: where a rollback returns to."""
        return self.state / "spec" / "previous.json"

    @property
    def earlier_spec(self) -> Path:
        """What was deployed before the previous one. It becomes the previous one again when a roll to a third spec fails."""
        return self.state / "spec" / "earlier.json"

    @property
    def failed_spec(self) -> Path:
        """What was last rolled back."""
        return self.state / "spec" / "failed.json"

    @property
    def rolling_file(self) -> Path:
        """Names the spec that a roll began with and has not proven yet."""
        return self.state / "spec" / "rolling.json"

    @property
    def running_file(self) -> Path:
        """The spec_id that the running process was started with (process runtime; the launcher writes it)."""
        return self.state / "spec" / "running"

    def container_spec(self, spec_id: str) -> Path:
        """A container's own copy of its spec. It is never rewritten: a container that restarts runs what it ran before."""
        return self.state / "spec" / "containers" / f"{spec_id}.json"

    @property
    def log(self) -> Path:
        """The engine's log (process runtime)."""
        return self.state / "logs" / "engine.log"

    @property
    def results(self) -> Path:
        """Raw evidence of validation runs."""
        return self.state / "results"

    @property
    def supervisor(self) -> Path:
        """supervisord's folder: environment, configuration, socket, log."""
        return self.home / "supervisor"

    @property
    def supervisor_socket(self) -> Path:
        """supervisord's Unix socket."""
        return self.supervisor / "supervisor.sock"

    @property
    def launcher(self) -> Path:
        """The small program that reads the spec and becomes the engine."""
        return self.home / "bin" / "launch.py"

    @property
    def facts_dir(self) -> Path:
        """Ansible's local facts: the system's folder for root's default home, else inside the home."""
        if self.home == SYSTEM_HOME and os.geteuid() == 0:
            return SYSTEM_FACTS
        return self.home / "facts.d"

    @property
    def facts_name(self) -> str:
        """``ansible_local.<name>``."""
        return "longhaul" if self.instance == DEFAULT_INSTANCE else "longhaul_" + self.instance.replace("-", "_")

    @property
    def facts_file(self) -> Path:
        """The local fact file."""
        return self.facts_dir / f"{self.facts_name}.fact"

    @property
    def program(self) -> str:
        """The endpoint's name in supervisord and in Docker."""
        return f"longhaul-{self.instance}"


def layout(home: str, instance: str = DEFAULT_INSTANCE) -> Layout:
    """The layout of an endpoint. UserError for a relative home, a bad instance name, or a home too long for a socket."""
    if not home.startswith("/"):
        raise UserError(f"longhaul_home {home!r}", "an absolute path", "set longhaul_home, e.g. /opt/longhaul")
    if not re.fullmatch(r"[a-z0-9]([a-z0-9-]{0,38}[a-z0-9])?", instance):
        raise UserError(f"longhaul_instance {instance!r}", "1-40 of a-z, 0-9 and inner dashes", "rename longhaul_instance")
    built = Layout(Path(home), instance)
    if len(str(built.supervisor_socket).encode()) > SOCKET_PATH_MAX:
        raise UserError(
            f"longhaul_home of {len(home)} characters",
            f"a path that leaves room for a Unix socket ({SOCKET_PATH_MAX} bytes in all)",
            "choose a shorter longhaul_home",
        )
    return built
