"""What every engine says of a KV block size (vLLM --block-size, SGLang --page-size); the rest is in its own rules."""

from __future__ import annotations

from collections.abc import Collection

from ..errors import UserError


def check_one_token(size: int | None) -> None:
    """A block holds at least one token; without that nothing can be added up."""
    for found in least_faults(size):
        raise found


def least_faults(size: int | None) -> list[UserError]:
    """Why there can be no block of that size; ``None`` is the engine's own size."""
    return [fault(size, "1 token or more", "raise it, or leave it out")] if size is not None and size < 1 else []


def chunk_faults(size: int, attention_chunks: Collection[int]) -> list[UserError]:
    """The chunks of the model's chunked-local layers that such a block does not divide."""
    return [
        fault(size, f"a divisor of the attention chunk of {chunk:,} tokens", "use 64 or 128, or leave it out")
        for chunk in sorted(attention_chunks)
        if chunk % size
    ]


def fault(size: int, required: str, fix: str) -> UserError:
    """A block size that something speaks against."""
    return UserError(f"block size of {size} tokens", required, fix)
