"""The vLLM adapter: what it sends, what it reads, what it refuses."""

from __future__ import annotations

import json
from typing import Any

import pytest
from longhaul.engines.base import EngineAdapter, EngineCapacity
from longhaul.engines.diagnosis import Phase, diagnose, phase_of
from longhaul.engines.registry import get_engine
from longhaul.errors import UserError
from longhaul.version import Version
from unit.engines.samples import VLLM_NEW, VLLM_OLD, log, settings

VLLM: EngineAdapter = get_engine("vllm")
OLD, NEW = Version.parse("0.12.0"), Version.parse("0.32.0")


def value_of(argv: tuple[str, ...], flag: str) -> str:
    return argv[argv.index(flag) + 1]


def test_the_requests_8m_configuration_becomes_its_command_line() -> None:
    launch = VLLM.launch(settings(context_tokens=8_388_608, tensor_parallel=8, gpu_memory_utilization=0.9, hybrid_kv="on"), OLD)
    assert launch.argv[:4] == ("-m", "vllm.entrypoints.openai.api_server", "--model", "/models/scout")
    assert value_of(launch.argv, "--max-model-len") == "8388608", "never 8m, which vLLM reads as 8,000,000"
    assert value_of(launch.argv, "--tensor-parallel-size") == "8"
    assert value_of(launch.argv, "--gpu-memory-utilization") == "0.9"
    assert value_of(launch.argv, "--limit-mm-per-prompt") == '{"image":0}'
    assert "--enable-prompt-tokens-details" in launch.argv, "without it cached tokens cannot be proven"
    assert launch.env == {"VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE": "1"}


@pytest.mark.parametrize(
    ("version", "hybrid", "variable", "flag"),
    [
        ("0.12.0", "on", True, False),
        ("0.13.0", "on", True, False),
        ("0.14.0", "on", False, False),
        ("0.12.0", "off", False, True),
        ("0.32.0", "off", False, True),
        ("0.12.0", "default", False, False),
    ],
)
def test_hybrid_cache_by_version(version: str, hybrid: Any, variable: bool, flag: bool) -> None:
    launch = VLLM.launch(settings(hybrid_kv=hybrid), Version.parse(version))
    assert ("VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE" in launch.env) is variable
    assert ("--disable-hybrid-kv-cache-manager" in launch.argv) is flag


def test_attention_backend_moved_from_the_environment_to_a_flag() -> None:
    before = VLLM.launch(settings(attention_backend="FLASH_ATTN"), OLD)
    after = VLLM.launch(settings(attention_backend="FLASH_ATTN"), Version.parse("0.13.0"))
    assert before.env["VLLM_ATTENTION_BACKEND"] == "FLASH_ATTN"
    assert "--attention-backend" not in before.argv
    assert value_of(after.argv, "--attention-backend") == "FLASH_ATTN"
    assert "VLLM_ATTENTION_BACKEND" not in after.env


def test_on_a_cpu_the_cache_is_sized_in_gib_and_no_gpu_option_is_given() -> None:
    launch = VLLM.launch(settings(device="cpu", gpu_memory_utilization=0.9, cpu_kv_cache_gib=2.0), NEW)
    assert launch.env == {"VLLM_CPU_KVCACHE_SPACE": "2"}
    assert "--gpu-memory-utilization" not in launch.argv
    assert VLLM.launch(settings(device="cpu"), NEW).env == {"VLLM_CPU_KVCACHE_SPACE": "4"}, "else it asks for 92% of the memory"


def test_the_key_is_read_from_its_file_and_stands_nowhere_else() -> None:
    launch = VLLM.launch(settings(api_key_file="/run/secrets/key"), NEW)
    assert launch.secret_env == {"VLLM_API_KEY": "/run/secrets/key"}
    assert "--api-key" not in launch.argv
    assert not launch.env


def test_prefix_caching_has_three_states() -> None:
    assert "--enable-prefix-caching" in VLLM.launch(settings(prefix_caching=True), NEW).argv
    assert "--no-enable-prefix-caching" in VLLM.launch(settings(prefix_caching=False), NEW).argv
    assert not [w for w in VLLM.launch(settings(), NEW).argv if "prefix-caching" in w]


def test_the_block_size_is_said_only_when_it_is_set() -> None:
    assert value_of(VLLM.launch(settings(block_size_tokens=128), OLD).argv, "--block-size") == "128"
    assert "--block-size" not in VLLM.launch(settings(), NEW).argv
    # Any multiple of 16 since 0.18.0; on a CPU of 32 since 0.29.0.
    assert VLLM.launch(settings(block_size_tokens=144), Version.parse("0.18.0")).argv
    assert VLLM.launch(settings(device="cpu", block_size_tokens=16), Version.parse("0.28.0")).argv
    assert VLLM.launch(settings(device="cpu", block_size_tokens=96), NEW).argv


