"""vLLM: settings -> argv by version, log lines, HTTP shapes and metric names. Supported: 0.12.0 and newer.

Facts were read from the engine's own sources (the wheels of every release from 0.12.0 to 0.32.0); where a behaviour
changed, a row of a table below says since when. ``tests/contract`` checks every emitted flag and environment variable,
every metric name and every log text against those sources.
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
)
from ..block_size import block_faults
from ..diagnosis import COMMON_FAILURES, DRIVER_ADVICE, PATH_ADVICE, FailureMark, Phase, PhaseMark
from ..metrics import parse_version
from ..openai import error_message, message_of, openai_event
from ..settings import EngineSettings

OLDEST = Version.parse("0.12.0")


# vllm/engine/arg_utils.py, "--attention-backend": first in 0.13.0. Before, the variable VLLM_ATTENTION_BACKEND
# (vllm/envs.py; gone in 0.15.0).
ATTENTION_BACKEND_FLAG = Row("--attention-backend", Version.parse("0.13.0"))
ATTENTION_BACKEND_ENV = Row("VLLM_ATTENTION_BACKEND", OLDEST, Version.parse("0.13.0"))
# vllm/envs.py: the default of this variable is "0" in 0.12.0 and 0.13.0, "1" from 0.14.0 on. It decides only for models
# with chunked-local attention (Llama 4); for sliding-window models the hybrid manager is on in all versions.
HYBRID_CHUNKED_ENV = Row("VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE", OLDEST, Version.parse("0.14.0"))
# vllm/config/multimodal.py: builds no vision tower, whatever modalities the model has. Before: a limit of 0 images.
LANGUAGE_MODEL_ONLY = Row("--language-model-only", Version.parse("0.17.0"))
LIMIT_MM = Row("--limit-mm-per-prompt", OLDEST, Version.parse("0.17.0"))
# vllm/entrypoints/openai/cli_args.py: the health and metrics polls of a rollout would bury the log's own lines.
QUIET_ACCESS_LOG = Row("--disable-access-log-for-endpoints", Version.parse("0.16.0"))

# With no figure the CPU engine of newer releases asks for 92% of the host's memory (vllm/v1/worker/cpu_worker.py) and
# dies where that much is not free; 4 GiB is what older releases took.
CPU_KV_CACHE_DEFAULT_GIB = 4

PHASES: tuple[PhaseMark, ...] = (
    PhaseMark("non-default args:", Phase.STARTING),
    PhaseMark("Starting to load model", Phase.LOADING),
    PhaseMark("Warming up model for the compilation", Phase.COMPILING),  # CPU
    PhaseMark("Model loading took", Phase.COMPILING),
    PhaseMark("torch.compile t", Phase.SIZING_KV),  # "takes" or "took"; profiling follows
    PhaseMark("Warming up done", Phase.SIZING_KV),  # CPU
    PhaseMark("Available KV cache memory", Phase.SIZING_KV),
    PhaseMark("GiB for KV cache", Phase.SIZING_KV),  # CPU
    PhaseMark("KV cache size: ", Phase.CAPTURING),
    PhaseMark("Graph capturing finished", Phase.CAPTURING),
    PhaseMark("init engine (profile", Phase.CAPTURING),
    PhaseMark("Application startup complete", Phase.READY),
)

_KV_SMALL = (
    "lower the context, raise gpu_memory_utilization, use an fp8 KV cache, turn hybrid_kv on, or use more GPUs "
    "(`longhaul plan` shows what fits)"
)
_PARALLEL = (
    "choose tensor_parallel so that it divides the model's attention heads, and tensor_parallel x pipeline_parallel "
    "within the GPUs given"
)
_BUSY = "stop what else uses the GPU (`nvidia-smi`), or lower gpu_memory_utilization"
_ABOVE = "the cause stands above this line in the log"

ENGINE_FAILURES: tuple[FailureMark, ...] = (
    FailureMark(
        "To serve at least one request with the model", "the KV cache is too small for one request of the full context", _KV_SMALL
    ),
    FailureMark(
        "No available memory for the cache blocks", "weights and activations leave no memory for the KV cache", _KV_SMALL
    ),
    FailureMark("Free memory on device", "the GPU is not empty", _BUSY),
    FailureMark(
        "Error in memory profiling",
        "another process freed GPU memory during the start",
        "start again once nothing else uses the GPU",
    ),
    FailureMark(
        "is less than desired CPU memory utilization",
        "the host has less free memory than the CPU engine asks for",
        "set cpu_kv_cache_gib, or free memory on the host",
    ),
    FailureMark("must be divisible by tensor parallel size", "tensor parallelism does not fit the model", _PARALLEL),
    FailureMark("larger than the number of available GPUs", "more GPUs are asked for than the host shows", _PARALLEL),
    FailureMark(
        "Pipeline parallelism is not supported for this model",
        "the model cannot be split into pipeline stages",
        "set pipeline_parallel to 1 and use tensor_parallel",
    ),
    FailureMark(
        "Invalid repository ID or local directory specified", "the model path does not exist or is no model", PATH_ADVICE
    ),
    FailureMark("Cannot find any model weights with", "the model folder holds no weights", PATH_ADVICE),
    FailureMark(
        "set the env var VLLM_ALLOW_LONG_MAX_MODEL_LEN",
        "the context is above the model's positions",
        "lower the context; VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 in extra_env only if the model was made for it",
    ),
    FailureMark(
        "are not supported for now. ",
        "this engine version does not know the model's architecture",
        "choose a newer engine version",
    ),
    FailureMark(
        "Unknown quantization method",
        "this engine version does not know the quantization",
        "correct quantization, or choose another engine version",
    ),
    FailureMark(
        "is not supported for the current GPU. Minimum ",
        "this GPU cannot run the quantization",
        "use weights in another format, or a newer GPU",
    ),
    FailureMark("Failed to infer device type", "no GPU is visible to the engine", DRIVER_ADVICE),
    FailureMark(
        "There is no module or parameter named",
        "the weights do not belong to the architecture in config.json",
        "compare config.json with the weights; fetch both from one revision",
    ),
    FailureMark(
        "Did not receive response from front-end", "the API server did not answer the engine process", _ABOVE, wrapper=True
    ),
    FailureMark("Engine core initialization failed", "the engine process failed to start", _ABOVE, wrapper=True),
    FailureMark("WorkerProc initialization failed", "a worker process failed to start", _ABOVE, wrapper=True),
    FailureMark("EngineCore failed to start", "the engine process failed to start", _ABOVE, wrapper=True),
    FailureMark("EngineCore encountered a fatal error", "the engine process died", _ABOVE, wrapper=True),
    FailureMark("died unexpectedly", "an engine process died", _ABOVE, wrapper=True),
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
    queue_time="vllm:request_queue_time_seconds",
)

_KV_SIZE = re.compile(r"KV cache size: ([\d,]+) tokens")
_CONCURRENCY = re.compile(r"Maximum concurrency for ([\d,]+) tokens per request: ([\d.]+)x")
_AVAILABLE = re.compile(r"Available KV cache memory: (-?[\d.]+) GiB")
_CPU_KV = re.compile(r"Explicitly set \(([\d.]+)/[\d.]+\) GiB for KV cache")
_WEIGHTS = re.compile(r"Model loading took ([\d.]+) Gi?B")
_START = "non-default args:"


def _number(text: str) -> int:
    return int(text.replace(",", ""))


class VLLM:
    """The vLLM adapter (OpenAI-compatible server). Stateless."""

    __slots__ = ()

    name: str = "vllm"
    default_port: int = 8000
    health_path: str = "/health"
    models_path: str = "/v1/models"
    metrics_path: str = "/metrics"
    phases: Sequence[PhaseMark] = PHASES
    failures: Sequence[FailureMark] = (*ENGINE_FAILURES, *COMMON_FAILURES)
    metrics: MetricNames = METRICS
    info_paths: Sequence[str] = ("/version",)
    load_paths: Sequence[str] = ()
    takes_cache_salt: bool = True

    def launch(self, settings: EngineSettings, version: Version) -> Launch:
        """Settings -> argv (after the python executable) and environment for that version.

        The key goes into the environment variable VLLM_API_KEY at the moment of the start, never into argv. On a CPU
        the KV cache is VLLM_CPU_KVCACHE_SPACE (whole GiB) and no GPU option is emitted. Raises UserError.
        """
        if version < OLDEST:
            raise UserError(f"vLLM {version}", f"vLLM {OLDEST} or newer", "set engine_version")
        for name in ("swa_full_tokens_ratio", "max_total_tokens"):
            if getattr(settings, name) is not None:
                raise UserError(f"{name} with vLLM", "a setting of SGLang only", f"remove {name}")
        check_extra_args(settings)
        s = settings
        refuse_first(block_faults("vllm", version, s.block_size_tokens, on_cpu=s.device == "cpu"))
        env: dict[str, str] = {}
        argv = ["-m", "vllm.entrypoints.openai.api_server", "--model", s.model_path]
        argv += ["--served-model-name", s.served_model_name, "--host", s.host, "--port", str(s.port)]
        argv += ["--max-model-len", str(s.context_tokens), "--enable-prompt-tokens-details"]
        if QUIET_ACCESS_LOG.holds(version):
            argv += [QUIET_ACCESS_LOG.what, f"{self.health_path},{self.metrics_path}"]
        if s.device == "cpu":
            env["VLLM_CPU_KVCACHE_SPACE"] = str(_cpu_kv_gib(s.cpu_kv_cache_gib))
        argv += flag_values(
            (
                ("--tensor-parallel-size", None if s.tensor_parallel == 1 else s.tensor_parallel),
                ("--pipeline-parallel-size", None if s.pipeline_parallel == 1 else s.pipeline_parallel),
                ("--gpu-memory-utilization", None if s.device == "cpu" else s.gpu_memory_utilization),
                ("--kv-cache-dtype", s.kv_cache_dtype),
                ("--dtype", s.dtype),
                ("--quantization", s.quantization),
                ("--load-format", s.load_format),
                ("--max-num-batched-tokens", s.max_num_batched_tokens),
                ("--block-size", s.block_size_tokens),
                ("--max-num-seqs", s.max_num_seqs),
            )
        )
        if s.hybrid_kv == "on" and HYBRID_CHUNKED_ENV.holds(version):
            env[HYBRID_CHUNKED_ENV.what] = "1"
        if s.hybrid_kv == "off":
            argv.append("--disable-hybrid-kv-cache-manager")
        if s.prefix_caching is not None:
            argv.append("--enable-prefix-caching" if s.prefix_caching else "--no-enable-prefix-caching")
        if s.enforce_eager:
            argv.append("--enforce-eager")
        if s.attention_backend is not None and ATTENTION_BACKEND_FLAG.holds(version):
            argv += [ATTENTION_BACKEND_FLAG.what, s.attention_backend]
        if s.attention_backend is not None and ATTENTION_BACKEND_ENV.holds(version):
            env[ATTENTION_BACKEND_ENV.what] = s.attention_backend
        if s.text_only and LANGUAGE_MODEL_ONLY.holds(version):
            argv.append(LANGUAGE_MODEL_ONLY.what)
        if s.text_only and LIMIT_MM.holds(version):
            argv += [LIMIT_MM.what, '{"image":0}']
        if s.skip_tokenizer:
            argv.append("--skip-tokenizer-init")
        argv += s.extra_args
        env.update(s.extra_env)
        key = api_key_path(s)
        return Launch(tuple(argv), env, {"VLLM_API_KEY": key} if key else {})

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
        """A streamed ``/v1/completions`` request; the prompt's JSON array goes between ``head`` and ``tail``.

        ``cache_salt`` keeps the prompt's blocks apart from every other prompt's in the prefix cache.
        """
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
        if cache_salt:
            rest["cache_salt"] = cache_salt
        text = json.dumps(rest, separators=(",", ":"))
        return BodyTemplate("/v1/completions", b'{"prompt":', b"," + text[1:].encode())

    def parse_event(self, event: Mapping[str, Any], text_so_far: str) -> StreamEvent:
        """One SSE payload of ``/v1/completions`` or ``/v1/chat/completions``; texts come as pieces."""
        if event.get("error") is not None or event.get("object") == "error":
            return StreamEvent(error=message_of(event) or json.dumps(event)[:400])
        return openai_event(event)

    def error_message(self, status: int, body: bytes) -> str:
        """The server's own words in an HTTP error body; never empty."""
        return error_message(status, body)

    def flush_cache(self, version: Version) -> HttpRequest | None:
        """``POST /reset_prefix_cache``. The route exists only under VLLM_SERVER_DEV_MODE=1 (extra_env): a 404 means
        that this server cannot be flushed, and fresh prompts with a salt are the way to a cold cache."""
        return HttpRequest("POST", "/reset_prefix_cache")

    def parse_info(self, answer: Any) -> ServerInfo:
        """``/version``; its settings vLLM shows in developer mode only."""
        return parse_version(answer)

    def parse_load(self, answer: Any, pool_tokens: int | None = None) -> Counters | None:
        """vLLM's gauges are of the moment: there is no other source."""
        return None

    def capacity_from_metrics(self, text: str) -> EngineCapacity:
        """The labels of ``vllm:cache_config_info``: blocks in all versions, tokens and concurrency in newer ones [run: 0.32]."""
        line = re.search(r"^vllm:cache_config_info\{(.*)\}", text, re.MULTILINE)
        labels = dict(re.findall(r'(\w+)="([^"]*)"', line[1])) if line else {}

        def whole(name: str) -> int | None:
            return int(labels[name]) if labels.get(name, "").isdigit() else None

        concurrency = labels.get("kv_cache_max_concurrency", "")
        return EngineCapacity(
            kv_cache_tokens=whole("kv_cache_size_tokens"),
            max_concurrency=float(concurrency) if re.fullmatch(r"\d+(\.\d+)?", concurrency) else None,
            kv_blocks=whole("num_gpu_blocks"),
        )

    def capacity_from_log(self, lines: Iterable[str]) -> EngineCapacity:
        """The figures of the log's last start; over several workers the smallest pool counts, as in the engine.

        Old form: "GPU KV cache size: N tokens" and "Maximum concurrency for L tokens per request: Cx" on two lines;
        newer and CPU form: both on one. N means different things (see engine facts): only C x L is comparable.
        """
        tokens: list[int] = []
        available: list[float] = []
        weights: list[float] = []
        concurrency: list[float] = []
        context: int | None = None
        for line in lines:
            if _START in line:
                tokens, available, weights, concurrency, context = [], [], [], [], None
            if found := _KV_SIZE.search(line):
                tokens.append(_number(found[1]))
            if found := _CONCURRENCY.search(line):
                context = _number(found[1])
                concurrency.append(float(found[2]))
            if found := _AVAILABLE.search(line) or _CPU_KV.search(line):
                available.append(float(found[1]))
            if found := _WEIGHTS.search(line):
                weights.append(float(found[1]))
        return EngineCapacity(
            kv_cache_tokens=min(tokens, default=None),
            max_concurrency=min(concurrency, default=None),
            context_tokens=context,
            available_kv_gib=min(available, default=None),
            weights_gib=max(weights, default=None),
        )


def _cpu_kv_gib(wanted: float | None) -> int:
    if wanted is None:
        return CPU_KV_CACHE_DEFAULT_GIB
    if wanted < 1 or wanted != int(wanted):
        raise UserError(
            f"cpu_kv_cache_gib {wanted:g}",
            "a whole number of GiB, 1 at least (vLLM reads VLLM_CPU_KVCACHE_SPACE as an integer)",
            "round it up",
        )
    return int(wanted)
