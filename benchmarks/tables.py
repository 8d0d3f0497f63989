"""The last runs of client_accuracy.py and prompt_build.py as the tables of docs/benchmarks.md.

python benchmarks/tables.py            # print them
python benchmarks/tables.py --write    # into the document, between its markers
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
DOC = ROOT / "docs" / "benchmarks.md"
BENCH = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "longhaul-test" / "bench"


def client_table(told: dict[str, Any]) -> list[str]:
    """client_accuracy.json as Markdown."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    from client_accuracy import HEADER, SCENARIOS, Row

    order = [s.name for s in SCENARIOS.values()]
    rows = sorted((Row(**row) for row in told["rows"]), key=lambda row: order.index(row.scenario))
    loads = [row.load_before for row in rows if row.failed is None]
    about = told["about"]
    note = f"{about['machine']}, Python {about['python']}"
    if loads:
        note += f"; load average before each run {min(loads):.1f} to {max(loads):.1f}"
    return [*HEADER.splitlines(), *(row.markdown() for row in rows), "", note + "."]


def prompt_table(told: dict[str, Any]) -> list[str]:
    """prompt_build.json as Markdown."""
    out = [
        "| tool | tokens | set-up, s | build, s | CPU, s | error, tokens | distinct 16-grams | peak MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in told["rows"]:
        name = row["tool"] if row.get("version") in (None, "this tree") else f"{row['tool']} {row['version']}"
        if "failed" in row:
            out.append(f"| {name} | {row['tokens']:,} | {row['failed']} | | | | | |")
            continue
        out.append(
            f"| {name} | {row['tokens']:,} | {row['setup_s']:.2f} | {row['build_s']:.4g} | {row['cpu_s']:.2f} | {row['error']:,} | "
            f"{100 * row['distinct']:.1f}% | {row['peak_mb']:.0f} |"
        )
    about = told["about"]
    return [*out, "", f"{about['machine']}; load average at the end {about['load'][0]:.1f}; tokenizer {about['tokenizer']}."]


TABLES = {"client": ("client_accuracy.json", client_table), "prompts": ("prompt_build.json", prompt_table)}


def main() -> int:
    """Print or write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help=f"into {DOC.relative_to(ROOT)}")
    args = parser.parse_args()
    text = DOC.read_text(encoding="utf-8")
    for name, (file, render) in TABLES.items():
        if not (BENCH / file).is_file():
            print(f"{file} is not there: run the benchmark first", file=sys.stderr)
            continue
        table = "\n".join(render(json.loads((BENCH / file).read_text(encoding="utf-8"))))
        print(table + "\n")
        block = f"<!-- {name}:begin -->\n{table}\n<!-- {name}:end -->"
        found = re.search(rf"<!-- {name}:begin -->.*?<!-- {name}:end -->", text, re.DOTALL)
        if found is None:
            raise SystemExit(f"{DOC} has no markers for {name}")
        text = text[: found.start()] + block + text[found.end() :]
    if args.write:
        DOC.write_text(text, encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
