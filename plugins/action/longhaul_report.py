"""Write the reports of a run on the controller and show its table. Runs here, not on the host: the results are here."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "module_utils"))

from longhaul.errors import UserError
from longhaul.report.files import load_run_dir, point_latest, resolve_run, write_reports
from longhaul.report.tables import summary_table


class ActionModule(ActionBase):
    """Arguments: results_dir, run_id, textfile_dir, expected_hosts."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _supports_async = False

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        result: dict[str, Any] = super().run(tmp, task_vars)
        result["changed"] = False
        if self._task.check_mode:
            return result
        results_dir = Path(self._task.args["results_dir"])
        try:
            folder = resolve_run(results_dir, str(self._task.args.get("run_id") or "latest"))
            runs = load_run_dir(folder)
            written = write_reports(folder)
            point_latest(results_dir, folder)
            textfiles = str(self._task.args.get("textfile_dir") or "")
            if textfiles:
                for path in written:
                    if path.suffix == ".prom":
                        target = Path(textfiles) / f"longhaul_{path.name}"
                        target.with_suffix(".tmp").write_text(path.read_text(encoding="utf-8"), encoding="utf-8")
                        target.with_suffix(".tmp").replace(target)
        except UserError as error:
            raise AnsibleActionFail(str(error)) from error
        except OSError as error:
            raise AnsibleActionFail(
                f"found: {error} | required: a writable folder | fix: set report_results_dir or report_textfile_dir"
            ) from error
        display = Display()
        display.display("")
        display.display(summary_table(runs))
        missing = sorted(set(map(str, self._task.args.get("expected_hosts") or [])) - {r.host for r in runs})
        if missing:
            display.display(f"\nno result from: {', '.join(missing)} (see the failures above)")
        display.display(f"\nevidence: {folder}\nreport:   {folder / 'report.html'}\n")
        result.update(
            run_dir=str(folder),
            files=[str(p) for p in written],
            verdicts={r.host: r.verdict.value for r in runs},
            missing=missing,
        )
        return result
