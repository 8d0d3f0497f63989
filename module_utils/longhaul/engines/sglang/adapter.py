"""SGLang, 0.5.6.post2 and newer: settings -> argv by version, HTTP and metric names; log, sizing and rules are beside.

Facts were read from the engine's own sources (the wheels of every release from 0.5.6.post2 to 0.5.23); where a
behaviour changed, a row of a table below says since when. ``tests/contract`` checks every emitted flag and environment
variable, every metric name and every log text against those sources.
"""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from ...errors import UserError
from ...results import Counters
from ...version import Version
from ..base import BodyTemplate, EngineCapacity, HttpRequest, Launch, MetricNames, ServerInfo, StreamEvent, Usage
from ..diagnosis import COMMON_FAILURES
from ..openai import OpenAiEngine, message_of, openai_event
from ..rules import ALWAYS, Flag, Row, check_extra_args, refuse_first, refuse_others
from ..settings import EngineSettings
from ..sizing import PlanSettings
from . import log, rules
from .rules import VERIFIED, block_faults
from .sizing import default_max_running_requests, sglang_sizing, stage_layers

OLDEST = Version.parse("0.5.6.post2")

# Settings that become one option each. A new setting gets a row here, or is read in launch and named in READS.
FLAGS = (
    Flag("tensor_parallel", "--tp-size", silent=(1,)),
    Flag("pipeline_parallel", "--pp-size", silent=(1,)),
    Flag("device", "--device", silent=("cuda", "rocm")),
    Flag("gpu_memory_utilization", "--mem-fraction-static"),
    Flag("kv_cache_dtype", "--kv-cache-dtype"),
    Flag("dtype", "--dtype"),
    Flag("quantization", "--quantization"),
    Flag("load_format", "--load-format"),
    Flag("max_num_batched_tokens", "--chunked-prefill-size"),
    Flag("block_size_tokens", "--page-size"),
    Flag("max_total_tokens", "--max-total-tokens"),
    Flag("swa_full_tokens_ratio", "--swa-full-tokens-ratio"),
    Flag("attention_backend", "--attention-backend"),
)
READS = ALWAYS | {"enforce_eager", "hybrid_kv", "max_num_seqs", "prefix_caching", "skip_tokenizer", "text_only"}

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


# As its sources have it (0.5.6.post2, 0.5.12, 0.5.23): ``/server_info`` (older: ``/get_server_info``) holds settings and gauges of
# the moment, no counter of tokens; its ``disable_radix_cache`` settles whether anything can be cached. ``/v1/loads`` (0.5.6.post2:
# ``/get_load``) tells what runs, what waits and what the KV pool holds: other people's requests show there, without counters.
# The second is the older releases' (and deprecated in the newer).
INFO_PATHS = ("/server_info", "/get_server_info")
LOAD_PATHS = ("/v1/loads", "/get_load")


def parse_loads(answer: Any, pool_tokens: int | None = None, unix_s: float | None = None) -> Counters | None:
    """SGLang's ``/v1/loads`` or ``/get_load`` -> Counters with gauges only (``has_counters`` is False), or ``None``.

    Ranks are summed; ``kv_usage`` is that of the fullest. ``/get_load`` names no pool: ``pool_tokens`` (of /server_info) stands in,
    and its tokens include those of waiting prompts.
    """
    rows = answer.get("loads") if isinstance(answer, Mapping) else answer
    ranks = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
    running = waiting = 0.0
    usages: list[float] = []
    for rank in ranks:
        queued, own = _figure(rank, "num_waiting_reqs"), _figure(rank, "num_running_reqs")
        total = _figure(rank, "num_reqs")
        own = total - (queued or 0.0) if own is None and total is not None else own
        if own is None or queued is None:
            return None
        running, waiting = running + max(0.0, own), waiting + queued
        used = _figure(rank, "num_used_tokens")
        used = _figure(rank, "num_tokens") if used is None else used
        pool = _figure(rank, "max_total_num_tokens") or pool_tokens
        if used is not None and pool:
            usages.append(min(1.0, used / pool))
    if not ranks:
        return None
    now = time.time() if unix_s is None else unix_s
    return Counters(unix_s=now, running=running, waiting=waiting, kv_usage=max(usages, default=None))


def _figure(row: Mapping[str, Any], key: str) -> float | None:
    value = row.get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


# The settings and figures that go into a result.
_TOLD = (
    "version", "max_total_num_tokens", "context_length", "max_running_requests", "chunked_prefill_size", "disable_radix_cache",
    "enable_metrics", "enable_cache_report",
)  # fmt: skip


def parse_info(answer: Any) -> ServerInfo:
    """``/server_info`` -> version, pool, cache and the settings that matter. What is missing is left out."""
    told = {key: answer[key] for key in _TOLD if answer.get(key) is not None} if isinstance(answer, Mapping) else {}
    pool = told.get("max_total_num_tokens")
    return ServerInfo(
        version=str(told["version"]) if "version" in told else None,
        kv_cache_tokens=pool if isinstance(pool, int) else None,
        prefix_cache_off=told.get("disable_radix_cache") is True,
        details=told,
    )


