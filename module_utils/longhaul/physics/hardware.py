"""GPUs: memory, bandwidth, dense peak by dtype, each with its source; what ``nvidia-smi`` says; explicit figures.

A new GPU is one row. ``memory_bytes`` is what the driver reports as total (``nvidia-smi``'s memory.total), ``reserved_bytes``
what it keeps of that (memory.reserved): a CUDA program sees the difference, and the engines' memory fractions count from it,
not from the sales figure. Peaks are dense: published "with sparsity" figures halved.
"""

from __future__ import annotations

import csv
import io
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass, replace

from ..errors import UserError

GIB = 1024**3
MIB = 1024**2
_T = 1e12


@dataclass(frozen=True)
class Gpu:
    """One accelerator. ``peak_flop_per_s``: dense matrix peak by dtype (bf16, fp8, fp4); a dtype that it lacks is absent.

    ``memory_bytes`` is per device, ``bandwidth_bytes_per_s`` of its own memory. ``source`` says where the figures are from.
    ``vendor``: nvidia, amd or cpu.
    """

    name: str
    memory_bytes: int
    bandwidth_bytes_per_s: float
    peak_flop_per_s: Mapping[str, float]
    source: str
    vendor: str = "nvidia"
    compute_capability: tuple[int, int] | None = None
    reserved_bytes: int = 0

    @property
    def memory_gib(self) -> float:
        """Total memory in GiB, as the driver counts it."""
        return self.memory_bytes / GIB

    @property
    def usable_bytes(self) -> int:
        """What a program sees as total (cudaMemGetInfo): total minus the driver's reserve."""
        return self.memory_bytes - self.reserved_bytes

    def peak(self, dtype: str) -> float:
        """Dense FLOP/s at that dtype (bf16, fp16, fp8, fp4); fp8 and fp4 fall back to bf16 where the GPU lacks them."""
        key = "bf16" if dtype in {"fp16", "float16", "bfloat16", "auto"} else dtype
        return self.peak_flop_per_s.get(key, self.peak_flop_per_s["bf16"])

    @property
    def has_fp8(self) -> bool:
        """Whether the matrix units take fp8."""
        return "fp8" in self.peak_flop_per_s


# A GPU and its names: its own, and those that data sheets, ``nvidia-smi`` and people give it.
_Row = tuple[Gpu, tuple[str, ...]]


def _row(
    name: str, mib: int, tb_s: float, bf16: float, source: str, *, fp8: float = 0.0, fp4: float = 0.0, vendor: str = "nvidia",
    cc: tuple[int, int] | None = None, reserved_mib: int | None = None, also: tuple[str, ...] = (),
) -> _Row:  # fmt: skip
    peaks = {"bf16": bf16 * _T} | ({"fp8": fp8 * _T} if fp8 else {}) | ({"fp4": fp4 * _T} if fp4 else {})
    if reserved_mib is None:
        reserved_mib = _RESERVED_MIB if vendor == "nvidia" else 0
    return Gpu(name, mib * MIB, tb_s * 1e12, peaks, source, vendor, cc, reserved_mib * MIB), (name, *also)


# The driver's own reserve where nobody has read it off a host: between the two that were (H100 480, H200 616 MiB).
_RESERVED_MIB = 550

