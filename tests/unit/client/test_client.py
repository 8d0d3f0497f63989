"""The load path's own HTTP client: any split of the bytes reads the same, and every way a server can fail has its name."""

from __future__ import annotations

import asyncio
import itertools
import json
import shutil
import ssl
import subprocess
import time
from collections.abc import Awaitable, Callable, Mapping

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from longhaul.client.client import (
    Client,
    Endpoint,
    Exchange,
    HttpFormatError,
    ResponseReader,
    SseReader,
    StreamFormatError,
    Timeouts,
)
from longhaul.engines.registry import get_engine
from longhaul.errors import UserError
from longhaul.results import RequestStatus

VLLM = get_engine("vllm")


# --------------------------------------------------------------------------- bytes


class Sink:
    def __init__(self) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.body = b""
        self.ended = False

    def on_head(self, status: int, headers: Mapping[str, str]) -> None:
        self.status, self.headers = status, headers

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_end(self) -> None:
        self.ended = True


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """``data`` cut at these places (mod its length)."""
    at = sorted({c % (len(data) + 1) for c in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(at) if b > a]


cuts = st.lists(st.integers(0, 10_000), max_size=12)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n5\r\nhello\r\n1;ext=1\r\n \r\nA\r\nworld12345\r\n0\r\nT: r\r\n\r\n"
LENGTH = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\ncontent-length: 9\r\n\r\nnot there"


@given(cuts, st.sampled_from([(CHUNKED, 200, b"hello world12345"), (LENGTH, 404, b"not there")]))
def test_a_response_reads_the_same_however_it_is_cut(where: list[int], case: tuple[bytes, int, bytes]) -> None:
    data, status, body = case
    sink = Sink()
    reader = ResponseReader(sink)
    for piece in pieces(data, where):
        reader.feed(piece)
    assert (sink.status, sink.body, sink.ended, reader.done) == (status, body, True, True)
    assert reader.keep_alive


@given(cuts)
@example([len(CHUNKED) - 30])
def test_a_truncated_response_is_never_taken_for_whole(where: list[int]) -> None:
    for data in (CHUNKED, LENGTH):
        cut = (where[0] if where else 0) % len(data)
        sink = Sink()
        reader = ResponseReader(sink)
        if cut:
            reader.feed(data[:cut])
        with pytest.raises(HttpFormatError):
            reader.closed()
        assert not sink.ended


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabcd\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000,
    ],
)
def test_what_is_not_http_is_refused(data: bytes) -> None:
    with pytest.raises(HttpFormatError):
        ResponseReader(Sink()).feed(data)


@given(
    st.lists(
        st.one_of(st.binary(max_size=30), st.sampled_from([b"HTTP/1.1 200 OK\r\n", b"\r\n\r\n", CHUNKED, LENGTH, b"5\r\nab"]))
    )
)
@example([b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\n"])
@example([b"HTTP/1.1 20\xb2 OK\r\n\r\n"])
def test_no_bytes_whatever_raise_anything_but_a_format_error(data: list[bytes]) -> None:
    reader = ResponseReader(Sink())
    try:
        for piece in data:
            reader.feed(piece)
        reader.closed()
    except HttpFormatError:
        pass


def test_a_token_is_not_held_back_until_its_chunk_is_whole() -> None:
    sink = Sink()
    reader = ResponseReader(sink)
    reader.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nfirst part")
    assert sink.body == b"first part"


EVENTS = [{"a": 1}, {"text": "zwölf\nlines"}, {"b": [1, 2]}]


@given(cuts, st.sampled_from(["\n", "\r\n", "\r"]))
def test_events_read_the_same_however_they_are_cut(where: list[int], end: str) -> None:
    text = (
        f": ping{end}{end}" + "".join(f"event: m{end}data: {json.dumps(e)}{end}{end}" for e in EVENTS) + f"data: [DONE]{end}{end}"
    )
    reader = SseReader()
    found = [p for piece in pieces(text.encode(), where) for p in reader.feed(piece)]
    # A lone CR at the very end may yet become CRLF: the last event is only sure with one more byte.
    found += reader.feed(b"\n") if end == "\r" else []
    assert [json.loads(p) for p in found[:-1]] == EVENTS
    assert found[-1] == b"[DONE]"
    assert not reader.pending


def test_several_data_lines_are_one_event() -> None:
    assert SseReader().feed(b"data: {\ndata:1}\n\n") == [b"{\n1}"]


def test_html_in_place_of_events_is_refused() -> None:
    with pytest.raises(StreamFormatError):
        SseReader().feed(b"<html>Bad gateway</html>\n\n")


# --------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h:8000", Endpoint("http", "h", 8000)),
        ("h:8000", Endpoint("http", "h", 8000)),
        ("https://h/v1", Endpoint("https", "h", 443)),
        ("http://[::1]:30000/llm/v1/", Endpoint("http", "::1", 30000, "/llm")),
    ],
)
def test_urls(url: str, expected: Endpoint) -> None:
    assert Endpoint.parse(url) == expected


