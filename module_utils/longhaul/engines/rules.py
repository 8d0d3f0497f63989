"""How an adapter says what changed with which release of its engine, and what every engine says of a KV block size."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from ..version import Version


@dataclass(frozen=True)
class Row:
    """A behaviour that depends on the version: it holds from ``since`` (inclusive) to ``until`` (exclusive)."""

    what: str
    since: Version
    until: Version | None = None

    def holds(self, version: Version) -> bool:
        """Whether the row applies to that version."""
        return self.since <= version and (self.until is None or version < self.until)


@dataclass(frozen=True)
class Flip:
    """From release ``since`` on, ``fact`` is ``after``; before it (and after an earlier row for the fact) ``before``."""

    fact: str
    since: str
    before: Any
    after: Any
    source: str


def facts_at(flips: Sequence[Flip], release: Version) -> dict[str, Any]:
    """Every fact as it is in that release."""
    facts: dict[str, Any] = {}
    for flip in flips:
        if release >= Version.parse(flip.since):
            facts[flip.fact] = flip.after
        else:
            facts.setdefault(flip.fact, flip.before)
    return facts


def refuse_first(faults: Iterable[UserError]) -> None:
    """Raise the first of them, where there is one."""
    for fault in faults:
        raise fault


def least_faults(size: int | None) -> list[UserError]:
    """Why there can be no block of that size; ``None`` is the engine's own size."""
    return [block_fault(size, "1 token or more", "raise it, or leave it out")] if size is not None and size < 1 else []


def chunk_faults(size: int, attention_chunks: Collection[int]) -> list[UserError]:
    """The chunks of the model's chunked-local layers that such a block does not divide."""
    return [
        block_fault(size, f"a divisor of the attention chunk of {chunk:,} tokens", "use 64 or 128, or leave it out")
        for chunk in sorted(attention_chunks)
        if chunk % size
    ]


def block_fault(size: int, required: str, fix: str) -> UserError:
    """A block size that something speaks against."""
    return UserError(f"block size of {size} tokens", required, fix)
