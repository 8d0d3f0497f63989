"""Which sizing rule holds in which SGLang release: one row for each change, with the engine's source file that settles it.

Read in 0.5.6.post2, 0.5.7-0.5.12.post1, 0.5.15, 0.5.18, 0.5.20 and 0.5.23. A release outside that range gets the rules of the
nearest end, and the plan says so.
"""

from __future__ import annotations

import functools
from collections.abc import Collection
from dataclasses import dataclass
from typing import Literal

from ...errors import UserError
from ...version import Version
from ..rules import Flip, block_fault, chunk_faults, facts_at, least_faults

VERIFIED = ("0.5.6.post2", "0.5.23")

# fmt: off
FLIPS: tuple[Flip, ...] = (
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
# models/ can read. Gemma-2/3 are not among them: all their layers count as full there.
SPLIT_ARCHITECTURES = frozenset({"Llama4ForConditionalGeneration", "GptOssForCausalLM"})


@dataclass(frozen=True)
class SglangRules:
    """SGLang's sizing rules at one release; each field is the ``fact`` of a row in ``FLIPS``."""

    llama4_split: Literal["kvcache_ratio", "tokens_ratio"]
    split_by_list: bool
    split_sum: Literal["layers", "bytes", "direct"]
    table_padding_rows: int
    paged_chunks: bool


@functools.cache
def sglang_rules(version: Version) -> SglangRules:
    """The rules of that SGLang release."""
    return SglangRules(**facts_at(FLIPS, version))


def block_faults(
    version: Version,
    size: int | None,
    *,
    prefill_chunk: int | None = None,
    fa3: bool = False,
    architecture: str = "",
    attention_chunks: Collection[int] = (),
) -> list[UserError]:
    """Why that release would refuse this ``--page-size``, or answer wrongly with it; empty where nothing speaks against it.

    ``prefill_chunk``: in tokens (0 or less: it does not chunk). ``fa3``: whether FlashAttention 3 runs. ``attention_chunks``: the
    widths of the model's chunked-local layers. What is not known is left out (a launch does not know the model).
    """
    if size is None or size < 1:
        return least_faults(size)
    return _page_faults(version, size, prefill_chunk, fa3, architecture) + chunk_faults(size, attention_chunks)


def _page_faults(version: Version, size: int, prefill_chunk: int | None, fa3: bool, architecture: str) -> list[UserError]:
    found: list[UserError] = []
    if prefill_chunk is not None and prefill_chunk > 0 and prefill_chunk % size:
        fix = f"set max_num_batched_tokens to a multiple of {size}, or choose another block size"
        found.append(block_fault(size, f"a divisor of the prefill chunk of {prefill_chunk:,} tokens", fix))
    # layers/attention/flashattention_backend.py: normal_decode_set_metadata asserts it.
    if fa3 and size & (size - 1):
        found.append(block_fault(size, "a power of two with FlashAttention 3 (fa3)", "use 64 or 128, or leave it out"))
    # SGLang calls only this architecture a local-attention model (configs/model_config.py: is_local_attention_model).
    chunked = architecture == "Llama4ForConditionalGeneration"
    if fa3 and chunked and size > 1 and not sglang_rules(version).paged_chunks:
        required = f"1 for Llama-4 with FlashAttention 3 in SGLang {version}, which mixes up tokens and pages"
        found.append(block_fault(size, required, "leave the block size to the engine, or use SGLang 0.5.20 or newer"))
    return found
