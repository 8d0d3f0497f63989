"""``longhaul explain-log FILE``: what an engine's log says, what its figures are not, and why it failed."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from ..engines.explain import adapter_for, as_text, explain
from ..engines.registry import ENGINES
from ..errors import UserError
from ..results import to_jsonable


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The log, its engine, and the form of the answer."""
    parser.add_argument("log", metavar="FILE", help="an engine's log ('-': standard input); docker logs are fine")
    parser.add_argument(
        "--engine", choices=("auto", *ENGINES), default="auto", help="whose log it is (default: see by its lines)"
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of text")


def run(args: argparse.Namespace) -> int:
    """Explain the log. Exit code 0; 1 where the log names a failure; 2 where it cannot be read."""
    try:
        text = sys.stdin.read() if args.log == "-" else Path(args.log).read_text(encoding="utf-8", errors="replace")
    except OSError as exc:
        found = f"{args.log} cannot be read ({exc.strerror})"
        raise UserError(found, "a log file, or - for standard input", "check the path") from exc
    lines = text.splitlines()
    adapter = adapter_for(lines, args.engine)
    if adapter is None:
        found = f"{args.log} with {len(lines)} lines of neither engine"
        raise UserError(found, "a log of " + " or ".join(ENGINES), "name the engine with --engine")
    report = explain(lines, adapter)
    print(json.dumps(to_jsonable(report), indent=1) if args.json else as_text(report))
    return 1 if report.failure else 0
