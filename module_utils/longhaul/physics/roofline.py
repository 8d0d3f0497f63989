"""The least time a prompt can cost: FLOP and bytes that no implementation can avoid, over the hardware's peaks.

A measurement below the floor did not compute what it claims: part of the prompt came from a cache, or the clock is wrong.
So every figure here is a lower bound. Counted: each matrix product once (2 FLOP per weight and token), the scores and the
weighted values of causal attention exactly (a token attends to itself and what stands before it, inside its chunk or
window), weights read once, KV written once. Not counted: softmax, norms, activations, communication, re-reading. Peaks are
dense published ones of the fastest dtype that the deployment may use; work on all devices is taken to overlap perfectly.

Scheme of the roofline model: Williams, Waterman, Patterson, "Roofline", CACM 52(4), 2009; FLOP of a transformer's forward
pass as in Kaplan et al. 2020 (2 FLOP per parameter and token) with exact attention terms in place of their approximation.
"""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from bisect import bisect_left
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ..dtypes import DTYPE_BYTES, known_dtype
from ..errors import UserError
from ..models.architecture import AttentionKind, Layer, ModelArchitecture
from .hardware import Gpu

ON_CHIP_BYTES = 256 * 2**20
"""Data that a device may keep on chip and never read from memory: the largest last-level cache of a listed GPU (MI300X)."""


@dataclass(frozen=True)
class Floor:
    """The least cost of a piece of work. ``peak_flop_per_s``: over all devices, blended where parts run at different dtypes
    (``flop / peak_flop_per_s`` is the compute time). ``bound_by``: compute or memory. ``linear_flop + attention_flop = flop``.
    """

    flop: float
    bytes: float
    floor_s: float
    bound_by: Literal["compute", "memory"]
    peak_flop_per_s: float
    peak_source: str
    linear_flop: float
    attention_flop: float


def weights_dtype(arch: ModelArchitecture, quantization: str | None = None) -> str:
    """The dtype that weights may be multiplied in: the engine's ``--quantization`` if set, else the checkpoint's, else bf16.

    Checkpoints whose experts alone are packed (``scope`` experts) and weight-only formats are multiplied in 16 bits by most
    kernels, but may be in fewer: the faster is taken, because the floor must not be too high.
    """
    if quantization:
        return known_dtype(quantization)
    if arch.quantization:
        if arch.quantization.bits_per_weight <= 4.5:
            return "fp4"
        if arch.quantization.bits_per_weight <= 8.5:
            return "fp8" if "fp8" in arch.quantization.method else "int8"
    return known_dtype(arch.dtype, default="bf16")


def matrix_peak(gpu: Gpu, dtype: str) -> tuple[float, str]:
    """(dense FLOP/s of one device, the dtype of that peak): the fastest that this dtype of weights may run at.

    fp32 may run as TF32 or be cast: the bf16 peak bounds it. 8-bit integers run at fp8's peak, and at twice bf16 where
    there is no fp8 (A100, CPUs). 4-bit weights may be multiplied in 4 or in 8 bits.
    """
    bf16 = gpu.peak_flop_per_s.get("bf16", 0.0)
    fp8 = gpu.peak_flop_per_s.get("fp8")
    candidates = {"bf16": bf16}
    if dtype == "fp8" and fp8:
        candidates["fp8"] = fp8
    elif dtype in {"int8", "int4", "fp4"}:
        candidates |= {"fp8": fp8} if fp8 else {"int8": 2 * bf16}
    if dtype == "fp4" and "fp4" in gpu.peak_flop_per_s:
        candidates["fp4"] = gpu.peak_flop_per_s["fp4"]
    best = max(candidates, key=lambda k: candidates[k])
    return candidates[best], best


