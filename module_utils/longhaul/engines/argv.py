"""What adapters share when they turn settings into argv: rows by version, flags, and what must not stand there."""

from __future__ import annotations

from collections.abc import Iterable

from ..errors import UserError
from .settings import EngineSettings


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


def refuse_first(faults: Iterable[UserError]) -> None:
    """Raise the first of them, where there is one."""
    for fault in faults:
        raise fault


def api_key_path(settings: EngineSettings) -> str | None:
    """The key file, or ``None``; an empty string counts as none."""
    return settings.api_key_file or None


def flag_values(rows: tuple[tuple[str, object], ...]) -> list[str]:
    """``(flag, value)`` rows -> argv words; ``None`` and ``"auto"`` say nothing."""
    words: list[str] = []
    for flag, value in rows:
        if value is not None and value != "auto":
            words += [flag, str(value)]
    return words
