"""The command line: parse, dispatch, turn errors into one line and an exit code.

Each command is one module in ``commands/`` with ``add_arguments(parser)`` and ``run(args) -> int``. It is imported only when
it is called, so that ``plan`` never pays for what ``validate`` needs.
"""

from __future__ import annotations

import argparse
import importlib
import sys
import traceback
from collections.abc import Sequence
from typing import NoReturn

from .errors import UserError
from .results import EXIT_INTERNAL, EXIT_USAGE
from .version import __version__

COMMANDS = {
    "plan": "predict what an engine will hold on given GPUs, before it starts",
    "validate": "prove what a running server holds: exact, cold, within physics",
    "compare": "two runs side by side; says which differences exceed noise",
    "corpus": "build or inspect the token corpus that prompts are cut from; make a tokenizer.json",
    "report": "write report.html, report.md and junit.xml of a run",
    "explain-log": "read an engine's log and say what its lines mean",
    "bundle": "build a wheelhouse for hosts without a package index",
}


class _OneLine(argparse.ArgumentParser):
    """Says what is wrong on one line; the whole usage is there with --help."""

    def error(self, message: str) -> NoReturn:
        """One line on stderr, exit code 2."""
        self.exit(EXIT_USAGE, f"{self.prog}: {message} (see {self.prog} --help)\n")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command. Exit codes: 0 PASS, 1 FAIL, 2 usage error, 3 INVALID, 4 INCONCLUSIVE, 70 internal error."""
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _OneLine(prog="longhaul", description="Long-context LLM servers, deployed and proven.")
    parser.add_argument("--version", action="version", version=f"longhaul {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    chosen = next((w for w in words if not w.startswith("-")), None)
    module = None
    for name, text in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text)
        if name == chosen:
            module = importlib.import_module(f".commands.{name.replace('-', '_')}", __package__)
            module.add_arguments(sub)
    args = parser.parse_args(words)
    if module is None:
        parser.error("name a command")
    try:
        return int(module.run(args))
    except UserError as error:
        print(f"longhaul {chosen}: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print(f"longhaul {chosen}: stopped; what was measured so far is kept", file=sys.stderr)
        return 130
    except Exception:
        traceback.print_exc()
        print(f"longhaul {chosen}: internal error; please report the lines above", file=sys.stderr)
        return EXIT_INTERNAL