def test_extra_args_and_env_come_last_and_win() -> None:
    launch = VLLM.launch(settings(extra_args=("--seed", "7"), extra_env={"VLLM_SERVER_DEV_MODE": "1"}), NEW)
    assert launch.argv[-2:] == ("--seed", "7")
    assert launch.env["VLLM_SERVER_DEV_MODE"] == "1"


@pytest.mark.parametrize(
    ("changes", "version", "found"),
    [
        ({}, "0.11.2", "vLLM 0.11.2"),
        ({"swa_full_tokens_ratio": 0.02}, "0.12.0", "swa_full_tokens_ratio"),
        ({"max_total_tokens": 5}, "0.12.0", "max_total_tokens"),
        ({"device": "cpu", "cpu_kv_cache_gib": 1.5}, "0.32.0", "cpu_kv_cache_gib 1.5"),
        ({"device": "cpu", "cpu_kv_cache_gib": 0}, "0.32.0", "cpu_kv_cache_gib 0"),
        ({"block_size_tokens": 0}, "0.32.0", "block size of 0 tokens"),
        ({"block_size_tokens": -16}, "0.32.0", "block size of -16 tokens"),
        ({"block_size_tokens": 8}, "0.17.1", "block size of 8 tokens"),
        ({"block_size_tokens": 100}, "0.32.0", "block size of 100 tokens"),
        ({"block_size_tokens": 144}, "0.17.1", "block size of 144 tokens"),
        ({"device": "cpu", "block_size_tokens": 8}, "0.12.0", "block size of 8 tokens"),
        ({"device": "cpu", "block_size_tokens": 144}, "0.12.0", "block size of 144 tokens"),
        ({"device": "cpu", "block_size_tokens": 16}, "0.29.0", "block size of 16 tokens"),
        ({"extra_args": ("--api-key", "x")}, "0.32.0", "--api-key"),
        ({"extra_args": ("--port=1",)}, "0.32.0", "--port"),
    ],
)
def test_a_setting_that_cannot_hold_is_refused_in_one_line(changes: dict[str, Any], version: str, found: str) -> None:
    with pytest.raises(UserError) as caught:
        VLLM.launch(settings(**changes), Version.parse(version))
    assert found in caught.value.found
    assert "\n" not in str(caught.value)


def test_the_request_around_the_ids_is_greedy_exact_and_salted() -> None:
    template = VLLM.generate_ids("scout", 20, cache_salt="s1")
    assert template.path == "/v1/completions"
    body = json.loads(template.head + b"[1,2,3]" + template.tail)
    assert body == {
        "prompt": [1, 2, 3],
        "model": "scout",
        "max_tokens": 20,
        "min_tokens": 20,
        "ignore_eos": True,
        "temperature": 0,
        "stream": True,
        "stream_options": {"include_usage": True},
        "cache_salt": "s1",
    }
    assert b" " not in template.head + template.tail, "compact: the body's size is reported"
    assert "cache_salt" not in json.loads(template.head + b"[1]" + VLLM.generate_ids("scout", 20).tail)


def test_events_of_a_real_stream() -> None:
    """[run] vLLM 0.32.0: text pieces, then the finish, then the usage in an event without choices."""
    piece = VLLM.parse_event({"choices": [{"index": 0, "text": " Paris", "finish_reason": None}]}, "The capital is")
    assert (piece.text, piece.usage, piece.finish_reason) == (" Paris", None, None)
    end = VLLM.parse_event({"choices": [{"index": 0, "text": "", "finish_reason": "length"}]}, "")
    assert end.finish_reason == "length"
    usage = VLLM.parse_event(
        {
            "choices": [],
            "usage": {"prompt_tokens": 2000, "completion_tokens": 8, "prompt_tokens_details": {"cached_tokens": 1920}},
        },
        "",
    ).usage
    assert usage is not None
    assert (usage.prompt_tokens, usage.completion_tokens, usage.cached_tokens) == (2000, 8, 1920)


def test_old_servers_say_nothing_about_an_empty_cache() -> None:
    usage = VLLM.parse_event({"choices": [], "usage": {"prompt_tokens": 5, "prompt_tokens_details": None}}, "").usage
    assert usage is not None
    assert usage.cached_tokens is None


