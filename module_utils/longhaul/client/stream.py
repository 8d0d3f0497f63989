"""Streamed requests with every timestamp, over a pool of connections: our own small client on ``asyncio``.

Why not httpx, which makes the control calls: hundreds of streams in flight must not make the client the bottleneck, and a
prompt of 15 MB must not be copied once per layer (``benchmarks/client_accuracy.py`` compares). A request body is a tuple of
buffers. :mod:`.connection` writes them in slices, :mod:`.http` parses the answer as it arrives, :mod:`.exchange` keeps the
instants.

All instants are ``time.perf_counter`` seconds. Proxy variables of the environment are not read: a proxy between the
client and a server under test would be measured too. Name one with ``proxy`` to go through it.
"""

from __future__ import annotations

import asyncio
import ssl
import time
from collections.abc import Mapping, Sequence

from ..results import RequestStatus
from .connection import JOIN_BELOW_BYTES, Buffer, Connection, HeadSink
from .endpoint import Endpoint, connect_words, fixed_headers, tls_context
from .exchange import EventParser, Exchange, StreamSink, Timeouts
from .http import HttpFormatError, StreamFormatError

_IDLE_REUSE_S = 2.0  # uvicorn closes idle connections after 5 s: never race it


class StreamClient:
    """A pool of keep-alive connections to one endpoint. Use inside one running event loop.

    ``headers`` go with every request (``{"Authorization": "Bearer ..."}``). ``proxy`` is an explicit
    ``http://host:port``: absolute-form requests for http, CONNECT for https.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        api_key: str | None = None,
        headers: Mapping[str, str] | None = None,
        tls: ssl.SSLContext | None = None,
        proxy: str | None = None,
    ) -> None:
        self.endpoint = endpoint
        self._proxy = Endpoint.parse(proxy) if proxy else None
        self._tls = (tls or tls_context()) if endpoint.scheme == "https" else None
        self._fixed = "".join(f"{name}: {value}\r\n" for name, value in fixed_headers(api_key, headers).items())
        self._prefix = endpoint.url if self._proxy and endpoint.scheme == "http" else endpoint.base_path
        self._idle: list[Connection] = []
        self._all: set[Connection] = set()

    async def __aenter__(self) -> StreamClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close every connection of the pool."""
        for connection in list(self._all):
            connection.abort()
        self._all.clear()
        self._idle.clear()
        await asyncio.sleep(0)  # let connection_lost run

    def _head(self, path: str, body_bytes: int) -> bytes:
        return (
            f"POST {self._prefix}{path} HTTP/1.1\r\nHost: {self.endpoint.authority}\r\nUser-Agent: longhaul\r\n"
            f"Accept: text/event-stream\r\nAccept-Encoding: identity\r\n{self._fixed}"
            f"Content-Type: application/json\r\nContent-Length: {body_bytes}\r\n\r\n"
        ).encode("latin-1")

    async def open_connections(self, count: int, timeout_s: float = 10.0) -> int:
        """Connect ahead of a burst, so that no handshake falls into a measurement. Return how many connections are ready."""
        self._drop_stale()
        missing = count - len(self._idle)
        for begin in range(0, missing, 64):  # stay below a listen backlog of 128
            batch = [self._connect(timeout_s) for _ in range(min(64, missing - begin))]
            made = await asyncio.gather(*batch, return_exceptions=True)
            for connection in made:
                if isinstance(connection, Connection):
                    connection.idle_since = time.perf_counter()
                    self._idle.append(connection)
                elif not isinstance(connection, (OSError, asyncio.TimeoutError)):
                    raise connection
        return len(self._idle)

    async def stream(self, path: str, parts: Sequence[Buffer], parser: EventParser, timeouts: Timeouts) -> Exchange:
        """Send one request and return all its instants. Server, network and format errors become the Exchange's status."""
        size = sum(len(part) for part in parts)
        exchange = Exchange(body_bytes=size)
        for attempt in (1, 2):
            if await self._attempt(exchange, path, parts, parser=parser, timeouts=timeouts, fresh=attempt == 2):
                break
        return exchange

    async def _attempt(
        self, exchange: Exchange, path: str, parts: Sequence[Buffer], *, parser: EventParser, timeouts: Timeouts, fresh: bool
    ) -> bool:
        """Try once. Return False where the server had closed a reused connection before it took the request."""
        begun = time.perf_counter()
        try:
            connection, reused, connect_s = await self._acquire(timeouts.connect_s, fresh=fresh)
        except (OSError, asyncio.TimeoutError, HttpFormatError) as exc:
            exchange.status = RequestStatus.CONNECT_ERROR
            before = f"{exchange.error}; then " if exchange.error else ""
            exchange.error = f"{before}cannot connect to {self.endpoint.url}: {connect_words(exc)}"
            exchange.connect_s = time.perf_counter() - begun
            return True
        exchange.connect_s = connect_s
        sink = StreamSink(exchange, parser)
        finished = connection.begin(sink)
        head = self._head(path, exchange.body_bytes)
        exchange.sent_at = time.perf_counter()
        watchdog = _Watchdog(connection, exchange, timeouts)
        try:
            whole = await connection.write((head, *parts), exchange.body_bytes + len(head), timeouts.upload_stall_s)
            if whole:
                exchange.uploaded_at = time.perf_counter()
            await finished
        except asyncio.TimeoutError:
            text = f"the server took no byte of the body for {timeouts.upload_stall_s:.0f} s"
            self._stop(exchange, connection, RequestStatus.TIMEOUT, text)
        except (HttpFormatError, StreamFormatError, OSError) as exc:
            dead_on_reuse = reused and not fresh and not connection.answered and watchdog.reason is None
            if dead_on_reuse and time.perf_counter() - exchange.sent_at < 1.0:
                watchdog.cancel()
                self._discard(connection)
                exchange.error = str(exc)
                return False
            status, text = watchdog.reason or (RequestStatus.STREAM_ERROR, _stream_words(exc, exchange))
            self._stop(exchange, connection, status, text)
        except BaseException:
            watchdog.cancel()
            self._discard(connection)
            raise
        else:
            if exchange.status is RequestStatus.OK:
                exchange.error = None
            # A connection whose body was not taken whole cannot serve another request.
            if whole and connection.end():
                self._idle.append(connection)
            else:
                self._discard(connection)
        watchdog.cancel()
        return True

    def _stop(self, exchange: Exchange, connection: Connection, status: RequestStatus, text: str) -> None:
        exchange.status, exchange.error = status, text
        self._discard(connection)

    def _drop_stale(self) -> None:
        oldest = time.perf_counter() - _IDLE_REUSE_S
        stale = {connection for connection in self._idle if connection.lost or connection.idle_since < oldest}
        self._idle = [connection for connection in self._idle if connection not in stale]
        for connection in stale:
            connection.abort()
            self._all.discard(connection)

    async def _acquire(self, timeout_s: float | None, *, fresh: bool = False) -> tuple[Connection, bool, float]:
        if not fresh:
            self._drop_stale()
            if self._idle:
                return self._idle.pop(), True, 0.0
        begun = time.perf_counter()
        connection = await self._connect(timeout_s or 10.0)
        return connection, False, time.perf_counter() - begun

    def _discard(self, connection: Connection) -> None:
        connection.end()
        connection.abort()
        self._all.discard(connection)

    async def _connect(self, timeout_s: float) -> Connection:
        loop = asyncio.get_running_loop()
        via = self._proxy or self.endpoint
        tunnel = self._proxy is not None and self._tls is not None
        first_tls = None if tunnel else self._tls
        name = self.endpoint.host if first_tls else None
        made = loop.create_connection(Connection, via.host, via.port, ssl=first_tls, server_hostname=name)
        _, connection = await asyncio.wait_for(made, timeout_s)
        if tunnel:
            await asyncio.wait_for(self._tunnel(connection), timeout_s)
        self._all.add(connection)
        return connection

    async def _tunnel(self, connection: Connection) -> None:
        """Open a tunnel through the proxy with CONNECT, then start TLS to the server inside it."""
        target = f"{self.endpoint.host}:{self.endpoint.port}"
        sink = HeadSink()
        finished = connection.begin(sink, head_only=True)
        await connection.write((f"CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n".encode("latin-1"),), 0, 10.0)
        await finished
        connection.end()
        if sink.status != 200:
            connection.abort()
            raise HttpFormatError(f"the proxy refused CONNECT {target} with status {sink.status}")
        loop = asyncio.get_running_loop()
        assert connection.transport is not None  # noqa: S101 - just connected
        assert self._tls is not None  # noqa: S101 - only https is tunnelled
        transport = await loop.start_tls(connection.transport, connection, self._tls, server_hostname=self.endpoint.host)
        if transport is None:
            raise HttpFormatError("TLS through the proxy failed")
        connection.connection_made(transport)


