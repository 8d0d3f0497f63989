#!/usr/bin/env python3
"""The README's table of variables, from the roles' argument_specs (type, description) and defaults (default).

Prints it; --write replaces the block in README.md; --check exits 1 when the block is not what would be written.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
BEGIN, END = "<!-- variables:begin -->", "<!-- variables:end -->"
# As a deployment meets them.
ORDER = ("engine", "model_store", "context_test", "report", "rollout", "burnin", "client_env", "gpu_driver", "container_runtime")


def role_names(root: Path = ROOT) -> list[str]:
    """Roles that take input, the ones of the front door first."""
    found = sorted(p.parent.parent.name for p in root.glob("roles/*/meta/argument_specs.yml"))
    return sorted(found, key=lambda name: (ORDER.index(name) if name in ORDER else len(ORDER), name))


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _default(value: Any) -> str:
    if value is None or value == "":
        return "empty"
    if isinstance(value, str):
        text = "".join(c for c in value if c != "\n").strip()
        if "{{" in text:
            return "computed" if len(text) > 60 else f"`{text}`"
        return f"`{text}`"
    return f"`{json.dumps(value)}`"


def role_table(name: str, root: Path = ROOT) -> str:
    """One role: heading, what it is for, a row a variable in the order of its defaults file."""
    spec = yaml.safe_load((root / "roles" / name / "meta/argument_specs.yml").read_text(encoding="utf-8"))["argument_specs"][
        "main"
    ]
    defaults = yaml.safe_load((root / "roles" / name / "defaults/main.yml").read_text(encoding="utf-8")) or {}
    options: dict[str, Any] = spec.get("options") or {}
    rows = [
        f"### {name}",
        "",
        f"{spec['short_description']}.",
        "",
        "| variable | type | default | meaning |",
        "|---|---|---|---|",
    ]
    for variable, value in defaults.items():
        option = options[variable]
        words = option.get("description", "")
        text = " ".join(words) if isinstance(words, list) else str(words)
        kind = option.get("type", "str") + (f" of {option['elements']}" if option.get("elements") else "")
        rows.append(f"| `{variable}` | {kind} | {_cell(_default(value))} | {_cell(text)} |")
    return "\n".join(rows)


def tables(root: Path = ROOT) -> str:
    """All roles."""
    return "\n\n".join(role_table(name, root) for name in role_names(root))


def replaced(readme: str, block: str) -> str:
    """README text with the block between the markers replaced. ValueError where a marker is missing."""
    head, begin, rest = readme.partition(BEGIN)
    _, end, tail = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"README.md lacks {BEGIN} or {END}")
    return f"{head}{BEGIN}\n{block}\n{END}{tail}"


def main() -> int:
    """0 fine, 1 the README differs, 2 it has no place for the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    mode = parser.add_mutually_exclusive_group()
    mode.add_argument("--write", action="store_true")
    mode.add_argument("--check", action="store_true")
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    options = parser.parse_args()
    if not (options.write or options.check):
        print(tables())
        return 0
    before = options.readme.read_text(encoding="utf-8")
    try:
        after = replaced(before, tables())
    except ValueError as error:
        print(f"readme-variables: {error}", file=sys.stderr)
        return 2
    if before == after:
        return 0
    if options.check:
        print(
            f"readme-variables: {options.readme} is not up to date; run scripts/dev/readme-variables.py --write", file=sys.stderr
        )
        return 1
    options.readme.write_text(after, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
