#!/usr/bin/env python3
"""Write roles/engine/defaults/main.yml and meta/argument_specs.yml from the declared variables.

Settings of the endpoint are declared in module_utils/longhaul/engines/settings.py, all else in deploy/engine_variables.py.
--write writes both files, then docs/variables. --check exits 1 and names the files that differ from what would be written.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "module_utils"))

from longhaul.deploy.engine_variables import VARIABLES, Variable  # noqa: E402 - the package lies beside this script

DEFAULTS = "roles/engine/defaults/main.yml"
SPECS = "roles/engine/meta/argument_specs.yml"
GENERATED = "# Written by scripts/dev/engine-variables.py from module_utils/longhaul/{engines/settings,deploy/engine_variables}.py. Do not edit."
COMMENT_CHARS = 138
ABOUT_ROLE = {
    "short_description": "Install an inference engine, start it, watch it become ready",
    "description": [
        "Options are rendered in Python for exactly the engine's version. The spec is kept on the host, so that one changed "
        "setting restarts the engine once and none restarts nothing."
    ],
}


class _Dumper(yaml.SafeDumper):
    """Indents lists below their key, as yamllint wants it."""

    def increase_indent(self, flow: bool = False, indentless: bool = False) -> None:
        super().increase_indent(flow, False)


def value_text(value: Any) -> str:
    """A default on one line."""
    if isinstance(value, str) and "{{" in value:
        if '"' in value:
            raise ValueError(f"{value}: an expression stands in double quotes, so it cannot hold one")
        return f'"{value}"'
    text = yaml.safe_dump(value, default_flow_style=True, width=10**6).removesuffix("\n").removesuffix("\n...")
    return '""' if text == "''" else text


def defaults_text() -> str:
    """roles/engine/defaults/main.yml."""
    lines, section = ["---", GENERATED], ""
    for row in VARIABLES:
        if row.section != section:
            section = row.section
            lines += ["", f"# --- {section} ---"]
        lines += textwrap.wrap(row.help, COMMENT_CHARS, initial_indent="# ", subsequent_indent="# ", break_on_hyphens=False)
        lines.append(f"{row.name}: {value_text(row.default)}")
    return "\n".join(lines) + "\n"


def option(row: Variable) -> dict[str, Any]:
    """One variable in argument_specs. A computed default and an empty one are left out."""
    found: dict[str, Any] = {"description": row.help, "type": row.ansible_type}
    if row.item_type:
        found["elements"] = row.item_type
    if row.choices:
        found["choices"] = list(row.choices)
    if row.default is not None and not row.is_computed:
        found["default"] = row.default
    if row.secret:
        found["no_log"] = True
    return found


def specs_text() -> str:
    """roles/engine/meta/argument_specs.yml."""
    main = {**ABOUT_ROLE, "options": {row.name: option(row) for row in VARIABLES}}
    body = yaml.dump({"argument_specs": {"main": main}}, Dumper=_Dumper, sort_keys=False, width=COMMENT_CHARS, allow_unicode=True)
    return f"---\n{GENERATED}\n{body}"


def main() -> int:
    """0 fine, 1 files differ."""
    parser = argparse.ArgumentParser(description=__doc__)
    mode = parser.add_mutually_exclusive_group(required=True)
    mode.add_argument("--write", action="store_true")
    mode.add_argument("--check", action="store_true")
    options = parser.parse_args()
    wanted = {ROOT / DEFAULTS: defaults_text(), ROOT / SPECS: specs_text()}
    old = [path for path, text in wanted.items() if path.read_text(encoding="utf-8") != text]
    if options.check:
        if old:
            names = ", ".join(str(path.relative_to(ROOT)) for path in old)
            print(f"found: stale {names} | required: as declared | fix: run {Path(__file__).name} --write", file=sys.stderr)
        return 1 if old else 0
    for path in old:
        path.write_text(wanted[path], encoding="utf-8")
        print(f"{path.relative_to(ROOT)}: written")
    return subprocess.run([sys.executable, ROOT / "scripts/dev/variables-docs.py", "--write"], check=False).returncode


if __name__ == "__main__":
    sys.exit(main())
