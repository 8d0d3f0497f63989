"""What an engine's log says: phases of a start, why it did not start or died, and what adapters tell of their statistics lines.

An adapter brings its own marks; what lies below every engine (argparse, sockets, torch, NCCL, driver, hub, disk) is in
``COMMON_FAILURES``.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from enum import Enum
from typing import Protocol


class Phase(str, Enum):
    """Phases of a start, in order."""

    INSTALLING = "installing"
    STARTING = "starting"
    LOADING = "loading weights"
    COMPILING = "compiling"
    SIZING_KV = "sizing KV"
    CAPTURING = "capturing graphs"
    READY = "ready"


@dataclass(frozen=True)
class PhaseMark:
    """A substring that, once seen in the engine's log, means that ``phase`` has begun (or, for READY, is reached)."""

    needle: str
    phase: Phase


@dataclass(frozen=True)
class FailureMark:
    """A substring of a log line that names why a start or a run failed. ``wrapper``: the line only hides the cause above it.

    ``explains``: the broader cause that this one replaces, although it stands further down in the log.
    """

    needle: str
    cause: str
    advice: str
    wrapper: bool = False
    explains: str = ""


@dataclass(frozen=True)
class Diagnosis:
    """Why an engine died: ``cause`` in our words, ``evidence`` the log line, ``advice`` what to change."""

    cause: str
    evidence: str
    advice: str
    phase: Phase | None = None


class LogMarks(Protocol):
    """What an adapter knows of its engine's log, in the order in which it is looked for."""

    phases: Sequence[PhaseMark]
    failures: Sequence[FailureMark]


def marks(needles: Sequence[str], cause: str, advice: str, *, wrapper: bool = False, explains: str = "") -> list[FailureMark]:
    """The marks of several texts that name one cause."""
    return [FailureMark(needle, cause, advice, wrapper, explains) for needle in needles]


@dataclass(frozen=True)
class Throughput:
    """What the statistics lines say, and what they are worth.

    vLLM books a whole prompt at the moment its first token arrives and divides by the log interval, so that
    ``max_prompt_tokens_per_s`` x ``interval_s`` = ``booked_tokens`` is a prompt's length. ``prefill_at_least_s``: how long
    the lines before it showed a running request without any prompt token booked; ``rate_at_most`` = booked_tokens over
    that, an upper limit of the true prefill rate.
    """

    lines: int
    max_prompt_tokens_per_s: float
    interval_s: float
    booked_tokens: int
    prefill_at_least_s: float | None = None
    rate_at_most: float | None = None
    evidence: str = ""


@dataclass(frozen=True)
class Note:
    """Something a reader of this log should know. ``code`` is stable, ``text`` is for people."""

    code: str
    text: str
    evidence: str = ""


# What a logger puts before its message: process, level, time, source file.
_PREFIX = re.compile(r"^(\(.*?pid=\d+\)\s*)?([A-Z]+ [\d:. -]+ (\[[^\]]+\])?|\[[^\]]*\])\s*")
_ERROR = re.compile(r"error|exception|killed|signal", re.IGNORECASE)
_ROUTINE = re.compile(r"^(\(.*?pid=\d+\)\s*)?(WARNING|INFO|DEBUG)\b")
# What the launcher (roles/engine/files/launch.py) writes before it becomes the engine: here a life of the server begins.
LIFE = "longhaul: starting spec "
# The RFC 3339 stamp of `docker logs --timestamps`.
_DOCKER = re.compile(r"^(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(?:\.\d{1,6})?)\d*(?:Z|[+-]\d\d:\d\d) ")
_NOISE = re.compile(r"^\s*$|\x1b\[[0-9;]*m")
_ACCESS = "accept the model's licence on the hub, check that the token file holds a token with read access, or use a local path"
PATH_ADVICE = "check the model path on this host (and its mount in the container): the folder needs config.json and weights"
DRIVER_ADVICE = "check `nvidia-smi` on the host (and in the container), the driver version and the GPU request of the container"
_NCCL = "raise shm_size (or host IPC), check `nvidia-smi topo -m` and the fabric manager; NCCL_DEBUG=INFO in extra_env says more"
_NCCL_FAILED = "NCCL failed between the GPUs"
_NCCL_FULL = "no GPU memory left for NCCL's buffers"
_NCCL_ROOM = (
    "lower gpu_memory_utilization: NCCL takes its buffers from what the engine leaves. Those between pipeline stages come with the "
    "first request"
)
_OOM = (
    "lower gpu_memory_utilization or max_num_batched_tokens, bound max_num_seqs, or use more GPUs; "
    "the phase says what the memory was for"
)
_SHM = (
    "enlarge /dev/shm on the host (mount -o remount,size=16g /dev/shm), or, with the docker runtime, give the container its own: "
    "engine_container_ipc private and engine_container_shm_size 16g"
)
_RAM = "free or add memory on the host; on a CPU engine lower cpu_kv_cache_gib; in a container raise its memory limit"
_DISK = "free space on the file system named in the line (model store, compile cache, or /dev/shm: raise shm_size)"
_COMPILER = "install a C/C++ compiler and the Python headers on the host, or set enforce_eager to do without compiling"
_HARDWARE = "look at `dmesg` for Xid and at `nvidia-smi -q -d ECC`; take the host out of service if it happens again"

