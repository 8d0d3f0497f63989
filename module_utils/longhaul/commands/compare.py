"""``longhaul compare A B``: two runs, or two engines, side by side, and which differences exceed noise."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..files import write_atomic
from ..report.compare import compare_runs, pair_runs
from ..report.compare_views import RENDERERS, RULE
from ..report.files import load_run_dir


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Two runs (directories or single result files), the format, where to write it, and whether a regression is an error."""
    where = "run directory, or one <host>.json of it (to compare two engines of one run)"
    parser.add_argument("a", metavar="RUN_DIR", type=Path, help=f"the baseline: {where}")
    parser.add_argument("b", metavar="RUN_DIR", type=Path, help=f"what is judged against it: {where}")
    parser.add_argument("--format", choices=sorted(RENDERERS), default="text", help="default: %(default)s")
    parser.add_argument("--out", metavar="FILE", type=Path, help="write to FILE instead of standard output")
    parser.add_argument(
        "--fail-on-regression", action="store_true", help="exit code 1 when B is slower beyond noise, or lost a PASS of A"
    )
    parser.epilog = RULE


def run(args: argparse.Namespace) -> int:
    """Exit codes: 0 compared, 1 a regression (only with ``--fail-on-regression``), 2 a path that is no run."""
    pairs, alone = pair_runs(load_run_dir(args.a), load_run_dir(args.b))
    comparisons = [compare_runs(a, b) for a, b in pairs]
    text = RENDERERS[args.format](comparisons)
    if args.out is None:
        print(text.rstrip("\n"))
    else:
        write_atomic(args.out, text if text.endswith("\n") else text + "\n", fix="check its owner and space")
        print(args.out)
    for host in alone:
        print(f"longhaul compare: {host} is in one run only; left out", file=sys.stderr)
    return 1 if args.fail_on_regression and any(c.regressions for c in comparisons) else 0