# Memory in MiB as nvidia-smi (rocm-smi) totals it, TB/s, dense TFLOP/s. Reserves of H100 and H200: read off real GPUs
# (driver 580): memory.total - memory.reserved equals torch's total_memory to the MiB.
_ROWS: tuple[_Row, ...] = (
    _row(
        "h100", 81559, 3.35, 989.4, "NVIDIA H100 datasheet (SXM5, 80 GB)", fp8=1978.9, cc=(9, 0), reserved_mib=480,
        also=("h100-80gb-hbm3", "h100-sxm5", "h100-sxm"),
    ),
    _row("h100-pcie", 81559, 2.0, 756.0, "NVIDIA H100 datasheet (PCIe, 80 GB)", fp8=1513.0, cc=(9, 0)),
    _row("h100-nvl", 95830, 3.9, 835.5, "NVIDIA H100 datasheet (NVL, 94 GB)", fp8=1671.0, cc=(9, 0)),
    _row(
        "h200", 143771, 4.8, 989.4, "NVIDIA H200 datasheet (SXM, 141 GB)", fp8=1978.9, cc=(9, 0), reserved_mib=616,
        also=("h200-nvl",),
    ),
    _row("a100", 81920, 2.039, 312.0, "NVIDIA A100 datasheet (SXM4, 80 GB)", cc=(8, 0)),
    _row(
        "a100-40gb", 40960, 1.555, 312.0, "NVIDIA A100 datasheet (SXM4, 40 GB)", cc=(8, 0),
        also=("a100-sxm4-40gb", "a100-pcie-40gb"),
    ),
    _row("b200", 183359, 8.0, 2250.0, "NVIDIA HGX B200 datasheet (180 GB)", fp8=4500.0, fp4=9000.0, cc=(10, 0)),
    _row("b300", 275040, 8.0, 2250.0, "NVIDIA HGX B300 datasheet (288 GB)", fp8=4500.0, fp4=13500.0, cc=(10, 3)),
    _row("l40s", 46068, 0.864, 362.05, "NVIDIA L40S datasheet (48 GB)", fp8=733.0, cc=(8, 9)),
    _row(
        "rtx6000-ada", 49140, 0.96, 364.25, "NVIDIA RTX 6000 Ada datasheet (48 GB)", fp8=728.5, cc=(8, 9),
        also=("rtx-6000-ada", "rtx6000ada"),
    ),
    _row(
        "rtx6000-blackwell", 97887, 1.792, 503.8, "NVIDIA RTX PRO 6000 Blackwell datasheet (96 GB)", fp8=1007.6, fp4=2015.2,
        cc=(12, 0), also=("rtx-pro-6000", "rtx-6000-blackwell", "rtxpro6000"),
    ),
    _row("mi300x", 196592, 5.3, 1307.4, "AMD Instinct MI300X datasheet (192 GB)", fp8=2614.9, vendor="amd"),
    # A CPU has no fixed figures: memory is the configured KV space, the peak and bandwidth those of one AVX-512 core pair.
    _row("cpu", 0, 0.04, 0.2, "nominal: two AVX-512 cores, dual-channel DDR4; give explicit figures", vendor="cpu"),
)  # fmt: skip

GPUS: Mapping[str, Gpu] = {gpu.name: gpu for gpu, _ in _ROWS}
# The longest name that matches wins: "h100-pcie" before "h100".
_NAMES = sorted(((name, gpu) for gpu, names in _ROWS for name in names), key=lambda pair: len(pair[0]), reverse=True)


def find_gpu(name: str) -> Gpu | None:
    """The row for a name as a person or ``nvidia-smi`` writes it ("NVIDIA H200", "h100-sxm"), or ``None``."""
    key = "-".join(name.lower().replace("_", "-").replace("nvidia", "").replace("amd", "").replace("instinct", "").split())
    key = key.strip("-").replace("geforce-", "")
    return next((gpu for alias, gpu in _NAMES if key == alias or key.startswith(alias + "-")), None)