# fmt: off
COMMON_FAILURES: tuple[FailureMark, ...] = (
    # argparse: printed last, exit code 2
    FailureMark("unrecognized arguments", "a flag is unknown to this engine version",
                "remove the flag from extra_args, or choose an engine version that has it"),
    FailureMark("error: argument ", "a flag has a value that this engine version refuses", "correct the value named in the line"),
    FailureMark("error: ambiguous option", "a flag is abbreviated ambiguously", "write the flag of extra_args in full"),
    # sockets
    FailureMark("[Errno 98]", "the port is in use", "stop the process that holds it (`ss -ltnp`), or choose another port"),
    # torch, CUDA
    *marks(("torch.OutOfMemoryError", "torch.cuda.OutOfMemoryError", "CUDA out of memory", "HIP out of memory", "CUDA error: out of memory"),
           "the GPU ran out of memory", _OOM),
    FailureMark("DefaultCPUAllocator: can't allocate memory", "the host ran out of memory", _RAM),
    *marks(("(exit code: -9)", "with exit code -9"),
           "a process was killed, most likely by the kernel because the host ran out of memory", _RAM),
    FailureMark("uncorrectable ECC error", "the GPU's memory is faulty", _HARDWARE),
    *marks(("an illegal memory access was encountered", "CUDA error: unspecified launch failure"), "a GPU kernel failed",
           _HARDWARE),
    FailureMark("Bus error", "shared memory or a memory-mapped file failed",
                "raise shm_size; then check the disk of the model store"),
    *marks(("No CUDA GPUs are available", "Found no NVIDIA driver on your system"), "no GPU is visible to the engine",
           DRIVER_ADVICE),
    *marks(("CUDA driver version is insufficient", "The NVIDIA driver on your system is too old"),
           "the NVIDIA driver is too old for this engine's CUDA", DRIVER_ADVICE),
    FailureMark("system not yet initialized", "the fabric manager is not running",
                "start nvidia-fabricmanager of the driver's version"),
    FailureMark("libcuda.so.1: cannot open shared object file", "the NVIDIA driver is not visible to the engine", DRIVER_ADVICE),
    FailureMark("no kernel image is available for execution on the device", "this engine build has no kernels for this GPU",
                "choose an engine version or image that supports the GPU's generation"),
    FailureMark("No working C++ compiler found", "torch.compile found no C++ compiler", _COMPILER),
    FailureMark("Failed to find C compiler", "Triton found no C compiler", _COMPILER),
    FailureMark("Python.h: No such file or directory", "torch.compile found no Python headers", _COMPILER),
    # shared memory; vLLM since 0.27.0 looks before it takes it
    FailureMark("MiB free. Increase /dev/shm", "the engine found too little shared memory", _SHM),
    # NCCL. PyTorch prints its last words ("Last error:", ncclGetLastError) below the general ones. Those for the GPU's memory are
    # in NCCL's alloc.h ("calloc", "calloc async", "malloc") and checks.h (with the number or without it, by release).
    FailureMark("Error while creating shared memory segment /dev/shm/nccl-", "NCCL found too little shared memory", _NCCL,
                explains=_NCCL_FAILED),
    *marks(("Failed to CUDA calloc", "Failed to CUDA malloc", "Cuda failure 2 'out of memory'", "Cuda failure 'out of memory'"),
           _NCCL_FULL, _NCCL_ROOM, explains=_NCCL_FAILED),
    *marks(("NCCL error", "ncclUnhandledCudaError", "ncclSystemError"), _NCCL_FAILED, _NCCL),
    # hub and files
    *marks(("Cannot access gated repo", "GatedRepoError", "is restricted. You must"),
           "the model is gated and the token has no access", _ACCESS),
    FailureMark("RepositoryNotFoundError", "the hub does not know the model, or not for this token", _ACCESS),
    *marks(("Invalid username or password", "401 Client Error"), "the hub refused the token", _ACCESS),
    FailureMark("is not a local folder and is not a valid model identifier", "the model path does not exist", PATH_ADVICE),
    FailureMark("HFValidationError", "the model path does not exist on this host", PATH_ADVICE),
    FailureMark("does not appear to have a file named", "the model folder is incomplete", PATH_ADVICE),
    FailureMark("LocalEntryNotFoundError", "the model is not on this host and the hub cannot be reached", PATH_ADVICE),
    FailureMark("couldn't connect to 'https://huggingface.co'", "the hub cannot be reached",
                "copy the model first, or set a proxy or HF_ENDPOINT"),
    FailureMark("Error while deserializing header", "a weight file is damaged or incomplete",
                "remove that file and fetch the model again; compare sizes with the source"),
    FailureMark("does not recognize this architecture", "the engine's transformers is older than the model",
                "choose a newer engine version"),
    FailureMark("contains custom code which must be executed", "the model brings its own code, which is not allowed by default",
                "read that code, then add --trust-remote-code to extra_args"),
    *marks(("[Errno 28]", "No space left on device"), "a disk is full", _DISK),
    FailureMark("[Errno 13]", "the engine may not read or write a file", "give the engine's user access to the path in the line"),
    FailureMark("version `GLIBC_", "the engine needs a newer C library than this host has",
                "use the docker runtime, or an older engine version"),
)
# fmt: on


