"""Which KV block sizes (vLLM --block-size, SGLang --page-size) a release serves with: one rule for the plan and for the launch."""

from __future__ import annotations

from collections.abc import Collection

from ..errors import UserError
from ..version import Version
from .rules import sglang_rules, vllm_rules


def block_faults(
    engine: str,
    release: Version,
    size: int | None,
    *,
    on_cpu: bool = False,
    prefill_chunk: int | None = None,
    fa3: bool = False,
    architecture: str = "",
    attention_chunks: Collection[int] = (),
) -> list[UserError]:
    """Why the engine would refuse this size at its start, or answer wrongly with it; empty where nothing speaks against it.

    ``size`` ``None`` is the engine's own. The rest is left out where it is not known (a launch does not know the model):
    ``prefill_chunk`` SGLang's (0 or less: it does not chunk), ``fa3`` whether FlashAttention 3 runs, ``attention_chunks`` the
    widths of the model's chunked-local layers.
    """
    if size is None:
        return []
    if size < 1:
        return [_no_token(size)]
    vllm = engine == "vllm"
    found = _vllm_faults(release, size, on_cpu) if vllm else _sglang_faults(release, size, prefill_chunk, fa3, architecture)
    return found + [
        _fault(size, f"a divisor of the attention chunk of {chunk:,} tokens", "use 64 or 128, or leave it out")
        for chunk in sorted(attention_chunks)
        if chunk % size
    ]


def check_one_token(size: int | None) -> None:
    """A block holds at least one token; without that nothing can be added up."""
    if size is not None and size < 1:
        raise _no_token(size)


def _vllm_faults(release: Version, size: int, on_cpu: bool) -> list[UserError]:
    rules = vllm_rules(release)
    multiple = rules.cpu_block_multiple if on_cpu else 16
    if size % multiple:
        where = f"a CPU with vLLM {release}" if on_cpu else "GPUs"
        return [_fault(size, f"a multiple of {multiple} on {where}", f"use {multiple}, 64 or 128, or leave it out")]
    if rules.block_sizes is not None and size not in rules.block_sizes:
        words = ", ".join(str(n) for n in rules.block_sizes if n % multiple == 0)
        return [_fault(size, f"vLLM {release}: one of {words}", "choose one of them, or vLLM 0.18.0 or newer")]
    return []


def _sglang_faults(release: Version, size: int, prefill_chunk: int | None, fa3: bool, architecture: str) -> list[UserError]:
    found: list[UserError] = []
    if prefill_chunk is not None and prefill_chunk > 0 and prefill_chunk % size:
        fix = f"set max_num_batched_tokens to a multiple of {size}, or choose another block size"
        found.append(_fault(size, f"a divisor of the prefill chunk of {prefill_chunk:,} tokens", fix))
    # layers/attention/flashattention_backend.py: normal_decode_set_metadata asserts it.
    if fa3 and size & (size - 1):
        found.append(_fault(size, "a power of two with FlashAttention 3 (fa3)", "use 64 or 128, or leave it out"))
    # SGLang calls only this architecture a local-attention model (configs/model_config.py: is_local_attention_model).
    chunked = architecture == "Llama4ForConditionalGeneration"
    if fa3 and chunked and size > 1 and not sglang_rules(release).paged_chunks:
        required = f"1 for Llama-4 with FlashAttention 3 in SGLang {release}, which mixes up tokens and pages"
        found.append(_fault(size, required, "leave the block size to the engine, or use SGLang 0.5.20 or newer"))
    return found


def _no_token(size: int) -> UserError:
    return _fault(size, "1 token or more", "raise it, or leave it out")


def _fault(size: int, required: str, fix: str) -> UserError:
    return UserError(f"block size of {size} tokens", required, fix)
