"""Remember the state of a roll on the host, so that a roll whose controller was killed can go on.

``spec/rolling.json`` is written before the current spec changes and removed when the new one is proven. It names the
specs that nobody has proven: the one that the roll goes to, and the one that it found, if that was never proven either. Such
a spec is never kept as the previous one. The next run proves it or goes back.

``previous.json`` is the last proven spec that is not the current one. During a roll it is the spec that was current before, and
the one that was previous before waits in ``earlier.json``. If the roll goes back, that one becomes the previous one again.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import read_json, to_json, write_atomic
from .layout import Layout


def unproven(where: Layout) -> str | None:
    """The ``spec_id`` that a roll began with and did not finish, or ``None``."""
    marker = read_json(where.rolling_file)
    return str(marker["spec_id"]) if marker and marker.get("spec_id") else None


def is_unproven(where: Layout, spec_id: str) -> bool:
    """Whether a roll went to this spec and nobody has proven it since."""
    marker = read_json(where.rolling_file) or {}
    return spec_id in (marker.get("spec_id"), marker.get("found"))


def begin(where: Layout, spec_id: str) -> None:
    """Write down that a roll to this spec begins. Comes before anything else: a controller may die before the next line."""
    current = (read_json(where.current_spec) or {}).get("spec_id")
    marker = {"spec_id": spec_id}
    if current and is_unproven(where, current):
        marker["found"] = current
    write_atomic(where.rolling_file, to_json(marker))


def keep_as_previous(where: Layout, document: Mapping[str, Any]) -> None:
    """Make this proven spec the one that a rollback returns to; the one before waits in ``earlier.json``."""
    before = read_json(where.previous_spec)
    if before is not None and before.get("spec_id") != document["spec_id"]:
        _same_file(where.previous_spec, where.earlier_spec)
    write_atomic(where.previous_spec, to_json(document))


def settle(where: Layout) -> None:
    """Replace or remove a previous spec that equals the current one. Needs no free block."""
    current, previous = read_json(where.current_spec), read_json(where.previous_spec)
    if current is None or previous is None or current.get("spec_id") != previous.get("spec_id"):
        return
    earlier = read_json(where.earlier_spec)
    if earlier is not None and earlier.get("spec_id") != current.get("spec_id"):
        where.earlier_spec.replace(where.previous_spec)
    else:
        where.previous_spec.unlink(missing_ok=True)


def proven(where: Layout) -> bool:
    """Mark the current spec as proven. Returns whether it was in doubt."""
    there = where.rolling_file.exists()
    where.rolling_file.unlink(missing_ok=True)
    return there


def give_back(where: Layout) -> None:
    """Make the previous spec current again, and keep the one that failed as ``failed.json``.

    Uses links and renames alone: they need no free block, so this works on a disk that is full. A complete ``current.json`` is
    there at every instant. A current spec that is proven stays: a second call changes nothing.
    """
    current, previous = read_json(where.current_spec), read_json(where.previous_spec)
    if current is not None and not is_unproven(where, current["spec_id"]):
        settle(where)
        return
    if previous is None:
        raise UserError(
            f"no {where.previous_spec}", "an earlier deployment to return to", "deploy a good version forward instead"
        )
    try:
        with contextlib.suppress(OSError):
            _same_file(where.current_spec, where.failed_spec)
        _same_file(where.previous_spec, where.current_spec)
        settle(where)
    except OSError as exc:
        raise UserError(
            f"{where.current_spec} cannot be replaced ({exc.strerror})", "a writable folder", "see longhaul_home"
        ) from exc


def _same_file(source: Path, target: Path) -> None:
    """``target`` becomes another name of what ``source`` is, at once and without a free block."""
    temporary = target.with_name(f".{target.name}.link")
    temporary.unlink(missing_ok=True)
    os.link(source, temporary)
    temporary.replace(target)
    # Of two hard links to one file, rename() does nothing and leaves the source.
    temporary.unlink(missing_ok=True)
