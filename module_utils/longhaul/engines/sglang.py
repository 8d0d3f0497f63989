"""SGLang: settings -> argv by version, log lines, HTTP shapes and metric names. Supported: 0.5.6.post2 and newer.

Facts were read from the engine's own sources (wheels of every release); where a behaviour changed, a row of a table
below says since when. ``tests/contract`` checks every emitted flag against those sources.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError
from .base import (
    BodyTemplate,
    EngineCapacity,
    EngineSettings,
    FailureMark,
    HttpRequest,
    Launch,
    MetricNames,
    Phase,
    PhaseMark,
    StreamEvent,
    Usage,
    Version,
)

OLDEST = Version.parse("0.5.6.post2")

REQUEST_TABLE_BUDGET_BYTES = 512 * 1024**2
REQUEST_TABLE_MOST = 256

API_KEY_ENV = "LONGHAUL_SGLANG_API_KEY"

# SGLang takes its key from argv only, where `ps` shows it to every user of the host. This small program takes it from
# the environment (and out of it, so that no child inherits it) and hands it over inside the process.
KEY_LAUNCHER = (
    "import os,runpy,sys;"
    f"sys.argv[1:]+=['--api-key',os.environ.pop('{API_KEY_ENV}').strip()];"
    "runpy.run_module('sglang.launch_server',run_name='__main__',alter_sys=True)"
)

PHASES: tuple[PhaseMark, ...] = (
    PhaseMark("server_args=", Phase.STARTING),
    PhaseMark("Load weight begin", Phase.LOADING),
    PhaseMark("Load weight end", Phase.SIZING_KV),
    PhaseMark("Capture cuda graph begin", Phase.CAPTURING),
    PhaseMark("The server is fired up and ready to roll!", Phase.READY),
)

FAILURES: tuple[FailureMark, ...] = (
    FailureMark(
        "unrecognized arguments",
        "a flag is unknown to this engine version",
        "remove it from engine_extra_args or choose an engine_version that has it",
    ),
    FailureMark("SIGQUIT received", "a scheduler process died", "read the lines above", wrapper=True),
)

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
)

_FULL_SWA = re.compile(r"full_layer_tokens=(\d+), swa_layer_tokens=(\d+)")
_MAX_TOTAL = re.compile(r"max_total_num_tokens=(\d+)")
_CONTEXT = re.compile(r"context_len=(\d+)")
_KV = re.compile(r"KV Cache is allocated\..*?#tokens: (\d+), K size: ([\d.]+) GB, V size: ([\d.]+) GB")
_WEIGHTS = re.compile(r"Load weight end\..*?mem usage=([\d.]+) GB")


def default_max_running_requests(context_tokens: int) -> int:
    """The most requests whose table stays within 512 MiB a GPU: table = requests * (context + 4) * 4 bytes.

    The engine's own default (2,048 at least) makes that table 16 GiB at 2M tokens of context and 64 GiB at 8M: the
    out-of-memory that looks like a KV problem and is none. 256 at most; 63 at 2M, 15 at 8M, 12 at 10M.
    """
    return max(1, min(REQUEST_TABLE_MOST, REQUEST_TABLE_BUDGET_BYTES // ((context_tokens + 4) * 4)))


@dataclass(frozen=True)
class SGLang:
    """The SGLang adapter (native ``/generate`` API)."""

    name: str = "sglang"
    default_port: int = 30000
    health_path: str = "/health"
    models_path: str = "/v1/models"
    metrics_path: str = "/metrics"
    phases: Sequence[PhaseMark] = PHASES
    failures: Sequence[FailureMark] = FAILURES
    metrics: MetricNames = field(default=METRICS)

    def launch(self, settings: EngineSettings, version: Version) -> Launch:
        """Settings -> argv (after the python executable) and environment for that version."""
        if version < OLDEST:
            raise UserError(f"SGLang {version}", f"{OLDEST} or newer", "set engine_version")
        s = settings
        env = {"SGLANG_ENABLE_HEALTH_ENDPOINT_GENERATION": "0"}
        argv = ["-c", KEY_LAUNCHER] if s.api_key_file else ["-m", "sglang.launch_server"]
        argv += ["--model-path", s.model_path, "--served-model-name", s.served_model_name]
        argv += ["--host", s.host, "--port", str(s.port), "--context-length", str(s.context_tokens)]
        argv += ["--enable-metrics", "--enable-cache-report", "--max-running-requests"]
        argv.append(str(s.max_num_seqs or default_max_running_requests(s.context_tokens)))
        if s.tensor_parallel != 1:
            argv += ["--tp-size", str(s.tensor_parallel)]
        if s.pipeline_parallel != 1:
            argv += ["--pp-size", str(s.pipeline_parallel)]
        if s.device == "cpu":
            argv += ["--device", "cpu"]
        elif s.gpu_memory_utilization is not None:
            argv += ["--mem-fraction-static", str(s.gpu_memory_utilization)]
        for flag, value in (
            ("--kv-cache-dtype", None if s.kv_cache_dtype == "auto" else s.kv_cache_dtype),
            ("--dtype", None if s.dtype == "auto" else s.dtype),
            ("--quantization", s.quantization),
            ("--load-format", None if s.load_format == "auto" else s.load_format),
            ("--chunked-prefill-size", s.max_num_batched_tokens),
            ("--max-total-tokens", s.max_total_tokens),
            ("--swa-full-tokens-ratio", s.swa_full_tokens_ratio),
            ("--attention-backend", s.attention_backend),
        ):
            if value is not None:
                argv += [flag, str(value)]
        if s.hybrid_kv == "off":
            argv.append("--disable-hybrid-swa-memory")
        if s.prefix_caching is False:
            argv.append("--disable-radix-cache")
        if s.enforce_eager:
            argv.append("--disable-cuda-graph")
        if not s.text_only:
            argv.append("--enable-multimodal")
        if s.skip_tokenizer:
            argv.append("--skip-tokenizer-init")
        argv += s.extra_args
        env.update(s.extra_env)
        secret = {API_KEY_ENV: s.api_key_file} if s.api_key_file else {}
        return Launch(tuple(argv), env, secret)

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
        """A streamed ``/generate`` request; the ids' JSON array goes between ``head`` and ``tail``."""
        sampling: dict[str, Any] = {"max_new_tokens": output_tokens, "temperature": 0}
        if ignore_eos:
            sampling |= {"ignore_eos": True, "min_new_tokens": output_tokens}
        text = json.dumps({"sampling_params": sampling, "stream": True}, separators=(",", ":"))
        return BodyTemplate("/generate", b'{"input_ids":', b"," + text[1:].encode())

    def parse_event(self, event: Mapping[str, Any], text_so_far: str) -> StreamEvent:
        """One SSE payload of ``/generate`` (its text is cumulative) or of the OpenAI routes."""
        if "error" in event or event.get("object") == "error":
            error = event.get("error", event)
            message = error.get("message") if isinstance(error, Mapping) else error
            return StreamEvent(error=str(message or event))
        meta = event.get("meta_info")
        if isinstance(meta, Mapping):
            text = str(event.get("text") or "")
            piece = text[len(text_so_far) :] if text.startswith(text_so_far) else text
            reason = meta.get("finish_reason")
            kind = reason.get("type") if isinstance(reason, Mapping) else reason
            usage = Usage(meta.get("prompt_tokens"), meta.get("completion_tokens"), meta.get("cached_tokens"))
            if kind == "abort":
                message = reason.get("message") if isinstance(reason, Mapping) else None
                return StreamEvent(text=piece, usage=usage, finish_reason="abort", error=str(message or "aborted"))
            return StreamEvent(text=piece, usage=usage, finish_reason=kind)
        choices = event.get("choices") or ()
        first: Mapping[str, Any] = choices[0] if choices else {}
        delta = first.get("delta") or {}
        counts = event.get("usage")
        details = counts.get("prompt_tokens_details") or {} if isinstance(counts, Mapping) else {}
        return StreamEvent(
            text=str(first.get("text") or delta.get("content") or ""),
            usage=Usage(counts.get("prompt_tokens"), counts.get("completion_tokens"), details.get("cached_tokens"))
            if isinstance(counts, Mapping)
            else None,
            finish_reason=first.get("finish_reason"),
        )

    def error_message(self, status: int, body: bytes) -> str:
        """The server's own words, else the first of the body, else the status."""
        try:
            data = json.loads(body)
        except ValueError:
            data = None
        if isinstance(data, Mapping):
            inner = data.get("error", data)
            message = inner.get("message") or inner.get("detail") if isinstance(inner, Mapping) else inner
            if message:
                return str(message)
        return body.decode("utf-8", "replace").strip()[:400] or f"HTTP {status} with an empty body"

    def flush_cache(self, version: Version) -> HttpRequest | None:
        """``POST /flush_cache``; answers 400 while requests run."""
        return HttpRequest("POST", "/flush_cache")

    def capacity_from_log(self, lines: Iterable[str]) -> EngineCapacity:
        """The last start's figures. SGLang prints GiB as GB and no concurrency."""
        tokens: int | None = None
        context: int | None = None
        local: int | None = None
        weights: float | None = None
        kv_gib: float | None = None
        for line in lines:
            if "server_args=" in line:
                tokens = context = local = weights = kv_gib = None
            if found := _WEIGHTS.search(line):
                weights = max(weights or 0.0, float(found[1]))
            if found := _FULL_SWA.search(line):
                tokens, local = int(found[1]), int(found[2])
            if found := _KV.search(line):
                kv_gib = (kv_gib or 0.0) + float(found[2]) + float(found[3])
            if found := _MAX_TOTAL.search(line):
                tokens = int(found[1])
                if length := _CONTEXT.search(line):
                    context = int(length[1])
        return EngineCapacity(tokens, None, context, kv_gib, weights, local)
