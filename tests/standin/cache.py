"""A prefix cache that behaves like a paged one: blocks hashed in a chain, so only an equal prefix hits."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

BLOCK_TOKENS = 16
_LARGE_BYTES = 1 << 17
_LARGE_BLOCK_BYTES = 1 << 14


@dataclass(frozen=True)
class Prompt:
    """A prompt as the server sees it: its length and the hash of each block's whole prefix."""

    n_tokens: int
    blocks: tuple[bytes, ...]
    tokens_per_block: tuple[int, ...]
    ids: tuple[int, ...] | None  # None for a large body, which is never turned into Python integers


def from_ids_text(text: memoryview, salt: str, *, keep: bool = True) -> Prompt:
    """The inside of a JSON array of ids. Large ones are hashed as text, 16 KiB at a time, without decoding.

    Without ``keep`` the ids are only counted: a server that is to be quick has no cache to look into.
    """
    if not keep:
        return Prompt(bytes(text).count(b",") + 1, (), (), None)
    digest = hashlib.blake2b(salt.encode(), digest_size=8)
    blocks: list[bytes] = []
    counts: list[int] = []
    if len(text) > _LARGE_BYTES:
        commas = 0
        for start in range(0, len(text), _LARGE_BLOCK_BYTES):
            piece = bytes(text[start : start + _LARGE_BLOCK_BYTES])
            digest.update(piece)
            blocks.append(digest.copy().digest())
            counts.append(piece.count(b","))
            commas += counts[-1]
        return Prompt(commas + 1, tuple(blocks), tuple(counts), None)
    ids = json.loads(b"[" + bytes(text) + b"]")
    if not all(type(i) is int and i >= 0 for i in ids):
        raise ValueError("prompt must be a list of token ids")
    for start in range(0, len(ids) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        digest.update(repr(ids[start : start + BLOCK_TOKENS]).encode())
        blocks.append(digest.copy().digest())
        counts.append(BLOCK_TOKENS)
    return Prompt(len(ids), tuple(blocks), tuple(counts), tuple(ids))


def from_words(words: list[str], overhead: int, salt: str) -> Prompt:
    """A text prompt: each word a token (two, where longer than eight letters), plus the chat template's."""
    digest = hashlib.blake2b(salt.encode(), digest_size=8)
    blocks, counts = [], []
    for start in range(0, len(words) - BLOCK_TOKENS + 1, BLOCK_TOKENS):
        digest.update(" ".join(words[start : start + BLOCK_TOKENS]).encode())
        blocks.append(digest.copy().digest())
        counts.append(BLOCK_TOKENS)
    return Prompt(sum(1 + (len(w) > 8) for w in words) + overhead, tuple(blocks), tuple(counts), None)


@dataclass
class PrefixCache:
    """Blocks seen so far."""

    seen: set[bytes] = field(default_factory=set)

    def cached_tokens(self, prompt: Prompt) -> int:
        """Tokens of the longest cached prefix; like the engines, never the whole prompt (the last token is computed)."""
        total = 0
        for block, count in zip(prompt.blocks, prompt.tokens_per_block, strict=True):
            if block not in self.seen:
                break
            total += count
        return min(total, max(0, prompt.n_tokens - 1))

    def add(self, prompt: Prompt) -> None:
        """Keep this prompt's blocks."""
        self.seen.update(prompt.blocks)