@pytest.mark.parametrize("url", ["ftp://h", "http://", "http://h:port", "http://h:99999", "http://user:pw@h"])
def test_bad_urls_get_one_line(url: str) -> None:
    with pytest.raises(UserError):
        Endpoint.parse(url)


def test_a_secret_in_a_url_is_not_repeated() -> None:
    with pytest.raises(UserError) as caught:
        Endpoint.parse("http://user:hunter2@h")
    assert "hunter2" not in str(caught.value)


# --------------------------------------------------------------------------- a scripted server

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(text: str) -> bytes:
    data = text.encode()
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(text: str, reason: str | None = None) -> bytes:
    return chunk("data: " + json.dumps({"choices": [{"text": text, "finish_reason": reason}]}) + "\n\n")


USAGE = chunk('data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n')
DONE = chunk("data: [DONE]\n\n") + b"0\r\n\r\n"


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    return head, await reader.readexactly(length)


async def with_server(script: Script, act: Callable[[Client], Awaitable[None]], **options: object) -> list[int]:
    """Run ``act`` against a server that follows ``script`` for each connection; returns the connection numbers."""
    connections: list[int] = []
    tasks: list[asyncio.Task[None]] = []

    async def on_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        connections.append(len(connections))
        task = asyncio.current_task()
        assert task is not None
        tasks.append(task)
        try:
            await script(reader, writer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(on_connection, "127.0.0.1", 0, limit=1 << 16)
    port = server.sockets[0].getsockname()[1]
    try:
        async with Client(Endpoint("http", "127.0.0.1", port), **options) as client:  # type: ignore[arg-type]
            await act(client)
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return connections


def stream_once(script: Script, parts: tuple[bytes, ...] = (b"[1,2,3]",), timeouts: Timeouts | None = None) -> Exchange:
    """One streamed request against that script."""
    found: list[Exchange] = []

    async def act(client: Client) -> None:
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

    found = stream_once(script)
    assert found.status is RequestStatus.OK
    assert (found.text, found.prompt_tokens, found.completion_tokens, found.finish_reason) == ("ab", 3, 2, "length")
    assert found.ttft_s == pytest.approx(0.1, abs=0.04)
    assert found.tpot_s == pytest.approx(0.05, abs=0.04)
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


def plain(status: str, body: str, extra: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-type: text/plain\r\n{extra}content-length: {len(body)}\r\n\r\n{body}".encode()


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
        await asyncio.sleep(2)  # takes nothing more

    began = time.perf_counter()
    found = stream_once(script, (b"x" * 20_000_000,))
    assert (found.status, found.http_status) == (RequestStatus.HTTP_ERROR, 413)
    assert "20.0 MB" in (found.error or "")
    assert time.perf_counter() - began < 1.5


def test_a_stall_ends_at_its_time_out_and_says_where() -> None:
    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await read_request(reader)
        writer.write(HEAD + event("a") + event("b"))
        await asyncio.sleep(10)

    began = time.perf_counter()
    found = stream_once(script, timeouts=Timeouts(first_token_s=5, stall_s=0.2))
    assert found.status is RequestStatus.TIMEOUT
    assert "after 2 token events" in (found.error or "")
    assert len(found.token_times) == 2, "what was measured before the stall is kept"
    assert 0.15 < time.perf_counter() - began < 1.5


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
        async with Client(Endpoint("http", "127.0.0.1", 1)) as client:
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

    async def act(client: Client) -> None:
        statuses.extend([(await client.stream("/x", (b"{}",), VLLM, Timeouts())).status for _ in range(5)])

    connections = asyncio.run(with_server(script, act))
    assert statuses == [RequestStatus.OK] * 5
    assert served == 5, "no request reached the server twice"
    assert len(connections) == 3


def test_the_key_and_the_authority_are_sent() -> None:
    heads: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        heads.append((await read_request(reader))[0])
        writer.write(plain("200 OK", '{"data":[]}'))

    async def act(client: Client) -> None:
        assert (await client.call("GET", "/v1/models")).json() == {"data": []}

    asyncio.run(with_server(script, act, api_key="sekrit"))
    assert b"\r\nAuthorization: Bearer sekrit\r\n" in heads[0]
    assert b"\r\nHost: 127.0.0.1:" in heads[0]


def test_a_key_that_would_break_the_header_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        Client(Endpoint("http", "h", 1), api_key="good\r\nX-Evil: 1")
    assert "Evil" not in str(caught.value)


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

    async def act(proxy: Client) -> None:
        async with Client(Endpoint("http", "engine.invalid", 8000), proxy=proxy.endpoint.url) as client:
            found = await client.stream("/v1/completions", (b"{}",), VLLM, Timeouts())
            assert found.status is RequestStatus.OK

    asyncio.run(with_server(script, act))
    assert lines == [b"POST http://engine.invalid:8000/v1/completions HTTP/1.1"]


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """(server's context, client's context that trusts it) for localhost, made for this run."""
    if shutil.which("openssl") is None:
        pytest.skip("makes its certificate with openssl")
    folder = tmp_path_factory.mktemp("tls")
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    command += ["-keyout", str(key), "-out", str(cert), "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(command, check=True, capture_output=True)
    serving = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving.load_cert_chain(cert, key)
    return serving, ssl.create_default_context(cafile=str(cert))


def test_https_a_proxy_to_it_and_an_untrusted_certificate(certificate: tuple[ssl.SSLContext, ssl.SSLContext]) -> None:
    serving, trusting = certificate
    body = memoryview(b"y" * 3_000_000)
    got: list[int] = []
    asked: list[bytes] = []

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        got.append(len((await read_request(reader))[1]))
        writer.write(HEAD + event("a", "length") + DONE)
        await writer.drain()
        writer.close()

    async def tunnel(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        asked.append((await reader.readuntil(b"\r\n\r\n")).split(b"\r\n")[0])
        far_reader, far_writer = await asyncio.open_connection("localhost", int(asked[0].split(b":")[1].split()[0]))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")

        async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
            while data := await source.read(65536):
                sink.write(data)
                await sink.drain()
            sink.close()

        await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer), return_exceptions=True)

    async def act() -> list[Exchange]:
        server = await asyncio.start_server(script, "localhost", 0, ssl=serving, limit=1 << 16)
        proxy = await asyncio.start_server(tunnel, "127.0.0.1", 0)
        endpoint = Endpoint("https", "localhost", server.sockets[0].getsockname()[1])
        through = f"http://127.0.0.1:{proxy.sockets[0].getsockname()[1]}"
        found = []
        for client in (Client(endpoint, tls=trusting), Client(endpoint, tls=trusting, proxy=through), Client(endpoint)):
            async with client:
                found.append(await client.stream("/x", (body,), VLLM, Timeouts(first_token_s=10)))
        server.close()
        proxy.close()
        await asyncio.sleep(0.05)
        return found

    direct, proxied, untrusted = asyncio.run(act())
    assert (direct.status, direct.error) == (RequestStatus.OK, None)
    assert (proxied.status, proxied.error) == (RequestStatus.OK, None)
    assert got == [len(body), len(body)]
    assert asked[0].startswith(b"CONNECT localhost:")
    assert untrusted.status is RequestStatus.CONNECT_ERROR
    assert "not trusted" in (untrusted.error or "")


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
