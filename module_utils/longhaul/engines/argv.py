"""What adapters share when they turn settings into argv: rows by version, flags, and what must not stand there."""

from __future__ import annotations

from collections.abc import Collection
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
            raise UserError(
                f"{name} in extra_args", "no secret in argv", "use api_key_file; a hub token goes into the model store"
            )
        if name in ("--model", "--model-path", "--port", "--host"):
            raise UserError(f"{name} in extra_args", "one value for each option", "set it by its own setting")


def refuse_others(engine: str, takes: Collection[str], settings: EngineSettings) -> None:
    """Refuse a setting that somebody set and this engine does not have."""
    for setting in SETTINGS:
        if setting.name not in takes and getattr(settings, setting.name) != setting.default:
            raise UserError(f"{setting.variable} with {engine}", "a setting that this engine has", f"remove {setting.variable}")
