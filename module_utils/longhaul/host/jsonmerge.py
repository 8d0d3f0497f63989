"""Merge settings into a JSON file that others write too, and leave what they wrote.

The operator, other tools and Longhaul all write such a file, for example ``daemon.json``. So there are two kinds of settings.
A *default* is set only where the file says nothing. A *value* is always set. What Longhaul set is remembered (``owned``), so
that a later run can change or withdraw it, and nothing else. Lists are joined: theirs first, then ours.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError


@dataclass(frozen=True)
class Merged:
    """The result of a merge.

    ``data`` is the new document. ``owned`` is the part of it that we set. ``changed`` are the top-level keys that differ from
    before, sorted. ``kept`` are dotted paths where the file already said something else than a default of ours.
    """

    data: dict[str, Any]
    owned: dict[str, Any]
    changed: tuple[str, ...]
    kept: tuple[str, ...]


def merge(
    current: Mapping[str, Any],
    *,
    values: Mapping[str, Any] | None = None,
    defaults: Mapping[str, Any] | None = None,
    owned: Mapping[str, Any] | None = None,
) -> Merged:
    """``current`` with ``defaults`` where it is silent and ``values`` everywhere; ``owned`` is what the last merge returned.

    Merging the result again changes nothing. A leaf that we never set stays as it is unless ``values`` names it.
    Raises UserError where an object meets something that is not one.
    """
    kept: list[str] = []
    wanted_values, wanted_defaults = dict(values or {}), dict(defaults or {})
    data, ours = _merge(dict(current), wanted_values, wanted_defaults, dict(owned or {}), "", kept)
    changed = sorted(key for key in {*current, *data} if current.get(key, _ABSENT) != data.get(key, _ABSENT))
    return Merged(data, ours, tuple(changed), tuple(kept))


_ABSENT: Any = object()


def _merge(
    current: dict[str, Any], values: dict[str, Any], defaults: dict[str, Any], owned: dict[str, Any], path: str, kept: list[str]
) -> tuple[dict[str, Any], dict[str, Any]]:
    data: dict[str, Any] = {}
    ours: dict[str, Any] = {}
    for key in [*current, *(k for k in (*defaults, *values) if k not in current)]:
        if key in data:
            continue
        where = f"{path}.{key}" if path else str(key)
        now, was = current.get(key, _ABSENT), owned.get(key, _ABSENT)
        value, default = values.get(key, _ABSENT), defaults.get(key, _ABSENT)
        result, mine = _one(now, was, value, default, where, kept)
        if result is not _ABSENT:
            data[key] = result
        if mine is not _ABSENT:
            ours[key] = mine
    return data, ours


def _one(now: Any, was: Any, value: Any, default: Any, path: str, kept: list[str]) -> tuple[Any, Any]:
    """One key: (what the file says from now on, what of it is ours)."""
    parts = [part for part in (value, default) if part is not _ABSENT]
    if any(isinstance(part, Mapping) for part in (*parts, *([now] if isinstance(was, Mapping) else []))):
        return _object(now, was, value, default, path, kept)
    if any(_is_list(part) for part in parts) or (_is_list(now) and _is_list(was)):
        return _list(now, was, parts, path)
    if value is not _ABSENT:
        # Equal and never ours: the operator says the same, and it stays the operator's.
        return value, (_ABSENT if now == value and was is _ABSENT else value)
    mine_still = was is not _ABSENT and now == was
    if default is not _ABSENT:
        if now is _ABSENT or mine_still:
            return default, default
        if now != default:
            kept.append(path)
        return now, _ABSENT
    return (_ABSENT if mine_still else now), _ABSENT


def _object(now: Any, was: Any, value: Any, default: Any, path: str, kept: list[str]) -> tuple[Any, Any]:
    for part in (now, value, default):
        if part is not _ABSENT and not isinstance(part, Mapping):
            raise UserError(
                f"{path} is {json.dumps(part)} on one side and an object on the other", "an object on both", f"correct {path}"
            )
    sides = [dict(part) if isinstance(part, Mapping) else {} for part in (now, value, default, was)]
    data, ours = _merge(sides[0], sides[1], sides[2], sides[3], path, kept)
    if not data and (now is _ABSENT or now):  # nothing to say, or all that was there was ours
        return _ABSENT, _ABSENT
    return data, (ours or _ABSENT)


def _list(now: Any, was: Any, parts: Sequence[Any], path: str) -> tuple[Any, Any]:
    for part in (now, *parts):
        if part is not _ABSENT and not _is_list(part):
            raise UserError(
                f"{path} is {json.dumps(part)} on one side and a list on the other", "a list on both", f"correct {path}"
            )
    before = list(was) if _is_list(was) else []
    theirs = [item for item in (now if _is_list(now) else []) if item not in before]
    wanted: list[Any] = []
    for part in parts:
        wanted += [item for item in part if item not in theirs and item not in wanted]
    # An entry of ours that is still wanted keeps its place.
    order = [item for item in (now if _is_list(now) else []) if item in theirs or item in wanted]
    joined = order + [item for item in wanted if item not in order]
    if not joined and (now is _ABSENT or not parts):
        return _ABSENT, _ABSENT
    return joined, (wanted or _ABSENT)


def _is_list(part: Any) -> bool:
    return isinstance(part, list | tuple)


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file; empty where there is no file or it is blank. Raises UserError for anything else."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return {}
    if not text.strip():
        return {}
    try:
        data = json.loads(text)
    except ValueError as error:
        raise UserError(
            f"{path} is not JSON: {error}", "a JSON object", f"correct {path} on the host; nothing was changed"
        ) from error
    if not isinstance(data, dict):
        raise UserError(f"{path} holds a JSON {type(data).__name__}", "a JSON object", f"correct {path} on the host")
    return data


def render(data: Mapping[str, Any]) -> str:
    """As it is written: two spaces, order kept, newline at the end."""
    return json.dumps(data, indent=2, ensure_ascii=False) + "\n"