def test_an_error_inside_the_stream_is_an_error() -> None:
    event = VLLM.parse_event({"error": {"message": "EngineCore died", "type": "InternalServerError", "code": 500}}, "abc")
    assert event.error == "EngineCore died"


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b'{"error":{"message":"too long","type":"BadRequestError","param":null,"code":400}}', "too long"),
        (b'{"error":"Unauthorized"}', "Unauthorized"),
        (b'{"detail":"Not Found"}', "Not Found"),
        (b'{"detail":[{"loc":["body","prompt"],"msg":"Field required"}]}', "body.prompt: Field required"),
        (b'{"object":"error","message":"bad","type":"x","code":400}', "bad"),
        (b"<html>413 Request Entity Too Large</html>", "<html>413 Request Entity Too Large</html>"),
        (b"", "HTTP 413 with an empty body"),
        (b"null", "null"),
    ],
)
def test_the_servers_words_are_found_in_any_error_body(body: bytes, message: str) -> None:
    assert VLLM.error_message(413, body) == message


def test_capacity_old_form_takes_the_smallest_worker() -> None:
    capacity = VLLM.capacity_from_log(VLLM_OLD)
    assert capacity.kv_cache_tokens == 3_919_664
    assert (capacity.max_concurrency, capacity.context_tokens) == (1.86, 8_388_608)
    assert (capacity.available_kv_gib, capacity.weights_gib) == (89.71, 25.67)


def test_capacity_new_form_on_one_line() -> None:
    capacity = VLLM.capacity_from_log(VLLM_NEW)
    assert (capacity.kv_cache_tokens, capacity.max_concurrency, capacity.available_kv_gib) == (3_055_834, 1.46, 71.58)


def test_capacity_of_a_real_cpu_engine() -> None:
    capacity = VLLM.capacity_from_log(log("vllm-0.32.0-cpu-ready"))
    assert (capacity.kv_cache_tokens, capacity.max_concurrency, capacity.context_tokens) == (2_097_152, 256.0, 8192)
    assert capacity.available_kv_gib == 1.0


def test_capacity_counts_only_the_last_start_of_an_appended_log() -> None:
    assert VLLM.capacity_from_log([*VLLM_OLD, VLLM_OLD[0]]).kv_cache_tokens is None
    assert VLLM.capacity_from_log([]).max_concurrency is None


@pytest.mark.parametrize("lines", [VLLM_OLD, log("vllm-0.32.0-cpu-ready")], ids=["gpu-0.12", "cpu-0.32"])
def test_phases_come_in_order_and_end_ready(lines: list[str]) -> None:
    seen = [p for p in (phase_of(line, VLLM.phases) for line in lines) if p]
    order = list(Phase)
    assert [order.index(p) for p in seen] == sorted(order.index(p) for p in seen)
    assert seen[0] is Phase.STARTING
    assert seen[-1] is Phase.READY
    assert {Phase.LOADING, Phase.COMPILING, Phase.SIZING_KV, Phase.CAPTURING} <= set(seen)


@pytest.mark.parametrize(
    ("name", "cause"),
    [
        ("vllm-0.32.0-port-in-use", "the port is in use"),
        ("vllm-0.32.0-unknown-flag", "a flag is unknown to this engine version"),
        ("vllm-0.32.0-context-above-positions", "the context is above the model's positions"),
        ("vllm-0.32.0-kv-too-small", "the KV cache is too small for one request of the full context"),
        ("vllm-0.32.0-shm-too-small", "the engine found too little shared memory"),
        ("vllm-0.25.1-nccl-no-memory", "no GPU memory left for NCCL's buffers"),
    ],
)
def test_real_failures_are_named_with_their_line(name: str, cause: str) -> None:
    found = diagnose(log(name), VLLM)
    assert found is not None
    assert found.cause == cause
    assert any(m.needle in found.evidence for m in VLLM.failures if m.cause == cause), "the evidence shows the words"
    assert found.advice


def test_a_healthy_start_has_no_failure() -> None:
    assert diagnose(log("vllm-0.32.0-cpu-ready"), VLLM) is None
    retry = ["WARNING 12-05 10:00:00 [parallel.py:374] Address already in use. Retrying with a new port."]
    assert diagnose(retry, VLLM) is None, "the engine tries the next port by itself"


def test_the_cause_wins_over_the_wrapper_that_hides_it() -> None:
    lines = [
        "ERROR [core.py:843] EngineCore failed to start.",
        "ValueError: To serve at least one request with the models's max seq len (8388608), (192.00 GiB KV cache is needed",
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
    ]
    found = diagnose(lines, VLLM)
    assert found is not None
    assert found.cause == "the KV cache is too small for one request of the full context"
    wrapped = diagnose(lines[2:], VLLM)
    assert wrapped is not None
    assert wrapped.cause == "the engine process failed to start"


