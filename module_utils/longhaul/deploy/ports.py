"""Find out whether a TCP port is free, and who holds it. Reads /proc, as far as this user may."""

from __future__ import annotations

import contextlib
import errno
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError

LISTEN = "0A"


@dataclass(frozen=True)
class PortHolder:
    """Who listens: ``pid`` and ``command`` are ``None`` where the process belongs to another user."""

    pid: int | None
    command: str | None

    def __str__(self) -> str:
        if self.pid is None:
            return "a process of another user"
        return f"pid {self.pid} ({self.command})"


def port_is_free(port: int, host: str = "127.0.0.1") -> bool:
    """Whether nobody listens on the port. Binds without SO_REUSEPORT: two engines of one user would share a port silently with it.

    UserError where nobody holds it and yet this user cannot listen there: a foreign address, a privileged port.
    """
    # An engine on 0.0.0.0 collides with a listener on any address, and the other way round.
    for address in {host, "127.0.0.1"} if host != "0.0.0.0" else {"0.0.0.0"}:  # noqa: S104 - probing is the point
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((address, port))
                probe.listen(1)
            except OSError as exc:
                if exc.errno == errno.EADDRINUSE:
                    return False
                raise UserError(
                    f"port {port} on {address} cannot be listened on ({exc.strerror})",
                    "an address of this host and a port that this user may take",
                    "set engine_host to 127.0.0.1, 0.0.0.0 or an address of the host, and engine_port above 1023",
                ) from exc
    return True


def require_port_free(port: int, host: str) -> None:
    """UserError that names the holder where a port is taken."""
    if not port_is_free(port, host):
        raise port_taken(port, host, port_holder(port))


def port_taken(port: int, host: str, holder: PortHolder | None) -> UserError:
    """The error for a port that somebody else holds."""
    return UserError(
        f"port {port} on {host} is held by {holder or 'an unknown process'}",
        f"port {port} free",
        "stop that process, or set engine_port",
    )


def port_holder(port: int, proc: Path = Path("/proc")) -> PortHolder | None:
    """The process that listens on ``port``; ``None`` when nobody does."""
    inodes = set(_listening_inodes(port, proc))
    if not inodes:
        return None
    for entry in proc.iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            for link in (entry / "fd").iterdir():
                with contextlib.suppress(OSError):
                    target = str(link.readlink())
                    if target.startswith("socket:[") and target[8:-1] in inodes:
                        return PortHolder(int(entry.name), command_of(int(entry.name), proc))
    return PortHolder(None, None)


def command_of(pid: int, proc: Path = Path("/proc")) -> str:
    """A process's command line, shortened for one line of text."""
    try:
        words = (proc / str(pid) / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace").strip()
    except OSError:
        return "?"
    return words if len(words) <= 120 else words[:117] + "..."


def ancestors_of(pid: int, proc: Path = Path("/proc")) -> list[int]:
    """``pid`` and its parents, nearest first."""
    chain = []
    while pid > 1:
        chain.append(pid)
        try:
            stat = (proc / str(pid) / "stat").read_text()
        except OSError:
            break
        pid = int(stat.rsplit(")", 1)[1].split()[1])
    return chain


def _listening_inodes(port: int, proc: Path) -> Iterator[str]:
    for table in ("net/tcp", "net/tcp6"):
        with contextlib.suppress(OSError):
            for line in (proc / table).read_text().splitlines()[1:]:
                fields = line.split()
                if fields[3] == LISTEN and int(fields[1].rsplit(":", 1)[1], 16) == port:
                    yield fields[9]
