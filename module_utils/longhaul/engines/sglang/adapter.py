"""SGLang: settings -> argv by version, log lines, HTTP shapes and metric names. Supported: 0.5.6.post2 and newer.

Facts were read from the engine's own sources (the wheels of every release from 0.5.6.post2 to 0.5.23); where a
behaviour changed, a row of a table below says since when. ``tests/contract`` checks every emitted flag and environment
variable, every metric name and every log text against those sources.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from ...errors import UserError
from ...results import Counters
from ...version import Version
from ..argv import Row, api_key_path, check_extra_args, flag_values, refuse_first
from ..base import (
    BodyTemplate,
    EngineCapacity,
    HttpRequest,
    Launch,
    MetricNames,
    ServerInfo,
    StreamEvent,
    Usage,
)
from ..block_size import block_faults
from ..diagnosis import COMMON_FAILURES, FailureMark, Phase, PhaseMark
from ..openai import error_message, message_of, openai_event
from ..settings import EngineSettings
from .load import INFO_PATHS, LOAD_PATHS, parse_info, parse_loads

OLDEST = Version.parse("0.5.6.post2")

# sglang/srt/server_args.py: how graphs are turned off. The prefill ("piecewise") graphs came on by default in 0.5.10;
# from 0.5.14 on each phase has a backend and --disable-cuda-graph is a deprecated alias.
NO_GRAPHS: tuple[Row, ...] = (
    Row("--disable-cuda-graph", OLDEST, Version.parse("0.5.14")),
    Row("--disable-piecewise-cuda-graph", Version.parse("0.5.10"), Version.parse("0.5.14")),
    Row("--cuda-graph-backend-decode=disabled", Version.parse("0.5.14")),
    Row("--cuda-graph-backend-prefill=disabled", Version.parse("0.5.14")),
)
# sglang/srt/configs/model_config.py: until 0.5.7 Llama 4 got a split pool only through --hybrid-kvcache-ratio, which cut
# the local pool to the chunk while a prompt still had to fit it; from 0.5.8 on (is_hybrid_swa_model) it is the default.
SPLIT_POOL_FOR_CHUNKED = Row("split KV pool for chunked attention", Version.parse("0.5.8"))

# The table of requests is max_running_requests x (context + 4) x 4 bytes on every GPU (ReqToTokenPool: int32).
REQUEST_TABLE_BUDGET_BYTES = 512 * 1024**2
REQUEST_TABLE_MOST = 256

API_KEY_ENV = "LONGHAUL_SGLANG_API_KEY"

# SGLang takes its key from argv only, where `ps` shows it to every user of the host, and prints it with its settings at
# the start. This program takes the key out of the environment, hands it over inside the process (argv as the kernel
# shows it stays without it), and keeps it out of the log.
_KEY_PROGRAM = f"""\
import logging, os, runpy, sys
key = os.environ.pop({API_KEY_ENV!r}).strip()
make = logging.getLogRecordFactory()
def record(*args, **words):
    r = make(*args, **words)
    try:
        text = r.getMessage()
        if key and key in text:
            r.msg, r.args = text.replace(key, "***"), ()
    except Exception:
        pass
    return r
