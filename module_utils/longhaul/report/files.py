"""Run directories in, report files out; and which run is meant by ``latest``."""

from __future__ import annotations

import json
import re
from pathlib import Path

from ..errors import UserError
from ..files import write_atomic
from ..results import SCHEMA_NAME, RunResult, load_run
from .html import render_html
from .junit import render_junit
from .markdown import render_markdown
from .prometheus import render_prometheus


def load_run_dir(path: Path) -> list[RunResult]:
    """The runs of a directory ``results/<run-id>/`` (every ``<host>.json``, by name), or of one such file.

    JSON files that are no Longhaul result are passed over; one that cannot be read is an error, not a missing host.
    Raises UserError when the path does not exist, holds no result, or holds one this release cannot read.
    """
    if path.is_file():
        return [load_run(path)]
    if not path.is_dir():
        raise UserError(f"no directory {path}", "a run directory with <host>.json files", "name a folder under results/")
    runs = [load_run(file) for file in sorted(path.glob("*.json")) if file.is_file() and _is_result(file)]
    if runs:
        return runs
    raw = sorted(f.parent.name for f in path.glob("*/requests.jsonl"))
    if raw:
        found = f"{path} holds raw evidence of {', '.join(raw)} but no result (the run did not end)"
        fix = "run the validation again; the measured requests stay in requests.jsonl"
        raise UserError(found, "a <host>.json for each host", fix)
    raise UserError(f"no result in {path}", "at least one <host>.json", "name a folder under results/, such as results/latest")


def _is_result(file: Path) -> bool:
    """False only for well-formed JSON that says it is something else: a damaged result must not go unnoticed."""
    try:
        raw = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return True
    return isinstance(raw, dict) and raw.get("schema") == SCHEMA_NAME


def file_name(host: str) -> str:
    """A host's name as a file name: letters, digits, dot, dash and underscore."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", host).lstrip(".") or "host"


def write_reports(run_dir: Path) -> list[Path]:
    """Write ``report.html``, ``report.md``, ``junit.xml`` and one ``<host>.prom`` a host into a run directory.

    Returns the paths, in that order. Raises UserError for a path that is no run directory or that cannot be written.
    """
    if not run_dir.is_dir():
        raise UserError(f"no directory {run_dir}", "a run directory with <host>.json files", "name a folder under results/")
    runs = load_run_dir(run_dir)
    texts = [("report.html", render_html(runs)), ("report.md", render_markdown(runs)), ("junit.xml", render_junit(runs))]
    texts += [(f"{file_name(run.host)}.prom", render_prometheus(run)) for run in runs]
    for name, text in texts:
        write_atomic(run_dir / name, text, fix="check its owner and space")
    return [run_dir / name for name, _ in texts]


def resolve_run(results_dir: Path, run_id: str) -> Path:
    """The folder of a run. UserError lists the newest runs when there is none of that name."""
    folder = results_dir / run_id
    if folder.is_dir():
        return folder.resolve()
    known = sorted((d.name for d in results_dir.glob("*") if d.is_dir() and not d.is_symlink()), reverse=True)[:5]
    raise UserError(
        f"no run {run_id!r} in {results_dir}",
        "one of " + ", ".join(known) if known else "at least one validation run",
        "run ansible-playbook playbooks/validate.yml" if not known else "set report_run_id",
    )


def point_latest(results_dir: Path, folder: Path) -> None:
    """Make ``results/latest`` a relative link to ``folder``, in one step."""
    if folder.parent.resolve() != results_dir.resolve():
        return
    link, new = results_dir / "latest", results_dir / ".latest.new"
    new.unlink(missing_ok=True)
    new.symlink_to(folder.name)
    new.replace(link)
