"""One HTTP/1.1 exchange with every timestamp: our own small client on ``asyncio.Protocol``.

Why not a library: hundreds of streams in flight must not make the client the bottleneck, and a 15 MB prompt must not
be copied once per layer (``benchmarks/client_accuracy.py`` compares). A request body is a tuple of buffers
that are written in slices, waiting for the kernel in between; the answer is parsed as it arrives, by a strict HTTP/1.1
and server-sent-events reader. Bytes are the only input, so everything but the socket is testable without one.

All instants are ``time.perf_counter`` seconds. Proxy variables of the environment are not read: a proxy between the
client and a server under test would be measured too. Name one with ``proxy`` to go through it.
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import json
import socket
import ssl
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, Union, cast
from urllib.parse import urlsplit

from ..engines.base import StreamEvent, Usage
from ..errors import UserError
from ..results import RequestStatus

Buffer = Union[bytes, memoryview]  # noqa: UP007 - evaluated at run time, and 3.10 needs no future import here

_SLICE_BYTES = 64 * 1024  # what one transport.write may hold back in user space, and how long others wait for it
_JOIN_BELOW_BYTES = 64 * 1024  # smaller bodies travel with the header in one segment
_MAX_HEADER_BYTES = 64 * 1024
_MAX_ERROR_BODY_BYTES = 256 * 1024
_MAX_EVENT_BYTES = 64 * 1024 * 1024  # SGLang repeats the whole text in each event: generous, but not without end
_IDLE_REUSE_S = 2.0  # uvicorn closes idle connections after 5 s: never race it


class HttpFormatError(Exception):
    """The peer does not speak HTTP/1.1, or not the part of it that a streaming engine needs."""


class StreamFormatError(Exception):
    """The body is not a stream of server-sent events with JSON in them."""


class EventParser(Protocol):
    """The part of an engine adapter that the client needs."""

    def parse_event(self, event: Mapping[str, Any], text_so_far: str) -> StreamEvent:
        """One decoded SSE payload -> StreamEvent."""
        ...

    def error_message(self, status: int, body: bytes) -> str:
        """The server's own words in an HTTP error body."""
        ...


@dataclass(frozen=True)
class Endpoint:
    """Where the server is. ``base_path`` has no trailing slash (``/api`` behind a gateway, else empty)."""

    scheme: str
    host: str
    port: int
    base_path: str = ""

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        """``http://host:port/prefix`` -> Endpoint; a trailing ``/v1`` is dropped, because paths carry it."""
        parts = urlsplit(url if "://" in url else f"http://{url}")
        try:
            port = parts.port
        except ValueError:
            port = -1
        if parts.scheme not in ("http", "https") or not parts.hostname or port == -1:
            raise UserError(f"url {url!r}", "http://HOST:PORT or https://HOST[:PORT]", "set --url to the server's address")
        if parts.username or parts.password or parts.query or parts.fragment:
            raise UserError("a url with user, query or fragment", "a bare address", "pass the key with --api-key-file")
        path = parts.path.rstrip("/")
        path = path[: -len("/v1")] if path.endswith("/v1") else path
        return cls(parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80), path)

    @property
    def authority(self) -> str:
        """``host[:port]`` for the Host header; IPv6 in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The address as text."""
        return f"{self.scheme}://{self.authority}{self.base_path}"


# --------------------------------------------------------------------------- bytes in: HTTP/1.1


class _Sink(Protocol):
    def on_head(self, status: int, headers: Mapping[str, str]) -> None: ...

    def on_body(self, data: bytes) -> None: ...

    def on_end(self) -> None: ...


