"""Small file habits used everywhere: atomic writes, JSON in and out, disk space."""

from __future__ import annotations

import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from .errors import UserError


def write_atomic(path: Path, text: str, mode: int = 0o644, *, fix: str = "see longhaul_home") -> None:
    """Write so that a reader (or a crash) sees the old file or the new one, never a part. UserError with ``fix`` on a full disk."""
    temporary: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        temporary = Path(name)
        with os.fdopen(handle, "w", encoding="utf-8") as out:
            out.write(text)
            out.flush()
            os.fsync(out.fileno())
        temporary.chmod(mode)
        temporary.replace(path)
    except OSError as exc:
        raise UserError(f"{path} cannot be written ({exc.strerror})", "a writable folder with free space", fix) from exc
    finally:
        if temporary is not None:
            temporary.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any] | None:
    """The JSON object in ``path``; ``None`` where there is no file. UserError where it is not a JSON object."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as exc:
        raise UserError(f"{path} is not readable JSON ({exc})", "a JSON object", f"move {path} away and deploy again") from exc
    if not isinstance(value, dict):
        raise UserError(f"{path} holds a JSON {type(value).__name__}", "a JSON object", f"move {path} away and deploy again")
    return value


def to_json(value: Mapping[str, Any]) -> str:
    """Stable JSON text: sorted keys, newline at the end."""
    return json.dumps(value, indent=2, sort_keys=True) + "\n"


def free_bytes(path: Path) -> int:
    """Free bytes for this user on the file system that holds, or will hold, ``path``."""
    probe = path
    while not probe.exists() and probe != probe.parent:
        probe = probe.parent
    return shutil.disk_usage(probe).free


def require_free(path: Path, needed_bytes: int, what: str, fix: str) -> None:
    """UserError unless ``needed_bytes`` are free where ``path`` lies or will lie."""
    free = free_bytes(path)
    if free < needed_bytes:
        raise UserError(f"{free / 2**30:.1f} GiB free for {path}", f"{needed_bytes / 2**30:.1f} GiB for {what}", fix)