class _Watchdog:
    """Ends an exchange at its time-out. One timer, set again when it fires instead of at each token."""

    def __init__(self, connection: Connection, exchange: Exchange, timeouts: Timeouts) -> None:
        self.reason: tuple[RequestStatus, str] | None = None
        self._connection = connection
        self._exchange = exchange
        self._timeouts = timeouts
        self._loop = asyncio.get_running_loop()
        self._handle: asyncio.TimerHandle | None = None
        self._arm()

    def cancel(self) -> None:
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _deadline(self) -> tuple[float, str] | None:
        sent = self._exchange.sent_at or time.perf_counter()
        limits = self._timeouts
        tokens = len(self._exchange.token_times)
        choices: list[tuple[float, str]] = []
        if limits.total_s is not None:
            choices.append((sent + limits.total_s, f"not finished {limits.total_s:.0f} s after the send ({tokens} token events)"))
        if not tokens and limits.first_token_s is not None:
            choices.append((sent + limits.first_token_s, f"no token within {limits.first_token_s:.0f} s of the send"))
        if tokens and limits.stall_s is not None:
            text = f"the stream stalled: nothing for {limits.stall_s:.1f} s after {tokens} token events"
            choices.append((self._connection.last_activity + limits.stall_s, text))
        return min(choices) if choices else None

    def _arm(self) -> None:
        deadline = self._deadline()
        limits = self._timeouts
        waits = [] if deadline is None else [deadline[0] - time.perf_counter()]
        if limits.stall_s is not None:
            waits.append(max(limits.stall_s, 0.01))  # the first token may come meanwhile
        if waits:
            self._handle = self._loop.call_later(max(min(waits), 0.001), self._fire)

    def _fire(self) -> None:
        self._handle = None
        deadline = self._deadline()
        if deadline is not None and time.perf_counter() >= deadline[0]:
            self.reason = (RequestStatus.TIMEOUT, deadline[1])
            self._connection.fail(HttpFormatError(deadline[1]))
            return
        self._arm()


def _stream_words(exc: Exception, exchange: Exchange) -> str:
    text = str(exc) or type(exc).__name__
    if exchange.uploaded_at is None and exchange.http_status is None and exchange.body_bytes > JOIN_BELOW_BYTES:
        size = f"{exchange.body_bytes / 1e6:.1f} MB"
        return f"{text} while the body of {size} was being uploaded (a body limit that closes instead of saying 413?)"
    if exchange.token_times and "token" not in text:
        return f"{text}, after {len(exchange.token_times)} token events"
    return text
