"""Which run is meant by ``latest``, and pointing the link ``results/latest`` at a run."""

from __future__ import annotations

from pathlib import Path

from ..errors import UserError

LATEST = "latest"


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
    link, new = results_dir / LATEST, results_dir / f".{LATEST}.new"
    new.unlink(missing_ok=True)
    new.symlink_to(folder.name)
    new.replace(link)
