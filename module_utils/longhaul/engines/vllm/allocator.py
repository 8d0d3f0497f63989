"""What PyTorch's allocator keeps beyond the weights when vLLM quantizes them while it loads.

vLLM builds each layer in bf16, writes the fp8 copy beside it and frees the original, under ``max_split_size_mb=20``
(v1/worker/gpu_worker.py: load_model, since 0.21.0). A freed block above that size is never cut, only given whole to a
tensor up to 20 MiB smaller; the rest of the block counts as used for as long as the engine runs. Llama-4-Scout on one GPU
pays 0.75 GiB for that, on two 0.04 GiB: printed weights were 105.58 GiB and 53.71 GiB for 104.80 and 53.65 GiB of tensors.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass, field

from ...models.architecture import ModelArchitecture

MIB = 1024**2
# PyTorch's c10/cuda/CUDACachingAllocator.cpp: kSmallSize, kLargeBuffer, kMinLargeAlloc, kRoundLarge.
_SMALL = MIB
_LARGE_BUFFER = 20 * MIB
_MIN_LARGE = 10 * MIB
_ROUND = 2 * MIB


@dataclass
class _Allocator:
    """The large pool: best fit among free blocks, segments of their own beyond, blocks of ``split`` bytes and more never cut."""

    split: int
    free: list[tuple[int, int, int]] = field(default_factory=list)  # size, segment, offset
    used: int = 0
    segments: int = 0

    def take(self, size: int) -> tuple[int, int, int]:
        size = (size + 511) // 512 * 512
        fits = (
            b
            for b in self.free
            if b[0] >= size and not (size < self.split <= b[0]) and not (size >= self.split and b[0] >= size + _LARGE_BUFFER)
        )
        block = min(fits, default=None)
        if block is None:
            self.segments += 1
            whole = _LARGE_BUFFER if size < _MIN_LARGE else (size + _ROUND - 1) // _ROUND * _ROUND
            block = (whole, self.segments, 0)
        else:
            self.free.remove(block)
        rest = block[0] - size
        if size < self.split and rest > _SMALL:
            self.free.append((rest, block[1], block[2] + size))
            block = (size, block[1], block[2])
        self.used += block[0]
        return block

    def give(self, block: tuple[int, int, int]) -> None:
        self.used -= block[0]
        for other in [b for b in self.free if b[1] == block[1]]:
            if other[2] + other[0] == block[2] or block[2] + block[0] == other[2]:
                self.free.remove(other)
                block = (other[0] + block[0], block[1], min(other[2], block[2]))
        self.free.append(block)


# A sweep or a search for the largest context asks for the same layers hundreds of times.
@functools.cache
def fp8_load_slack_bytes(model: ModelArchitecture, tensor_parallel: int, first: int, end: int) -> int:
    """Bytes per GPU left unusable by loading layers ``first`` to ``end`` in bf16 and keeping them in fp8.

    The order is the model's own: QKV, output projection, shared expert (or dense feed-forward), routed experts, whose fp8
    copies are made expert by expert. 0 for MLA, whose shapes are not followed. Tensors up to 1 MiB are left out.
    """
    if model.mla:
        return 0
    tp, hidden = tensor_parallel, model.hidden_size
    allocator, kept = _Allocator(_LARGE_BUFFER), 0

    def linear(parameters: int) -> None:
        nonlocal kept
        if parameters <= _SMALL:
            return
        original = allocator.take(2 * parameters)
        kept += parameters
        allocator.take(parameters)
        allocator.give(original)

    kv = max(1, model.kv_heads // tp)
    for layer in model.layers[first:end]:
        linear(hidden * (model.heads // tp + 2 * kv) * model.head_dim)
        linear(hidden * model.heads // tp * model.head_dim)
        router = hidden * model.experts if layer.moe else 0
        dense = (layer.ffn_parameters - layer.expert_parameters - router) // tp
        down = dense // (3 if model.swiglu else 2)
        linear(dense - down)
        linear(down)
        if not layer.moe:
            continue
        routed = layer.expert_parameters // tp
        parts = (routed - routed // 3, routed // 3) if model.swiglu else (routed // 2, routed // 2)
        originals = [allocator.take(2 * part) for part in parts]
        for part in parts:
            kept += part
            allocator.take(part)
        for _ in range(model.experts):
            for part in parts:
                allocator.give(allocator.take(part // model.experts))
        for original in originals:
            allocator.give(original)
    return max(0, allocator.used - kept)
