"""What every Longhaul module shares: argument handling, progress, one-line errors. Imports Ansible; the package does not.

A module imports this file before anything of the package, because here a Python is refused that is too old for the package.
"""

from __future__ import annotations

import json
import sys

LEAST_PYTHON = (3, 10)

# Ansible still talks to older ones.
if sys.version_info < LEAST_PYTHON:
    print(
        json.dumps(
            {
                "failed": True,
                "msg": "found: Python {}.{} on the host | required: Python {}.{} or newer | "
                "fix: install a newer python3 and set ansible_python_interpreter".format(*sys.version_info[:2], *LEAST_PYTHON),
            }
        )
    )
    sys.exit(1)

from collections.abc import Callable
from typing import Any

from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.longhaul.deploy.layout import Layout, layout
from ansible.module_utils.longhaul.errors import UserError
from ansible.module_utils.longhaul.progress import ProgressWriter

# A module takes its types from here too.
__all__ = ("AnsibleModule", "ProgressWriter", "diff_of", "endpoint", "run_module")


def argument_spec(documentation: str) -> dict[str, Any]:
    """A module's arguments as its DOCUMENTATION tells them: in JSON, which is YAML that a host can read without a library."""
    options: dict[str, dict[str, Any]] = json.loads(documentation)["options"]
    # A path is no secret, whatever its name.
    open_paths = {name: {"no_log": False} for name, option in options.items() if option["type"] == "path"}
    return {
        name: {k: v for k, v in option.items() if k != "description"} | open_paths.get(name, {})
        for name, option in options.items()
    }


def run_module(documentation: str, work: Callable[[AnsibleModule, ProgressWriter], dict[str, Any]], **more: Any) -> None:
    """Run ``work`` and exit. A UserError becomes ``msg`` (one line) with found, required and fix beside it.

    A ``diff`` in the result is shown with ``--diff`` only.
    """
    module = AnsibleModule(argument_spec=argument_spec(documentation), supports_check_mode=True, **more)
    progress = ProgressWriter(module.params["progress_file"])
    try:
        result = work(module, progress)
    except UserError as error:
        progress.done()
        module.fail_json(msg=str(error), found=error.found, required=error.required, fix=error.fix)
    else:
        progress.done()
        if not module._diff:
            result.pop("diff", None)
        if result.pop("failed", False):
            module.fail_json(**result)
        module.exit_json(**result)


def endpoint(module: AnsibleModule) -> Layout:
    """The endpoint that ``home`` and ``instance`` name."""
    return layout(module.params["home"], module.params["instance"])


def diff_of(header: str, before: str, after: str) -> dict[str, str]:
    """A difference as ``--diff`` shows it: of a file, or of any text."""
    return {"before_header": header, "after_header": header, "before": before, "after": after}