class SGLang(OpenAiEngine):
    """The SGLang adapter (native ``/generate`` API). Stateless."""

    name = "sglang"
    verified = VERIFIED
    # Chunked attention and the split pool come only with this architecture (configs/model_config.py: is_hybrid_swa_model).
    scout_config = "llama-4-scout"
    phases = log.PHASES
    failures = (*log.ENGINE_FAILURES, *COMMON_FAILURES)
    log_opening = log.OPENING
    log_signatures = log.SIGNATURES
    capacity_from_log = staticmethod(log.capacity_from_log)
    stamp_s = staticmethod(log.stamp_s)
    explain_log = staticmethod(log.explain_log)
    metrics = METRICS
    info_paths = INFO_PATHS
    parse_info = staticmethod(parse_info)
    load_paths = LOAD_PATHS
    parse_load = staticmethod(parse_loads)
    counters_advice = "start SGLang with --enable-metrics"
    takes = READS | {flag.setting for flag in FLAGS}
    stage_layers = staticmethod(stage_layers)
    sizing = staticmethod(sglang_sizing)
    findings = staticmethod(rules.findings)
    changes = staticmethod(rules.changes)

    def launch(self, settings: EngineSettings, version: Version) -> Launch:
        """Settings -> argv (after the python executable) and environment for that version.

        ``max_num_seqs`` becomes --max-running-requests and is never left to the engine (see
        :func:`default_max_running_requests`). /health is made passive (SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION=0): by
        default it generates a token and turns 503 during a long prefill. Raises UserError.
        """
        if version < OLDEST:
            raise UserError(f"SGLang {version}", f"SGLang {OLDEST} or newer", "set engine_version")
        s = settings
        refuse_others(self.name, self.takes, s)
        check_extra_args(s)
        if s.hybrid_kv == "on" and not SPLIT_POOL_FOR_CHUNKED.holds(version):
            required = f"SGLang {SPLIT_POOL_FOR_CHUNKED.since} or newer (before, a prompt had to fit the small local pool)"
            fix = "set hybrid_kv to default, or choose a newer version"
            raise UserError(f"hybrid_kv on with SGLang {version}", required, fix)
        if s.max_num_seqs is not None and s.max_num_seqs < 1:
            raise UserError(f"max_num_seqs {s.max_num_seqs}", "1 or more", "raise it, or leave it out")
        chunk, fa3 = s.max_num_batched_tokens, s.attention_backend == "fa3"
        refuse_first(block_faults(version, s.block_size_tokens, prefill_chunk=chunk, fa3=fa3))
        requests = s.max_num_seqs or default_max_running_requests(s.context_tokens)
        key = s.api_key_file
        argv = ["-c", KEY_LAUNCHER] if key else ["-m", "sglang.launch_server"]
        argv += ["--model-path", s.model_path, "--served-model-name", s.served_model_name]
        argv += ["--host", s.host, "--port", str(s.port), "--context-length", str(s.context_tokens)]
        argv += ["--enable-metrics", "--enable-cache-report", "--max-running-requests", str(requests)]
        argv += [word for flag in FLAGS for word in flag.words(s, version)]
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

    def generate_ids(self, model: str, output_tokens: int, *, cache_salt: str | None = None) -> BodyTemplate:
        """A streamed ``/generate`` request; the ids' JSON array goes between ``head`` and ``tail``.

        ``cache_salt`` is not sent: the radix cache has none (a nonce in the first block of the prompt does the same).
        """
        # Not min_new_tokens: it needs the server's tokenizer and fails where --skip-tokenizer-init is set.
        sampling = {"max_new_tokens": output_tokens, "temperature": 0, "ignore_eos": True}
        text = json.dumps({"sampling_params": sampling, "stream": True}, separators=(",", ":"))
        return BodyTemplate("/generate", b'{"input_ids":', b"," + text[1:].encode())

    def parse_event(self, event: Mapping[str, Any], text_so_far: str) -> StreamEvent:
        """One SSE payload of ``/generate`` (its text is cumulative) or of the OpenAI routes (pieces)."""
        meta = event.get("meta_info")
        if not isinstance(meta, Mapping) or event.get("error") is not None or event.get("object") == "error":
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
        return StreamEvent(text=piece, usage=usage, finish_reason=None if kind is None else str(kind), error=error, token=None)

    def flush_cache(self) -> HttpRequest | None:
        """``POST /flush_cache``; answers 400 while requests run."""
        return HttpRequest("POST", "/flush_cache")

    def capacity_from_metrics(self, text: str) -> EngineCapacity:
        """The gauge ``sglang:max_total_num_tokens``; over ranks the smallest pool counts."""
        pools = [float(v) for v in re.findall(r"^sglang:max_total_num_tokens(?:\{[^}]*\})? (\d+(?:\.\d+)?)", text, re.MULTILINE)]
        return EngineCapacity(kv_cache_tokens=int(min(pools)) if pools and min(pools) > 0 else None)

    def image(self, version: str) -> str:
        """The project's own image, without what only builds it."""
        return f"lmsysorg/sglang:v{version}-runtime"

    def planned(self, wanted: EngineSettings, settings: PlanSettings) -> PlanSettings:
        """The launch bounds the requests where the settings do not."""
        if settings.max_num_seqs is not None:
            return settings
        return replace(settings, max_num_seqs=default_max_running_requests(wanted.context_tokens))


ADAPTER = SGLang()
