"""Log lines and settings shared by the engine tests. Lines marked [run] were printed by a real server."""

from __future__ import annotations

from typing import Any

from longhaul.engines.settings import SETTINGS, EngineSettings, Setting
from support.paths import LOGS


def log(name: str) -> list[str]:
    """A recorded log, line by line."""
    return (LOGS / f"{name}.log").read_text(encoding="utf-8").splitlines()


def settings(**changes: Any) -> EngineSettings:
    """A plain endpoint, changed as asked."""
    base: dict[str, Any] = {"model_path": "/models/scout", "served_model_name": "scout", "context_tokens": 2_097_152}
    return EngineSettings(**(base | changes))


# Values that engines take, where the type alone does not tell one.
_TAKEN: dict[str, Any] = {
    "model_path": "/models/other",
    "port": 9000,
    "device": "cpu",
    "tensor_parallel": 2,
    "pipeline_parallel": 2,
    "kv_cache_dtype": "fp8",
    "dtype": "bfloat16",
    "quantization": "fp8",
    "load_format": "dummy",
    "block_size_tokens": 128,
    "api_key_file": "/etc/key",
    "extra_args": ["--seed", "1"],
    "cpu_kv_cache_gib": 3.0,
}


def _other(setting: Setting) -> Any:
    """A value that the engines take and that is not the default; for a setting that was just declared, by its type."""
    if setting.name in _TAKEN:
        return _TAKEN[setting.name]
    if setting.choices:
        return next(choice for choice in setting.choices if choice != setting.default)
    by_kind = {"bool": setting.default is False, "int": 4096, "float": 0.5, "Mapping[str, str]": {"A": "1"}}
    return by_kind.get(setting.kind.removesuffix(" | None"), "other")


# Another value than the default for every setting.
OTHER: dict[str, Any] = {setting.name: _other(setting) for setting in SETTINGS}

# vLLM 0.12.0 on 8x H200, hybrid on, as the operator of request.md quotes it (two lines, per worker).
VLLM_OLD = [
    "(APIServer pid=1) INFO 12-05 10:00:00 [utils.py:253] non-default args: {'model': '/models/scout'}",
    "(Worker_TP0 pid=2) INFO 12-05 10:00:20 [gpu_model_runner.py:3467] Starting to load model /models/scout...",
    "(Worker_TP0 pid=2) INFO 12-05 10:08:00 [default_loader.py:308] Loading weights took 455.10 seconds",
    "(Worker_TP0 pid=2) INFO 12-05 10:08:01 [gpu_model_runner.py:3549] Model loading took 25.6700 GiB memory and 460.1 seconds",
    "(Worker_TP0 pid=2) INFO 12-05 10:09:10 [monitor.py:34] torch.compile takes 66.60 s in total",
    "(Worker_TP0 pid=2) INFO 12-05 10:09:30 [gpu_worker.py:359] Available KV cache memory: 89.75 GiB",
    "(Worker_TP1 pid=3) INFO 12-05 10:09:30 [gpu_worker.py:359] Available KV cache memory: 89.71 GiB",
    "(EngineCore pid=4) INFO 12-05 10:09:31 [kv_cache_utils.py:1286] GPU KV cache size: 3,919,664 tokens",
    "(EngineCore pid=4) INFO 12-05 10:09:31 [kv_cache_utils.py:1291] Maximum concurrency for 8,388,608 tokens per request: 1.86x",
    "(Worker_TP0 pid=2) INFO 12-05 10:09:50 [gpu_model_runner.py:4466] Graph capturing finished in 15 secs, took 1.20 GiB",
    "(EngineCore pid=4) INFO 12-05 10:09:55 [core.py:254] init engine (profile, create kv cache, warmup model) took 110.0 s",
    "INFO:     Application startup complete.",
]
# vLLM 0.25.1 on 2x H200 [run].
VLLM_NEW = [
    "(EngineCore pid=4) INFO 06-01 10:01:00 [gpu_worker.py:480] Available KV cache memory: 71.58 GiB",
    "(EngineCore pid=4) INFO 06-01 10:01:01 [kv_cache_utils.py:1900] GPU KV cache size: 3,055,834 tokens, "
    "Maximum concurrency for 2,097,152 tokens per request: 1.46x",
]
# SGLang 0.5.12.post1 on 2x H200 [run], as its format strings print it.
SGLANG = [
    "[2026-06-01 10:00:00] server_args=ServerArgs(model_path='/models/scout', ...)",
    "[2026-06-01 10:00:20 TP0] Load weight begin. avail mem=138.60 GB",
    "[2026-06-01 10:00:20 TP1] Load weight begin. avail mem=138.60 GB",
    "[2026-06-01 10:01:00 TP0] Load weight end. elapsed=39.90 s, type=Llama4ForConditionalGeneration, dtype=torch.bfloat16, "
    "avail mem=86.80 GB, mem usage=51.75 GB.",
    "[2026-06-01 10:01:00 TP1] Load weight end. elapsed=39.95 s, type=Llama4ForConditionalGeneration, dtype=torch.bfloat16, "
    "avail mem=86.80 GB, mem usage=51.74 GB.",
    "[2026-06-01 10:01:01 TP0] Use sliding window memory pool. full_layer_tokens=2656945, swa_layer_tokens=132847",
    "[2026-06-01 10:01:01 TP0] KV Cache is allocated. #tokens: 132847, K size: 4.56 GB, V size: 4.56 GB",
    "[2026-06-01 10:01:01 TP0] KV Cache is allocated. #tokens: 2656945, K size: 30.41 GB, V size: 30.41 GB",
    "[2026-06-01 10:01:01 TP1] KV Cache is allocated. #tokens: 132847, K size: 4.56 GB, V size: 4.56 GB",
    "[2026-06-01 10:01:01 TP1] KV Cache is allocated. #tokens: 2656945, K size: 30.41 GB, V size: 30.41 GB",
    "[2026-06-01 10:01:02 TP0] Memory pool end. avail mem=16.40 GB",
    "[2026-06-01 10:01:03 TP0] max_total_num_tokens=2656945, chunked_prefill_size=8192, max_prefill_tokens=16384, "
    "max_running_requests=4, context_len=1048576, available_gpu_mem=16.30 GB",
    "[2026-06-01 10:02:03] The server is fired up and ready to roll!",
    "[2026-06-01 10:03:00 TP0] Prefill batch, #new-seq: 1, #new-token: 8192, #cached-token: 0, token usage: 0.00, "
    "#running-req: 0, #queue-req: 0, input throughput (token/s): 140.00",
    "[2026-06-01 10:03:02 TP0] Prefill batch, #new-seq: 1, #new-token: 1808, #cached-token: 2000, token usage: 0.00, "
    "#running-req: 0, #queue-req: 0, input throughput (token/s): 4096.00",
]
