#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
{
  "module": "longhaul_container",
  "short_description": "Make a host ready for an engine's container",
  "description": [
    "Writes the launcher, which becomes the engine inside the container.",
    "Says whether the image is on this host, with id and digest.",
    "Does not pull; community.docker does. M(longhaul_service) makes the container."],
  "attributes": {
    "check_mode": {"support": "full", "description": "Writes no file."},
    "diff_mode": {"support": "full", "description": "Shows the launcher before and after."}},
  "options": {
    "home": {"description": "longhaul_home on the host.", "type": "path", "required": true},
    "instance": {"description": "Name of the endpoint on this host.", "type": "str", "default": "default"},
    "image": {"description": "Image with tag.", "type": "str", "required": true},
    "digest": {"description": "sha256 of the image in its registry, or its own id.", "type": "str"},
    "launcher": {"description": "Text of the launcher.", "type": "str"},
    "required": {"description": "Refuse when the image is not there.", "type": "bool", "default": false},
    "progress_file": {"description": "Set by the action plugin.", "type": "path"}}}
"""

EXAMPLES = r"""
- name: Is the image here?
  longhaul_container: {home: /opt/longhaul, image: vllm/vllm-openai:v0.12.0}
"""

RETURN = r"""
present: {description: Whether the image is here., returned: always, type: bool}
image_id: {description: Its own id., returned: when present, type: str}
digest: {description: What its registry calls it., returned: when known, type: str}
"""

from ansible.module_utils.longhaul_module import AnsibleModule, ProgressWriter, diff_of, endpoint, run_module

from typing import Any

from ansible.module_utils.longhaul.deploy.runtimes.container import ContainerSettings, container_from, reference
from ansible.module_utils.longhaul.deploy.runtimes.docker_api import Docker, DockerError, find_image
from ansible.module_utils.longhaul.errors import UserError
from ansible.module_utils.longhaul.files import write_atomic


def work(module: AnsibleModule, progress: ProgressWriter) -> dict[str, Any]:
    options = module.params
    where = endpoint(module)
    wanted: ContainerSettings = container_from(
        {"image": options["image"], "digest": options["digest"], "cache_dir": str(where.home / "cache")}
    )
    changed, diff = False, diff_of("", "", "")
    if options["launcher"] is not None:
        text = options["launcher"].rstrip("\n") + "\n"
        try:
            before = where.launcher.read_text(encoding="utf-8")
        except OSError:
            before = ""
        changed = before != text
        diff = diff_of(str(where.launcher), before, text)
        if changed and not module.check_mode:
            write_atomic(where.launcher, text, 0o755)
    try:
        found = find_image(Docker(), wanted.image, wanted.digest)
    except DockerError:
        # On a clean host in check mode there is no Docker yet.
        if not module.check_mode:
            raise
        found = {"present": False, "image_id": None, "digest": wanted.digest}
    if options["required"] and not found["present"] and not module.check_mode:
        raise UserError(
            f"no image {reference(wanted)} on this host",
            "the image by that name and digest",
            "set engine_image and engine_image_digest",
        )
    return {"changed": changed, **found, "diff": diff}


def main() -> None:
    run_module(DOCUMENTATION, work)


if __name__ == "__main__":
    main()