def phase_of(line: str, phases: Sequence[PhaseMark]) -> Phase | None:
    """The phase that this log line marks, or ``None``."""
    for mark in phases:
        if mark.needle in line:
            return mark.phase
    return None


def _around(line: str, needle: str, most: int = 400) -> str:
    """At most ``most`` characters of a line, with the needle in them (engines print lines of many kilobytes)."""
    start = max(0, min(line.find(needle) - most // 4, len(line) - most))
    return line[start : start + most]


# The last line of a Python traceback, behind whatever a logger puts in front: "(EngineCore pid=31) ERROR … [core.py:1510] ".
_RAISED = re.compile(r"(?:^|\] )(?:[A-Za-z_]\w*\.)*[A-Z]\w*(?:Error|Exception): \S")
# The first line of a traceback, where the engine's own words stand before it: this exception ended the engine.
_TRACEBACK = ": Traceback (most recent call last):"
# The engine survived what the line names: a file that it does without, an exception that it logged as a warning.
_SURVIVED = re.compile(r"\b(?:proceed|continu)(?:e|es|ed|ing|s)? without\b", re.IGNORECASE)
_WARNED = re.compile(r"^(?:\([^)]*pid=\d+\) )?(?:WARNING|INFO|DEBUG) ")
_FIRST_ERROR = "this is the first error that its log holds; ansible-playbook playbooks/logs.yml shows what leads to it"


def diagnose(lines: Iterable[str], marks: LogMarks) -> Diagnosis | None:
    """The cause of a failure that a log names, or ``None``. The first mark that is no wrapper wins.

    A cause that other marks explain (``FailureMark.explains``) gives way to the first of them further down. Where only a wrapper is
    found, the evidence is the first exception of the log, known to us or not; where the wrapper's line opens a traceback, the
    first one from there on.
    """
    reached: Phase | None = None
    wrapper: Diagnosis | None = None
    raised: Diagnosis | None = None
    broad: Diagnosis | None = None
    opened = False
    for raw in lines:
        line = raw.strip()
        reached = phase_of(line, marks.phases) or reached
        if _SURVIVED.search(line):
            continue
        found: Diagnosis | None = None
        for mark in marks.failures:
            if mark.needle not in line or (broad is not None and mark.explains != broad.cause):
                continue
            found = Diagnosis(mark.cause, _around(line, mark.needle), mark.advice, broad.phase if broad else reached)
            if mark.wrapper:
                wrapper = wrapper or found
            elif broad is None and any(m.explains == mark.cause for m in marks.failures):
                broad = found
            else:
                return found
        if broad is not None:
            continue
        if found is not None and not opened and line.endswith(_TRACEBACK):
            raised, opened = None, True
        if found is None and raised is None and not _WARNED.match(line) and (said := _RAISED.search(line)):
            raised = Diagnosis("", line[said.start() :].removeprefix("] ")[:400], _FIRST_ERROR, reached)
    return broad or (replace(raised, cause=wrapper.cause) if wrapper and raised else wrapper)


def last_words(lines: Sequence[str], marks: LogMarks, *, named: bool = False) -> str | None:
    """Why a server that had served died, in one line: the cause and the fix that its log names, else its last logged error.

    ``lines``: what it logged since it last answered (it survived what it logged before). ``named``: return a known cause or
    ``None``.
    """
    own = [line for line in _last_served(lines, marks) if not _NOISE.fullmatch(line)]
    if found := diagnose(own, marks):
        # A wrapper only hides the cause: there is nothing to fix in it.
        hidden = any(m.wrapper and m.cause == found.cause for m in marks.failures)
        return f"{found.cause} ({plain_message(found.evidence)})" + ("" if hidden else f" | fix: {found.advice}")
    errors = [] if named else [x for x in own if _ERROR.search(x) and not _ROUTINE.match(x)]
    return plain_message(errors[-1]) if errors else None


def _last_served(lines: Sequence[str], marks: LogMarks) -> list[str]:
    """The lines of the last start that became ready. A server that is started in its place, and its failure, are another start."""
    lives: list[list[str]] = [[]]
    for line in lines:
        if LIFE in line:
            lives.append([])
        lives[-1].append(line)
    served = [life for life in lives[1:] if any(phase_of(line, marks.phases) is Phase.READY for line in life)]
    return served[-1] if served else lives[0]


def plain_message(line: str) -> str:
    """A log line without what the logger put before it, on one line, cut to 300 characters."""
    return " ".join(_PREFIX.sub("", line.strip()).split())[:300]


def unnamed(lines: list[str], phase: Phase, cause: str) -> Diagnosis:
    """A diagnosis for a failure that no mark names: the evidence is the log's last error, else its last line."""
    errors = [x for x in lines if _ERROR.search(x)]
    evidence = (errors or list(last_lines(lines, 1)) or ["the log is empty"])[-1].strip()[-400:]
    return Diagnosis(cause, evidence, "read the engine's log (ansible-playbook playbooks/logs.yml)", phase)


def last_lines(lines: list[str], count: int = 15) -> tuple[str, ...]:
    """The last lines that say something."""
    return tuple(x for x in lines if not _NOISE.fullmatch(x))[-count:]


def stamp_s(line: str, own: re.Pattern[str], year: str = "") -> float | None:
    """Seconds of a line's time stamp on an arbitrary scale, or ``None``.

    ``own``: the engine's stamp, date and time as its first group; ``year`` is put before it where the engine writes none. The
    RFC 3339 stamp that ``docker logs --timestamps`` puts in front wins.
    """
    if found := _DOCKER.match(line):
        return _seconds(found[1].replace("T", " "))
    if found := own.search(line[:200]):
        return _seconds(year + found[1].replace(",", "."))
    return None


def _seconds(text: str) -> float | None:
    form = "%Y-%m-%d %H:%M:%S.%f" if "." in text else "%Y-%m-%d %H:%M:%S"
    try:
        return (datetime.strptime(text, form) - datetime(2000, 1, 1)).total_seconds()  # differences only: no zone
    except ValueError:
        return None
