"""What adapters share: options by release, what changed with which release, and what must not stand in argv."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from ..version import Version
from .settings import SETTINGS, EngineSettings

# Settings that every engine's launch reads itself.
ALWAYS = frozenset(
    {
        "api_key_file", "context_tokens", "device", "extra_args", "extra_env", "host", "model_path", "port", "served_model_name"
    }
)  # fmt: skip


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


@dataclass(frozen=True)
class Flag:
    """The engine's option for one setting, in releases from ``since`` (inclusive) to ``until`` (exclusive).

    argv gets ``what`` and the value, or ``what`` alone for a switch that is on. Nothing is said for ``None``, ``"auto"``, a switch
    that is off, and the values ``silent``.
    """

    setting: str
    what: str
    silent: tuple[Any, ...] = ()
    since: Version | None = None
    until: Version | None = None

    def words(self, settings: EngineSettings, version: Version) -> list[str]:
        """What argv gets for these settings and that release."""
        value = getattr(settings, self.setting)
        if (self.since is not None and version < self.since) or (self.until is not None and version >= self.until):
            return []
        if value is None or value is False or value in ("auto", *self.silent):
            return []
        return [self.what] if value is True else [self.what, str(value)]


def check_extra_args(settings: EngineSettings) -> None:
    """Refuse what must not stand in argv: a key, or a second value for an option that the settings decide."""
    for word in settings.extra_args:
        name = word.split("=", 1)[0]
        if name in ("--api-key", "--admin-api-key", "--hf-token"):
            fix = "use api_key_file; a hub token goes into the model store"
            raise UserError(f"{name} in extra_args", "no secret in argv", fix)
        if name in ("--model", "--model-path", "--port", "--host"):
            raise UserError(f"{name} in extra_args", "one value for each option", "set it by its own setting")


def refuse_others(engine: str, takes: Collection[str], settings: EngineSettings) -> None:
    """Refuse a setting that somebody set and this engine does not have."""
    for setting in SETTINGS:
        if setting.name not in takes and getattr(settings, setting.name) != setting.default:
            raise UserError(f"{setting.variable} with {engine}", "a setting that this engine has", f"remove {setting.variable}")
