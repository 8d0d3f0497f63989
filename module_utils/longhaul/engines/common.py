"""What both engines share: failures of what lies below them (torch, NCCL, driver, hub, OS) and OpenAI-shaped JSON."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from ..version import Version
from .base import EngineSettings, FailureMark, StreamEvent, Usage

_ACCESS = "accept the model's licence on the hub, check that the token file holds a token with read access, or use a local path"
PATH_ADVICE = "check the model path on this host (and its mount in the container): the folder needs config.json and weights"
DRIVER_ADVICE = "check `nvidia-smi` on the host (and in the container), the driver version and the GPU request of the container"
_NCCL = "raise shm_size (or host IPC), check `nvidia-smi topo -m` and the fabric manager; NCCL_DEBUG=INFO in extra_env says more"
_NCCL_FAILED = "NCCL failed between the GPUs"
_NCCL_FULL = "no GPU memory left for NCCL's buffers"
_NCCL_ROOM = (
    "lower gpu_memory_utilization: NCCL takes its buffers from what the engine leaves, those between pipeline stages with the "
    "first request only"
)
_OOM = (
    "lower gpu_memory_utilization or max_num_batched_tokens, bound max_num_seqs, or use more GPUs; "
    "the phase says what was allocating"
)
_SHM = (
    "enlarge /dev/shm on the host (mount -o remount,size=16g /dev/shm), or, with the docker runtime, give the container its own: "
    "engine_container_ipc private and engine_container_shm_size 16g"
)
_RAM = "free or add memory on the host; on a CPU engine lower cpu_kv_cache_gib; in a container raise its memory limit"
_DISK = "free space on the file system named in the line (model store, compile cache, or /dev/shm: raise shm_size)"
_COMPILER = "install a C/C++ compiler and the Python headers on the host, or set enforce_eager to do without compiling"
_HARDWARE = "look at `dmesg` for Xid and at `nvidia-smi -q -d ECC`, take the host out of service if it repeats"

COMMON_FAILURES: tuple[FailureMark, ...] = (
    # argparse: printed last, exit code 2
    FailureMark(
        "unrecognized arguments",
        "a flag is unknown to this engine version",
        "remove the flag from extra_args, or choose an engine version that has it",
    ),
    FailureMark("error: argument ", "a flag has a value that this engine version refuses", "correct the value named in the line"),
    FailureMark("error: ambiguous option", "a flag is abbreviated ambiguously", "write the flag of extra_args in full"),
    # sockets
    FailureMark(
        "[Errno 98]",
        "the port is in use",
        "stop the process that holds it (`ss -ltnp`), or choose another port",
    ),
    # torch, CUDA
    FailureMark("torch.OutOfMemoryError", "the GPU ran out of memory", _OOM),
    FailureMark("torch.cuda.OutOfMemoryError", "the GPU ran out of memory", _OOM),
    FailureMark("CUDA out of memory", "the GPU ran out of memory", _OOM),
    FailureMark("HIP out of memory", "the GPU ran out of memory", _OOM),
    FailureMark("CUDA error: out of memory", "the GPU ran out of memory", _OOM),
    FailureMark("DefaultCPUAllocator: can't allocate memory", "the host ran out of memory", _RAM),
    FailureMark("(exit code: -9)", "a process was killed, most likely by the kernel for want of host memory", _RAM),
    FailureMark("with exit code -9", "a process was killed, most likely by the kernel for want of host memory", _RAM),
    FailureMark("uncorrectable ECC error", "the GPU's memory is faulty", _HARDWARE),
    FailureMark("an illegal memory access was encountered", "a GPU kernel failed", _HARDWARE),
    FailureMark("CUDA error: unspecified launch failure", "a GPU kernel failed", _HARDWARE),
    FailureMark(
        "Bus error", "shared memory or a memory-mapped file failed", "raise shm_size; then check the disk of the model store"
    ),
    FailureMark("No CUDA GPUs are available", "no GPU is visible to the engine", DRIVER_ADVICE),
    FailureMark("Found no NVIDIA driver on your system", "no GPU is visible to the engine", DRIVER_ADVICE),
    FailureMark("CUDA driver version is insufficient", "the NVIDIA driver is too old for this engine's CUDA", DRIVER_ADVICE),
    FailureMark(
        "The NVIDIA driver on your system is too old", "the NVIDIA driver is too old for this engine's CUDA", DRIVER_ADVICE
    ),
    FailureMark(
        "system not yet initialized", "the fabric manager is not running", "start nvidia-fabricmanager of the driver's version"
    ),
    FailureMark("libcuda.so.1: cannot open shared object file", "the NVIDIA driver is not visible to the engine", DRIVER_ADVICE),
    FailureMark(
        "no kernel image is available for execution on the device",
        "this engine build has no kernels for this GPU",
        "choose an engine version or image that supports the GPU's generation",
    ),
    FailureMark("No working C++ compiler found", "torch.compile found no C++ compiler", _COMPILER),
    FailureMark("Failed to find C compiler", "Triton found no C compiler", _COMPILER),
    FailureMark("Python.h: No such file or directory", "torch.compile found no Python headers", _COMPILER),
    # shared memory; vLLM since 0.27.0 looks before it takes it
    FailureMark("MiB free. Increase /dev/shm", "the engine found too little shared memory", _SHM),
    # NCCL. PyTorch prints its last words ("Last error:", ncclGetLastError) below the general ones. Those for the GPU's memory are
    # in NCCL's alloc.h ("calloc", "calloc async", "malloc") and checks.h (with the number or without it, by release).
    FailureMark(
        "Error while creating shared memory segment /dev/shm/nccl-",
        "NCCL found too little shared memory",
        _NCCL,
        explains=_NCCL_FAILED,
    ),
    FailureMark("Failed to CUDA calloc", _NCCL_FULL, _NCCL_ROOM, explains=_NCCL_FAILED),
    FailureMark("Failed to CUDA malloc", _NCCL_FULL, _NCCL_ROOM, explains=_NCCL_FAILED),
    FailureMark("Cuda failure 2 'out of memory'", _NCCL_FULL, _NCCL_ROOM, explains=_NCCL_FAILED),
    FailureMark("Cuda failure 'out of memory'", _NCCL_FULL, _NCCL_ROOM, explains=_NCCL_FAILED),
    FailureMark("NCCL error", _NCCL_FAILED, _NCCL),
    FailureMark("ncclUnhandledCudaError", _NCCL_FAILED, _NCCL),
    FailureMark("ncclSystemError", _NCCL_FAILED, _NCCL),
    # hub and files
    FailureMark("Cannot access gated repo", "the model is gated and the token has no access", _ACCESS),
    FailureMark("GatedRepoError", "the model is gated and the token has no access", _ACCESS),
    FailureMark("is restricted. You must", "the model is gated and the token has no access", _ACCESS),
    FailureMark("RepositoryNotFoundError", "the hub does not know the model, or not for this token", _ACCESS),
    FailureMark("Invalid username or password", "the hub refused the token", _ACCESS),
    FailureMark("401 Client Error", "the hub refused the token", _ACCESS),
    FailureMark("is not a local folder and is not a valid model identifier", "the model path does not exist", PATH_ADVICE),
    FailureMark("HFValidationError", "the model path does not exist on this host", PATH_ADVICE),
    FailureMark("does not appear to have a file named", "the model folder is incomplete", PATH_ADVICE),
    FailureMark("LocalEntryNotFoundError", "the model is not on this host and the hub cannot be reached", PATH_ADVICE),
    FailureMark(
        "couldn't connect to 'https://huggingface.co'",
        "the hub cannot be reached",
        "copy the model first, or set a proxy or HF_ENDPOINT",
    ),
    FailureMark(
        "Error while deserializing header",
        "a weight file is damaged or incomplete",
        "remove that file and fetch the model again; compare sizes with the source",
    ),
    FailureMark(
        "does not recognize this architecture",
        "the engine's transformers is older than the model",
        "choose a newer engine version",
    ),
    FailureMark(
        "contains custom code which must be executed",
        "the model brings its own code, which is not allowed by default",
        "read that code, then add --trust-remote-code to extra_args",
    ),
    FailureMark("[Errno 28]", "a disk is full", _DISK),
    FailureMark("No space left on device", "a disk is full", _DISK),
    FailureMark("[Errno 13]", "the engine may not read or write a file", "give the engine's user access to the path in the line"),
    FailureMark(
        "version `GLIBC_",
        "the engine needs a newer C library than this host has",
        "use the docker runtime, or an older engine version",
    ),
)


@dataclass(frozen=True)
class Row:
    """A behaviour that depends on the version: it holds from ``since`` (inclusive) to ``until`` (exclusive)."""

    what: str
    since: Version
    until: Version | None = None

    def holds(self, version: Version) -> bool:
        """Whether the row applies to that version."""
        return self.since <= version and (self.until is None or version < self.until)


def check_extra_args(settings: EngineSettings) -> None:
    """Refuse what must not stand in argv: a key, or a second value for an option that the settings decide."""
    for word in settings.extra_args:
        name = word.split("=", 1)[0]
        if name in ("--api-key", "--admin-api-key", "--hf-token"):
            raise UserError(
                f"{name} in extra_args", "no secret in argv", "use api_key_file; a hub token goes into the model store"
            )
        if name in ("--model", "--model-path", "--port", "--host"):
            raise UserError(f"{name} in extra_args", "one value for each option", "set it by its own setting")


def refuse_first(faults: Iterable[UserError]) -> None:
    """Raise the first of them, where there is one."""
    for fault in faults:
        raise fault


def api_key_path(settings: EngineSettings) -> str | None:
    """The key file, or ``None``; an empty string counts as none."""
    return settings.api_key_file or None


def flag_values(rows: tuple[tuple[str, object], ...]) -> list[str]:
    """``(flag, value)`` rows -> argv words; ``None`` and ``"auto"`` say nothing."""
    words: list[str] = []
    for flag, value in rows:
        if value is not None and value != "auto":
            words += [flag, str(value)]
    return words


def openai_usage(usage: Mapping[str, Any]) -> Usage:
    """``usage`` of the OpenAI routes; ``cached_tokens`` is ``None`` where the server says nothing."""
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else None
    return Usage(usage.get("prompt_tokens"), usage.get("completion_tokens"), cached)


def openai_event(event: Mapping[str, Any]) -> StreamEvent:
    """One SSE payload of ``/v1/completions`` or ``/v1/chat/completions``."""
    choices = event.get("choices")
    first: Mapping[str, Any] = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], Mapping) else {}
    delta = first.get("delta")
    text = first.get("text")
    if text is None and isinstance(delta, Mapping):
        text = delta.get("content")
    usage = event.get("usage")
    reason = first.get("finish_reason")
    return StreamEvent(
        text=str(text or ""),
        usage=openai_usage(usage) if isinstance(usage, Mapping) else None,
        finish_reason=None if reason is None else str(reason),
    )


def message_of(data: object) -> str | None:
    """The human sentence inside an error object of any known shape, or ``None``.

    Shapes: ``{"error": {"message"}}`` (vLLM, SGLang /generate), ``{"error": "text"}`` (authentication),
    ``{"object": "error", "message"}`` (SGLang OpenAI routes), ``{"detail": "text" | [{"msg", "loc"}]}`` (FastAPI).
    """
    if isinstance(data, str):
        return data.strip() or None
    if isinstance(data, list):
        found = [m for m in map(message_of, data) if m]
        return "; ".join(found) or None
    if not isinstance(data, Mapping):
        return None
    for key in ("error", "message", "detail", "msg"):
        if key in data and (inner := message_of(data[key])):
            place = data.get("loc")
            if key == "msg" and isinstance(place, list):
                return f"{'.'.join(map(str, place))}: {inner}"
            return inner
    return None


def error_message(status: int, body: bytes) -> str:
    """The server's own words in an HTTP error body; else the start of the body; else the status. Never empty."""
    try:
        data: object = json.loads(body)
    except ValueError:
        data = None
    return message_of(data) or body[:400].decode("utf-8", "replace").strip() or f"HTTP {status} with an empty body"
