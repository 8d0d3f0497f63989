"""Which sizing rule holds in which vLLM release: one row for each change, with the engine's source file that settles it.

Read in every minor release from 0.12.0 to 0.33.0. A release outside that range gets the rules of the nearest end, and the plan says so.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Literal

from ...errors import Finding, UserError
from ...models.architecture import AttentionKind, ModelArchitecture
from ...physics.hardware import GIB, Gpu
from ...version import Version
from ..rules import Flip, block_fault, chunk_faults, facts_at, least_faults
from ..sizing import Change, PlanSettings

VERIFIED = ("0.12.0", "0.33.0")

# config/cache.py: BlockSize, the choices of --block-size as long as it had any.
BLOCK_SIZES = (1, 8, 16, 32, 64, 128, 256)

# fmt: off
FLIPS: tuple[Flip, ...] = (
    # "KV cache size: N tokens": once blocks // groups * block size, then int(concurrency * max_model_len).
    Flip("printed_tokens", "0.21.0", "blocks", "concurrency", "v1/core/kv_cache_utils.py: _report_kv_cache_config"),
    # The hybrid manager with chunked-local attention: VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE became 1.
    Flip("chunked_hybrid_default", "0.14.0", False, True, "envs.py; config/vllm.py"),
    # A local layer holds its window plus every token in flight, not plus one batch: max_in_flight_tokens.
    Flip("counts_batches_in_flight", "0.26.0", False, True, "v1/kv_cache_interface.py: max_admission_blocks_per_request"),
    # With pipeline stages, model runner V2 (the default for all models since) keeps one batch more than stages in flight.
    Flip("one_batch_over_stages", "0.29.0", False, True, "config/vllm.py: max_concurrent_batches, use_v2_model_runner"),
    # The start-up check holds back the block pool's null block.
    Flip("check_reserves_null_block", "0.29.0", False, True, "v1/core/kv_cache_utils.py: get_kv_cache_configs"),
    # What the start-up check adds up: every layer by its own kind (hybrid off or not); the first group; all groups.
    Flip("start_check", "0.14.0", "layers", "first_group", "v1/core/kv_cache_utils.py: check_enough_kv_cache_memory"),
    Flip("start_check", "0.19.0", "first_group", "groups", "v1/core/kv_cache_utils.py: _max_memory_usage_bytes_from_groups"),
    # Kinds whose layer counts differ by less than this factor are padded up to the larger count.
    Flip("padding_ratio", "0.18.0", 1.25, 1.5, "v1/core/kv_cache_utils.py: _get_kv_cache_groups_uniform_page_size"),
    # --block-size took one of a few values, then any.
    Flip("block_sizes", "0.18.0", BLOCK_SIZES, None, "config/cache.py: CacheConfig.block_size"),
    # A start on a CPU refuses what is no multiple of 32, from 0.21.0 to 0.28.0 of 16 (read in every release); before, only the
    # kernels refused that (their check stands in the builds of 0.12.0, 0.13.0, 0.17.0 and 0.20.2). Without AMX, MLA models get
    # 16 whatever is asked: nothing is lost where this refuses another size for them.
    Flip("cpu_block_multiple", "0.29.0", 16, 32, "v1/attention/backends/cpu_attn.py: get_supported_kernel_block_sizes"),
    # A model of sliding layers only: block = the attention kernel's smallest (32 on CPU), before and after the engine's.
    Flip("sliding_block", "0.25.0", "engine", "kernel", "model_executor/layers/attention/attention.py: get_kv_cache_spec"),
    Flip("sliding_block", "0.30.0", "kernel", "engine", "model_executor/layers/attention/attention.py: page_budget"),
    # The start's memory profile sets memory for CUDA graphs aside.
    Flip("graphs_reserved", "0.21.0", False, True, "v1/worker/gpu_worker.py: determine_available_memory"),
    # Weights quantized on load leave cut-offs in blocks that the allocator may not split (see allocator.py).
    Flip("unsplit_load", "0.21.0", False, True, "v1/worker/gpu_worker.py: load_model, _scoped_allocator_max_split"),
    Flip("memory_utilization", "0.20.0", 0.9, 0.92, "config/cache.py: gpu_memory_utilization"),
    # max_num_batched_tokens of the API server: 8192 from 70 GiB on (2048 below, and on A100); 16384 from 160 GiB on.
    Flip("large_gpu_batch", "0.28.0", False, True, "engine/arg_utils.py: get_batch_defaults"),
    Flip("cpu_mla_block", "0.28.0", 128, 16, "platforms/cpu.py: check_and_update_config"),
)
# fmt: on


@dataclass(frozen=True)
class VllmRules:
    """vLLM's sizing rules at one release; each field is the ``fact`` of a row in ``FLIPS``."""

    printed_tokens: Literal["blocks", "concurrency"]
    chunked_hybrid_default: bool
    counts_batches_in_flight: bool
    one_batch_over_stages: bool
    check_reserves_null_block: bool
    start_check: Literal["layers", "first_group", "groups"]
    padding_ratio: float
    block_sizes: tuple[int, ...] | None
    cpu_block_multiple: int
    sliding_block: Literal["engine", "kernel"]
    graphs_reserved: bool
    unsplit_load: bool
    memory_utilization: float
    large_gpu_batch: bool
    cpu_mla_block: int


