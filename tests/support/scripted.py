"""A server that says what a test's script says, byte by byte; and a certificate for it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from pathlib import Path

from longhaul.client.endpoint import Endpoint

Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream; charset=utf-8\r\ntransfer-encoding: chunked\r\n\r\n"


def chunk(text: str) -> bytes:
    data = text.encode()
    return b"%x\r\n%s\r\n" % (len(data), data)


def event(text: str, reason: str | None = None) -> bytes:
    return chunk("data: " + json.dumps({"choices": [{"text": text, "finish_reason": reason}]}) + "\n\n")


def plain(status: str, body: str, extra: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\ncontent-length: {len(body.encode())}\r\n{extra}\r\n{body}".encode()


USAGE = chunk('data: {"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":2}}\n\n')
DONE = chunk("data: [DONE]\n\n") + b"0\r\n\r\n"


async def read_request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    head = await reader.readuntil(b"\r\n\r\n")
    length = next((int(line[15:]) for line in head.lower().split(b"\r\n") if line.startswith(b"content-length:")), 0)
    return head, await reader.readexactly(length)


@contextlib.asynccontextmanager
async def serving(
    script: Script, host: str = "127.0.0.1", tls: ssl.SSLContext | None = None
) -> AsyncIterator[tuple[Endpoint, list[int]]]:
    """A server that follows ``script`` on each connection: its address, and the numbers of the connections made so far."""
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

    server = await asyncio.start_server(on_connection, host, 0, limit=1 << 16, ssl=tls)
    try:
        yield Endpoint("https" if tls else "http", host, server.sockets[0].getsockname()[1]), connections
    finally:
        server.close()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def connect(head: bytes, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Do what the CONNECT in ``head`` asks a proxy for, to a port of this machine."""
    writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
    await tunnel(int(head.split(b"\r\n")[0].split(b":")[1].split()[0]), reader, writer)


async def tunnel(port: int, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """Pass bytes both ways between this connection and a port of this machine, until one side ends."""
    far_reader, far_writer = await asyncio.open_connection("localhost", port)

    async def pump(source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        while data := await source.read(65536):
            sink.write(data)
            await sink.drain()
        sink.close()

    await asyncio.gather(pump(reader, far_writer), pump(far_reader, writer), return_exceptions=True)


def make_certificate(folder: Path) -> tuple[ssl.SSLContext, Path]:
    """(the server's context, the certificate that signs itself) for localhost, made by openssl in ``folder``."""
    key, cert = folder / "key.pem", folder / "cert.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2"]
    command += ["-keyout", str(key), "-out", str(cert), "-subj", "/CN=localhost", "-addext", "subjectAltName=DNS:localhost"]
    subprocess.run(command, check=True, capture_output=True)
    serving_context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    serving_context.load_cert_chain(cert, key)
    return serving_context, cert
