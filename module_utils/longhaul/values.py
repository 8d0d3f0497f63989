"""Loosely typed values, as Ansible and command lines hand them over, turned into the types they stand for.

An inventory's ``8192`` may arrive as text, a switch as ``"yes"``. Here is the one rule for what counts as which type.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

from .errors import UserError

_WORDS = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "tuple": "a list",
    "Mapping[str, int]": "names with integers",
    "Mapping": "names with values",
}
_SWITCHES = {"true": True, "yes": True, "1": True, "false": False, "no": False, "0": False}


def as_bool(value: Any) -> bool:
    """True, false, yes, no, 1 or 0, in any case. ValueError for anything else."""
    try:
        return _SWITCHES[str(value).lower()]
    except KeyError:
        raise ValueError("not a boolean") from None


def as_int(value: Any) -> int:
    """A whole number or its text. ValueError for booleans, fractions and suffixes: ``2M`` is no number of tokens."""
    if isinstance(value, bool) or (isinstance(value, float) and value != int(value)):
        raise ValueError("not an integer")
    return int(value)


def as_float(value: Any) -> float:
    """A number or its text. ValueError for booleans."""
    if isinstance(value, bool):
        raise ValueError("not a number")
    return float(value)


def convert(value: Any, kind: str) -> Any:
    """``value`` as the type that the annotation ``kind`` names, e.g. ``int | None`` or ``tuple[str, ...]``.

    What is no boolean, number, tuple or mapping becomes text. TypeError or ValueError where the value does not fit.
    """
    if kind.startswith("tuple"):
        if isinstance(value, str) or not isinstance(value, Sequence):
            raise ValueError("not a list")
        return tuple(str(v) for v in value)
    if kind.startswith("Mapping"):
        item = as_int if kind.startswith("Mapping[str, int]") else str
        return {str(k): item(v) for k, v in dict(value).items()}
    for prefix, converter in (("bool", as_bool), ("int", as_int), ("float", as_float)):
        if kind.startswith(prefix):
            return converter(value)
    return str(value)


def converted(name: str, value: Any, kind: str, fix: str | None = None) -> Any:
    """:func:`convert`, with a UserError that names the variable ``name`` where the value does not fit."""
    try:
        return convert(value, kind)
    except (TypeError, ValueError, OverflowError) as exc:
        wanted = next((words for prefix, words in _WORDS.items() if kind.startswith(prefix)), f"a value of type {kind}")
        raise UserError(f"{name} {value!r}", wanted, fix or f"set {name}") from exc


def number(name: str, value: Any) -> float:
    """A number from an operator's option. UserError names it."""
    return float(converted(name, value, "float"))


def options_for(kind: type, options: Mapping[str, Any], *, prefix: str, what: str, fix: str | None = None) -> dict[str, Any]:
    """Options -> keyword arguments of the dataclass ``kind``. ``None`` and ``""`` mean: not set.

    UserError where an option is unknown, or does not fit its field; ``prefix`` makes the variable's name of an option's.
    """
    known = {f.name: str(f.type) for f in dataclasses.fields(kind)}
    values: dict[str, Any] = {}
    for name, value in options.items():
        if name not in known:
            raise UserError(f"{what} {name!r}", "one of " + ", ".join(sorted(known)), fix or "remove or rename it")
        if value is None or value == "":
            continue
        values[name] = converted(f"{prefix}{name}", value, known[name], fix)
    return values
