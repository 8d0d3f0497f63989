"""What a real engine said when it died, for a stand-in that dies in its place."""

from __future__ import annotations

from pathlib import Path

from support.paths import LOGS

NCCL_LOG = LOGS / "vllm-0.25.1-nccl-no-memory.log"

NCCL_FULL = "no GPU memory left for NCCL's buffers (Failed to CUDA calloc async 40 bytes) | fix: lower gpu_memory_utilization"


def dying_words(path: Path) -> Path:
    """What the real engine said between its first request and its end."""
    lines = NCCL_LOG.read_text(encoding="utf-8").splitlines()
    begin = next(i for i, line in enumerate(lines) if "WorkerProc hit an exception" in line)
    path.write_text("\n".join(lines[begin:-1]) + "\n", encoding="utf-8")
    return path
