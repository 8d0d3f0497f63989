"""vLLM, 0.12.0 and newer: settings -> argv by version, HTTP and metric names; log, sizing and rules are in the modules beside.

Facts were read from the engine's own sources (the wheels of every release from 0.12.0 to 0.32.0); where a behaviour
changed, a row of a table below says since when. ``tests/contract`` checks every emitted flag and environment variable,
every metric name and every log text against those sources.
"""

from __future__ import annotations

import re
from dataclasses import replace

from ...errors import UserError
from ...version import Version
from ..base import EngineCapacity, HttpRequest, Launch, MetricNames, SharedMemory
from ..diagnosis import COMMON_FAILURES
from ..openai import OpenAiEngine
from ..rules import ALWAYS, Flag, Row, check_extra_args, refuse_first, refuse_others
from ..settings import EngineSettings
from ..sizing import PlanSettings
from . import log, rules
from .rules import VERIFIED, block_faults
from .sizing import stage_layers, vllm_sizing

OLDEST = Version.parse("0.12.0")

# Settings that become one option each. A new setting gets a row here, or is read in launch and named in READS.
FLAGS = (
    Flag("tensor_parallel", "--tensor-parallel-size", silent=(1,)),
    Flag("pipeline_parallel", "--pipeline-parallel-size", silent=(1,)),
    Flag("gpu_memory_utilization", "--gpu-memory-utilization"),
    Flag("kv_cache_dtype", "--kv-cache-dtype"),
    Flag("dtype", "--dtype"),
    Flag("quantization", "--quantization"),
    Flag("load_format", "--load-format"),
    Flag("max_num_batched_tokens", "--max-num-batched-tokens"),
    Flag("block_size_tokens", "--block-size"),
    Flag("max_num_seqs", "--max-num-seqs"),
)
READS = ALWAYS | {
    "attention_backend", "cpu_kv_cache_gib", "enforce_eager", "hybrid_kv", "prefix_caching", "skip_tokenizer", "text_only"
}  # fmt: skip

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

# The message queue between vLLM's processes: ten chunks of VLLM_MQ_MAX_CHUNK_BYTES_MB=16 and what describes them
# (vllm/distributed/device_communicators/shm_broadcast.py). Since 0.27.0 it looks first, and dies where they do not fit; [run: 0.32.0].
RING_BYTES = 161 * 2**20
CHECKS_SHM = Version.parse("0.27.0")

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


class VLLM(OpenAiEngine):
    """The vLLM adapter. Stateless."""

    name = "vllm"
    verified = VERIFIED
    phases = log.PHASES
    failures = (*log.ENGINE_FAILURES, *COMMON_FAILURES)
    log_opening = log.OPENING
    log_signatures = log.SIGNATURES
    capacity_from_log = staticmethod(log.capacity_from_log)
    stamp_s = staticmethod(log.stamp_s)
    explain_log = staticmethod(log.explain_log)
    metrics = METRICS
    takes_cache_salt = True
    takes = READS | {flag.setting for flag in FLAGS}
    stage_layers = staticmethod(stage_layers)
    sizing = staticmethod(vllm_sizing)
    findings = staticmethod(rules.findings)
    changes = staticmethod(rules.changes)
    hybrid_advice = f"set {HYBRID_CHUNKED_ENV.what}=1 (hybrid KV on)"

    def launch(self, settings: EngineSettings, version: Version) -> Launch:
        """Settings -> argv (after the python executable) and environment for that version.

        The key goes into the environment variable VLLM_API_KEY at the moment of the start, never into argv. On a CPU
        the KV cache is VLLM_CPU_KVCACHE_SPACE (whole GiB) and no GPU option is emitted. Raises UserError.
        """
        if version < OLDEST:
            raise UserError(f"vLLM {version}", f"vLLM {OLDEST} or newer", "set engine_version")
        refuse_others(self.name, self.takes, settings)
        check_extra_args(settings)
        s = settings
        refuse_first(block_faults(version, s.block_size_tokens, on_cpu=s.device == "cpu"))
        env: dict[str, str] = {}
        argv = ["-m", "vllm.entrypoints.openai.api_server", "--model", s.model_path]
        argv += ["--served-model-name", s.served_model_name, "--host", s.host, "--port", str(s.port)]
        argv += ["--max-model-len", str(s.context_tokens), "--enable-prompt-tokens-details"]
        if QUIET_ACCESS_LOG.holds(version):
            argv += [QUIET_ACCESS_LOG.what, f"{self.health_path},{self.metrics_path}"]
        if s.device == "cpu":
            env["VLLM_CPU_KVCACHE_SPACE"] = str(_cpu_kv_gib(s.cpu_kv_cache_gib))
        # A CPU engine has its own figure of memory.
        flags = [flag for flag in FLAGS if s.device != "cpu" or flag.setting != "gpu_memory_utilization"]
        argv += [word for flag in flags for word in flag.words(s, version)]
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
        key = s.api_key_file
        return Launch(tuple(argv), env, {"VLLM_API_KEY": key} if key else {})

    def flush_cache(self) -> HttpRequest | None:
        """``POST /reset_prefix_cache``. The route exists only under VLLM_SERVER_DEV_MODE=1 (extra_env): a 404 means
        that this server cannot be flushed, and fresh prompts with a salt are the way to a cold cache."""
        return HttpRequest("POST", "/reset_prefix_cache")

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

    def image(self, version: str) -> str:
        """The project's own image."""
        return f"vllm/vllm-openai:v{version}"

    def shared_memory(self, version: Version, ranks: int, device: str) -> SharedMemory:
        """The message queue between the processes of several ranks, and between those of a CPU engine."""
        return SharedMemory(RING_BYTES, version >= CHECKS_SHM) if ranks > 1 or device == "cpu" else SharedMemory(0)

    def planned(self, wanted: EngineSettings, settings: PlanSettings) -> PlanSettings:
        """The environment decides whose sampler runs, and with it what a full batch takes."""
        return replace(settings, torch_sampler=wanted.extra_env.get("VLLM_USE_FLASHINFER_SAMPLER") == "0")


def _cpu_kv_gib(wanted: float | None) -> int:
    if wanted is None:
        return CPU_KV_CACHE_DEFAULT_GIB
    if wanted < 1 or wanted != int(wanted):
        required = "a whole number of GiB, 1 at least (vLLM reads VLLM_CPU_KVCACHE_SPACE as an integer)"
        raise UserError(f"cpu_kv_cache_gib {wanted:g}", required, "round it up")
    return int(wanted)


ADAPTER = VLLM()
