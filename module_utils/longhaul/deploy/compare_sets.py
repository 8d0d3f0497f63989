"""The two sets of variables that ``playbooks/compare.yml`` measures: what a set may say, and what holds where it says nothing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import Finding
from .engine_variables import VARIABLES, nearest

# Both sets must say these themselves.
REQUIRED = ("engine_name", "engine_version", "engine_image", "engine_context_tokens")
LADDER = "context_test_ladder_tokens"
LADDER_DEFAULT = [1000]
KNOWN = (*(row.name for row in VARIABLES if row.compare != "never"), LADDER)
_FIX = "correct compare_sets"


def check_sets(files: Sequence[str], sets: Sequence[Mapping[str, Any]]) -> list[Finding]:
    """What keeps two sets from being compared. A variable that a set gives and nobody reads would make the comparison a lie."""
    if len(files) != 2:
        return [Finding(f"compare_sets with {len(files)} files", "two files of variables", _FIX)]
    findings = []
    for file, said in zip(files, sets, strict=True):
        for name in sorted(set(said) - set(KNOWN)):
            near = nearest(name)
            meant = f"write {near}" if near and near != name and near in KNOWN else "remove it from the set"
            findings.append(Finding(f"{name} in {file}", "variables of a set: " + ", ".join(KNOWN), meant))
        missing = [name for name in REQUIRED if name not in said]
        if missing:
            findings.append(Finding(f"no {', '.join(missing)} in {file}", f"{', '.join(REQUIRED)} in both", _FIX))
    if not findings and (sets[0].get(LADDER) or []) != (sets[1].get(LADDER) or []):
        findings.append(Finding("two different ladders", f"the same {LADDER} in both, or in neither", _FIX))
    return findings


def side(chosen: Mapping[str, Any], host: Mapping[str, Any]) -> dict[str, Any]:
    """Every variable that a set may give, as it holds while this set is measured. ``host``: the inventory's variables.

    Where the set says nothing, what belongs to one engine is as the role's defaults have it, and what both share as the inventory.
    """
    found: dict[str, Any] = {}
    for row in VARIABLES:
        if row.name in chosen:
            found[row.name] = chosen[row.name]
        elif row.compare == "inventory" and row.name in host:
            found[row.name] = host[row.name]
        elif row.compare != "never" and row.name not in REQUIRED:
            found[row.name] = row.default
    found[LADDER] = chosen.get(LADDER, host.get(LADDER, LADDER_DEFAULT))
    return found