logging.setLogRecordFactory(record)
sys.argv[1:] += ["--api-key", key]
runpy.run_module("sglang.launch_server", run_name="__main__", alter_sys=True)
"""
# One line without '%' and ';', so that it survives any service file that argv is written to.
KEY_LAUNCHER = f"exec({_KEY_PROGRAM!r})"

PHASES: tuple[PhaseMark, ...] = (
    PhaseMark("server_args=", Phase.STARTING),
    PhaseMark("Load weight begin", Phase.LOADING),
    PhaseMark("Load weight end", Phase.SIZING_KV),
    PhaseMark("is allocated. ", Phase.SIZING_KV),  # "KV Cache is allocated. ", from 0.5.17 with the cache's name in front
    PhaseMark("Memory pool end", Phase.SIZING_KV),
    PhaseMark("max_total_num_tokens=", Phase.CAPTURING),
    PhaseMark("The server is fired up and ready to roll!", Phase.READY),
)

_KV_SMALL = (
    "raise gpu_memory_utilization, lower the context, use an fp8 KV cache, or use more GPUs (`longhaul plan` shows what fits)"
)
_BUSY = "stop what else uses the GPUs (`nvidia-smi`)"
_GRAPHS = "set enforce_eager, or bound max_num_seqs: graph buffers of fa3 cost 8 bytes x batch x context on each GPU"
_REQUESTS = "bound max_num_seqs: the table of requests costs max_running_requests x (context + 4) x 4 bytes on each GPU"
_ABOVE = "the cause stands above this line in the log"

ENGINE_FAILURES: tuple[FailureMark, ...] = (
    FailureMark(
        "Not enough memory. Please try to increase --mem-fraction-static", "weights leave no memory for the KV cache", _KV_SMALL
    ),
    # The same sentence is a mere warning when the check is off: only the exception is a cause.
    FailureMark("ValueError: The memory capacity is unbalanced", "some GPUs are not empty", _BUSY),
    FailureMark("RuntimeError: The memory capacity is unbalanced", "some GPUs are not empty", _BUSY),
    FailureMark("Capture cuda graph failed", "out of memory (or a kernel failed) while capturing graphs", _GRAPHS),
    FailureMark("Capture prefill CUDA graph failed", "out of memory (or a kernel failed) while capturing graphs", _GRAPHS),
    FailureMark("alloc_req_slots runs out of memory", "the table of requests is full", _REQUESTS),
    FailureMark("Prefill out of memory", "the KV pool could not take a prompt", "lower max_num_seqs or max_num_batched_tokens"),
    FailureMark("Decode out of memory", "the KV pool could not take another token", "lower max_num_seqs"),
    FailureMark(
        "Port is already in use", "the port is in use", "stop the process that holds it (`ss -ltnp`), or choose another port"
    ),
    FailureMark(
        "set the env var SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN",
        "the context is above the model's positions",
        "lower the context; SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1 in extra_env only if the model was made for it",
    ),
    FailureMark(
        "required for Llama4 model but got", "the attention backend cannot run Llama 4", "set attention_backend to fa3 or triton"
    ),
    FailureMark(
        "atchdog timeout",
        "one forward step took longer than the watchdog allows",
        "add --watchdog-timeout to extra_args",
        wrapper=True,
    ),
    FailureMark("hit an exception: ", "an engine process failed", "read the traceback that follows", wrapper=True),
    FailureMark("scheduler is dead", "a scheduler process died", _ABOVE, wrapper=True),
    FailureMark("scheduler died during initialization", "a scheduler process died", _ABOVE, wrapper=True),
    FailureMark("crashed with exit code", "an engine process died", _ABOVE, wrapper=True),
    FailureMark("Initialization failed. Please see the error messages above", "the start failed", _ABOVE, wrapper=True),
    # The first while it starts, the second while it serves.
    FailureMark("Received sigquit from a child process", "an engine process died", _ABOVE, wrapper=True),
    FailureMark("SIGQUIT received", "an engine process died", _ABOVE, wrapper=True),
)

# cached_tokens_total counts the prompt tokens that came from cache, prompt_tokens_total all of them: together they are
# what vLLM calls hits and queries. The names are the same in every supported release.
METRICS = MetricNames(
    prompt_tokens="sglang:prompt_tokens_total",
    generation_tokens="sglang:generation_tokens_total",
    cache_queries_tokens="sglang:prompt_tokens_total",
    cache_hits_tokens="sglang:cached_tokens_total",
    running="sglang:num_running_reqs",
    waiting="sglang:num_queue_reqs",
    kv_usage="sglang:token_usage",
    preemptions=None,
    requests_finished="sglang:num_requests_total",
    queue_time="sglang:queue_time_seconds",
    # Set anew with a prefill batch, every 40 decode steps and every 30 s while idle (managers/scheduler_runtime_checker_mixin.py;
    # seen on 0.5.12.post1: still 1 long after the only request had ended).
    gauges_lag=True,
    # Counted only for a request that did hit: a server that has cached nothing does not show it.
    born_at_first_use=frozenset({"sglang:cached_tokens_total"}),
)

_START = "server_args="
_RANK = re.compile(r"^\[[\d: .,-]+((?: (?:TP|DP|PP|EP|ATTN_\w+)\d+)*)\]")
_FULL_SWA = re.compile(r"full_layer_tokens=(\d+), swa_layer_tokens=(\d+)")
_MAX_TOTAL = re.compile(r"\bmax_total_num_tokens=(\d+)")
_CONTEXT = re.compile(r"\bcontext_len=(\d+)")
_KV = re.compile(
    r"(?:is allocated|VA upper bound)\..*?#tokens: \d+, (?:K size: ([\d.]+) GB, V size: ([\d.]+) GB|KV size: ([\d.]+) GB)"
)
_WEIGHTS = re.compile(r"Load weight end\..*?mem usage=([\d.]+) GB")


def default_max_running_requests(context_tokens: int) -> int:
    """The most requests whose table stays within 512 MiB a GPU: table = requests x (context + 4) x 4 bytes.

    The engine's own default (2,048 at least) makes that table 16 GiB at 2M tokens of context and 64 GiB at 8M: the
    out-of-memory that looks like a KV problem and is none. 256 at most; 63 at 2M, 15 at 8M, 12 at 10M.
    """
    return max(1, min(REQUEST_TABLE_MOST, REQUEST_TABLE_BUDGET_BYTES // ((context_tokens + 4) * 4)))


class SGLang:
    """The SGLang adapter (native ``/generate`` API). Stateless."""

    __slots__ = ()

    name: str = "sglang"
    default_port: int = 30000
    health_path: str = "/health"
    models_path: str = "/v1/models"
    metrics_path: str = "/metrics"
    phases: Sequence[PhaseMark] = PHASES
    failures: Sequence[FailureMark] = (*ENGINE_FAILURES, *COMMON_FAILURES)
    metrics: MetricNames = METRICS
    info_paths: Sequence[str] = INFO_PATHS
    load_paths: Sequence[str] = LOAD_PATHS
    takes_cache_salt: bool = False

    def launch(self, settings: EngineSettings, version: Version) -> Launch:
        """Settings -> argv (after the python executable) and environment for that version.

        ``max_num_seqs`` becomes --max-running-requests and is never left to the engine (see
        :func:`default_max_running_requests`). /health is made passive (SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION=0): by
        default it generates a token and turns 503 during a long prefill. Raises UserError.
        """
        if version < OLDEST:
            raise UserError(f"SGLang {version}", f"SGLang {OLDEST} or newer", "set engine_version")
        s = settings
        check_extra_args(s)
        if s.cpu_kv_cache_gib is not None:
            raise UserError("cpu_kv_cache_gib with SGLang", "a setting of vLLM only", "use max_total_tokens")
        if s.hybrid_kv == "on" and not SPLIT_POOL_FOR_CHUNKED.holds(version):
            raise UserError(
                f"hybrid_kv on with SGLang {version}",
                f"SGLang {SPLIT_POOL_FOR_CHUNKED.since} or newer (before, a prompt had to fit the small local pool)",
                "set hybrid_kv to default, or choose a newer version",
            )
        if s.max_num_seqs is not None and s.max_num_seqs < 1:
            raise UserError(f"max_num_seqs {s.max_num_seqs}", "1 or more", "raise it, or leave it out")
        chunk, fa3 = s.max_num_batched_tokens, s.attention_backend == "fa3"
        refuse_first(block_faults("sglang", version, s.block_size_tokens, prefill_chunk=chunk, fa3=fa3))
        requests = s.max_num_seqs or default_max_running_requests(s.context_tokens)
        key = api_key_path(s)
        argv = ["-c", KEY_LAUNCHER] if key else ["-m", "sglang.launch_server"]
        argv += ["--model-path", s.model_path, "--served-model-name", s.served_model_name]
        argv += ["--host", s.host, "--port", str(s.port), "--context-length", str(s.context_tokens)]
        argv += ["--enable-metrics", "--enable-cache-report", "--max-running-requests", str(requests)]
        argv += flag_values(
            (
                ("--tp-size", None if s.tensor_parallel == 1 else s.tensor_parallel),
                ("--pp-size", None if s.pipeline_parallel == 1 else s.pipeline_parallel),
                ("--device", "cpu" if s.device == "cpu" else None),
                ("--mem-fraction-static", s.gpu_memory_utilization),
                ("--kv-cache-dtype", s.kv_cache_dtype),
                ("--dtype", s.dtype),
                ("--quantization", s.quantization),
                ("--load-format", s.load_format),
                ("--chunked-prefill-size", s.max_num_batched_tokens),
                ("--page-size", s.block_size_tokens),
                ("--max-total-tokens", s.max_total_tokens),
                ("--swa-full-tokens-ratio", s.swa_full_tokens_ratio),
                ("--attention-backend", s.attention_backend),
            )
        )
        if s.hybrid_kv == "off":
            argv.append("--disable-hybrid-swa-memory")
        if s.prefix_caching is False:
            argv.append("--disable-radix-cache")
        if s.enforce_eager:
            argv += [row.what for row in NO_GRAPHS if row.holds(version)]
        if not s.text_only:
            argv.append("--enable-multimodal")
        if s.skip_tokenizer:
            argv.append("--skip-tokenizer-init")
        argv += s.extra_args
        env = {"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0", **s.extra_env}
        return Launch(tuple(argv), env, {API_KEY_ENV: key} if key else {})

    def generate_ids(
        self,
        model: str,
        output_tokens: int,
        *,
        seed: int | None = None,
        cache_salt: str | None = None,
        ignore_eos: bool = True,
        version: Version | None = None,
    ) -> BodyTemplate:
        """A streamed ``/generate`` request; the ids' JSON array goes between ``head`` and ``tail``.

        ``seed`` and ``cache_salt`` are not sent: greedy answers need no seed, and the radix cache has no salt here (a
        nonce in the first block of the prompt does the same).
        """
        sampling: dict[str, Any] = {"max_new_tokens": output_tokens, "temperature": 0}
        if ignore_eos:
            # Not min_new_tokens: it needs the server's tokenizer and fails where --skip-tokenizer-init is set.
            sampling["ignore_eos"] = True
        text = json.dumps({"sampling_params": sampling, "stream": True}, separators=(",", ":"))
        return BodyTemplate("/generate", b'{"input_ids":', b"," + text[1:].encode())

    def parse_event(self, event: Mapping[str, Any], text_so_far: str) -> StreamEvent:
        """One SSE payload of ``/generate`` (its text is cumulative) or of the OpenAI routes (pieces)."""
        if event.get("error") is not None or event.get("object") == "error":
            return StreamEvent(error=message_of(event) or json.dumps(event)[:400])
        meta = event.get("meta_info")
        if not isinstance(meta, Mapping):
            return openai_event(event)
        text = str(event.get("text") or "")
        # --incremental-streaming-output (and --stream-output of old) sends pieces instead of the whole text so far.
        piece = text[len(text_so_far) :] if text.startswith(text_so_far) else text
        usage = Usage(meta.get("prompt_tokens"), meta.get("completion_tokens"), meta.get("cached_tokens"))
        reason = meta.get("finish_reason")
        kind = reason.get("type") if isinstance(reason, Mapping) else reason
        error = None
        if kind == "abort":
            error = (message_of(reason) if isinstance(reason, Mapping) else None) or "the server aborted the request"
        return StreamEvent(text=piece, usage=usage, finish_reason=None if kind is None else str(kind), error=error)

    def error_message(self, status: int, body: bytes) -> str:
        """The server's own words in an HTTP error body; never empty."""
        return error_message(status, body)

    def flush_cache(self, version: Version) -> HttpRequest | None:
        """``POST /flush_cache``; answers 400 while requests run."""
        return HttpRequest("POST", "/flush_cache")

    def parse_info(self, answer: Any) -> ServerInfo:
        """``/server_info``."""
        return parse_info(answer)

    def parse_load(self, answer: Any, pool_tokens: int | None = None) -> Counters | None:
        """``/v1/loads`` or ``/get_load``."""
        return parse_loads(answer, pool_tokens)

    def capacity_from_metrics(self, text: str) -> EngineCapacity:
        """The gauge ``sglang:max_total_num_tokens``; over ranks the smallest pool counts."""
        pools = [float(v) for v in re.findall(r"^sglang:max_total_num_tokens(?:\{[^}]*\})? (\d+(?:\.\d+)?)", text, re.MULTILINE)]
        return EngineCapacity(kv_cache_tokens=int(min(pools)) if pools and min(pools) > 0 else None)

    def capacity_from_log(self, lines: Iterable[str]) -> EngineCapacity:
        """The figures of the log's last start. SGLang writes GB for GiB and prints no concurrency.

        ``available_kv_gib`` sums the pools of one rank; over ranks the smallest pool and the largest weights count.
        """
        tokens: int | None = None
        context: int | None = None
        local: int | None = None
        weights: list[float] = []
        pools: dict[str, float] = {}
        for line in lines:
            if _START in line:
                tokens = context = local = None
                weights, pools = [], {}
            if found := _WEIGHTS.search(line):
                weights.append(float(found[1]))
            if found := _FULL_SWA.search(line):
                tokens, local = int(found[1]), int(found[2])
            if found := _KV.search(line):
                rank = _RANK.match(line)
                name = rank[1] if rank else ""
                pools[name] = pools.get(name, 0.0) + sum(float(g) for g in found.groups() if g)
            if found := _MAX_TOTAL.search(line):
                tokens = int(found[1])
                if length := _CONTEXT.search(line):
                    context = int(length[1])
        return EngineCapacity(
            kv_cache_tokens=tokens,
            context_tokens=context,
            available_kv_gib=round(min(pools.values()), 3) if pools else None,
            weights_gib=max(weights, default=None),
            local_kv_tokens=local,
        )
