"""API keys and tokens: they live in files, and this is the one place that reads them."""

from __future__ import annotations

from pathlib import Path

from .errors import UserError


def read_key(path: str | Path, variable: str, what: str = "key file") -> str | None:
    """The key or token in the file, without the white space around it; ``None`` where the file is empty.

    UserError where the file cannot be read; ``variable`` is what an operator sets to name the file.
    """
    try:
        return Path(path).read_text(encoding="utf-8").strip() or None
    except (OSError, UnicodeDecodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "not text"
        raise UserError(f"{what} {path} ({why})", "a readable file with the key", f"set {variable}") from exc