class ResponseReader:
    """Incremental HTTP/1.1 response reader: feed bytes, get ``on_head``, ``on_body`` and ``on_end`` calls.

    Strict where leniency would hide a truncated answer: a body that ends before its declared length, a bad chunk
    header or trailing bytes after the end raise HttpFormatError.
    """

    def __init__(self, sink: _Sink, *, head_only: bool = False) -> None:
        self._sink = sink
        self._head_only = head_only
        self._buffer = b""
        self._state = "head"
        self._left = 0
        self.keep_alive = False
        self.started = False
        self.done = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes off the wire."""
        self.started = True
        buffer = self._buffer + data if self._buffer else data
        position = 0
        while True:
            if self._state == "head":
                end = buffer.find(b"\r\n\r\n", position)
                if end < 0:
                    if len(buffer) - position > _MAX_HEADER_BYTES:
                        raise HttpFormatError(f"no end of the response header within {_MAX_HEADER_BYTES} bytes")
                    if not b"HTTP/1.".startswith(buffer[position : position + 7]):
                        raise HttpFormatError(f"not an HTTP/1.1 response: {buffer[position : position + 60]!r}")
                    break
                head = buffer[position:end]
                position = end + 4
                self._head(head)
            elif self._state == "size":
                end = buffer.find(b"\r\n", position)
                if end < 0:
                    if len(buffer) - position > 256:
                        raise HttpFormatError("chunk header without an end")
                    break
                text = buffer[position:end].split(b";", 1)[0].strip()
                if not text or text.strip(b"0123456789abcdefABCDEF"):
                    raise HttpFormatError(f"bad chunk size {text[:40]!r}")
                self._left = int(text, 16)
                position = end + 2
                self._state = "chunk" if self._left else "trailer"
            elif self._state == "chunk":
                if len(buffer) - position < self._left + 2:
                    # Hand on what is there: a token must not wait for the rest of a large chunk.
                    take = min(self._left, len(buffer) - position)
                    if take:
                        self._sink.on_body(buffer[position : position + take])
                        position += take
                        self._left -= take
                    break
                end = position + self._left
                if buffer[end : end + 2] != b"\r\n":
                    raise HttpFormatError("chunk longer than its declared size")
                if self._left:
                    self._sink.on_body(buffer[position:end])
                position = end + 2
                self._state = "size"
            elif self._state == "trailer":
                end = buffer.find(b"\r\n", position)
                if end < 0:
                    break
                line_is_empty = end == position
                position = end + 2
                if line_is_empty:
                    self._finish()
            elif self._state == "length":
                take = min(self._left, len(buffer) - position)
                if take:
                    self._sink.on_body(buffer[position : position + take])
                    position += take
                    self._left -= take
                if self._left:
                    break
                self._finish()
            elif self._state == "close":
                if position < len(buffer):
                    self._sink.on_body(buffer[position:])
                    position = len(buffer)
                break
            else:
                if position < len(buffer):
                    self.keep_alive = False  # bytes nobody asked for: never reuse this connection
                    position = len(buffer)
                break
        self._buffer = buffer[position:]

    def closed(self) -> None:
        """The peer closed its side. Only a body without a declared length may end so."""
        if self.done:
            return
        if self._state == "close":
            self.keep_alive = False
            self._finish()
            return
        if not self.started:
            raise HttpFormatError("the server closed the connection without an answer")
        raise HttpFormatError("the server closed the connection in mid-answer")

    def _finish(self) -> None:
        self._state = "done"
        self.done = True
        self._sink.on_end()

    def _head(self, head: bytes) -> None:
        lines = head.decode("latin-1").split("\r\n")
        words = lines[0].split(" ", 2)
        if len(words) < 2 or words[0] not in ("HTTP/1.1", "HTTP/1.0") or len(words[1]) != 3 or not _is_number(words[1]):
            raise HttpFormatError(f"not an HTTP/1.1 status line: {lines[0][:80]!r}")
        status = int(words[1])
        headers: dict[str, str] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip():
                raise HttpFormatError(f"bad header line {line[:80]!r}")
            key = name.lower()
            if key == "content-length" and headers.get(key, value.strip()) != value.strip():
                raise HttpFormatError("two different Content-Length headers")
            headers[key] = value.strip()
        if 100 <= status < 200:
            return  # interim (100 Continue, 103 Early Hints): the real head follows
        connection = headers.get("connection", "").lower()
        self.keep_alive = "close" not in connection and (words[0] == "HTTP/1.1" or "keep-alive" in connection)
        coding = headers.get("transfer-encoding", "").lower()
        length = headers.get("content-length")
        if headers.get("content-encoding", "identity").lower() not in ("", "identity"):
            raise HttpFormatError(f"content-encoding {headers['content-encoding']} was not asked for (a proxy compresses)")
        self._sink.on_head(status, headers)
        if self._head_only or status in (204, 304):
            self._finish()
        elif coding:
            if coding != "chunked":
                raise HttpFormatError(f"transfer-encoding {coding!r} is not supported")
            self._state = "size"
        elif length is not None:
            if not _is_number(length):
                raise HttpFormatError(f"bad Content-Length {length[:40]!r}")
            self._left = int(length)
            self._state = "length"
        else:
            self._state = "close"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()  # a superscript two is a digit to isdigit alone


class SseReader:
    """Incremental reader of server-sent events: bytes in, complete ``data`` payloads out.

    Takes LF, CRLF and CR line ends, comments and fields other than ``data`` (ignored), and events over several
    ``data`` lines, as the HTML standard's event-stream format has them.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    @property
    def pending(self) -> bool:
        """True where an event has begun and not ended: at the end of a stream, a truncated one."""
        return bool(self._rest.strip() or self._data)

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads completed by these bytes, in order."""
        fresh = not self._rest and not self._data
        if fresh and data[:6] == b"data: " and data[-2:] == b"\n\n" and data.count(b"\n") == 2 and b"\r" not in data:
            return [data[6:-2]]  # the shape both engines send, one event in one segment
        buffer = self._rest + data if self._rest else data
        if b"\r" in buffer:
            held = buffer.endswith(b"\r")  # may be the first half of CRLF
            body = buffer[:-1] if held else buffer
            buffer = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n") + (b"\r" if held else b"")
        lines = buffer.split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > _MAX_EVENT_BYTES:
            raise StreamFormatError(f"a line of over {_MAX_EVENT_BYTES} bytes in the event stream")
        out: list[bytes] = []
        for line in lines:
            if not line:
                if self._data:
                    out.append(b"\n".join(self._data))
                    self._data = []
            elif line[:5] == b"data:":
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif line[:1] != b":" and line.partition(b":")[0] not in (b"event", b"id", b"retry"):
                raise StreamFormatError(f"not a server-sent event: {line[:80]!r}")
        return out


# --------------------------------------------------------------------------- what an exchange leaves behind


@dataclass(frozen=True)
class Reply:
    """A whole (not streamed) answer of a control call."""

    status: int
    headers: Mapping[str, str]
    body: bytes
    elapsed_s: float

    def json(self) -> Any:
        """The decoded body, or ``None`` where it is no JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


