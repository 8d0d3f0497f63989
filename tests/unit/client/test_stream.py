"""Streamed requests: every instant is right, and every way in which a server can fail has its name."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from longhaul.client.endpoint import Endpoint, tls_context
from longhaul.client.exchange import Exchange, Timeouts
from longhaul.client.stream import StreamClient
from longhaul.engines.registry import get_engine
from longhaul.results import RequestStatus
from support.scripted import DONE, HEAD, USAGE, Script, chunk, connect, event, make_certificate, plain, read_request, serving

VLLM = get_engine("vllm")


async def with_server(script: Script, act: Callable[[StreamClient], Awaitable[None]], api_key: str | None = None) -> list[int]:
    """Run ``act`` against a server that follows ``script`` on each connection; returns the connection numbers."""
    async with serving(script) as (endpoint, connections), StreamClient(endpoint, api_key=api_key) as client:
        await act(client)
    return connections


def stream_once(script: Script, parts: tuple[bytes, ...] = (b"[1,2,3]",), timeouts: Timeouts | None = None) -> Exchange:
    """One streamed request against that script."""
    found: list[Exchange] = []

    async def act(client: StreamClient) -> None:
        found.append(await client.stream("/v1/completions", parts, VLLM, timeouts or Timeouts(stall_s=5)))

    asyncio.run(with_server(script, act))
    return found[0]


def test_timestamps_of_a_stream() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await asyncio.sleep(0.1)
        writer.write(HEAD + event("a"))
        await asyncio.sleep(0.05)
        writer.write(event("b", "length") + USAGE + DONE)

    began = time.perf_counter()
    found = stream_once(script)
    # What the two pauses do not explain, this machine took; it may have come anywhere.
    slack_s = time.perf_counter() - began - 0.15
    assert found.status is RequestStatus.OK
    assert (found.text, found.prompt_tokens, found.completion_tokens, found.finish_reason) == ("ab", 3, 2, "length")
    assert 0.099 <= (found.ttft_s or 0) <= 0.1 + slack_s
    assert found.tpot_s == pytest.approx(0.05, abs=max(0.01, slack_s))
    assert found.itl_s == (found.tpot_s,)
    assert found.e2e_s == pytest.approx((found.ttft_s or 0) + (found.tpot_s or 0))


def test_a_body_of_many_buffers_arrives_whole_and_in_order() -> None:
    got: list[bytes] = []
    big = bytes(range(256)) * 20_000  # 5 MB: many slices, more than the socket's buffer

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(0.05)  # let the upload run into a full socket first
        got.append((await read_request(reader))[1])
        writer.write(HEAD + event("a", "length") + DONE)

    found = stream_once(script, (b"{", memoryview(big), b"", memoryview(big)[5:], b"}"))  # type: ignore[arg-type]
    assert found.status is RequestStatus.OK
    assert got == [b"{" + big + big[5:] + b"}"]
    assert found.upload_s is not None
    assert found.upload_s > 0.03
    assert found.ttft_s is not None
    assert found.ttft_s >= found.upload_s


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (HEAD + event("a") + event("b"), "after 2 token events"),
        (HEAD + event("a") + b"0\r\n\r\n", "without a finish"),
        (HEAD + chunk('data: {"choices":[{"te\n\n'), "no JSON"),
        (HEAD + chunk("data: [1]\n\n"), "no JSON object"),
        (HEAD + chunk('data: {"choices":[{"text":"a"}]}') + b"0\r\n\r\n", "middle of an event"),
        (HEAD + chunk("<html>oops</html>\n\n"), "not a server-sent event"),
        (HEAD + DONE, "without a single token"),
        (HEAD + event("a") + chunk('data: {"error":{"message":"EngineDead","code":500}}\n\n') + DONE, "EngineDead"),
        (b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}", "no streamed answer"),
        (b"", "without an answer"),
        (b"garbage\r\n\r\n", "not an HTTP/1.1"),
    ],
)
def test_broken_streams_are_errors_with_a_reason(answer: bytes, words: str) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer)
        await writer.drain()

    found = stream_once(script)
    assert found.status is RequestStatus.STREAM_ERROR
    assert words in (found.error or "")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (plain("400 Bad Request", '{"error":{"message":"too long","code":400}}'), "too long"),
        (plain("413 Payload Too Large", "<h1>413</h1>", "server: nginx\r\n"), "client_max_body_size"),
        (plain("401 Unauthorized", '{"error":"Unauthorized"}'), "key"),
        (plain("504 Gateway Time-out", "", "server: nginx\r\n"), "nginx"),
        (plain("307 Temporary Redirect", "", "location: http://other/\r\n"), "http://other/"),
    ],
)
def test_http_errors_say_what_stands_behind_them(answer: bytes, words: str) -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(answer)
        await writer.drain()

    found = stream_once(script)
    assert found.status is RequestStatus.HTTP_ERROR
    assert found.http_status == int(answer[9:12])
    assert words in (found.error or "")


def test_a_413_in_the_middle_of_the_upload_is_read_not_lost() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await reader.readuntil(b"\r\n\r\n")
        writer.write(plain("413 Payload Too Large", "no", "connection: close\r\n"))
        await writer.drain()
        await asyncio.sleep(60)  # takes nothing more

    began = time.perf_counter()
    found = stream_once(script, (b"x" * 20_000_000,))
    assert (found.status, found.http_status) == (RequestStatus.HTTP_ERROR, 413)
    assert "20.0 MB" in (found.error or "")
    assert time.perf_counter() - began < 20


def test_a_stall_ends_at_its_time_out_and_says_where() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(HEAD + event("a") + event("b"))
        await asyncio.sleep(60)

    began = time.perf_counter()
    found = stream_once(script, timeouts=Timeouts(first_token_s=30, stall_s=0.2))
    assert found.status is RequestStatus.TIMEOUT
    assert "after 2 token events" in (found.error or "")
    assert len(found.token_times) == 2, "what was measured before the stall is kept"
    assert 0.15 < time.perf_counter() - began < 20


def test_no_first_token_in_time() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await asyncio.sleep(10)

    found = stream_once(script, timeouts=Timeouts(first_token_s=0.2, stall_s=5))
    assert found.status is RequestStatus.TIMEOUT
    assert "no token within" in (found.error or "")


def test_a_prefill_longer_than_the_stall_limit_is_not_a_stall() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        await asyncio.sleep(0.4)
        writer.write(HEAD + event("a", "length") + DONE)

    assert stream_once(script, timeouts=Timeouts(first_token_s=5, stall_s=0.1)).status is RequestStatus.OK


def test_a_server_that_takes_no_bytes() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await asyncio.sleep(10)

    found = stream_once(script, (b"x" * 20_000_000,), Timeouts(upload_stall_s=0.2))
    assert found.status is RequestStatus.TIMEOUT
    assert "took no byte" in (found.error or "")


def test_connection_refused() -> None:
    async def act() -> Exchange:
        async with StreamClient(Endpoint("http", "127.0.0.1", 1)) as client:
            return await client.stream("/x", (b"{}",), VLLM, Timeouts())

    found = asyncio.run(act())
    assert found.status is RequestStatus.CONNECT_ERROR
    assert "refused" in (found.error or "")


def test_connections_are_kept_alive_and_a_stale_one_is_replaced() -> None:
    served = 0

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal served
        for _ in range(2):  # hang up without a word after two requests, like an idle time-out
            await read_request(reader)
            served += 1
            writer.write(HEAD + event("a", "length") + DONE)
            await writer.drain()

    statuses: list[RequestStatus] = []

    async def act(client: StreamClient) -> None:
        statuses.extend([(await client.stream("/x", (b"{}",), VLLM, Timeouts())).status for _ in range(5)])

    connections = asyncio.run(with_server(script, act))
    assert statuses == [RequestStatus.OK] * 5
    assert served == 5, "no request reached the server twice"
    assert len(connections) == 3


def test_the_key_and_the_authority_are_sent() -> None:
    heads: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await read_request(reader))[0])
        writer.write(HEAD + event("a", "length") + DONE)

    async def act(client: StreamClient) -> None:
        assert (await client.stream("/x", (b"{}",), VLLM, Timeouts())).status is RequestStatus.OK

    asyncio.run(with_server(script, act, api_key="sekrit"))
    assert b"\r\nAuthorization: Bearer sekrit\r\n" in heads[0]
    assert b"\r\nHost: 127.0.0.1:" in heads[0]


def test_the_environments_proxy_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("http_proxy", "HTTP_PROXY", "ALL_PROXY", "all_proxy"):
        monkeypatch.setenv(name, "http://127.0.0.1:1")

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(HEAD + event("a", "length") + DONE)

    assert stream_once(script).status is RequestStatus.OK


def test_a_named_proxy_gets_the_absolute_address() -> None:
    lines: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        lines.append((await read_request(reader))[0].split(b"\r\n")[0])
        writer.write(HEAD + event("a", "length") + DONE)

    async def act(proxy: StreamClient) -> None:
        async with StreamClient(Endpoint("http", "engine.invalid", 8000), proxy=proxy.endpoint.url) as client:
            found = await client.stream("/v1/completions", (b"{}",), VLLM, Timeouts())
            assert found.status is RequestStatus.OK

    asyncio.run(with_server(script, act))
    assert lines == [b"POST http://engine.invalid:8000/v1/completions HTTP/1.1"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, Path]:
    """(server's context, the certificate to trust) for localhost, made for this run."""
    if shutil.which("openssl") is None:
        pytest.skip("makes its certificate with openssl")
    return make_certificate(tmp_path_factory.mktemp("tls"))


def test_https_a_proxy_to_it_and_an_untrusted_certificate(certificate: tuple[ssl.SSLContext, Path]) -> None:
    context, ca_file = certificate
    trusting = tls_context(ca_file)
    body = memoryview(b"y" * 3_000_000)
    got: list[int] = []
    asked: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(len((await read_request(reader))[1]))
        writer.write(HEAD + event("a", "length") + DONE)
        await writer.drain()

    async def proxy_script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append(await reader.readuntil(b"\r\n\r\n"))
        await connect(asked[-1], reader, writer)

    async def act() -> list[Exchange]:
        found = []
        async with serving(script, "localhost", context) as (endpoint, _), serving(proxy_script) as (proxy, _):
            clients = [
                StreamClient(endpoint, tls=trusting),
                StreamClient(endpoint, tls=trusting, proxy=proxy.url),
                StreamClient(endpoint),
            ]
            for client in clients:
                async with client:
                    found.append(await client.stream("/x", (body,), VLLM, Timeouts(first_token_s=10)))
            await asyncio.sleep(0.05)
        return found

    direct, proxied, untrusted = asyncio.run(act())
    assert (direct.status, direct.error) == (RequestStatus.OK, None)
    assert (proxied.status, proxied.error) == (RequestStatus.OK, None)
    assert got == [len(body), len(body)]
    assert asked[0].startswith(b"CONNECT localhost:")
    assert untrusted.status is RequestStatus.CONNECT_ERROR
    assert "not trusted" in (untrusted.error or "")
    assert "--ca-file" in (untrusted.error or "")


def test_tokens_without_text_and_chat_roles() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        role = chunk('data: {"choices":[{"delta":{"role":"assistant","content":""},"finish_reason":null}]}\n\n')
        word = chunk('data: {"choices":[{"delta":{"content":"hi"},"finish_reason":null}]}\n\n')
        empty = event("")  # half a character decodes to nothing, and is a token all the same
        writer.write(HEAD + role + word + empty + event("", "length") + USAGE + DONE)

    found = stream_once(script)
    assert found.status is RequestStatus.OK
    assert len(found.token_times) == 3
