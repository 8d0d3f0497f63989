"""SGLang's log: phases of a start, failures, capacity figures, and what its statistics lines are not."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from .. import diagnosis
from ..base import EngineCapacity
from ..diagnosis import FailureMark, Note, Phase, PhaseMark, Throughput, marks

# The line that opens a start: several starts may have been appended to one log.
OPENING = "server_args="
# What no other engine writes.
SIGNATURES = ("sglang", "SGLang", OPENING, "Load weight begin", "#new-token:", "max_total_num_tokens=")

PHASES: tuple[PhaseMark, ...] = (
    PhaseMark(OPENING, Phase.STARTING),
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

# fmt: off
ENGINE_FAILURES: tuple[FailureMark, ...] = (
    FailureMark("Not enough memory. Please try to increase --mem-fraction-static", "weights leave no memory for the KV cache",
                _KV_SMALL),
    # The same sentence is a mere warning when the check is off: only the exception is a cause.
    *marks(("ValueError: The memory capacity is unbalanced", "RuntimeError: The memory capacity is unbalanced"),
           "some GPUs are not empty", _BUSY),
    *marks(("Capture cuda graph failed", "Capture prefill CUDA graph failed"),
           "out of memory (or a kernel failed) while capturing graphs", _GRAPHS),
    FailureMark("alloc_req_slots runs out of memory", "the table of requests is full", _REQUESTS),
    FailureMark("Prefill out of memory", "the KV pool could not take a prompt", "lower max_num_seqs or max_num_batched_tokens"),
    FailureMark("Decode out of memory", "the KV pool could not take another token", "lower max_num_seqs"),
    FailureMark("Port is already in use", "the port is in use",
                "stop the process that holds it (`ss -ltnp`), or choose another port"),
    FailureMark("set the env var SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN", "the context is above the model's positions",
                "lower the context; SGLANG_ALLOW_OVERWRITE_LONGER_CONTEXT_LEN=1 in extra_env only if the model was made for it"),
    FailureMark("required for Llama4 model but got", "the attention backend cannot run Llama 4",
                "set attention_backend to fa3 or triton"),
    FailureMark("atchdog timeout", "one forward step took longer than the watchdog allows",
                "add --watchdog-timeout to extra_args", wrapper=True),
    FailureMark("hit an exception: ", "an engine process failed", "read the traceback that follows", wrapper=True),
    *marks(("scheduler is dead", "scheduler died during initialization"), "a scheduler process died", _ABOVE, wrapper=True),
    FailureMark("crashed with exit code", "an engine process died", _ABOVE, wrapper=True),
    FailureMark("Initialization failed. Please see the error messages above", "the start failed", _ABOVE, wrapper=True),
    # The first while it starts, the second while it serves.
    *marks(("Received sigquit from a child process", "SIGQUIT received"), "an engine process died", _ABOVE, wrapper=True),
)
# fmt: on

_RANK = re.compile(r"^\[[\d: .,-]+((?: (?:TP|DP|PP|EP|ATTN_\w+)\d+)*)\]")
_FULL_SWA = re.compile(r"full_layer_tokens=(\d+), swa_layer_tokens=(\d+)")
_MAX_TOTAL = re.compile(r"\bmax_total_num_tokens=(\d+)")
_CONTEXT = re.compile(r"\bcontext_len=(\d+)")
_KV = re.compile(
    r"(?:is allocated|VA upper bound)\..*?#tokens: \d+, (?:K size: ([\d.]+) GB, V size: ([\d.]+) GB|KV size: ([\d.]+) GB)"
)
_WEIGHTS = re.compile(r"Load weight end\..*?mem usage=([\d.]+) GB")
_STAMP = re.compile(r"^\[(\d{4}-\d\d-\d\d \d\d:\d\d:\d\d(?:[.,]\d{1,6})?)")
_PREFILL = re.compile(r"Prefill batch.*?#new-token: (\d+), #cached-token: (\d+)")
_INPUT = re.compile(r"input throughput \(token/s\): ([\d.]+)")
_GEN = re.compile(r"gen throughput \(token/s\): ([\d.]+)")


def stamp_s(line: str) -> float | None:
    """Seconds of a line's own time stamp on an arbitrary scale."""
    return diagnosis.stamp_s(line, _STAMP)


def capacity_from_log(lines: Iterable[str]) -> EngineCapacity:
    """The figures of the log's last start. SGLang writes GB for GiB and prints no concurrency.

    ``available_kv_gib`` sums the pools of one rank; over ranks the smallest pool and the largest weights count.
    """
    tokens: int | None = None
    context: int | None = None
    local: int | None = None
    weights: list[float] = []
    pools: dict[str, float] = {}
    for line in lines:
        if OPENING in line:
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


def _notes(lines: Sequence[str]) -> list[Note]:
    notes: list[Note] = []
    new = cached = batches = 0
    fastest = 0.0
    for line in lines:
        if found := _PREFILL.search(line):
            batches += 1
            new += int(found[1])
            cached += int(found[2])
        if found := _INPUT.search(line):
            fastest = max(fastest, float(found[1]))
    if fastest:
        text = f"input throughput (token/s), up to {fastest:,.0f} here, is the tokens of one prefill chunk over the time since "
        text += "the chunk before: it falls along a long prompt and includes idle time. It is no prefill rate of a request."
        notes.append(Note("input_throughput", text))
    if batches:
        share = cached / (new + cached) if new + cached else 0.0
        text = f"{batches} prefill chunks: {new:,} tokens computed, {cached:,} from cache ({share:.0%})."
        if cached:
            text += " Any time taken meanwhile is no cold prefill."
        notes.append(Note("warm_prompts" if cached else "cold_prompts", text))
    if any(_GEN.search(line) for line in lines):
        text = "gen throughput (token/s) is of all running requests together since the line before, no TPOT."
        notes.append(Note("gen_throughput", text))
    return notes


def explain_log(lines: Sequence[str], capacity: EngineCapacity) -> tuple[Throughput | None, list[Note]]:
    """What the statistics lines of one start say, and what they are not; ``capacity`` needs no explanation here."""
    return None, _notes(lines)
