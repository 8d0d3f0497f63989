"""How an adapter says what changed with which release of its engine: rows for what exists, flips for what behaves otherwise."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

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
