"""Which sizing rule holds in which engine release: one row for each change, with the engine's source file that settles it.

vLLM was read in every minor release from 0.12.0 to 0.33.0, SGLang in 0.5.6.post2, 0.5.7-0.5.12.post1, 0.5.15, 0.5.18,
0.5.20 and 0.5.23. A release outside the range gets the rules of the nearest end, and the plan says so.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..version import Version


@dataclass(frozen=True)
class Flip:
    """From release ``since`` on, ``fact`` is ``after``; before it (and after an earlier row for the fact) ``before``."""

    fact: str
    since: str
    before: Any
    after: Any
    source: str


VLLM_RANGE = ("0.12.0", "0.33.0")
SGLANG_RANGE = ("0.5.6.post2", "0.5.23")

# config/cache.py: BlockSize, the choices of --block-size as long as it had any.
VLLM_BLOCK_SIZES = (1, 8, 16, 32, 64, 128, 256)

# fmt: off
VLLM_FLIPS: tuple[Flip, ...] = (
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
    Flip("block_sizes", "0.18.0", VLLM_BLOCK_SIZES, None, "config/cache.py: CacheConfig.block_size"),
    # A start on a CPU refuses what is no multiple of 32, from 0.21.0 to 0.28.0 of 16 (read in every release); before, only the
    # kernels refused that (their check stands in the builds of 0.12.0, 0.13.0, 0.17.0 and 0.20.2). Without AMX, MLA models get
    # 16 whatever is asked: nothing is lost where this refuses another size for them.
    Flip("cpu_block_multiple", "0.29.0", 16, 32, "v1/attention/backends/cpu_attn.py: get_supported_kernel_block_sizes"),
    # A model of sliding layers only: block = the attention kernel's smallest (32 on CPU), before and after the engine's.
    Flip("sliding_block", "0.25.0", "engine", "kernel", "model_executor/layers/attention/attention.py: get_kv_cache_spec"),
    Flip("sliding_block", "0.30.0", "kernel", "engine", "model_executor/layers/attention/attention.py: page_budget"),
    # The start's memory profile sets memory for CUDA graphs aside.
    Flip("graphs_reserved", "0.21.0", False, True, "v1/worker/gpu_worker.py: determine_available_memory"),
    # Weights quantized on load leave cut-offs in blocks that the allocator may not split (see capacity_load.py).
    Flip("unsplit_load", "0.21.0", False, True, "v1/worker/gpu_worker.py: load_model, _scoped_allocator_max_split"),
    Flip("memory_utilization", "0.20.0", 0.9, 0.92, "config/cache.py: gpu_memory_utilization"),
    # max_num_batched_tokens of the API server: 8192 from 70 GiB on (2048 below, and on A100); 16384 from 160 GiB on.
    Flip("large_gpu_batch", "0.28.0", False, True, "engine/arg_utils.py: get_batch_defaults"),
    Flip("cpu_mla_block", "0.28.0", 128, 16, "platforms/cpu.py: check_and_update_config"),
)

SGLANG_FLIPS: tuple[Flip, ...] = (
    # Llama-4's split pool: --hybrid-kvcache-ratio (unset: none), then --swa-full-tokens-ratio for every listed architecture.
    Flip("llama4_split", "0.5.8", "kvcache_ratio", "tokens_ratio", "configs/model_config.py: is_hybrid_swa_model"),
    # Which models split at all: any with a window (but Llama-4), then a list of architectures.
    Flip("split_by_list", "0.5.8", False, True, "configs/model_config.py: is_hybrid_swa_model"),
    # How the split is solved: from a pool already cut to whole tokens (by layers; by bytes), then from the bytes.
    Flip("split_sum", "0.5.9", "layers", "bytes", "model_executor/model_runner_kv_cache_mixin.py: set_num_token_hybrid_swa"),
    Flip("split_sum", "0.5.11", "bytes", "direct", "model_executor/pool_configurator.py: HybridSWAPoolConfigurator"),
    # The request table has one padding row.
    Flip("table_padding_rows", "0.5.12", 0, 1, "mem_cache/memory_pool.py: ReqToTokenPool"),
    # Chunked attention on fa3 read the table of tokens as if it were one of pages: garbage, or an illegal memory access.
    Flip("paged_chunks", "0.5.20", False, True, "layers/attention/flashattention_backend.py: _maybe_init_local_attn_metadata"),
)
# fmt: on

# Architectures whose KV pool SGLang splits since 0.5.8 (configs/model_config.py: is_hybrid_swa_model), those of them that
# architecture.py can read. Gemma-2/3 are not among them: all their layers count as full there.
SGLANG_SPLIT_ARCHITECTURES = frozenset({"Llama4ForConditionalGeneration", "GptOssForCausalLM"})


@dataclass(frozen=True)
class VllmRules:
    """vLLM's sizing rules at one release; each field is the ``fact`` of a row in ``VLLM_FLIPS``."""

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


@dataclass(frozen=True)
class SglangRules:
    """SGLang's sizing rules at one release; each field is the ``fact`` of a row in ``SGLANG_FLIPS``."""

    llama4_split: Literal["kvcache_ratio", "tokens_ratio"]
    split_by_list: bool
    split_sum: Literal["layers", "bytes", "direct"]
    table_padding_rows: int
    paged_chunks: bool


def _facts_at(flips: Sequence[Flip], release: Version) -> dict[str, Any]:
    facts: dict[str, Any] = {}
    for flip in flips:
        if release >= Version.parse(flip.since):
            facts[flip.fact] = flip.after
        else:
            facts.setdefault(flip.fact, flip.before)
    return facts


@functools.cache
def vllm_rules(release: Version) -> VllmRules:
    """The rules of that vLLM release."""
    return VllmRules(**_facts_at(VLLM_FLIPS, release))


@functools.cache
def sglang_rules(release: Version) -> SglangRules:
    """The rules of that SGLang release."""
    return SglangRules(**_facts_at(SGLANG_FLIPS, release))


def outside_range(engine: str, release: Version) -> tuple[str, str] | None:
    """The verified range of that engine when ``release`` lies outside it, else ``None``."""
    low, high = VLLM_RANGE if engine == "vllm" else SGLANG_RANGE
    return None if Version.parse(low) <= release <= Version.parse(high) else (low, high)
