"""``longhaul report RUN_DIR``: write report.html, report.md, junit.xml and <host>.prom of a run, print its table."""

from __future__ import annotations

import argparse
from pathlib import Path

from ..report.files import load_run_dir, write_reports
from ..report.tables import summary_table


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The run directory, and whether to print the table."""
    parser.add_argument("run_dir", metavar="RUN_DIR", type=Path, help="a folder with <host>.json files, such as results/latest")
    parser.add_argument("--quiet", action="store_true", help="print only the paths written")


def run(args: argparse.Namespace) -> int:
    """Write the files. Exit code 0 whatever the verdict (this command reports, it does not judge); 2 for a bad path."""
    paths = write_reports(args.run_dir)
    if not args.quiet:
        print(summary_table(load_run_dir(args.run_dir)))
        print()
    for path in paths:
        print(path)
    return 0
