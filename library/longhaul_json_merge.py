#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
{
  "module": "longhaul_json_merge",
  "short_description": "Merge settings into a JSON file and leave what others wrote",
  "description": [
    "Sets O(values) always, and O(defaults) only where the file says nothing. Joins lists.",
    "Remembers beside the file what it set, so that a later run changes or removes exactly that.",
    "Refuses a file that is not JSON and leaves it as it is."],
  "attributes": {
    "check_mode": {"support": "full", "description": "Writes no file."},
    "diff_mode": {"support": "full", "description": "Shows the file before and after."}},
  "options": {
    "path": {"description": "The JSON file on the host; made when it is missing.", "type": "path", "required": true},
    "values": {"description": "Settings that always hold.", "type": "dict", "default": {}},
    "defaults": {"description": "Settings that hold where the file is silent.", "type": "dict", "default": {}},
    "state_path": {"description": "Where our own part is remembered; O(path) with C(.longhaul) added when not given.",
      "type": "path"},
    "validate": {"description": "A command that must accept the new file before it is moved into place; V(%s) is the file.",
      "type": "str"},
    "mode": {"description": "Mode of a new file.", "type": "str", "default": "0644"},
    "backup": {"description": "Keep a copy of the file as it was.", "type": "bool", "default": false},
    "progress_file": {"description": "Set by the action plugin.", "type": "path"}}}
"""

EXAMPLES = r"""
- name: Let Docker keep containers while its daemon restarts
  longhaul_json_merge: {path: /etc/docker/daemon.json, defaults: {live-restore: true}}
"""

RETURN = r"""
changed_keys: {description: Top-level keys that changed., returned: always, type: list}
kept: {description: "Dotted paths where the file already said something else than a default.", returned: always, type: list}
backup_file: {description: The copy., returned: when one was made, type: str}
"""

from ansible.module_utils.longhaul_module import AnsibleModule, ProgressWriter, diff_of, run_module

import os
import shlex
import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.longhaul.errors import UserError
from ansible.module_utils.longhaul.host.jsonmerge import merge, read_object, render


def write(module: AnsibleModule, path: Path, text: str, validate: str | None = None, mode: int = 0o644) -> None:
    """Write beside the target, let ``validate`` look, then move into place in one step."""
    number, name = tempfile.mkstemp(dir=module.tmpdir)
    with os.fdopen(number, "w", encoding="utf-8") as handle:
        handle.write(text)
    if validate:
        code, out, err = module.run_command([word.replace("%s", name) for word in shlex.split(validate)])
        if code:
            said = (err or out).strip().splitlines()[-1:] or ["nothing"]
            raise UserError(
                f"'{validate.split()[0]}' refused the new {path.name}: {said[0]}",
                "settings that it takes",
                "correct the settings",
            )
    fresh = not path.exists()
    module.atomic_move(name, str(path))
    if fresh:
        path.chmod(mode)


def work(module: AnsibleModule, progress: ProgressWriter) -> dict[str, Any]:
    options = module.params
    path = Path(options["path"])
    state = Path(options["state_path"] or f"{path}.longhaul")
    current = read_object(path)
    owned = read_object(state)
    merged = merge(current, values=options["values"], defaults=options["defaults"], owned=owned)
    # A file that says the same in another layout is left as it is.
    changed = merged.data != current or not path.exists()
    before = render(current) if path.exists() else ""
    result = {
        "changed": changed,
        "changed_keys": list(merged.changed),
        "kept": list(merged.kept),
        "diff": diff_of(str(path), before, render(merged.data)),
    }
    if module.check_mode:
        return result
    if changed or merged.owned != owned:
        path.parent.mkdir(parents=True, exist_ok=True)
    if changed:
        if options["backup"] and path.exists():
            result["backup_file"] = module.backup_local(str(path))
        write(module, path, render(merged.data), options["validate"], int(options["mode"], 8))
    if merged.owned != owned:
        write(module, state, render(merged.owned))
    return result


def main() -> None:
    run_module(DOCUMENTATION, work)


if __name__ == "__main__":
    main()
