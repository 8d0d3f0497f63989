"""The stand-in's command line: the engines' own flags that matter, and switches for faults."""

from __future__ import annotations

import argparse
import os
import shlex
import sys
from collections.abc import Sequence
from dataclasses import dataclass

FAIL_STARTS = (
    "oom", "kv-too-small", "gpu-busy", "bad-flag", "bad-model", "gated", "parallelism", "nccl", "port", "never-ready", "crash",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """Everything a run of the stand-in depends on."""

    engine: str
    host: str
    port: int
    model: str
    served_name: str
    context: int
    max_running: int
    kv_tokens: int
    api_key: str | None
    cache: bool
    ttft_s: float
    gap_s: float
    prefill_rate: float | None
    quadratic_s: float
    serial_prefill: bool
    tokenizer_json: str | None
    usage_details: bool
    metrics: bool
    dev_mode: bool
    start_seconds: float
    fail_start: str | None
    truth_log: str | None
    chat_overhead: int
    # faults
    fault_min_input: int
    fault_max_input: int
    fault_from: int
    too_fast: bool
    cache_silent: str | None
    drop_usage: bool
    miscount_prompt: int
    miscount_completion: int
    needles: str
    stall_after: int | None
    close_after: int | None
    broken_sse_after: int | None
    error_after: int | None
    reject_over: int | None
    http_error: int | None
    die_after: int | None
    die_saying: str | None
    foreign_every: float | None
    foreign_tokens: int
    slow: float
    jitter: float
    salt_ignored: bool
    preempt_every: int
    linger: float
    without_path: str | None


def parse(argv: Sequence[str] | None = None) -> Options:
    """argv (plus STANDIN_ARGS) -> Options. Unknown flags are ignored unless ``--strict``, where they exit 2 like the engines."""
    words = list(sys.argv[1:] if argv is None else argv) + shlex.split(os.environ.get("STANDIN_ARGS", ""))
    parser = argparse.ArgumentParser(prog="standin", allow_abbrev=False, description="A made-up LLM server, for tests.")
    add = parser.add_argument
    add("--engine", choices=("vllm", "sglang"))
    add("--host", default="127.0.0.1")
    add("--port", type=int, default=0, help="0 = any free port, printed on the first line")
    add("--model", default=None)
    add("--model-path", default=None)
    add("--served-model-name", default=None)
    add("--max-model-len", type=int, default=None)
    add("--context-length", type=int, default=None)
    add("--max-num-seqs", type=int, default=None)
    add("--max-running-requests", type=int, default=None)
    add("--api-key", default=os.environ.get("VLLM_API_KEY") or os.environ.get("LONGHAUL_SGLANG_API_KEY") or None)
    add("--no-enable-prefix-caching", action="store_true")
    add("--disable-radix-cache", action="store_true")
    add("--enable-prompt-tokens-details", action="store_true")
    add("--enable-cache-report", action="store_true")
    add("--enable-metrics", action="store_true")
    add("--strict", action="store_true", help="an unknown flag is an error, as in the engines")
    add("--kv-tokens", type=int, default=100_000_000, help="size of the KV pool: more than that queues")
    add("--ttft", type=float, default=0.05, help="seconds from the request's last byte to the first token")
    add("--gap", type=float, default=0.005, help="seconds between tokens")
    add("--prefill-rate", type=float, default=None, help="uncached prompt tokens per second, on top of --ttft")
    add("--quadratic", type=float, default=0.0, help="seconds more for an uncached prompt of 1M tokens, growing with the square")
    add("--serial-prefill", action="store_true", help="one prefill at a time, as on a busy GPU")
    add("--tokenizer-json", default=None, help="decode prompts of ids with this tokenizer.json, to answer needles")
    add("--no-details", action="store_true", help="usage never says cached_tokens")
    add("--no-metrics", action="store_true", help="404 on /metrics")
    add("--no-dev-mode", action="store_true", help="vLLM without VLLM_SERVER_DEV_MODE: no cache reset, no server_info")
    add("--start-seconds", type=float, default=0.0)
    add("--fail-start", choices=FAIL_STARTS)
    add("--truth-log", default=None, help="one JSON line per request with the times as the server saw them")
    add("--chat-overhead", type=int, default=7, help="tokens that the chat template adds")
    add("--fault-min-input", type=int, default=0, help="faults only for prompts of at least that many tokens")
    add("--fault-max-input", type=int, default=1 << 62, help="... and at most that many")
    add("--fault-from", type=int, default=1, help="faults only from the K-th request on (1 = the first)")
    add("--too-fast", action="store_true", help="first token at once, counters and usage claim a cold prompt")
    add("--cache-silent", choices=("usage", "all"), help="hits are not in usage, or neither in usage nor in the counters")
    add("--drop-usage", action="store_true")
    add("--miscount-prompt", type=int, default=0, help="added to usage.prompt_tokens")
    add("--miscount-completion", type=int, default=0, help="added to usage.completion_tokens")
    add("--needles", choices=("right", "wrong", "none"), default="right")
    add("--stall-after", type=int, help="after N tokens send nothing more, keep the connection")
    add("--close-after", type=int, help="close the connection after N tokens")
    add("--broken-sse-after", type=int, help="send half an event's JSON after N tokens")
    add("--error-after", type=int, help="report an error inside the stream after N tokens")
    add("--reject-over", type=int, help="413 for bodies of more bytes, before reading them")
    add("--http-error", type=int, help="answer generations with this status in the engine's shape")
    add("--die-after", type=int, help="the process dies with SIGKILL's exit code after N tokens of the faulty request")
    add("--die-saying", default=None, help="a file: what the log says before --die-after ends the process")
    add("--foreign-every", type=float, help="another client's request shows in the counters every S seconds")
    add("--foreign-tokens", type=int, default=500)
    add("--slow", type=float, default=1.0, help="multiply all times by this")
    add("--jitter", type=float, default=0.0, help="each request's TTFT is scaled by 1 .. 1+J, deterministically")
    add("--salt-ignored", action="store_true", help="cache_salt has no effect (SGLang has none)")
    add("--preempt-every", type=int, default=0, help="count a preemption every N requests")
    add("--linger", type=float, default=0.0, help="a request whose client went away stays in the gauges for S seconds")
    add("--without-path", default=None, help="404 on this path, as in a release that lacks it")
    known, unknown = parser.parse_known_args(words)
    if known.strict and any(w.startswith("-") for w in unknown):
        print(f"api_server.py: error: unrecognized arguments: {' '.join(unknown)}", file=sys.stderr, flush=True)
        raise SystemExit(2)
    sglang_like = known.model_path is not None or known.context_length is not None or "sglang.launch_server" in unknown
    engine = known.engine or ("sglang" if sglang_like else "vllm")
    model = known.model or known.model_path or "standin-model"
    explicit_details = known.enable_prompt_tokens_details or known.enable_cache_report
    return Options(
        engine=engine,
        host=known.host,
        port=known.port,
        model=model,
        served_name=known.served_model_name or model,
        context=known.max_model_len or known.context_length or 10_485_760,
        max_running=known.max_num_seqs or known.max_running_requests or 100_000,
        kv_tokens=known.kv_tokens,
        api_key=known.api_key,
        cache=not (known.no_enable_prefix_caching or known.disable_radix_cache),
        ttft_s=known.ttft * known.slow,
        gap_s=known.gap * known.slow,
        prefill_rate=None if known.prefill_rate is None else known.prefill_rate / known.slow,
        quadratic_s=known.quadratic * known.slow,
        serial_prefill=known.serial_prefill,
        tokenizer_json=known.tokenizer_json,
        usage_details=explicit_details or not known.no_details,
        metrics=not known.no_metrics,
        dev_mode=not known.no_dev_mode,
        start_seconds=known.start_seconds,
        fail_start=known.fail_start,
        truth_log=known.truth_log,
        chat_overhead=known.chat_overhead,
        fault_min_input=known.fault_min_input,
        fault_max_input=known.fault_max_input,
        fault_from=known.fault_from,
        too_fast=known.too_fast,
        cache_silent=known.cache_silent,
        drop_usage=known.drop_usage,
        miscount_prompt=known.miscount_prompt,
        miscount_completion=known.miscount_completion,
        needles=known.needles,
        stall_after=known.stall_after,
        close_after=known.close_after,
        broken_sse_after=known.broken_sse_after,
        error_after=known.error_after,
        reject_over=known.reject_over,
        http_error=known.http_error,
        die_after=known.die_after,
        die_saying=known.die_saying,
        foreign_every=known.foreign_every,
        foreign_tokens=known.foreign_tokens,
        slow=known.slow,
        jitter=known.jitter,
        salt_ignored=known.salt_ignored,
        preempt_every=known.preempt_every,
        linger=known.linger,
        without_path=known.without_path,
    )
