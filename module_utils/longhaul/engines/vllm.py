"""vLLM: settings -> argv by version, log lines, HTTP shapes and metric names. Supported: 0.12.0 and newer.

Facts were read from the engine's own sources (wheels of every minor release); where a behaviour changed, a row of a
table below says since when. ``tests/contract`` checks every emitted flag against those sources.
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

OLDEST = Version.parse("0.12.0")
ATTENTION_BACKEND_FLAG_SINCE = Version.parse("0.13.0")
HYBRID_CHUNKED_DEFAULT_ON_SINCE = Version.parse("0.20.0")

PHASES: tuple[PhaseMark, ...] = (
    PhaseMark("vLLM API server version", Phase.STARTING),
    PhaseMark("Starting to load model", Phase.LOADING),
    PhaseMark("Loading weights took", Phase.LOADING),
    PhaseMark("Model loading took", Phase.COMPILING),
    PhaseMark("Available KV cache memory", Phase.SIZING_KV),
    PhaseMark("KV cache size:", Phase.CAPTURING),
    PhaseMark("Application startup complete", Phase.READY),
)

FAILURES: tuple[FailureMark, ...] = (
    FailureMark(
        "unrecognized arguments",
        "a flag is unknown to this engine version",
        "remove it from engine_extra_args or choose an engine_version that has it",
    ),
    FailureMark("Engine core initialization failed", "the engine process died", "read the lines above", wrapper=True),
)

METRICS = MetricNames(
    prompt_tokens="vllm:prompt_tokens_total",
    generation_tokens="vllm:generation_tokens_total",
    cache_queries_tokens="vllm:prefix_cache_queries_total",
    cache_hits_tokens="vllm:prefix_cache_hits_total",
    running="vllm:num_requests_running",
    waiting="vllm:num_requests_waiting",
    kv_usage="vllm:kv_cache_usage_perc",
    preemptions="vllm:num_preemptions_total",
    requests_finished="vllm:request_success_total",
)

_KV_SIZE = re.compile(r"KV cache size: ([\d,]+) tokens")
_CONCURRENCY = re.compile(r"Maximum concurrency for ([\d,]+) tokens per request: ([\d.]+)x")
_AVAILABLE = re.compile(r"Available KV cache memory: (-?[\d.]+) GiB")
_WEIGHTS = re.compile(r"Model loading took ([\d.]+) Gi?B")


def _int(text: str) -> int:
    return int(text.replace(",", ""))


@dataclass(frozen=True)
class VLLM:
    """The vLLM adapter (OpenAI-compatible server)."""

    name: str = "vllm"
    default_port: int = 8000
    health_path: str = "/health"
    models_path: str = "/v1/models"
    metrics_path: str = "/metrics"
    phases: Sequence[PhaseMark] = PHASES
    failures: Sequence[FailureMark] = FAILURES
    metrics: MetricNames = field(default=METRICS)

    def launch(self, settings: EngineSettings, version: Version) -> Launch:
        """Settings -> argv (after the python executable) and environment for that version."""
        if version < OLDEST:
            raise UserError(f"vLLM {version}", f"{OLDEST} or newer", "set engine_version")
        for name in ("swa_full_tokens_ratio", "max_total_tokens"):
            if getattr(settings, name) is not None:
                raise UserError(f"{name} with vLLM", "a setting of SGLang only", f"remove {name}")
        s = settings
        argv = ["-m", "vllm.entrypoints.openai.api_server", "--model", s.model_path]
        env: dict[str, str] = {}
        argv += ["--served-model-name", s.served_model_name, "--host", s.host, "--port", str(s.port)]
        argv += ["--max-model-len", str(s.context_tokens), "--enable-prompt-tokens-details"]
        if s.tensor_parallel != 1:
            argv += ["--tensor-parallel-size", str(s.tensor_parallel)]
        if s.pipeline_parallel != 1:
            argv += ["--pipeline-parallel-size", str(s.pipeline_parallel)]
        if s.device == "cpu":
            if s.cpu_kv_cache_gib is not None:
                if s.cpu_kv_cache_gib < 1 or s.cpu_kv_cache_gib != int(s.cpu_kv_cache_gib):
                    raise UserError(
                        f"cpu_kv_cache_gib {s.cpu_kv_cache_gib}",
                        "a whole number of GiB, 1 at least (vLLM reads VLLM_CPU_KVCACHE_SPACE as an integer)",
                        "round it up",
                    )
                env["VLLM_CPU_KVCACHE_SPACE"] = str(int(s.cpu_kv_cache_gib))
        elif s.gpu_memory_utilization is not None:
            argv += ["--gpu-memory-utilization", str(s.gpu_memory_utilization)]
        for flag, value in (
            ("--kv-cache-dtype", None if s.kv_cache_dtype == "auto" else s.kv_cache_dtype),
            ("--dtype", None if s.dtype == "auto" else s.dtype),
            ("--quantization", s.quantization),
            ("--load-format", None if s.load_format == "auto" else s.load_format),
            ("--max-num-batched-tokens", s.max_num_batched_tokens),
            ("--max-num-seqs", s.max_num_seqs),
        ):
            if value is not None:
                argv += [flag, str(value)]
        if s.hybrid_kv == "on" and version < HYBRID_CHUNKED_DEFAULT_ON_SINCE:
            env["VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE"] = "1"
        if s.hybrid_kv == "off":
            argv.append("--disable-hybrid-kv-cache-manager")
        if s.prefix_caching is not None:
            argv.append("--enable-prefix-caching" if s.prefix_caching else "--no-enable-prefix-caching")
        if s.enforce_eager:
            argv.append("--enforce-eager")
        if s.attention_backend is not None:
            if version < ATTENTION_BACKEND_FLAG_SINCE:
                env["VLLM_ATTENTION_BACKEND"] = s.attention_backend
            else:
                argv += ["--attention-backend", s.attention_backend]
        if s.text_only:
            argv += ["--limit-mm-per-prompt", '{"image":0}']
        if s.skip_tokenizer:
            argv.append("--skip-tokenizer-init")
        argv += s.extra_args
        env.update(s.extra_env)
        secret = {"VLLM_API_KEY": s.api_key_file} if s.api_key_file else {}
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
        """A streamed ``/v1/completions`` request; the prompt's JSON array goes between ``head`` and ``tail``."""
        rest: dict[str, Any] = {
            "model": model,
            "max_tokens": output_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }
        if ignore_eos:
            rest |= {"ignore_eos": True, "min_tokens": output_tokens}
        if seed is not None:
            rest["seed"] = seed
        if cache_salt is not None:
            rest["cache_salt"] = cache_salt
        text = json.dumps(rest, separators=(",", ":"))
        return BodyTemplate("/v1/completions", b'{"prompt":', b"," + text[1:].encode())

    def parse_event(self, event: Mapping[str, Any], text_so_far: str) -> StreamEvent:
        """One SSE payload of ``/v1/completions`` or ``/v1/chat/completions``."""
        if "error" in event:
            error = event["error"]
            message = error.get("message") if isinstance(error, Mapping) else error
            return StreamEvent(error=str(message or event))
        choices = event.get("choices") or ()
        first: Mapping[str, Any] = choices[0] if choices else {}
        delta = first.get("delta") or {}
        usage = event.get("usage")
        return StreamEvent(
            text=str(first.get("text") or delta.get("content") or ""),
            usage=_usage(usage) if isinstance(usage, Mapping) else None,
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
        """``POST /reset_prefix_cache``; 404 unless the server runs with VLLM_SERVER_DEV_MODE=1."""
        return HttpRequest("POST", "/reset_prefix_cache")

    def capacity_from_log(self, lines: Iterable[str]) -> EngineCapacity:
        """The last start's figures; over several workers the smallest pool counts, as in the engine."""
        tokens: list[int] = []
        available: list[float] = []
        weights: list[float] = []
        concurrency: float | None = None
        context: int | None = None
        for line in lines:
            if "vLLM API server version" in line:
                tokens, available, weights, concurrency, context = [], [], [], None, None
            if found := _KV_SIZE.search(line):
                tokens.append(_int(found[1]))
            if found := _CONCURRENCY.search(line):
                context, concurrency = _int(found[1]), float(found[2])
            if found := _AVAILABLE.search(line):
                available.append(float(found[1]))
            if found := _WEIGHTS.search(line):
                weights.append(float(found[1]))
        return EngineCapacity(
            kv_cache_tokens=min(tokens, default=None),
            max_concurrency=concurrency,
            context_tokens=context,
            available_kv_gib=min(available, default=None),
            weights_gib=max(weights, default=None),
        )


def _usage(usage: Mapping[str, Any]) -> Usage:
    details = usage.get("prompt_tokens_details") or {}
    return Usage(usage.get("prompt_tokens"), usage.get("completion_tokens"), details.get("cached_tokens"))
