"""vLLM's log: phases of a start, failures, capacity figures, and what its statistics lines are not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from .. import diagnosis
from ..base import EngineCapacity
from ..diagnosis import DRIVER_ADVICE, PATH_ADVICE, FailureMark, Note, Phase, PhaseMark, Throughput

# The line that opens a start: several starts may have been appended to one log.
OPENING = "non-default args:"
# What no other engine writes.
SIGNATURES = ("vLLM", "vllm.", "vllm/", "(EngineCore", "(APIServer", "Avg prompt throughput", OPENING)

PHASES: tuple[PhaseMark, ...] = (
    PhaseMark(OPENING, Phase.STARTING),
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

# fmt: off
ENGINE_FAILURES: tuple[FailureMark, ...] = (
    FailureMark("To serve at least one request with the model", "the KV cache is too small for one request of the full context",
                _KV_SMALL),
    FailureMark("No available memory for the cache blocks", "weights and activations leave no memory for the KV cache",
                _KV_SMALL),
    FailureMark("Free memory on device", "the GPU is not empty", _BUSY),
    FailureMark("Error in memory profiling", "another process freed GPU memory during the start",
                "start again once nothing else uses the GPU"),
    FailureMark("is less than desired CPU memory utilization", "the host has less free memory than the CPU engine asks for",
                "set cpu_kv_cache_gib, or free memory on the host"),
    FailureMark("must be divisible by tensor parallel size", "tensor parallelism does not fit the model", _PARALLEL),
    FailureMark("larger than the number of available GPUs", "more GPUs are asked for than the host shows", _PARALLEL),
    FailureMark("Pipeline parallelism is not supported for this model", "the model cannot be split into pipeline stages",
                "set pipeline_parallel to 1 and use tensor_parallel"),
    FailureMark("Invalid repository ID or local directory specified", "the model path does not exist or is no model",
                PATH_ADVICE),
    FailureMark("Cannot find any model weights with", "the model folder holds no weights", PATH_ADVICE),
    FailureMark("set the env var VLLM_ALLOW_LONG_MAX_MODEL_LEN", "the context is above the model's positions",
                "lower the context; VLLM_ALLOW_LONG_MAX_MODEL_LEN=1 in extra_env only if the model was made for it"),
    FailureMark("are not supported for now. ", "this engine version does not know the model's architecture",
                "choose a newer engine version"),
    FailureMark("Unknown quantization method", "this engine version does not know the quantization",
                "correct quantization, or choose another engine version"),
    FailureMark("is not supported for the current GPU. Minimum ", "this GPU cannot run the quantization",
                "use weights in another format, or a newer GPU"),
    FailureMark("Failed to infer device type", "no GPU is visible to the engine", DRIVER_ADVICE),
    FailureMark("There is no module or parameter named", "the weights do not belong to the architecture in config.json",
                "compare config.json with the weights; fetch both from one revision"),
    FailureMark("Did not receive response from front-end", "the API server did not answer the engine process", _ABOVE,
                wrapper=True),
    FailureMark("Engine core initialization failed", "the engine process failed to start", _ABOVE, wrapper=True),
    FailureMark("WorkerProc initialization failed", "a worker process failed to start", _ABOVE, wrapper=True),
    FailureMark("EngineCore failed to start", "the engine process failed to start", _ABOVE, wrapper=True),
    FailureMark("EngineCore encountered a fatal error", "the engine process died", _ABOVE, wrapper=True),
    FailureMark("died unexpectedly", "an engine process died", _ABOVE, wrapper=True),
)
# fmt: on

_KV_SIZE = re.compile(r"KV cache size: ([\d,]+) tokens")
_CONCURRENCY = re.compile(r"Maximum concurrency for ([\d,]+) tokens per request: ([\d.]+)x")
_AVAILABLE = re.compile(r"Available KV cache memory: (-?[\d.]+) GiB")
_CPU_KV = re.compile(r"Explicitly set \(([\d.]+)/[\d.]+\) GiB for KV cache")
_WEIGHTS = re.compile(r"Model loading took ([\d.]+) Gi?B")
_STAMP = re.compile(r"\b(?:DEBUG|INFO|WARNING|ERROR|CRITICAL) (\d\d-\d\d \d\d:\d\d:\d\d)\b")
_STATS = re.compile(
    r"Avg prompt throughput: ([\d.]+) tokens/s, Avg generation throughput: ([\d.]+) tokens/s, "
    r"Running: (\d+) reqs, Waiting: (\d+) reqs"
)
_KV = re.compile(r"KV cache usage: ([\d.]+)%")
_HITS = re.compile(r"Prefix cache hit rate: ([\d.]+)%")
# vllm/envs.py, VLLM_LOG_STATS_INTERVAL.
STATS_INTERVAL_S = 10.0


def stamp_s(line: str) -> float | None:
    """Seconds of a line's own time stamp on an arbitrary scale: vLLM writes no year."""
    return diagnosis.stamp_s(line, _STAMP, "2000-")  # a leap year, so that 02-29 parses