def get_gpu(
    name: str,
    *,
    memory_gib: float | None = None,
    bandwidth_gb_per_s: float | None = None,
    peak_tflop_per_s: Mapping[str, float] | None = None,
) -> Gpu:
    """A GPU by name. Explicit figures win; an unknown name needs at least ``memory_gib``.

    ``bandwidth_gb_per_s`` in 1e9 bytes/s, ``peak_tflop_per_s`` dense, by dtype. Raises UserError for an unknown GPU
    without figures and for figures that are not positive.
    """
    for label, value in (("memory", memory_gib), ("bandwidth", bandwidth_gb_per_s), *(peak_tflop_per_s or {}).items()):
        if value is not None and not 0 < value < float("inf"):
            raise UserError(f"GPU {label} of {value}", "a positive figure", "give what the data sheet says")
    known = find_gpu(name)
    if known is None:
        if memory_gib is None:
            required = "one of " + ", ".join(GPUS) + ", or its figures"
            raise UserError(f"GPU {name!r}", required, "add --gpu-memory-gib (and --gpu-bandwidth-gb-s)")
        known = Gpu(name, 0, 0.0, {"bf16": 0.0}, "figures given by the operator")
    changes: dict[str, object] = {}
    if memory_gib is not None:
        changes |= {"memory_bytes": int(memory_gib * GIB), "reserved_bytes": 0}
    if bandwidth_gb_per_s is not None:
        changes["bandwidth_bytes_per_s"] = bandwidth_gb_per_s * 1e9
    if peak_tflop_per_s:
        changes["peak_flop_per_s"] = {**known.peak_flop_per_s, **{k: v * _T for k, v in peak_tflop_per_s.items()}}
    if not changes:
        return known
    note = "" if "operator" in known.source else "; figures given by the operator: " + ", ".join(sorted(changes))
    return replace(known, source=known.source + note, **changes)  # type: ignore[arg-type]


@dataclass(frozen=True)
class DetectedGpu:
    """One line of ``nvidia-smi``: ``gpu`` is the table's row with the memory that this host really reports.

    ``gpu`` is ``None`` for a GPU that the table lacks. ``memory_used_bytes``: in use by other programs now.
    """

    index: int
    name: str
    memory_bytes: int
    memory_used_bytes: int
    gpu: Gpu | None


# What a host is asked; the parser reads these columns by name and ignores others.
NVIDIA_SMI_QUERY = ("nvidia-smi", "--query-gpu=index,name,memory.total,memory.used,memory.reserved", "--format=csv")


def parse_nvidia_smi(text: str) -> tuple[DetectedGpu, ...]:
    """Read the CSV that ``NVIDIA_SMI_QUERY`` prints (with header; units may be missing). No GPU is an empty tuple."""
    lines = [line for line in text.splitlines() if line.strip()]
    if not lines or "no devices were found" in text.lower():
        return ()
    rows = list(csv.reader(io.StringIO("\n".join(lines)), skipinitialspace=True))
    header = [cell.split("[")[0].strip().lower() for cell in rows[0]]
    if not {"name", "memory.total"} <= set(header):
        fix = "run " + " ".join(NVIDIA_SMI_QUERY)
        raise UserError(f"nvidia-smi said {lines[0][:80]!r}", "a CSV header with name and memory.total", fix)
    found = []
    for number, cells in enumerate(rows[1:]):
        row = dict(zip(header, cells, strict=False))
        total, used = _mib(row.get("memory.total", "")), _mib(row.get("memory.used", "0"))
        known = find_gpu(row["name"])
        reserved = _mib(row["memory.reserved"]) if "memory.reserved" in row else (known.reserved_bytes if known else 0)
        index = row.get("index", "").strip()
        gpu = replace(known, memory_bytes=total, reserved_bytes=reserved) if known and total else known
        found.append(DetectedGpu(int(index) if index.isdigit() else number, row["name"].strip(), total, used, gpu))
    return tuple(found)


def _mib(cell: str) -> int:
    """``143771 MiB`` or ``143771`` -> bytes; ``[N/A]`` -> 0."""
    word = next(iter(cell.split()), "")
    return int(float(word) * MIB) if word.replace(".", "", 1).isdigit() else 0


def detect_gpus() -> tuple[DetectedGpu, ...]:
    """What nvidia-smi says on this machine; empty where there is none."""
    try:
        found = subprocess.run(NVIDIA_SMI_QUERY, capture_output=True, text=True, timeout=30, check=True)
        return parse_nvidia_smi(found.stdout)
    except (OSError, subprocess.SubprocessError, UserError):
        return ()
