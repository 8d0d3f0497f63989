"""The stand-in itself: if it lied, every test built on it would."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from longhaul.engines.diagnosis import Phase, diagnose, phase_of
from longhaul.engines.registry import get_engine
from standin.cache import PrefixCache, from_ids_text
from standin.fixture import StandIn

TESTS = Path(__file__).resolve().parents[1]


def start(*args: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(TESTS / "standin"), *args], capture_output=True, text=True, timeout=20, check=False
    )


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize(
    "kind", ["oom", "kv-too-small", "gpu-busy", "bad-flag", "bad-model", "gated", "parallelism", "nccl", "port"]
)
def test_a_failing_start_dies_with_a_line_that_the_adapter_can_name(engine: str, kind: str) -> None:
    if (engine, kind) == ("sglang", "parallelism"):
        pytest.skip("SGLang dies there with a bare assertion")
    done = start("--engine", engine, "--fail-start", kind)
    assert done.returncode == (2 if kind == "bad-flag" else 1)
    found = diagnose((done.stdout + done.stderr).splitlines(), get_engine(engine))
    assert found is not None
    wrappers = {m.cause for m in get_engine(engine).failures if m.wrapper}
    assert found.cause not in wrappers, "the true cause, not the line that hides it"


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_a_good_start_logs_every_phase_and_the_capacity(engine: str) -> None:
    adapter = get_engine(engine)
    with StandIn("--engine", engine, "--kv-tokens", "123456", "--max-model-len", "1000") as server:
        pass
    phases = [p for p in (phase_of(line, adapter.phases) for line in server.log) if p is not None]
    assert phases[-1] is Phase.READY
    assert {Phase.LOADING, Phase.SIZING_KV} <= set(phases)
    assert adapter.capacity_from_log(server.log).kv_cache_tokens == 123456


def test_engine_argv_is_taken_and_unknown_flags_only_refused_when_strict() -> None:
    argv = ["--model-path", "/m", "--served-model-name", "x", "--context-length", "4096", "--mem-fraction-static", "0.8"]
    with StandIn(*argv) as server, urllib.request.urlopen(f"{server.url}/v1/models", timeout=5) as answer:
        card = json.load(answer)["data"][0]
    assert (card["id"], card["owned_by"], card["max_model_len"]) == ("x", "sglang", 4096)
    done = start("--strict", *argv)
    assert done.returncode == 2
    assert "unrecognized arguments" in done.stderr


def post(url: str, body: dict[str, Any]) -> tuple[int, Any]:
    request = urllib.request.Request(url, data=json.dumps(body).encode(), method="POST")
    try:
        with urllib.request.urlopen(request, timeout=5) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        return error.code, json.loads(error.read())


def test_errors_have_each_engines_shape() -> None:
    with StandIn("--max-model-len", "100") as server:
        status, body = post(f"{server.url}/v1/completions", {"prompt": [1] * 99, "max_tokens": 2, "stream": True})
        assert (status, body["error"]["type"]) == (400, "BadRequestError")
        server.become("--engine", "sglang", "--context-length", "100")
        status, body = post(f"{server.url}/generate", {"input_ids": [1] * 200, "stream": True})
        assert (status, set(body)) == (400, {"error"})
        status, body = post(f"{server.url}/v1/completions", {"prompt": [1] * 200, "stream": True})
        assert (status, body["object"]) == (400, "error")


def ids(values: list[int]) -> memoryview:
    return memoryview(",".join(map(str, values)).encode())


@pytest.mark.parametrize("size", [1000, 60_000])
def test_the_cache_hits_equal_prefixes_only(size: int) -> None:
    first = [i * 7 % 50_000 for i in range(size)]
    second = [*first[: size // 2], 1, *first[size // 2 + 1 :]]
    cache = PrefixCache()
    cache.add(from_ids_text(ids(first), "salt"))
    assert cache.cached_tokens(from_ids_text(ids(first), "salt")) > 0.9 * size
    assert 0.3 * size < cache.cached_tokens(from_ids_text(ids(second), "salt")) <= 0.5 * size
    assert cache.cached_tokens(from_ids_text(ids(first), "other salt")) == 0
    assert cache.cached_tokens(from_ids_text(ids(first[1:]), "salt")) == 0
    assert from_ids_text(ids(first), "").n_tokens == size