def _number(text: str) -> int:
    return int(text.replace(",", ""))


def capacity_from_log(lines: Iterable[str]) -> EngineCapacity:
    """The figures of the log's last start; over several workers the smallest pool counts, as in the engine.

    Old form: "GPU KV cache size: N tokens" and "Maximum concurrency for L tokens per request: Cx" on two lines;
    newer and CPU form: both on one. N means different things from release to release: only C x L is comparable.
    """
    tokens: list[int] = []
    available: list[float] = []
    weights: list[float] = []
    concurrency: list[float] = []
    context: int | None = None
    for line in lines:
        if OPENING in line:
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


def throughput(lines: Iterable[str]) -> Throughput | None:
    """Read vLLM's statistics lines; ``None`` where there is none."""
    count = 0
    best: Throughput | None = None
    silent_since: float | None = None
    interval = STATS_INTERVAL_S
    for line in lines:
        found = _STATS.search(line)
        if not found:
            continue
        count += 1
        prompt, running = float(found[1]), int(found[3])
        now = stamp_s(line)
        if prompt > 0 and (best is None or prompt > best.max_prompt_tokens_per_s):
            waited = None if now is None or silent_since is None else now - silent_since
            # The first token may have come right after the line before this one.
            at_least = None if waited is None or waited <= interval else waited - interval
            tokens = round(prompt * interval)
            rate = tokens / at_least if at_least else None
            best = Throughput(0, prompt, interval, tokens, at_least, rate, line.strip()[-300:])
        if prompt > 0 or running == 0:
            silent_since = None
        elif silent_since is None:
            silent_since = now
    if not count:
        return None
    return replace(best, lines=count) if best else Throughput(count, 0.0, interval, 0)


def explain_log(lines: Sequence[str], capacity: EngineCapacity) -> tuple[Throughput | None, list[Note]]:
    """What the statistics lines of one start say, and what they are not."""
    booked = throughput(lines)
    return booked, [*_booked_notes(booked), *_notes(lines, capacity)]


def _booked_notes(booked: Throughput | None) -> list[Note]:
    if booked is None or not booked.booked_tokens:
        return []
    text = (
        f'"Avg prompt throughput: {booked.max_prompt_tokens_per_s:,.1f} tokens/s" is NOT a speed: the whole prompt is '
        f"booked when its first token arrives and divided by the {booked.interval_s:g} s log interval. It says that prompts of "
        f"about {booked.booked_tokens:,} tokens finished their prefill in that interval"
    )
    if booked.prefill_at_least_s and booked.rate_at_most:
        text += f"; the lines before show at least {booked.prefill_at_least_s:g} s of work on it, so at most "
        text += f"{booked.rate_at_most:,.0f} tokens/s"
    return [Note("avg_prompt_throughput", text + ". Measure with `longhaul validate`.", booked.evidence)]


def _peak(lines: Iterable[str], figure: re.Pattern[str], group: int = 1) -> tuple[float, str]:
    """The highest figure of that kind and its line; 0 where there is none."""
    value, line = max(((float(m[group]), line) for line in lines if (m := figure.search(line))), default=(0.0, ""))
    return value, line.strip()[-300:]


def _notes(lines: Sequence[str], capacity: EngineCapacity) -> list[Note]:
    notes: list[Note] = []
    hits, line = _peak(lines, _HITS)
    if hits > 0:
        text = f"Prefix cache hit rate up to {hits:g}% (of the prompt tokens of the last 1,000 requests): some prompts were "
        text += "partly served from cache. Any time taken meanwhile is no cold prefill."
        notes.append(Note("warm_prompts", text, line))
    waiting, line = _peak(lines, _STATS, 4)
    if waiting > 0:
        notes.append(Note("queueing", f"Up to {waiting:.0f} requests waited: times to first token include the queue.", line))
    used, line = _peak(lines, _KV)
    if used >= 99.0:
        notes.append(Note("kv_full", f"The KV cache was {used:g}% full: requests are preempted and computed again.", line))
    if capacity.kv_cache_tokens is not None:
        text = (
            f'"KV cache size: {capacity.kv_cache_tokens:,} tokens" is a pool, not the longest request, and means different '
            "things in different versions"
        )
        if capacity.max_concurrency is not None and capacity.context_tokens is not None:
            text += f"; what counts is the concurrency: {capacity.max_concurrency:g} requests of "
            text += f"{capacity.context_tokens:,} tokens at once"
        notes.append(Note("kv_size", text + ". Tensor parallelism shares this pool: never multiply it by the GPUs."))
    if capacity.max_concurrency is not None and capacity.max_concurrency < 1:
        text = f"Maximum concurrency {capacity.max_concurrency:g}x: one request of the full context does not fit. It would "
        text += "be preempted and started again for ever. Lower the context or enlarge the KV cache."
        notes.append(Note("below_one", text))
    return notes
