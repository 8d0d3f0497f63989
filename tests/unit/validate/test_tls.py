"""A whole run over https: streamed requests and control calls trust the same authority, and neither goes on without it."""

from __future__ import annotations

import asyncio
import shutil
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from longhaul.errors import UserError
from longhaul.results import RunResult, Verdict
from longhaul.validate.config import Point, ValidateConfig
from longhaul.validate.run import validate
from standin.fixture import StandIn
from support.scripted import make_certificate, serving, tunnel


@contextmanager
def tls_in_front(port: int, context: ssl.SSLContext) -> Iterator[str]:
    """An address where TLS ends and everything goes on to ``port``, as at a gateway."""
    ready: list[str] = []
    begun = threading.Event()
    over = asyncio.Event()
    loop = asyncio.new_event_loop()

    async def forward(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        await tunnel(port, reader, writer)

    async def serve() -> None:
        async with serving(forward, "localhost", context) as (endpoint, _):
            ready.append(endpoint.url)
            begun.set()
            await over.wait()

    thread = threading.Thread(target=lambda: loop.run_until_complete(serve()), daemon=True)
    thread.start()
    assert begun.wait(10)
    try:
        yield ready[0]
    finally:
        loop.call_soon_threadsafe(over.set)
        thread.join(10)
        loop.close()


def test_a_run_over_https_with_a_private_authority_and_without_it(tmp_path: Path) -> None:
    if shutil.which("openssl") is None:
        pytest.skip("makes its certificate with openssl")
    context, ca_file = make_certificate(tmp_path)

    def run(url: str, trusted: Path | None) -> RunResult:
        config = ValidateConfig(
            url=url, engine="vllm", host="h", out_dir=tmp_path / "out", run_id="r", points=(Point(300, 4, 2),), vocab_size=50_000,
            seed=7, ca_file=trusted,
        )  # fmt: skip
        return validate(config, lambda _: None)

    with StandIn("--ttft", "0.02", "--gap", "0.002") as server:
        port = int(server.url.rsplit(":", 1)[1])
        with tls_in_front(port, context) as url:
            assert url.startswith("https://")
            result = run(url, ca_file)
            assert result.verdict is Verdict.PASS, result.reasons
            with pytest.raises(UserError, match=r"certificate not trusted .*--ca-file"):
                run(url, None)
