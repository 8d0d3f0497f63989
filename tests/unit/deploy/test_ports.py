"""Who holds a port: with real sockets, real processes, and a made-up /proc where only that can show it."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from longhaul.deploy.ports import PortHolder, ancestors_of, command_of, port_holder, port_is_free
from longhaul.errors import UserError

EVERYWHERE = "0.0.0.0"


@pytest.fixture
def listener() -> Iterator[socket.socket]:
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        server.listen()
        yield server


def port_of(server: socket.socket) -> int:
    return int(server.getsockname()[1])


def test_a_listener_is_seen_and_named(listener: socket.socket) -> None:
    port = port_of(listener)
    assert not port_is_free(port)
    assert not port_is_free(port, EVERYWHERE), "a listener on one address is in the way of all"
    holder = port_holder(port)
    assert holder is not None
    assert holder.pid == os.getpid()
    assert "pytest" in str(holder) or "python" in str(holder)
    listener.close()
    assert port_is_free(port)
    assert port_holder(port) is None


@pytest.mark.parametrize("address", ["127.0.0.1", EVERYWHERE])
def test_a_server_that_shares_its_port_is_in_the_way_too(address: str) -> None:
    """vLLM sets SO_REUSEPORT: a second server would start, and each would get half of the requests."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        server.bind((address, 0))
        server.listen()
        with socket.socket() as second:
            second.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
            second.bind((address, port_of(server)))
        assert not port_is_free(port_of(server))


def test_ipv6_listeners_count() -> None:
    with socket.socket(socket.AF_INET6) as server:
        try:
            server.bind(("::", 0))
        except OSError:
            pytest.skip("no IPv6 here")
        server.listen()
        assert not port_is_free(port_of(server))
        holder = port_holder(port_of(server))
        assert holder is not None
        assert holder.pid == os.getpid()


def test_a_connection_that_is_closing_is_not_in_the_way() -> None:
    """After a restart the old connections linger in TIME_WAIT."""
    server = socket.socket()
    # As uvicorn does.
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("127.0.0.1", 0))
    server.listen()
    port = port_of(server)
    client = socket.create_connection(("127.0.0.1", port))
    accepted, _ = server.accept()
    accepted.close()
    client.close()
    server.close()
    assert port_is_free(port)


def test_another_process_is_named_by_its_command_line() -> None:
    code = "import socket, sys; s = socket.socket(); s.bind(('127.0.0.1', 0)); s.listen(); print(s.getsockname()[1], flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, "marker-of-the-holder"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None
        holder = port_holder(int(child.stdout.readline()))
        assert holder is not None
        assert holder.pid == child.pid
        assert os.getpid() in ancestors_of(child.pid)
        child.communicate("")


def test_an_address_of_another_machine_is_not_called_held() -> None:
    # TEST-NET-1 (RFC 5737): never an address of a host.
    with pytest.raises(UserError, match="engine_host"):
        port_is_free(18080, "192.0.2.1")


def make_proc(root: Path, rows: list[tuple[int, str, str]]) -> Path:
    """A /proc with listening sockets (port, state, inode) and no readable process."""
    (root / "net").mkdir()
    lines = [
        f"   0: 0100007F:{port:04X} 00000000:0000 {state} 00000000:00000000 00:00000000 0 0 0 {inode} 1"
        for port, state, inode in rows
    ]
    (root / "net" / "tcp").write_text("  sl  local_address\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return root


def test_a_process_of_another_user_is_still_said_to_be_there(tmp_path: Path) -> None:
    proc = make_proc(tmp_path, [(8000, "0A", "77"), (9000, "01", "78")])
    assert str(port_holder(8000, proc)) == "a process of another user"
    assert port_holder(9000, proc) is None, "a connection is not a listener"


def test_long_command_lines_stay_on_one_line(tmp_path: Path) -> None:
    (tmp_path / "7").mkdir()
    (tmp_path / "7" / "cmdline").write_bytes(b"python\0-m\0vllm\0" + b"x" * 500)
    assert command_of(7, tmp_path).startswith("python -m vllm x")
    assert len(command_of(7, tmp_path)) == 120
    assert command_of(8, tmp_path) == "?"
    assert str(PortHolder(7, "python -m vllm")) == "pid 7 (python -m vllm)"
