"""HTTP over a Unix socket: how Docker's daemon and supervisord are spoken to."""

from __future__ import annotations

import http.client
import socket


class UnixHttpConnection(http.client.HTTPConnection):
    """A connection to the HTTP server that listens on the socket file ``path``."""

    def __init__(self, path: str, timeout_s: float) -> None:
        super().__init__("localhost", timeout=timeout_s)
        self._path = path

    def connect(self) -> None:
        """Open the socket. OSError where nobody listens; nothing stays open then."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        try:
            self.sock.connect(self._path)
        except OSError:
            self.sock.close()
            raise