def causal_pairs(tokens: int, kind: AttentionKind, window_tokens: int | None) -> int:
    """(query, key) pairs that a causal layer scores over ``tokens`` tokens; exact.

    Global: n(n+1)/2. Chunked: that for each chunk. Sliding window w: the first w tokens see 1..w keys, all others w.
    """
    if kind is AttentionKind.GLOBAL or not window_tokens or tokens <= window_tokens:
        return tokens * (tokens + 1) // 2
    if kind is AttentionKind.CHUNKED:
        chunks, rest = divmod(tokens, window_tokens)
        return chunks * (window_tokens * (window_tokens + 1) // 2) + rest * (rest + 1) // 2
    return window_tokens * (window_tokens + 1) // 2 + (tokens - window_tokens) * window_tokens


def attention_flop_per_pair(arch: ModelArchitecture) -> int:
    """FLOP for one (query, key) pair of one layer in prefill: score and weighted value, all query heads.

    4 * heads * head_dim; with MLA 2 * heads * (qk_nope + qk_rope + v), the cheaper, unabsorbed form (its up-projection is
    among the linear weights).
    """
    if arch.mla:
        return 2 * arch.heads * (arch.mla.qk_nope_head_dim + arch.mla.qk_rope_head_dim + arch.mla.v_head_dim)
    return 4 * arch.heads * arch.head_dim


def prefill_floor(
    arch: ModelArchitecture,
    gpu: Gpu,
    gpu_count: int,
    input_tokens: int,
    *,
    dtype: str | None = None,
    kv_dtype: str = "bf16",
    concurrency: int = 1,
    cached_tokens: int = 0,
) -> Floor:
    """The least time from nothing to the first output token of ``concurrency`` prompts of ``input_tokens`` each.

    With ``concurrency`` > 1 this bounds the last of them; the first is bounded by concurrency 1. ``cached_tokens``: leading
    tokens of each prompt whose KV is there already. ``dtype``: of the weights (default: the checkpoint's). An fp8 KV cache
    lets attention run at fp8 (FlashAttention-3), so it does here. Raises UserError for sizes that make no sense.
    """
    _sizes(gpu_count=gpu_count, input_tokens=input_tokens, concurrency=concurrency)
    if not 0 <= cached_tokens <= input_tokens:
        raise UserError(f"{cached_tokens} cached of {input_tokens} tokens", "0 to the prompt's length", "correct the count")
    weights = known_dtype(dtype) if dtype else weights_dtype(arch)
    fresh = input_tokens - cached_tokens
    linear = 2.0 * arch.linear_parameters_per_token * fresh + 2.0 * arch.head_parameters
    kinds = [(layer.kind, layer.window_tokens) for layer in arch.layers]
    pairs = sum(causal_pairs(input_tokens, *kind) - causal_pairs(cached_tokens, *kind) for kind in kinds)
    attention = float(attention_flop_per_pair(arch)) * pairs
    routed = min(arch.experts, fresh * arch.experts_per_token * concurrency) if arch.experts else 0
    read = _weight_bytes(arch, weights, routed)
    written = concurrency * fresh * len(arch.layers) * arch.kv_elements_per_token_per_layer * DTYPE_BYTES[_kv(kv_dtype, weights)]
    return _floor(gpu, gpu_count, concurrency * linear, concurrency * attention, read + written, weights, _kv(kv_dtype, weights))


def decode_floor(
    arch: ModelArchitecture,
    gpu: Gpu,
    gpu_count: int,
    context_tokens: int,
    batch: int = 1,
    *,
    dtype: str | None = None,
    kv_dtype: str = "bf16",
    output_tokens: int = 1,
) -> Floor:
    """The least time of one decode step of ``batch`` sequences with ``context_tokens`` in the cache (a bound for TPOT).

    Read once: the weights one token goes through (routed to the same experts, the cheapest case) and each sequence's KV.
    ``output_tokens``: how many steps the figure is compared over; a chunked layer whose chunk ends within them counts as
    empty. Holds for one token per step: speculative decoding emits several and is bounded by floor / tokens per step.
    """
    _sizes(gpu_count=gpu_count, context_tokens=context_tokens, batch=batch, output_tokens=output_tokens)
    weights = known_dtype(dtype) if dtype else weights_dtype(arch)
    kv = _kv(kv_dtype, weights)
    seen = sum(_decode_keys(layer, context_tokens, output_tokens) for layer in arch.layers)
    linear = 2.0 * batch * (arch.linear_parameters_per_token + arch.head_parameters)
    # Decode with MLA runs in the absorbed form: scores over the latent and rope part, values over the latent.
    per_key = (
        2 * arch.heads * (2 * arch.mla.kv_lora_rank + arch.mla.qk_rope_head_dim) if arch.mla else attention_flop_per_pair(arch)
    )
    attention = float(batch) * per_key * seen
    read = _weight_bytes(arch, weights, arch.experts_per_token) + arch.head_parameters * DTYPE_BYTES[weights]
    read += batch * seen * arch.kv_elements_per_token_per_layer * DTYPE_BYTES[kv]
    return _floor(gpu, gpu_count, linear, attention, read, weights, kv)


def mfu(flop: float, seconds: float, peak_flop_per_s: float) -> float:
    """Model FLOP utilisation: the share of the peak that ``flop`` in ``seconds`` is (PaLM, Chowdhery et al. 2022, app. B)."""
    return flop / (seconds * peak_flop_per_s)


def floor_ratio(floor: Floor, measured_s: float) -> float:
    """Measured time over the floor; below 1 is impossible."""
    return measured_s / floor.floor_s


def explaining_cached_share(
    arch: ModelArchitecture,
    gpu: Gpu,
    gpu_count: int,
    input_tokens: int,
    measured_s: float,
    *,
    dtype: str | None = None,
    kv_dtype: str = "bf16",
    concurrency: int = 1,
    utilisation: float = 1.0,
) -> float:
    """The least share of the prompt (0..1) that must have come from a cache for ``measured_s`` to be physical.

    0.0: none needs to. 1.0: even one fresh token would take longer. ``utilisation``: with the MFU of honest points in place
    of 1, the likely share instead of the least one.
    """

    def possible(cached: int) -> bool:
        floor = prefill_floor(
            arch, gpu, gpu_count, input_tokens, dtype=dtype, kv_dtype=kv_dtype, concurrency=concurrency, cached_tokens=cached
        )
        return floor.floor_s <= measured_s * utilisation

    return bisect_left(range(input_tokens), True, key=possible) / input_tokens


def _decode_keys(layer: Layer, context: int, steps: int) -> int:
    if layer.kind is AttentionKind.GLOBAL or not layer.window_tokens:
        return context
    if layer.kind is AttentionKind.SLIDING:
        return min(context, layer.window_tokens)
    inside = context % layer.window_tokens
    return inside if inside + steps <= layer.window_tokens else 0


def _kv(kv_dtype: str, weights: str) -> str:
    """``auto`` keeps KV in the model's 16 bits, whatever the weights are stored in."""
    if kv_dtype == "auto":
        return "bf16"
    return known_dtype(kv_dtype, default="fp8" if "8" in kv_dtype else weights)


def _weight_bytes(arch: ModelArchitecture, dtype: str, experts: int) -> float:
    """Bytes of the layers' weights that ``experts`` distinct experts per layer must be read."""
    spared = 0.0
    if arch.experts:
        spared = arch.expert_parameters * (1.0 - min(experts, arch.experts) / arch.experts)
    total = sum(x.attention_parameters + x.ffn_parameters for x in arch.layers) - spared
    # A checkpoint packed below the dtype of its products is read in its packed size.
    packed = arch.quantization.bits_per_weight / 8 if arch.quantization else DTYPE_BYTES[dtype]
    return total * min(packed, DTYPE_BYTES[dtype])


def _floor(gpu: Gpu, count: int, linear: float, attention: float, moved: float, weights: str, kv: str) -> Floor:
    linear_peak, linear_name = matrix_peak(gpu, weights)
    attention_peak, attention_name = matrix_peak(gpu, kv if kv == "fp8" else "bf16")
    if linear_peak <= 0 or attention_peak <= 0:
        fix = "name a known GPU, give its figure, or calibrate"
        raise UserError(f"GPU {gpu.name} without a peak in FLOP/s", "a peak (TFLOP/s, dense bf16)", fix)
    compute_s = (linear / linear_peak + attention / attention_peak) / count
    off_chip = max(0.0, moved - ON_CHIP_BYTES * count)
    memory_s = off_chip / (gpu.bandwidth_bytes_per_s * count) if gpu.bandwidth_bytes_per_s > 0 else 0.0
    flop = linear + attention
    names = linear_name if linear_name == attention_name else f"{linear_name} for weights, {attention_name} for attention"
    bound_by: Literal["compute", "memory"] = "compute" if compute_s >= memory_s else "memory"
    peak = flop / compute_s if compute_s > 0 else linear_peak * count
    source = f"{count} x {gpu.name}, dense {names}: {gpu.source}"
    return Floor(flop, moved, max(compute_s, memory_s), bound_by, peak, source, linear, attention)


def _sizes(**sizes: int) -> None:
    for name, value in sizes.items():
        if isinstance(value, bool) or value < 1:
            raise UserError(f"{name} = {value}", "a whole number of at least 1", "correct it")


# --- hardware without published peaks --------------------------------------------------------------------------------------

CALIBRATION_LABEL = "calibrated matrix product on this host"
SAFETY = 1.25
"""Over the best calibrated figure: clocks vary, and a kernel may be better than the one that was timed."""

_PROBE = r"""
import json, sys, time
budget_s = float(sys.argv[1])
found = {}

def best(name, run, flop):
    run()
    end = time.perf_counter() + budget_s
    fastest = float("inf")
    while time.perf_counter() < end:
        t = time.perf_counter(); run(); fastest = min(fastest, time.perf_counter() - t)
    found[name] = max(found.get(name, 0.0), flop / fastest)

try:
    import numpy as np
    for n in (256, 512, 1024):
        a = np.ones((n, n), np.float32); b = np.ones((n, n), np.float32); c = np.empty((n, n), np.float32)
        best("numpy fp32", lambda: np.matmul(a, b, out=c), 2.0 * n**3)
    x = np.ones(8192, np.float32)
    best("bytes", lambda: [x.dot(x) for _ in range(64)], 64.0 * x.nbytes)
except ImportError:
    pass
try:
    import torch
    torch.set_num_threads(1)
    for kind in (torch.float32, torch.bfloat16):
        for n in (256, 512, 1024):
            a = torch.ones((n, n), dtype=kind); b = torch.ones((n, n), dtype=kind)
            best("torch " + ("fp32" if kind is torch.float32 else "bf16"), lambda: torch.mm(a, b), 2.0 * n**3)
except ImportError:
    pass
print(json.dumps(found))
"""


def calibrate_cpu(python: str | None = None, *, budget_s: float = 0.12) -> Gpu:
    """A ceiling for this host's CPU, as a :class:`~.hardware.Gpu` row (use it with ``gpu_count`` 1); takes 1-4 s.

    The best of several matrix products on ONE core, times all physical cores (one core boosts highest, and no code scales
    better than that), times ``SAFETY``. Without torch the product is fp32 in numpy, while an engine may use bf16
    instructions: the figure is then multiplied by what the instruction set can add. ``python``: an interpreter to probe
    with, best the engine's own (it has torch). Valid only where the engine runs on this host. Raises UserError where
    nothing could be timed.
    """
    env = {**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    command = [python or sys.executable, "-c", _PROBE, str(budget_s)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, env=env, timeout=120, check=True)
        rates: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    except (OSError, subprocess.SubprocessError, ValueError, IndexError) as exc:
        found, fix = f"the calibrating matrix product did not run ({exc})", "install numpy, or give the CPU's peak"
        raise UserError(found, "a Python with numpy", fix) from exc
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        cpuinfo = ""
    return ceiling_from_rates({str(k): float(v) for k, v in rates.items()}, cpuinfo)


def ceiling_from_rates(rates: Mapping[str, float], cpuinfo: str) -> Gpu:
    """One-core rates (FLOP/s by name; ``bytes``: cache-resident bytes/s) and ``/proc/cpuinfo`` -> the host's ceiling."""
    products = {k: v for k, v in rates.items() if k != "bytes" and v > 0}
    if not products:
        raise UserError("no matrix product could be timed", "numpy or torch", "install numpy, or give the CPU's peak")
    bf16 = products.get("torch bf16")
    factor, why = (1.0, "") if bf16 else _isa_factor(cpuinfo)
    name = max(products, key=lambda k: products[k])
    cores = physical_cores(cpuinfo)
    peak = products[name] * factor * cores * SAFETY
    note = f" x {factor:g} for {why}" if factor > 1 else ""
    source = f"{CALIBRATION_LABEL} ({name}, best of one core x {cores} cores{note} x {SAFETY} safety)"
    # Bytes from the innermost cache bound bytes from memory; a small model lives in the cache.
    bandwidth = rates.get("bytes", 0.0) * 2 * cores * SAFETY
    return Gpu("cpu (calibrated)", 0, bandwidth, {"bf16": peak}, source, vendor="cpu")


def _isa_factor(cpuinfo: str) -> tuple[float, str]:
    """How much more FLOP/s 16-bit instructions can give than fp32 vectors, by instruction set.

    AMX: 1,024 bf16 multiply-adds per cycle and core against 32 fp32 ones of AVX-512 (Intel optimisation manual, ch. 20): 32.
    AVX512_BF16 (VDPBF16PS) and AVX_VNNI-class dot products: 2. Arm BFMMLA: 4.
    """
    flags = set(re.findall(r"[a-z0-9_]+", cpuinfo.lower()))
    if flags & {"amx_bf16", "amx_fp16", "amx_tile"}:
        return 32.0, "AMX"
    if flags & {"i8mm", "bf16", "svebf16", "sme"}:
        return 4.0, "Arm bf16 products"
    if flags & {"avx512_bf16", "avx512_fp16"}:
        return 2.0, "AVX-512 16-bit products"
    return 1.0, ""


def physical_cores(cpuinfo: str) -> int:
    """Cores without hyper-threads, from ``/proc/cpuinfo``; every processor where it does not say."""
    cores: set[tuple[str, str]] = set()
    processors = 0
    for block in cpuinfo.split("\n\n"):
        values = dict(re.findall(r"^([a-z ]+?)\s*:\s*(.*)$", block, flags=re.MULTILINE | re.IGNORECASE))
        if "processor" in values:
            processors += 1
            if "core id" in values:
                cores.add((values.get("physical id", "0"), values["core id"]))
    return len(cores) or processors or os.cpu_count() or 1