@functools.cache
def vllm_rules(version: Version) -> VllmRules:
    """The rules of that vLLM release."""
    return VllmRules(**facts_at(FLIPS, version))


def block_faults(
    version: Version, size: int | None, *, on_cpu: bool = False, attention_chunks: Collection[int] = ()
) -> list[UserError]:
    """Why that release would refuse this ``--block-size``, or answer wrongly with it; empty where nothing speaks against it.

    ``attention_chunks``: the widths of the model's chunked-local layers (a launch does not know the model).
    """
    if size is None or size < 1:
        return least_faults(size)
    return _size_faults(version, size, on_cpu) + chunk_faults(size, attention_chunks)


def _size_faults(version: Version, size: int, on_cpu: bool) -> list[UserError]:
    rules = vllm_rules(version)
    multiple = rules.cpu_block_multiple if on_cpu else 16
    if size % multiple:
        where = f"a CPU with vLLM {version}" if on_cpu else "GPUs"
        return [block_fault(size, f"a multiple of {multiple} on {where}", f"use {multiple}, 64 or 128, or leave it out")]
    if rules.block_sizes is not None and size not in rules.block_sizes:
        words = ", ".join(str(n) for n in rules.block_sizes if n % multiple == 0)
        return [block_fault(size, f"vLLM {version}: one of {words}", "choose one of them, or vLLM 0.18.0 or newer")]
    return []


# -------------------------------------------------------------------------------------------------------- before a start

# What the CUDA context takes before vLLM looks at the free memory (H100 and H200, driver 580).
_CONTEXT_GIB = 1.43
# Memory left beside the share and the CUDA context: 1.74 GiB was too little on two H100, 9.7 GiB enough on two H200.
# Nothing between was tried.
_PIPELINE_ROOM_GIB = 2.0


def findings(model: ModelArchitecture, gpu: Gpu, s: PlanSettings) -> list[Finding]:
    """Block sizes that vLLM refuses, and a pipeline that would leave NCCL no room."""
    chunks = set(model.windows(AttentionKind.CHUNKED))
    faults = block_faults(s.release, s.block_size_tokens, on_cpu=gpu.vendor == "cpu", attention_chunks=chunks)
    return [Finding(f.found, f.required, f.fix, "refuse", "block_size") for f in faults] + _pipeline_room(gpu, s)


def _pipeline_room(gpu: Gpu, s: PlanSettings) -> list[Finding]:
    """Warn of a memory share that leaves a vLLM pipeline too little for NCCL.

    NCCL makes the communicators between two stages at the first request, after the profile that sizes the KV cache: vLLM 0.25.1 in
    two stages at share 0.96 of two H100 became healthy and died of its first request (docs/results/2026-11-25-2x-h100, vllm-pp2).
    """
    if s.pipeline_parallel < 2 or gpu.vendor != "nvidia" or s.gpu_memory_utilization is None:
        return []
    share, default = s.gpu_memory_utilization, vllm_rules(s.release).memory_utilization
    left_gib = gpu.usable_bytes / GIB * (1 - share) - _CONTEXT_GIB
    if share <= default or left_gib >= _PIPELINE_ROOM_GIB:
        return []
    found = f"{max(left_gib, 0):.1f} GiB of a GPU left beside a share of {share:g} in {s.pipeline_parallel} pipeline stages"
    required = f"at least {_PIPELINE_ROOM_GIB:.0f} GiB: NCCL takes memory at a pipeline's first request, which no profile "
    required += "counts; without it a healthy server dies then"
    return [Finding(found, required, f"lower gpu memory utilization to the engine's own {default:g}", "warn", "pipeline_room")]


def changes(model: ModelArchitecture, gpu: Gpu, s: PlanSettings) -> list[Change]:
    """Fewer requests at once: the logits of a full batch take memory."""
    if s.max_num_seqs is None and s.available_kv_gib is None and gpu.vendor != "cpu":
        return [Change("max_num_seqs 16", replace(s, max_num_seqs=16), dear=True)]
    return []
