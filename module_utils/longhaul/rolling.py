"""What a roll must remember on the host, so that a controller that was killed can be started again.

``spec/rolling.json`` is written before the current spec changes and removed when the new one is proven. While it names the
current spec, nobody has proven that spec: it is never kept as the previous one, and the next run proves it or goes back.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from typing import Any

from .errors import UserError
from .files import read_json, to_json, write_atomic
from .layout import Layout


def unproven(where: Layout) -> str | None:
    """The ``spec_id`` that a roll began with and did not finish, or ``None``."""
    marker = read_json(where.rolling_file)
    return str(marker["spec_id"]) if marker and marker.get("spec_id") else None


def begin(where: Layout, spec: Mapping[str, Any]) -> None:
    """A roll to ``spec`` begins. Before anything else is written."""
    write_atomic(where.rolling_file, to_json({"spec_id": spec["spec_id"]}))


def proven(where: Layout) -> bool:
    """The current spec is proven. Returns whether there was anything to take back."""
    there = where.rolling_file.exists()
    where.rolling_file.unlink(missing_ok=True)
    return there


def give_back(where: Layout) -> dict[str, Any]:
    """Make the previous spec current again, and keep the one that failed as ``failed.json``. Returns what is current now.

    By links and renames alone: they need no free block, so this works on a disk that is full. At every instant a complete
    ``current.json`` is there.
    """
    previous = read_json(where.previous_spec)
    if previous is None:
        raise UserError(
            f"no {where.previous_spec}", "an earlier deployment to return to", "deploy a good version forward instead"
        )
    temporary = where.current_spec.with_name(".current.back")
    try:
        with contextlib.suppress(FileNotFoundError):
            where.failed_spec.unlink()
        with contextlib.suppress(OSError):
            os.link(where.current_spec, where.failed_spec)
        temporary.unlink(missing_ok=True)
        os.link(where.previous_spec, temporary)
        temporary.replace(where.current_spec)
        # Of two hard links to one file, rename() does nothing and leaves the source.
        temporary.unlink(missing_ok=True)
    except OSError as exc:
        raise UserError(
            f"{where.current_spec} cannot be replaced ({exc.strerror})", "a writable folder", "see longhaul_home"
        ) from exc
    return previous
