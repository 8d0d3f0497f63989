"""One streamed request as it happened, and the sink that turns a response's bytes into its fields."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

from ..engines.base import StreamEvent
from ..results import RequestStatus
from .http import SseReader, StreamFormatError

_MAX_ERROR_BODY_BYTES = 256 * 1024


class EventParser(Protocol):
    """The part of an engine adapter that the client needs."""

    def parse_event(self, event: Mapping[str, Any], text_so_far: str) -> StreamEvent:
        """Read one decoded SSE payload."""
        ...

    def error_message(self, status: int, body: bytes) -> str:
        """The server's own words in an HTTP error body."""
        ...


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
        return tuple(later - earlier for earlier, later in itertools.pairwise(self.token_times))


@dataclass(frozen=True)
class Timeouts:
    """Limits of one request in seconds, derived from a forecast by the caller. ``None``: no limit.

    ``first_token_s`` counts from the send, ``stall_s`` from the last byte received after the first token, ``total_s``
    from the send, ``connect_s`` from the start of the connection, ``upload_stall_s`` without a byte taken by the peer.
    """

    connect_s: float = 10.0
    first_token_s: float | None = None
    stall_s: float | None = None
    total_s: float | None = None
    upload_stall_s: float = 60.0


class StreamSink:
    """Fills the fields of an Exchange from a response."""

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
        exchange.http_status, self._headers = status, headers
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
        if _is_token(parsed, exchange.completion_tokens):
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


def _is_token(parsed: StreamEvent, completion_before: int | None) -> bool:
    """Whether an event carries a token: by its text, by what the adapter says, or by the count of completion tokens."""
    if parsed.text or parsed.token is not None:
        return bool(parsed.text or parsed.token)
    return parsed.usage is not None and (parsed.usage.completion_tokens or 0) > (completion_before or 0)


def explain_http_error(parser: EventParser, status: int, headers: Mapping[str, str], body: bytes, *, body_bytes: int = 0) -> str:
    """Describe an HTTP error in one line: the server's own words, and the usual cause of the status where one is known."""
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
