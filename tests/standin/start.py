"""The log of a start, like the engines write it, and the ways in which one fails."""

from __future__ import annotations

import sys
import time

from .options import Options

_VLLM = (
    "INFO 01-01 00:00:00 [api_server.py:1351] vLLM API server version 0.0.0 (stand-in)",
    "INFO 01-01 00:00:01 [gpu_model_runner.py:3467] Starting to load model stand-in...",
    "INFO 01-01 00:00:01 [default_loader.py:308] Loading weights took {s:.2f} seconds",
    "INFO 01-01 00:00:02 [gpu_model_runner.py:3549] Model loading took 0.2600 GiB memory and {s:.6f} seconds",
    "INFO 01-01 00:00:03 [monitor.py:34] torch.compile takes {s:.2f} s in total",
    "INFO 01-01 00:00:04 [gpu_worker.py:359] Available KV cache memory: 2.00 GiB",
    "INFO 01-01 00:00:05 [kv_cache_utils.py:1286] GPU KV cache size: {kv:,} tokens",
    "INFO 01-01 00:00:05 [kv_cache_utils.py:1291] Maximum concurrency for {context:,} tokens per request: {multiple:.2f}x",
    "INFO 01-01 00:00:06 [gpu_model_runner.py:4466] Graph capturing finished in 1 secs, took 0.10 GiB",
    "INFO 01-01 00:00:07 [core.py:254] init engine (profile, create kv cache, warmup model) took {s:.2f} seconds",
)
_VLLM_READY = ("INFO:     Application startup complete.",)
_SGLANG = (
    "[2026-01-01 00:00:00] server_args=ServerArgs(model_path='stand-in')",
    "[2026-01-01 00:00:01] Load weight begin. avail mem=139.00 GB",
    "[2026-01-01 00:00:02] Load weight end. type=StandIn, dtype=torch.bfloat16, avail mem=138.00 GB, mem usage=1.00 GB.",
    "[2026-01-01 00:00:03] KV Cache is allocated. #tokens: {kv}, K size: 1.00 GB, V size: 1.00 GB",
    "[2026-01-01 00:00:03] Memory pool end. avail mem=100.00 GB",
    "[2026-01-01 00:00:04] max_total_num_tokens={kv}, chunked_prefill_size=8192, max_running_requests={running}, context_len={context}",
)
_SGLANG_READY = ("[2026-01-01 00:00:05] The server is fired up and ready to roll!",)

# kind -> (how many phase lines come first, the failing lines of vLLM, of SGLang, exit status)
_FAILURES: dict[str, tuple[int, tuple[str, ...], tuple[str, ...], int]] = {
    "oom": (2, ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has a total capacity of 79.10 GiB",),
            ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 16.00 GiB.",), 1),
    "kv-too-small": (5, ("ValueError: To serve at least one request with the model's max seq len (8388608), (96.00 GiB KV cache is needed, "
                         "which is larger than the available KV cache memory (2.00 GiB).",),
                     ("RuntimeError: Not enough memory. Please try to increase --mem-fraction-static.",), 1),
    "gpu-busy": (1, ("ValueError: Free memory on device (10.0/79.1 GiB) on startup is less than desired GPU memory utilization (0.9, 71.2 GiB).",),
                 ("ValueError: The memory capacity is unbalanced. Some GPUs may be occupied by other processes.",), 1),
    "bad-flag": (0, ("usage: api_server.py [-h] [--model MODEL]", "api_server.py: error: unrecognized arguments: --swap-space 4"),
                 ("usage: launch_server.py [-h]", "launch_server.py: error: unrecognized arguments: --hybrid-kvcache-ratio 0.1"), 2),
    "bad-model": (1, ("OSError: Invalid repository ID or local directory specified: '/models/none'.",),
                  ("OSError: /models/none is not a local folder and is not a valid model identifier listed on the hub",), 1),
    "gated": (1, ("OSError: You are trying to access a gated repo. Cannot access gated repo for url https://example.invalid/",),
              ("OSError: You are trying to access a gated repo. Cannot access gated repo for url https://example.invalid/",), 1),
    "parallelism": (1, ("ValueError: Total number of attention heads (40) must be divisible by tensor parallel size (16).",),
                    ("AssertionError: 40 is not divisible by 16",), 1),
    "nccl": (1, ("torch.distributed.DistBackendError: NCCL error: unhandled system error",
                 "Error while creating shared memory segment /dev/shm/nccl-x7Jq1z (size 9637888)"),
             ("torch.distributed.DistBackendError: NCCL error: unhandled system error",), 1),
    "port": (0, ("OSError: [Errno 98] Address already in use",), ("ERROR: Port is already in use: 30000",), 1),
    "crash": (2, ("Segmentation fault (core dumped)",), ("Segmentation fault (core dumped)",), 139),
}  # fmt: skip
_WRAPPER = {
    "vllm": "RuntimeError: Engine core initialization failed. See root cause above. Failed core proc(s): {}",
    "sglang": "[2026-01-01 00:00:09] Rank 0 scheduler is dead. Please check if there are relevant logs.",
}


def say(line: str) -> None:
    """One log line."""
    print(line, flush=True)


def play(options: Options) -> None:
    """Write the phases over ``--start-seconds``; exits the process where ``--fail-start`` says so."""
    lines = _VLLM if options.engine == "vllm" else _SGLANG
    step = options.start_seconds / len(lines)
    values = {
        "s": step,
        "kv": options.kv_tokens,
        "context": options.context,
        "multiple": options.kv_tokens / options.context,
        "running": options.max_running,
    }
    failure = _FAILURES.get(options.fail_start or "")
    for number, line in enumerate(lines):
        if failure is not None and number == failure[0]:
            for words in failure[1] if options.engine == "vllm" else failure[2]:
                say(words)
            if failure[3] == 1:
                say(_WRAPPER[options.engine])
            raise SystemExit(failure[3])
        say(line.format(**values))
        time.sleep(step)
    if options.fail_start == "never-ready":
        while True:
            time.sleep(1)
    sys.stdout.flush()


def ready(options: Options) -> None:
    """The last line, once the port is open."""
    for line in _VLLM_READY if options.engine == "vllm" else _SGLANG_READY:
        say(line)