@dataclass
class Exchange:
    """One streamed request as it happened. Instants are perf_counter seconds; ``None`` = never reached.

    ``sent_at``: the first byte of the request left. ``uploaded_at``: the last byte was handed to the kernel.
    ``token_times``: arrival of each event that carried at least one token.
    """

    body_bytes: int = 0
    status: RequestStatus = RequestStatus.CONNECT_ERROR
    http_status: int | None = None
    error: str | None = None
    connect_s: float | None = None
    sent_at: float | None = None
    uploaded_at: float | None = None
    headers_at: float | None = None
    ended_at: float | None = None
    token_times: list[float] = field(default_factory=list)
    text: str = ""
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: str | None = None

    @property
    def upload_s(self) -> float | None:
        """Seconds from the first to the last byte of the request."""
        return None if self.sent_at is None or self.uploaded_at is None else self.uploaded_at - self.sent_at

    @property
    def ttft_s(self) -> float | None:
        """Seconds from the first byte of the request leaving to the first token."""
        return None if self.sent_at is None or not self.token_times else self.token_times[0] - self.sent_at

    @property
    def e2e_s(self) -> float | None:
        """Seconds from the first byte of the request leaving to the last token."""
        return None if self.sent_at is None or not self.token_times else self.token_times[-1] - self.sent_at

    @property
    def tpot_s(self) -> float | None:
        """(E2E - TTFT) / (output tokens - 1), by the server's own token count where it gives one."""
        tokens = self.completion_tokens or len(self.token_times)
        if len(self.token_times) < 2 or tokens < 2:
            return None
        return (self.token_times[-1] - self.token_times[0]) / (tokens - 1)

    @property
    def itl_s(self) -> tuple[float, ...]:
        """Every gap between token events."""
        times = self.token_times
        return tuple(b - a for a, b in itertools.pairwise(times))


