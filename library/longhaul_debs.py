#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
{
  "module": "longhaul_debs",
  "short_description": "Install a folder of .deb files without a repository",
  "description": [
    "Installs the packages of the folder that the host lacks or has in an older version, in one transaction.",
    "Uses no repository and never downgrades. The folder must also hold the dependencies that the host lacks."],
  "attributes": {
    "check_mode": {"support": "full", "description": "Installs nothing and names what it would install."},
    "diff_mode": {"support": "full", "description": "Shows the versions before and after."}},
  "options": {
    "folder": {"description": "Folder on the host that holds the .deb files.", "type": "path", "required": true},
    "only": {"description": "Name patterns (glob) of packages to take; all when empty.",
      "type": "list", "elements": "str", "default": []},
    "progress_file": {"description": "Set by the action plugin.", "type": "path"}}}
"""

EXAMPLES = r"""
- name: Install what was carried here
  longhaul_debs: {folder: /var/cache/longhaul/packages}
"""

RETURN = r"""
installed: {description: "NAME=VERSION of what was (or would be) installed.", returned: always, type: list}
"""

from ansible.module_utils.longhaul_module import AnsibleModule, ProgressWriter, diff_of, run_module

import fnmatch
import re
from pathlib import Path
from typing import Any

from ansible.module_utils.longhaul.errors import UserError
from ansible.module_utils.longhaul.host.debs import DEB_FORMAT, INSTALLED_FORMAT, needed, parse_deb, parse_installed


def work(module: AnsibleModule, progress: ProgressWriter) -> dict[str, Any]:
    folder, only = Path(module.params["folder"]), module.params["only"]

    def run(*words: str, check: bool = True) -> tuple[int, str, str]:
        code, out, err = module.run_command(
            list(words), check_rc=check, environ_update={"LC_ALL": "C", "DEBIAN_FRONTEND": "noninteractive"}
        )
        return int(code), str(out), str(err)

    files = sorted(folder.glob("*.deb"))
    if not files:
        if module.check_mode and not folder.exists():
            return {"changed": True, "installed": []}  # an earlier task would have brought the folder
        raise UserError(f"no .deb in {folder}", "package files and their dependencies", "fill the folder")
    debs = [parse_deb(str(path), run("dpkg-deb", "-W", f"--showformat={DEB_FORMAT}", str(path))[1]) for path in files]
    debs = [deb for deb in debs if not only or any(fnmatch.fnmatch(deb.name, pattern) for pattern in only)]
    present = parse_installed(
        run("dpkg-query", "-W", f"-f={INSTALLED_FORMAT}", *sorted({deb.name for deb in debs}), check=False)[1]
    )

    def newer(left: str, right: str) -> bool:
        return run("dpkg", "--compare-versions", left, "gt", right, check=False)[0] == 0

    todo = needed(debs, present, newer, run("dpkg", "--print-architecture")[1].strip())
    names = [f"{deb.name}={deb.version}" for deb in todo]
    before = [f"{deb.name}={present[deb.name]}" for deb in todo if deb.name in present]
    diff = diff_of("packages", "".join(f"{x}\n" for x in before), "".join(f"{x}\n" for x in names))
    result = {"changed": bool(todo), "installed": names, "diff": diff}
    if not todo or module.check_mode:
        return result
    # No source, so nothing to download from. (--no-download itself trips over local files: it drops their folder.)
    offline = ["-o", "Dir::Etc::SourceList=/dev/null", "-o", "Dir::Etc::SourceParts=/dev/null"]
    offline += ["-o", "DPkg::Lock::Timeout=120", "-o", "Dpkg::Options::=--force-confdef", "-o", "Dpkg::Options::=--force-confold"]
    offline += ["--allow-change-held-packages", "--no-install-recommends"]
    code, out, err = run("apt-get", "-q", "-y", *offline, "install", *(deb.path for deb in todo), check=False)
    if code:
        lacking = sorted(set(re.findall(r"Depends: (\S+)", out + err)))
        raise UserError(
            "apt-get could not install the folder: " + (err.strip().splitlines() or ["no reason given"])[-1],
            "all dependencies in the folder" + (": " + ", ".join(lacking) if lacking else ""),
            f"add the missing .deb files to {folder}",
        )
    return result


def main() -> None:
    run_module(DOCUMENTATION, work)


if __name__ == "__main__":
    main()
