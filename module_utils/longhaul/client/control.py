"""Control calls: health, models, metrics, tokenize, flush. Short questions whose times nobody reports.

httpx makes them: connections, TLS, proxies and HTTP/1.1 are its business. Requests whose tokens are timed go through
:mod:`.stream` instead. Each call has a connection of its own: a kept one may be closed by the server at the moment of use,
and a call with side effects must not be sent twice.
"""

from __future__ import annotations

import asyncio
import json
import ssl
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from .endpoint import Endpoint, connect_words, fixed_headers, tls_context

MAX_ANSWER_BYTES = 64 * 1024 * 1024  # a page of metrics has 100 KB; more than this is a broken server


class ServerUnreachable(Exception):
    """A control call got no whole answer. ``reason`` says why in a few words; ``timed_out``: the server may be alive and slow."""

    def __init__(self, call: str, reason: str, *, timed_out: bool = False) -> None:
        super().__init__(f"{call}: {reason}")
        self.reason = reason
        self.timed_out = timed_out


@dataclass(frozen=True)
class Reply:
    """The whole answer to a control call."""

    status: int
    body: bytes

    def json(self) -> Any:
        """The decoded body, or ``None`` where it is no JSON."""
        try:
            return json.loads(self.body)
        except ValueError:
            return None


class ControlClient:
    """Asks one server. Use inside one running event loop.

    ``headers`` go with every request. ``proxy`` is an explicit ``http://host:port``; the environment's proxies are never
    used. ``tls`` defaults to :func:`.endpoint.tls_context`. A redirect is an answer and is not followed.
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
        try:
            import httpx
        except ImportError as exc:
            host = "on a host, let client_env install its lock (client_env_use_system: false)"
            fix = f"run scripts/bootstrap on the controller; {host}"
            raise UserError(f"Python {sys.executable} without the package httpx", "httpx, to ask the server", fix) from exc
        self.endpoint = endpoint
        # httpx would load its own list of authorities; a bare context costs nothing where no TLS is spoken.
        trust = (tls or tls_context()) if endpoint.scheme == "https" else ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        self._failures = (httpx.HTTPError, OSError)
        self._http = httpx.AsyncClient(
            headers={"User-Agent": "longhaul", "Accept-Encoding": "identity", **fixed_headers(api_key, headers)},
            verify=trust,
            proxy=Endpoint.parse(proxy).url if proxy else None,
            trust_env=False,
            timeout=None,  # noqa: S113 - each call has a limit for all of it
            limits=httpx.Limits(max_keepalive_connections=0),
        )

    async def __aenter__(self) -> ControlClient:
        return self

    async def __aexit__(self, *exc: object) -> None:
        await self.close()

    async def close(self) -> None:
        """Close what is open."""
        await self._http.aclose()

    async def call(self, method: str, path: str, body: Mapping[str, Any] | None = None, *, timeout_s: float = 10.0) -> Reply:
        """The answer, whatever its status. Raises ServerUnreachable where none came within ``timeout_s`` seconds."""
        words = f"{method} {self.endpoint.url}{path}"
        try:
            return await asyncio.wait_for(self._call(method, path, body, words), timeout_s)
        except asyncio.TimeoutError as exc:
            raise ServerUnreachable(words, f"no answer within {timeout_s:g} s", timed_out=True) from exc
        except self._failures as exc:
            raise ServerUnreachable(words, _reason(exc)) from exc

    async def _call(self, method: str, path: str, body: Mapping[str, Any] | None, words: str) -> Reply:
        payload = None if body is None else json.dumps(body, separators=(",", ":")).encode()
        kind = {} if body is None else {"Content-Type": "application/json"}
        chunks: list[bytes] = []
        size = 0
        async with self._http.stream(method, self.endpoint.url + path, content=payload, headers=kind) as answer:
            async for chunk in answer.aiter_bytes():
                size += len(chunk)
                if size > MAX_ANSWER_BYTES:
                    raise ServerUnreachable(words, f"an answer of over {MAX_ANSWER_BYTES} bytes")
                chunks.append(chunk)
            return Reply(answer.status_code, b"".join(chunks))


def _reason(exc: BaseException) -> str:
    """What went wrong, from the operating system's or TLS's own error where httpx carries one in its chain of causes."""
    for cause in _causes(exc):
        if isinstance(cause, ConnectionRefusedError):
            return "connection refused"
        if isinstance(cause, ssl.SSLError):
            return connect_words(cause)
    return str(exc) or type(exc).__name__


def _causes(exc: BaseException | None) -> Iterator[BaseException]:
    while exc is not None:
        yield exc
        for one in getattr(exc, "exceptions", ()):  # a name with several addresses fails once for each
            yield from _causes(one)
        exc = exc.__cause__ or exc.__context__