@dataclass(frozen=True)
class Timeouts:
    """Derived from a forecast by the caller, never constants here. Seconds; ``None`` = wait for ever.

    ``first_token_s`` counts from the send, ``stall_s`` from the last byte received after the first token, ``total_s``
    from the send, ``connect_s`` from the start of the connection, ``upload_stall_s`` without a byte taken by the peer.
    """

    connect_s: float = 10.0
    first_token_s: float | None = None
    stall_s: float | None = None
    total_s: float | None = None
    upload_stall_s: float = 60.0


# --------------------------------------------------------------------------- sinks


class _Collector:
    """Gathers a whole body, up to a limit (a metrics page is 100 KB; 64 MiB is a broken server)."""

    def __init__(self, limit_bytes: int = 64 * 1024 * 1024) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.chunks: list[bytes] = []
        self._size = 0
        self._limit = limit_bytes

    def on_head(self, status: int, headers: Mapping[str, str]) -> None:
        self.status, self.headers = status, headers

    def on_body(self, data: bytes) -> None:
        self._size += len(data)
        if self._size > self._limit:
            raise HttpFormatError(f"an answer of over {self._limit} bytes")
        self.chunks.append(data)

    def on_end(self) -> None:
        pass


class _StreamSink:
    """Turns a response into the fields of an Exchange."""

    def __init__(self, exchange: Exchange, parser: EventParser) -> None:
        self.exchange = exchange
        self.parser = parser
        self.now = 0.0  # set by the connection for each segment: one clock reading for all events in it
        self.saw_done = False
        self._sse: SseReader | None = None
        self._error_body: list[bytes] = []
        self._error_size = 0
        self._headers: Mapping[str, str] = {}

    def on_head(self, status: int, headers: Mapping[str, str]) -> None:
        exchange = self.exchange
        exchange.http_status, exchange.headers_at, self._headers = status, self.now, headers
        if 200 <= status < 300:
            kind = headers.get("content-type", "").split(";")[0].strip().lower()
            if kind not in ("text/event-stream", ""):
                raise StreamFormatError(f"status {status} with content-type {kind}, not text/event-stream: no streamed answer")
            self._sse = SseReader()

    def on_body(self, data: bytes) -> None:
        if self._sse is None:
            if self._error_size < _MAX_ERROR_BODY_BYTES:
                self._error_body.append(data)
                self._error_size += len(data)
            return
        for payload in self._sse.feed(data):
            self._payload(payload)

    def _payload(self, payload: bytes) -> None:
        if payload == b"[DONE]":
            self.saw_done = True
            return
        try:
            event = json.loads(payload)
        except ValueError:
            raise StreamFormatError(f"an event that is no JSON: {payload[:120]!r}") from None
        if not isinstance(event, dict):
            raise StreamFormatError(f"an event that is no JSON object: {payload[:120]!r}")
        exchange = self.exchange
        try:
            parsed = self.parser.parse_event(event, exchange.text)
        except (KeyError, TypeError, ValueError, AttributeError, IndexError) as exc:
            raise StreamFormatError(f"an event of unknown shape ({exc!r}): {payload[:120]!r}") from None
        if parsed.error is not None:
            raise StreamFormatError(f"the server reported an error in mid-stream: {parsed.error[:400]}")
        if parsed.text or _carries_token(event, parsed.usage, exchange.completion_tokens):
            exchange.token_times.append(self.now)
        if parsed.text:
            exchange.text += parsed.text
        if parsed.usage is not None:
            usage = parsed.usage
            if usage.prompt_tokens is not None:
                exchange.prompt_tokens = usage.prompt_tokens
            if usage.completion_tokens is not None:
                exchange.completion_tokens = usage.completion_tokens
            if usage.cached_tokens is not None:
                exchange.cached_tokens = usage.cached_tokens
        if parsed.finish_reason is not None:
            exchange.finish_reason = parsed.finish_reason

    def on_end(self) -> None:
        exchange = self.exchange
        if self._sse is None:
            body = b"".join(self._error_body)
            exchange.status = RequestStatus.HTTP_ERROR
            exchange.error = explain_http_error(
                self.parser, exchange.http_status or 0, self._headers, body, body_bytes=exchange.body_bytes
            )
        elif self._sse.pending:
            raise StreamFormatError("the stream ended in the middle of an event")
        elif not self.saw_done and exchange.finish_reason is None:
            raise StreamFormatError(f"the stream ended early, after {len(exchange.token_times)} token events, without a finish")
        elif not exchange.token_times:
            raise StreamFormatError("the stream ended without a single token")
        else:
            exchange.status = RequestStatus.OK


