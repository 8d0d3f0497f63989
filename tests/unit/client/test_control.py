"""Control calls against real sockets: answers, the one reason for each failure, TLS, proxies, and nothing from the environment."""

from __future__ import annotations

import asyncio
import builtins
import json
import shutil
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from longhaul.client import control
from longhaul.client.control import ControlClient, Reply, ServerUnreachable
from longhaul.client.endpoint import Endpoint, tls_context
from longhaul.errors import UserError
from support.scripted import Script, connect, make_certificate, plain, read_request, serving


def answered(text: bytes, heads: list[bytes] | None = None) -> Script:
    """A server that answers every request with ``text``."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        head, body = await read_request(reader)
        if heads is not None:
            heads.append(head + body)
        writer.write(text)

    return script


def ask(script: Script, act: Callable[[ControlClient], Awaitable[Reply]], **options: Any) -> Reply:
    """What ``act`` gets from a server that follows ``script``."""

    async def run() -> Reply:
        async with serving(script) as (endpoint, _), ControlClient(endpoint, **options) as client:
            return await act(client)

    return asyncio.run(run())


def fails(script: Script, timeout_s: float = 5.0) -> ServerUnreachable:
    """Why there was no answer."""
    with pytest.raises(ServerUnreachable) as caught:
        ask(script, lambda c: c.call("GET", "/v1/models", timeout_s=timeout_s))
    return caught.value


def test_an_answer_with_the_key_and_the_authority() -> None:
    heads: list[bytes] = []
    reply = ask(answered(plain("200 OK", '{"data":[]}'), heads), lambda c: c.call("GET", "/v1/models"), api_key="sekrit")
    assert (reply.status, reply.json()) == (200, {"data": []})
    lines = heads[0].decode().lower().split("\r\n")
    assert lines[0] == "get /v1/models http/1.1"
    assert "authorization: bearer sekrit" in lines
    assert any(line.startswith("host: 127.0.0.1:") for line in lines)
    assert "content-type: application/json" not in lines


def test_a_body_is_json_and_an_error_status_is_an_answer() -> None:
    heads: list[bytes] = []
    reply = ask(answered(plain("404 Not Found", "<html>"), heads), lambda c: c.call("POST", "/tokenize", {"prompt": "zwölf"}))
    assert (reply.status, reply.json()) == (404, None)
    assert json.loads(heads[0].split(b"\r\n\r\n")[1]) == {"prompt": "zwölf"}


def test_a_redirect_is_not_followed() -> None:
    moved = plain("307 Temporary Redirect", "", "location: http://127.0.0.1:1/elsewhere\r\n")
    assert ask(answered(moved), lambda c: c.call("GET", "/x")).status == 307


def test_each_call_has_a_connection_of_its_own() -> None:
    async def run() -> list[int]:
        async with serving(answered(plain("200 OK", "{}"))) as (endpoint, connections), ControlClient(endpoint) as client:
            await client.call("GET", "/a")
            await client.call("POST", "/b", {})
        return connections

    assert asyncio.run(run()) == [0, 1]


def test_a_refused_connection() -> None:
    async def run() -> None:
        async with ControlClient(Endpoint("http", "localhost", 1)) as client:
            await client.call("GET", "/v1/models")

    with pytest.raises(ServerUnreachable) as caught:
        asyncio.run(run())
    assert str(caught.value) == "GET http://localhost:1/v1/models: connection refused"
    assert not caught.value.timed_out


def test_a_slow_server_is_not_a_dead_one() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await asyncio.sleep(30)

    failure = fails(script, timeout_s=0.2)
    assert failure.timed_out
    assert failure.reason == "no answer within 0.2 s"


@pytest.mark.parametrize("answer", [b"", b"SSH-2.0-OpenSSH_9.2\r\n", b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\n{"])
def test_no_answer_or_half_of_one(answer: bytes) -> None:
    failure = fails(answered(answer))
    assert not failure.timed_out
    assert failure.reason


def test_an_answer_without_end_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(control, "MAX_ANSWER_BYTES", 1000)
    assert "an answer of over 1000 bytes" in str(fails(answered(plain("200 OK", "x" * 2000))))


def test_the_environments_proxy_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy", "https_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")
    assert ask(answered(plain("200 OK", "{}")), lambda c: c.call("GET", "/x")).status == 200


def test_a_named_proxy_gets_the_absolute_address() -> None:
    heads: list[bytes] = []

    async def act(proxy: ControlClient) -> Reply:
        async with ControlClient(Endpoint("http", "engine.invalid", 8000, "/llm"), proxy=proxy.endpoint.url) as client:
            return await client.call("GET", "/v1/models")

    assert ask(answered(plain("200 OK", "{}"), heads), act).status == 200
    assert heads[0].startswith(b"GET http://engine.invalid:8000/llm/v1/models HTTP/1.1\r\n")


def test_https_through_a_proxy_with_a_private_authority_and_without_it(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("makes its certificate with openssl")
    context, ca_file = make_certificate(tmp_path)
    asked: list[bytes] = []

    async def proxy_script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        await connect(asked[-1], reader, writer)

    async def run() -> str:
        trust = tls_context(ca_file)
        server = serving(answered(plain("200 OK", "{}")), "localhost", context)
        async with server as (endpoint, _), serving(proxy_script) as (proxy, _):
            for through in (None, proxy.url):
                async with ControlClient(endpoint, tls=trust, proxy=through) as client:
                    assert (await client.call("GET", "/x")).status == 200
            async with ControlClient(endpoint) as client:
                with pytest.raises(ServerUnreachable) as caught:
                    await client.call("GET", "/x")
        return caught.value.reason

    reason = asyncio.run(run())
    assert asked[0].startswith(b"CONNECT localhost:")
    assert "TLS certificate not trusted" in reason
    assert "--ca-file" in reason


def test_https_asked_of_a_server_that_speaks_http() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.read(1)
        writer.write(plain("400 Bad Request", ""))

    async def run() -> None:
        async with serving(script) as (plain_one, _), ControlClient(Endpoint("https", "localhost", plain_one.port)) as client:
            await client.call("GET", "/x")

    with pytest.raises(ServerUnreachable, match="is it an http:// address"):
        asyncio.run(run())


def test_without_httpx_the_fix_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name == "httpx":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    with pytest.raises(UserError, match=r"without the package httpx .*fix: run scripts/bootstrap"):
        ControlClient(Endpoint("http", "h", 1))