BROAD = [
    "(Worker_PP1 pid=9) ERROR 11-25 17:49:33 [multiproc_executor.py:1004] torch.distributed.DistBackendError: NCCL error in: "
    "/pytorch/torch/csrc/distributed/c10d/NCCLUtils.cpp:93, unhandled cuda error, NCCL version 2.28.9",
    "(Worker_PP1 pid=9) ERROR 11-25 17:49:33 [multiproc_executor.py:1004] ncclUnhandledCudaError: Call to CUDA function failed.",
    "(Worker_PP1 pid=9) ERROR 11-25 17:49:33 [multiproc_executor.py:1004] Last error:",
]


@pytest.mark.parametrize(
    ("words", "cause"),
    [
        ("Failed to CUDA calloc async 40 bytes", "no GPU memory left for NCCL's buffers"),
        ("Failed to CUDA calloc 536870912 bytes", "no GPU memory left for NCCL's buffers"),
        ("Failed to CUDA malloc 6291456 bytes", "no GPU memory left for NCCL's buffers"),
        ("Cuda failure 2 'out of memory'", "no GPU memory left for NCCL's buffers"),
        ("Cuda failure 'out of memory'", "no GPU memory left for NCCL's buffers"),
        ("Error while creating shared memory segment /dev/shm/nccl-x7Jq1z (size 9637888)", "NCCL found too little shared memory"),
    ],
)
def test_what_nccl_says_last_wins_over_its_general_words_above(words: str, cause: str) -> None:
    found = diagnose([*BROAD, words, "OSError: [Errno 28] No space left on device"], VLLM)
    assert found is not None
    assert (found.cause, found.evidence) == (cause, words)


def test_what_does_not_explain_a_cause_does_not_take_its_place() -> None:
    found = diagnose([*BROAD, "Cuda failure 'invalid argument'", "an engine process died (exit code: -9)"], VLLM)
    assert found is not None
    assert found.cause == "NCCL failed between the GPUs"
    assert found.evidence == BROAD[0]


def test_behind_a_wrapper_an_unknown_exception_is_the_evidence() -> None:
    lines = [
        "(EngineCore pid=31) INFO 11-23 21:17:20 [core.py:101] Initializing a V1 LLM engine",
        "(EngineCore pid=31) ERROR 11-23 21:17:23 [core.py:1510] EngineCore failed to start.",
        "(EngineCore pid=31) ERROR 11-23 21:17:23 [core.py:1510] Traceback (most recent call last):",
        '(EngineCore pid=31) ERROR 11-23 21:17:23 [core.py:1510]   File "core.py", line 1, in raise_it',
        "(EngineCore pid=31) ERROR 11-23 21:17:23 [core.py:1510] some.module.OddError: the moon is in the wrong house",
        "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
    ]
    found = diagnose(lines, VLLM)
    assert found is not None
    assert (found.cause, found.evidence) == (
        "the engine process failed to start",
        "some.module.OddError: the moon is in the wrong house",
    )
    warned = "(APIServer pid=9) WARNING 11-23 21:17:19 [base.py:258] ValueError: Tokenizer not available when skipped"
    assert diagnose([warned, *lines], VLLM) == found, "what was logged as a warning did not end the engine"
    assert diagnose(lines[:1], VLLM) is None
    assert diagnose([lines[4]], VLLM) is None, "alone it may be a warning that the engine survived"


def test_a_dev_mode_route_is_offered_and_nothing_else() -> None:
    flush = VLLM.flush_cache()
    assert flush is not None
    assert (flush.method, flush.path) == ("POST", "/reset_prefix_cache")


def test_capacity_from_metrics() -> None:
    # As vLLM 0.32 (CPU) printed it; older releases have the blocks only.
    text = (
        "# TYPE vllm:cache_config_info gauge\n"
        'vllm:cache_config_info{block_size="128",kv_cache_max_concurrency="5.6875",kv_cache_size_tokens="46592",'
        'num_gpu_blocks="364",num_gpu_blocks_override="None"} 1.0\n'
    )
    new = get_engine("vllm").capacity_from_metrics(text)
    assert (new.kv_cache_tokens, new.max_concurrency, new.kv_blocks) == (46592, 5.6875, 364)
    old = get_engine("vllm").capacity_from_metrics('vllm:cache_config_info{block_size="16",num_gpu_blocks="979916"} 1.0\n')
    assert (old.kv_cache_tokens, old.max_concurrency, old.kv_blocks) == (None, None, 979916)
    assert get_engine("vllm").capacity_from_metrics("") == EngineCapacity()
    printed = EngineCapacity(kv_cache_tokens=46592, max_concurrency=5.69)
    assert printed.filled_from(new).max_concurrency == 5.69, "what the log printed counts first"
    assert printed.filled_from(new).kv_blocks == 364