def _carries_token(event: Mapping[str, Any], usage: Usage | None, completion_before: int | None) -> bool:
    """Whether an event without visible text stands for a token all the same.

    A random-weights model emits tokens that decode to nothing, and half a character decodes to nothing too. vLLM's and
    SGLang's completion chunks have a ``choices`` entry with ``text``; a chat stream opens with a role-only delta that is
    no token; SGLang's /generate events count completion tokens up.
    """
    choices = event.get("choices")
    if choices:
        choice = choices[0]
        if "text" in choice:
            return choice["text"] is not None and not (choice["text"] == "" and choice.get("finish_reason") and usage is not None)
        delta = choice.get("delta") or {}
        if "role" in delta and not delta.get("content"):
            return False
        return bool(delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning"))
    if "meta_info" in event and usage is not None and usage.completion_tokens is not None:
        return usage.completion_tokens > (completion_before or 0)
    return False


def explain_http_error(parser: EventParser, status: int, headers: Mapping[str, str], body: bytes, *, body_bytes: int = 0) -> str:
    """An HTTP error in one line: the server's own words, and what stands behind the status where that is known."""
    said = " ".join(parser.error_message(status, body).split())[:600]
    server = headers.get("server", "")
    by = f" (answered by {server})" if server and server != "uvicorn" else ""
    if 300 <= status < 400:
        return f"HTTP {status}{by}: redirected to {headers.get('location', '?')}; set the url to that address"
    if status == 413:
        return (
            f"HTTP 413{by}: a request body of {body_bytes / 1e6:.1f} MB is over a limit between here and the engine "
            f"(a proxy such as nginx: client_max_body_size; vLLM's Rust frontend: VLLM_HTTP_MAX_REQUEST_BODY_SIZE); "
            f"it said: {said}"
        )
    if status in (401, 403):
        return f"HTTP {status}{by}: the server refused the key: {said}"
    if status in (408, 504):
        return f"HTTP {status}{by}: a time-out between here and the engine is shorter than the prefill: {said}"
    if status == 502:
        return f"HTTP 502{by}: a proxy lost the engine behind it: {said}"
    return f"HTTP {status}{by}: {said}"


# --------------------------------------------------------------------------- the connection


class _Connection(asyncio.Protocol):
    def __init__(self) -> None:
        self.transport: asyncio.Transport | None = None
        self.idle_since = 0.0
        self.lost = False
        self.last_activity = 0.0
        self._reader: ResponseReader | None = None
        self._sink: _StreamSink | _Collector | None = None
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
            self.abort()  # an unasked answer on an idle connection
            return
        if isinstance(self._sink, _StreamSink):
            self._sink.now = now
        try:
            reader.feed(data)
        except (HttpFormatError, StreamFormatError) as exc:
            self._fail(exc)
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

    def begin(self, sink: _StreamSink | _Collector, *, head_only: bool = False) -> asyncio.Future[None]:
        self._sink = sink
        self._reader = ResponseReader(sink, head_only=head_only)
        self._finished = asyncio.get_running_loop().create_future()
        self.last_activity = time.perf_counter()
        return self._finished

    def end(self) -> bool:
        """Detach from the exchange; True where the connection may serve another."""
        reusable = bool(self._reader and self._reader.done and self._reader.keep_alive and not self.lost)
        self._reader = self._sink = self._finished = None
        self.idle_since = time.perf_counter()
        return reusable and self.transport is not None and not self.transport.is_closing()

    @property
    def answered(self) -> bool:
        return self._reader is not None and self._reader.started

    async def write(self, parts: Sequence[Buffer], size_bytes: int, stall_s: float) -> bool:
        """Hand all parts to the kernel. False: given up, because the server has answered or gone meanwhile."""
        transport = self.transport
        assert transport is not None  # noqa: S101 - set by connection_made before anyone holds the connection
        if size_bytes <= _JOIN_BELOW_BYTES:
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
        if self.transport is not None:
            self.transport.abort()

    def _wake_writer(self) -> None:
        if self._writable is not None and not self._writable.done():
            self._writable.set_result(None)

    def _fail(self, exc: Exception) -> None:
        self._settle(exc)
        self.abort()

    def _settle(self, exc: Exception | None) -> None:
        self._wake_writer()
        if self._finished is not None and not self._finished.done():
            if exc is None:
                self._finished.set_result(None)
            else:
                self._finished.set_exception(exc)


class Client:
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
        self._tls = (tls or ssl.create_default_context()) if endpoint.scheme == "https" else None
        extra = dict(headers or {})
        if api_key:
            if not api_key.isascii() or not api_key.isprintable():
                raise UserError("an API key with non-printable characters", "printable ASCII", "check the key file")
            extra["Authorization"] = f"Bearer {api_key}"
        self._fixed = "".join(f"{name}: {value}\r\n" for name, value in extra.items())
        self._prefix = endpoint.url if self._proxy and endpoint.scheme == "http" else endpoint.base_path
        self._idle: list[_Connection] = []
        self._all: set[_Connection] = set()

    async def __aenter__(self) -> Client:
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

    def head(self, method: str, path: str, body_bytes: int | None, *, accept: str = "*/*") -> bytes:
        """The bytes of a request header."""
        length = f"Content-Type: application/json\r\nContent-Length: {body_bytes}\r\n" if body_bytes is not None else ""
        return (
            f"{method} {self._prefix}{path} HTTP/1.1\r\nHost: {self.endpoint.authority}\r\nUser-Agent: longhaul\r\n"
            f"Accept: {accept}\r\nAccept-Encoding: identity\r\n{self._fixed}{length}\r\n"
        ).encode("latin-1")

    async def call(self, method: str, path: str, body: Mapping[str, Any] | None = None, *, timeout_s: float = 10.0) -> Reply:
        """A control call: the whole answer, or OSError / HttpFormatError / asyncio.TimeoutError."""
        payload = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        return await asyncio.wait_for(self._call(method, path, payload), timeout_s)

    async def _call(self, method: str, path: str, payload: bytes | None) -> Reply:
        # A call with side effects never goes out on a connection that may be dying; a GET may be asked again.
        connection, reused, _ = await self._acquire(None, fresh=method != "GET")
        try:
            return await self._exchange(connection, method, path, payload)
        except (HttpFormatError, ConnectionError):
            if not reused:
                raise
        connection, _, _ = await self._acquire(None, fresh=True)
        return await self._exchange(connection, method, path, payload)

    async def _exchange(self, connection: _Connection, method: str, path: str, payload: bytes | None) -> Reply:
        sink = _Collector()
        begun = time.perf_counter()
        finished = connection.begin(sink, head_only=method == "HEAD")
        try:
            head = self.head(method, path, None if payload is None else len(payload))
            parts = (head,) if payload is None else (head, payload)
            await connection.write(parts, sum(map(len, parts)), 30.0)
            await finished
        except BaseException:
            self._discard(connection)
            raise
        reply = Reply(sink.status, sink.headers, b"".join(sink.chunks), time.perf_counter() - begun)
        self._release(connection)
        return reply

    async def open_connections(self, count: int, timeout_s: float = 10.0) -> int:
        """Connect ahead of a burst, so that no handshake falls into a measurement. Returns how many are ready."""
        self._drop_stale()
        missing = count - len(self._idle)
        for begin in range(0, missing, 64):  # stay below a listen backlog of 128
            batch = [self._connect(timeout_s) for _ in range(min(64, missing - begin))]
            made = await asyncio.gather(*batch, return_exceptions=True)
            for connection in made:
                if isinstance(connection, _Connection):
                    connection.idle_since = time.perf_counter()
                    self._idle.append(connection)
                elif not isinstance(connection, (OSError, asyncio.TimeoutError)):
                    raise connection
        return len(self._idle)

    async def stream(self, path: str, parts: Sequence[Buffer], parser: EventParser, timeouts: Timeouts) -> Exchange:
        """One streamed request with all its instants. Server, network and format errors become the Exchange's status."""
        size = sum(len(part) for part in parts)
        exchange = Exchange(body_bytes=size)
        for attempt in (1, 2):
            if await self._attempt(exchange, path, parts, parser=parser, timeouts=timeouts, fresh=attempt == 2):
                break
        return exchange

    async def _attempt(
        self,
        exchange: Exchange,
        path: str,
        parts: Sequence[Buffer],
        *,
        parser: EventParser,
        timeouts: Timeouts,
        fresh: bool,
    ) -> bool:
        """False where a reused connection turned out to be closed by the server before it took the request."""
        begun = time.perf_counter()
        try:
            connection, reused, connect_s = await self._acquire(timeouts.connect_s, fresh=fresh)
        except (OSError, asyncio.TimeoutError, HttpFormatError) as exc:
            exchange.status = RequestStatus.CONNECT_ERROR
            before = f"{exchange.error}; then " if exchange.error else ""
            exchange.error = f"{before}cannot connect to {self.endpoint.url}: {_connect_words(exc)}"
            exchange.connect_s = time.perf_counter() - begun
            return True
        exchange.connect_s = connect_s
        sink = _StreamSink(exchange, parser)
        finished = connection.begin(sink)
        head = self.head("POST", path, exchange.body_bytes, accept="text/event-stream")
        exchange.sent_at = time.perf_counter()
        watchdog = _Watchdog(connection, exchange, timeouts)
        try:
            whole = await connection.write((head, *parts), exchange.body_bytes + len(head), timeouts.upload_stall_s)
            if whole:
                exchange.uploaded_at = time.perf_counter()
            await finished
        except asyncio.TimeoutError:
            self._stop(
                exchange,
                connection,
                RequestStatus.TIMEOUT,
                f"the server took no byte of the body for {timeouts.upload_stall_s:.0f} s",
            )
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
            exchange.ended_at = time.perf_counter()
            if exchange.status is RequestStatus.OK:
                exchange.error = None
            if whole:
                self._release(connection)
            else:
                self._discard(connection)
        watchdog.cancel()
        return True

    def _stop(self, exchange: Exchange, connection: _Connection, status: RequestStatus, text: str) -> None:
        exchange.status, exchange.error = status, text
        exchange.ended_at = time.perf_counter()
        self._discard(connection)

    def _drop_stale(self) -> None:
        now = time.perf_counter()
        keep: list[_Connection] = []
        for connection in self._idle:
            if connection.lost or now - connection.idle_since > _IDLE_REUSE_S:
                connection.abort()
                self._all.discard(connection)
            else:
                keep.append(connection)
        self._idle = keep

    async def _acquire(self, timeout_s: float | None, *, fresh: bool = False) -> tuple[_Connection, bool, float]:
        if not fresh:
            self._drop_stale()
            if self._idle:
                return self._idle.pop(), True, 0.0
        begun = time.perf_counter()
        connection = await self._connect(timeout_s or 10.0)
        return connection, False, time.perf_counter() - begun

    def _release(self, connection: _Connection) -> None:
        if connection.end():
            self._idle.append(connection)
        else:
            self._discard(connection)

    def _discard(self, connection: _Connection) -> None:
        connection.end()
        connection.abort()
        self._all.discard(connection)

    async def _connect(self, timeout_s: float) -> _Connection:
        loop = asyncio.get_running_loop()
        via = self._proxy or self.endpoint
        tunnel = self._proxy is not None and self._tls is not None
        first_tls = None if tunnel else self._tls
        name = self.endpoint.host if first_tls else None
        made = loop.create_connection(_Connection, via.host, via.port, ssl=first_tls, server_hostname=name)
        _, connection = await asyncio.wait_for(made, timeout_s)
        if tunnel:
            await asyncio.wait_for(self._tunnel(connection), timeout_s)
        self._all.add(connection)
        return connection

    async def _tunnel(self, connection: _Connection) -> None:
        """CONNECT through the named proxy, then TLS to the server inside it."""
        target = f"{self.endpoint.host}:{self.endpoint.port}"
        sink = _Collector()
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
    """One timer per exchange, re-armed at its own deadline instead of at each token."""

    def __init__(self, connection: _Connection, exchange: Exchange, timeouts: Timeouts) -> None:
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
        if deadline is None:
            if limits.stall_s is None:
                return
            wait = limits.stall_s
        else:
            wait = deadline[0] - time.perf_counter()
            if limits.stall_s is not None:
                wait = min(wait, max(limits.stall_s, 0.01))  # the first token may come meanwhile
        self._handle = self._loop.call_later(max(wait, 0.001), self._fire)

    def _fire(self) -> None:
        self._handle = None
        deadline = self._deadline()
        if deadline is not None and time.perf_counter() >= deadline[0]:
            self.reason = (RequestStatus.TIMEOUT, deadline[1])
            self._connection._fail(HttpFormatError(deadline[1]))
            return
        self._arm()


def _connect_words(exc: BaseException) -> str:
    if isinstance(exc, asyncio.TimeoutError):
        return "no connection in time"
    if isinstance(exc, ConnectionRefusedError):
        return "connection refused (nothing listens there)"
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"TLS certificate not trusted ({exc.verify_message})"
    if isinstance(exc, ssl.SSLError):
        return f"TLS failed ({exc.reason}): is it an http:// address?"
    return str(exc) or type(exc).__name__


def _stream_words(exc: Exception, exchange: Exchange) -> str:
    text = str(exc) or type(exc).__name__
    if exchange.uploaded_at is None and exchange.http_status is None and exchange.body_bytes > _JOIN_BELOW_BYTES:
        size = f"{exchange.body_bytes / 1e6:.1f} MB"
        return f"{text} while the body of {size} was being uploaded (a body limit that closes instead of saying 413?)"
    if exchange.token_times and "token" not in text:
        return f"{text}, after {len(exchange.token_times)} token events"
    return text
