"""The SGLang adapter: what it sends, what it reads, what it refuses, and that its key stays secret."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from longhaul.engines.base import EngineAdapter
from longhaul.engines.diagnosis import Phase, diagnose, phase_of
from longhaul.engines.registry import get_engine
from longhaul.engines.sglang.adapter import API_KEY_ENV
from longhaul.engines.sglang.sizing import default_max_running_requests
from longhaul.errors import UserError
from longhaul.version import Version
from unit.engines.samples import SGLANG, log, settings

ADAPTER: EngineAdapter = get_engine("sglang")
OLD, NEW = Version.parse("0.5.6.post2"), Version.parse("0.5.23")


def value_of(argv: tuple[str, ...], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def test_the_requests_2m_configuration_becomes_its_command_line() -> None:
    launch = ADAPTER.launch(
        settings(tensor_parallel=8, gpu_memory_utilization=0.8, enforce_eager=True, max_num_seqs=8, attention_backend="fa3"), OLD
    )
    assert launch.argv[:2] == ("-m", "sglang.launch_server")
    assert value_of(launch.argv, "--context-length") == "2097152"
    assert value_of(launch.argv, "--tp-size") == "8"
    assert value_of(launch.argv, "--mem-fraction-static") == "0.8"
    assert value_of(launch.argv, "--max-running-requests") == "8"
    assert {"--disable-cuda-graph", "--enable-metrics", "--enable-cache-report"} <= set(launch.argv)
    assert launch.env == {"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0"}, "/health must not wait behind a 20-minute prefill"


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("0.5.6.post2", {"--disable-cuda-graph"}),
        ("0.5.10", {"--disable-cuda-graph", "--disable-piecewise-cuda-graph"}),
        ("0.5.14", {"--cuda-graph-backend-decode=disabled", "--cuda-graph-backend-prefill=disabled"}),
    ],
)
def test_graphs_are_turned_off_in_each_versions_own_words(version: str, words: set[str]) -> None:
    argv = ADAPTER.launch(settings(enforce_eager=True), Version.parse(version)).argv
    assert {w for w in argv if "graph" in w} == words
    assert not [w for w in ADAPTER.launch(settings(), Version.parse(version)).argv if "graph" in w]


@given(context=st.integers(min_value=1, max_value=20_000_000))
def test_the_request_table_is_always_bounded(context: int) -> None:
    requests = int(value_of(ADAPTER.launch(settings(context_tokens=context), NEW).argv, "--max-running-requests"))
    assert 1 <= requests <= 256
    assert requests * (context + 4) * 4 <= 512 * 1024**2
    assert requests == 256 or (requests + 1) * (context + 4) * 4 > 512 * 1024**2, "no smaller than it must be"


def test_the_default_leaves_room_for_the_requests_50_at_2m() -> None:
    assert [default_max_running_requests(n) for n in (2_097_152, 8_388_608, 10_485_760)] == [63, 15, 12]


def test_hybrid_where_it_would_shorten_prompts_is_refused() -> None:
    with pytest.raises(UserError, match=r"0\.5\.8"):
        ADAPTER.launch(settings(hybrid_kv="on"), OLD)
    assert ADAPTER.launch(settings(hybrid_kv="on", swa_full_tokens_ratio=0.02), Version.parse("0.5.8")).argv
    assert "--disable-hybrid-swa-memory" in ADAPTER.launch(settings(hybrid_kv="off"), OLD).argv


def test_the_page_size_is_said_only_when_it_is_set() -> None:
    argv = ADAPTER.launch(settings(block_size_tokens=128, max_num_batched_tokens=16_384), OLD).argv
    assert argv[argv.index("--page-size") + 1] == "128"
    assert "--page-size" not in ADAPTER.launch(settings(), OLD).argv
    # No chunks, nothing to divide.
    assert ADAPTER.launch(settings(block_size_tokens=128, max_num_batched_tokens=-1), OLD).argv


@pytest.mark.parametrize(
    ("changes", "version", "found"),
    [
        ({}, "0.5.6", "SGLang 0.5.6"),
        ({"cpu_kv_cache_gib": 2}, "0.5.23", "cpu_kv_cache_gib"),
        ({"max_num_seqs": 0}, "0.5.23", "max_num_seqs 0"),
        ({"block_size_tokens": 0}, "0.5.23", "block size of 0 tokens"),
        ({"block_size_tokens": 128, "max_num_batched_tokens": 5000}, "0.5.23", "block size of 128 tokens"),
        ({"block_size_tokens": 96, "attention_backend": "fa3"}, "0.5.23", "block size of 96 tokens"),
        ({"extra_args": ("--api-key=x",)}, "0.5.23", "--api-key"),
    ],
)
def test_a_setting_that_cannot_hold_is_refused(changes: dict[str, Any], version: str, found: str) -> None:
    with pytest.raises(UserError) as caught:
        ADAPTER.launch(settings(**changes), Version.parse(version))
    assert found in caught.value.found


def test_the_launcher_hands_the_key_over_without_showing_it(tmp_path: Path) -> None:
    """A stand-in sglang.launch_server reports what it got, what the kernel shows, and what a log line became."""
    package = tmp_path / "sglang"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "launch_server.py").write_text(
        "import json, logging, os, sys\n"
        "from pathlib import Path\n"
        "logging.basicConfig(format='%(message)s', stream=sys.stderr)\n"
        "logging.warning('server_args=ServerArgs(api_key=%r)', sys.argv[sys.argv.index('--api-key') + 1])\n"
        "logging.warning('plain %d', 3)\n"
        "print(json.dumps({'argv': sys.argv[1:], 'name': __name__, 'spec': __spec__.name,\n"
        "  'shown': Path('/proc/self/cmdline').read_bytes().decode() if os.path.exists('/proc/self/cmdline') else '',\n"
        f"  'inherited': os.environ.get('{API_KEY_ENV}')}}))\n"
    )
    launch = ADAPTER.launch(settings(api_key_file="/run/secrets/key"), OLD)
    assert launch.secret_env == {API_KEY_ENV: "/run/secrets/key"}
    assert not set("\n%;$") & set(launch.argv[1]), "service files would break on these"
    done = subprocess.run(
        [sys.executable, *launch.argv],
        env={**os.environ, "PYTHONPATH": str(tmp_path), API_KEY_ENV: "planted-token\n"},
        capture_output=True,
        text=True,
        check=True,
    )
    got = json.loads(done.stdout)
    assert got["argv"][-2:] == ["--api-key", "planted-token"]
    assert got["argv"][:-2] == list(launch.argv[2:]), "every other word unchanged"
    assert (got["name"], got["spec"]) == ("__main__", "sglang.launch_server"), "worker processes are spawned as with -m"
    assert "planted-token" not in got["shown"], "what `ps` shows"
    assert got["inherited"] is None, "no child inherits it"
    assert "planted-token" not in done.stderr, "what the log keeps"
    assert "api_key='***'" in done.stderr
    assert "plain 3" in done.stderr


def test_the_request_around_the_ids() -> None:
    template = ADAPTER.generate_ids("scout", 20, cache_salt="s1")
    assert template.path == "/generate"
    assert json.loads(template.head + b"[1,2,3]" + template.tail) == {
        "input_ids": [1, 2, 3],
        "sampling_params": {"max_new_tokens": 20, "ignore_eos": True, "temperature": 0},
        "stream": True,
    }


@given(pieces=st.lists(st.text(max_size=12), max_size=12))
def test_cumulative_texts_become_their_pieces(pieces: list[str]) -> None:
    so_far = ""
    for piece in pieces:
        event = ADAPTER.parse_event({"text": so_far + piece, "meta_info": {"finish_reason": None}}, so_far)
        assert event.text == piece
        so_far += event.text
    assert so_far == "".join(pieces)


def test_meta_info_carries_usage_in_every_event() -> None:
    meta = {"prompt_tokens": 9, "completion_tokens": 2, "cached_tokens": 0, "finish_reason": {"type": "length", "length": 2}}
    event = ADAPTER.parse_event({"text": "ab", "meta_info": meta}, "a")
    assert event.text == "b"
    assert event.finish_reason == "length"
    assert event.usage is not None
    assert (event.usage.prompt_tokens, event.usage.completion_tokens, event.usage.cached_tokens) == (9, 2, 0)
    assert ADAPTER.parse_event({"output_ids": [5], "meta_info": {"prompt_tokens": 9}}, "").text == "", "no tokenizer: ids only"


def test_an_abort_is_an_error_with_the_servers_words() -> None:
    meta = {"finish_reason": {"type": "abort", "message": "Input length exceeds the maximum", "status_code": 400}}
    event = ADAPTER.parse_event({"text": "", "meta_info": meta}, "")
    assert event.error == "Input length exceeds the maximum"
    assert ADAPTER.parse_event({"error": {"message": "too long"}}, "").error == "too long"


def test_openai_events_of_the_chat_route() -> None:
    event = ADAPTER.parse_event({"choices": [{"delta": {"content": "hi"}, "finish_reason": "stop"}]}, "")
    assert (event.text, event.finish_reason) == ("hi", "stop")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"object":"error","message":"bad","type":"BadRequest","param":null,"code":400}', "bad"),
        (b'{"error":{"message":"The input (9 tokens) is longer"}}', "The input (9 tokens) is longer"),
        (b'{"error":"Unauthorized"}', "Unauthorized"),
    ],
)
def test_the_servers_words_in_both_error_shapes(body: bytes, message: str) -> None:
    assert ADAPTER.error_message(400, body) == message


def test_capacity_of_a_split_pool() -> None:
    capacity = ADAPTER.capacity_from_log(SGLANG)
    assert (capacity.kv_cache_tokens, capacity.local_kv_tokens, capacity.context_tokens) == (2_656_945, 132_847, 1_048_576)
    assert capacity.available_kv_gib == 69.94, "both pools of one rank, not of two"
    assert capacity.weights_gib == 51.75
    assert capacity.max_concurrency is None, "SGLang prints none"


def test_capacity_of_the_newer_pool_line() -> None:
    line = (
        "[2026-11-01 10:00:00.123 TP0] KV Cache is allocated. dtype: torch.bfloat16, #tokens: 5, K size: 1.50 GB, V size: 1.50 GB"
    )
    assert ADAPTER.capacity_from_log([line]).available_kv_gib == 3.0
    assert (
        ADAPTER.capacity_from_log([line.replace("K size: 1.50 GB, V size: 1.50 GB", "KV size: 2.00 GB")]).available_kv_gib == 2.0
    )


def test_phases_come_in_order_and_end_ready() -> None:
    seen = [p for p in (phase_of(line, ADAPTER.phases) for line in SGLANG) if p]
    order = list(Phase)
    assert [order.index(p) for p in seen] == sorted(order.index(p) for p in seen)
    assert (seen[0], seen[-1]) == (Phase.STARTING, Phase.READY)


@pytest.mark.parametrize(
    ("lines", "cause"),
    [
        (
            [
                "[2026-06-01 10:00:00 TP0] Scheduler hit an exception: Traceback (most recent call last):",
                "RuntimeError: Not enough memory. Please try to increase --mem-fraction-static. Current value: ...",
                "[2026-06-01 10:00:01] Rank 0 scheduler is dead. Please check if there are relevant logs.",
            ],
            "weights leave no memory for the KV cache",
        ),
        (
            ["Exception: Capture cuda graph failed: CUDA out of memory."],
            "out of memory (or a kernel failed) while capturing graphs",
        ),
        (["RuntimeError: alloc_req_slots runs out of memory. Please set a smaller"], "the table of requests is full"),
        (["ValueError: The memory capacity is unbalanced. Some GPUs may be occupied"], "some GPUs are not empty"),
        (
            ["[2026-06-01 10:00:01] Received sigquit from a child process. It usually means the child failed."],
            "an engine process died",
        ),
        (["SIGQUIT received. signum=None, frame=None. It usually means one child failed."], "an engine process died"),
    ],
)
def test_failures_are_named(lines: list[str], cause: str) -> None:
    found = diagnose(lines, ADAPTER)
    assert found is not None
    assert found.cause == cause


def test_a_warning_is_no_failure() -> None:
    line = "[2026-06-01 10:00:00 TP0] The memory capacity is unbalanced. Some GPUs may be occupied by other processes."
    assert diagnose([line], ADAPTER) is None


def test_a_death_while_loading_is_named_by_its_exception_not_by_a_warning_before_it() -> None:
    """A real start on two GPUs: a hook raised, after the engine had said that it does without a generation_config.json."""
    lines = log("sglang-0.5.12.post1-died-loading")
    found = diagnose(lines, ADAPTER)
    assert found is not None
    assert found.evidence.startswith("RuntimeError: view size is not compatible with input tensor's size and stride")
    assert (found.cause, found.phase) == ("an engine process failed", Phase.LOADING)
    warned = [x for x in lines if "generation_config.json" in x]
    assert len(warned) == 2
    assert diagnose(warned, ADAPTER) is None
    fatal = diagnose([warned[0].partition(" Proceeding")[0]], ADAPTER)
    assert fatal is not None
    assert fatal.cause == "the model folder is incomplete"


def test_an_exception_before_the_traceback_that_ends_the_engine_is_not_the_evidence() -> None:
    lines = [
        "ImportError: an optional kernel is not there",
        "[2026-06-01 10:00:00 TP0] Scheduler hit an exception: Traceback (most recent call last):",
        '  File "scheduler.py", line 1, in run',
        "KeyError: 'first'",
        "",
        "[2026-06-01 10:00:00 TP1] Scheduler hit an exception: Traceback (most recent call last):",
        "KeyError: 'second'",
        "[2026-06-01 10:00:01] Received sigquit from a child process. It usually means the child failed.",
    ]
    found = diagnose(lines, ADAPTER)
    assert found is not None
    assert found.evidence == "KeyError: 'first'"


def test_capacity_from_metrics() -> None:
    text = 'sglang:max_total_num_tokens{tp_rank="0"} 2656945.0\nsglang:max_total_num_tokens{tp_rank="1"} 2656940.0\n'
    assert get_engine("sglang").capacity_from_metrics(text).kv_cache_tokens == 2656940
    assert get_engine("sglang").capacity_from_metrics("").kv_cache_tokens is None
