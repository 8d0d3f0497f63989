"""One connection to the server: an ``asyncio.Protocol`` that sends a body in slices and feeds the response to a sink."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import time
from collections.abc import Mapping, Sequence
from typing import Union, cast

from .exchange import StreamSink
from .http import HttpFormatError, ResponseReader, StreamFormatError

Buffer = Union[bytes, memoryview]  # noqa: UP007 - evaluated at run time, and 3.10 needs no future import here

_SLICE_BYTES = 64 * 1024  # what one transport.write may hold back in user space, and how long others wait for it
JOIN_BELOW_BYTES = 64 * 1024  # smaller bodies travel with the header in one segment


class HeadSink:
    """Keeps the status of an answer whose body does not matter, as that to CONNECT."""

    def __init__(self) -> None:
        self.status = 0

    def on_head(self, status: int, headers: Mapping[str, str]) -> None:
        self.status = status

    def on_body(self, data: bytes) -> None:
        pass

    def on_end(self) -> None:
        pass


class Connection(asyncio.Protocol):
    """Serves one exchange at a time: ``begin``, ``write``, await what ``begin`` returned, ``end``."""

    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.idle_since = 0.0
        self.lost = False
        self.last_activity = 0.0
        self._reader: ResponseReader | None = None
        self._sink: StreamSink | HeadSink | None = None
        self._finished: asyncio.Future[None] | None = None
        self._writable: asyncio.Future[None] | None = None
        self._paused = False

    # -- asyncio.Protocol

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)
        # pause_writing as soon as anything is held back in user space: the upload then waits for the kernel.
        # (Not 0: asyncio's TLS transport pauses at size >= high, and would never resume.)
        self.transport.set_write_buffer_limits(high=1, low=0)
        sock: socket.socket | None = transport.get_extra_info("socket")
        if sock is not None and sock.family in (socket.AF_INET, socket.AF_INET6):
            # A prefill is minutes of silence: keep-alive probes hold NAT and load-balancer entries open.
            with contextlib.suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
                for name, value in (("TCP_KEEPIDLE", 30), ("TCP_KEEPINTVL", 15), ("TCP_KEEPCNT", 8)):
                    if hasattr(socket, name):
                        sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)

    def data_received(self, data: bytes) -> None:
        reader = self._reader
        now = time.perf_counter()
        self.last_activity = now
        if reader is None:
            self.abort()  # bytes on an idle connection that nobody asked for
            return
        if isinstance(self._sink, StreamSink):
            self._sink.now = now
        try:
            reader.feed(data)
        except (HttpFormatError, StreamFormatError) as exc:
            self.fail(exc)
            return
        if reader.done:
            self._settle(None)

    def connection_lost(self, exc: Exception | None) -> None:
        self.lost = True
        if self._reader is not None and not self._reader.done:
            try:
                self._reader.closed()
            except (HttpFormatError, StreamFormatError) as error:
                lost_unanswered = exc is not None and not self._reader.started
                self._settle(HttpFormatError(f"connection lost before an answer ({exc})") if lost_unanswered else error)
            else:
                self._settle(None)
        self._wake_writer()

    def pause_writing(self) -> None:
        self._paused = True

    def resume_writing(self) -> None:
        self._paused = False
        self._wake_writer()

    # -- one exchange at a time

    def begin(self, sink: StreamSink | HeadSink, *, head_only: bool = False) -> asyncio.Future[None]:
        """Start an exchange. The future ends with the answer, or with what went wrong."""
        self._sink = sink
        self._reader = ResponseReader(sink, head_only=head_only)
        self._finished = asyncio.get_running_loop().create_future()
        self.last_activity = time.perf_counter()
        return self._finished

    def end(self) -> bool:
        """Leave the exchange. Return whether the connection may serve another one."""
        reusable = bool(self._reader and self._reader.done and self._reader.keep_alive and not self.lost)
        self._reader = self._sink = self._finished = None
        self.idle_since = time.perf_counter()
        return reusable and self.transport is not None and not self.transport.is_closing()

    @property
    def answered(self) -> bool:
        """Whether the server has begun to answer the current exchange."""
        return self._reader is not None and self._reader.started

    async def write(self, parts: Sequence[Buffer], size_bytes: int, stall_s: float) -> bool:
        """Hand all parts to the kernel. Return False where the server has answered or gone meanwhile."""
        transport = self.transport
        assert transport is not None  # noqa: S101 - set by connection_made before anyone holds the connection
        if size_bytes <= JOIN_BELOW_BYTES:
            transport.write(b"".join(parts))
        else:
            for part in parts:
                view = memoryview(part)
                for start in range(0, len(view), _SLICE_BYTES):
                    if self.lost or transport.is_closing() or self.answered:
                        return False
                    transport.write(view[start : start + _SLICE_BYTES])
                    if self._paused:
                        await self._drained(stall_s)
                    else:
                        await asyncio.sleep(0)  # other streams' tokens first
        while self._paused and not self.lost and not self.answered:
            await self._drained(stall_s)
        return not self._paused

    async def _drained(self, stall_s: float) -> None:
        if not self._paused or self.lost or self.answered:
            return
        self._writable = asyncio.get_running_loop().create_future()
        try:
            await asyncio.wait_for(self._writable, stall_s)
        finally:
            self._writable = None

    def abort(self) -> None:
        """Close at once."""
        if self.transport is not None:
            self.transport.abort()

    def _wake_writer(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def fail(self, exc: Exception) -> None:
        """End the exchange with ``exc`` and close the connection."""
        self._settle(exc)
        self.abort()

    def _settle(self, exc: Exception | None) -> None:
        self._wake_writer()
        if self._finished is not None and not self._finished.done():
            if exc is None:
                self._finished.set_result(None)
            else:
                self._finished.set_exception(exc)
