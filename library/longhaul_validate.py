#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
{
  "module": "longhaul_validate",
  "short_description": "Prove that a running engine holds the context it promises",
  "description": [
    "Sends a ladder of prompts of exact length as token ids, streams the answers, reads the server's counters before and after.",
    "Judges each point PASS, FAIL, INVALID or INCONCLUSIVE.",
    "Every request is on disk the moment it ends (C(requests.jsonl) in O(out_dir)); C(run.json) holds the result.",
    "If the server dies and is deployed on the host that measures, the first reason is the cause that its log names.",
    "A verdict other than PASS does not fail the task; the playbook's gate does, after the reports are written.",
    "Reports no change - a measurement is not a change of the host."],
  "attributes": {
    "check_mode": {"support": "full", "description": "Sends no request."},
    "diff_mode": {"support": "none", "description": "It changes nothing."}},
  "options": {
    "spec": {"description": "The endpoint's spec.", "type": "dict", "required": true},
    "name": {"description": "The host's name in the results.", "type": "str", "required": true},
    "run_id": {"description": "Name of the run.", "type": "str", "required": true},
    "out_dir": {"description": "Folder of this run's evidence.", "type": "path", "required": true},
    "cache_dir": {"description": "Where tokenized corpora are kept.", "type": "path", "required": true},
    "copy_to": {"description": "Write the result (run.json) to this file as well.", "type": "path"},
    "url": {"description": "Address of the server; empty means the spec's.", "type": "str", "default": ""},
    "api_key_file": {"description": "File with the API key; by default the one in the spec.", "type": "path"},
    "remote": {"description": "The module runs on another machine than the server.", "type": "bool", "default": false},
    "facts_home": {"description": "longhaul_home, to write the local facts; without it none are written.", "type": "path"},
    "instance": {"description": "Name of the endpoint on its host.", "type": "str", "default": "default"},
    "options": {"description": "The ladder and everything else (see longhaul.deploy.validation.config_from_options).",
      "type": "dict", "required": true},
    "progress_file": {"description": "Set by the action plugin.", "type": "path"}}}
"""

EXAMPLES = r"""
- name: Run the ladder
  longhaul_validate:
    spec: "{{ deployed.spec }}"
    name: "{{ inventory_hostname }}"
    run_id: 20261123T180000Z
    out_dir: /opt/longhaul/results/20261123T180000Z
    cache_dir: /opt/longhaul/cache/corpus
    options: {ladder_tokens: [1000, 8000], concurrency: [1], output_tokens: 200}
"""

RETURN = r"""
verdict: {description: "PASS, FAIL, INVALID or INCONCLUSIVE.", returned: always, type: str}
reasons: {description: Why., returned: always, type: list}
out_dir: {description: Where the evidence lies., returned: always, type: str}
"""

from ansible.module_utils.longhaul_module import AnsibleModule, ProgressWriter, run_module

import shutil
from pathlib import Path
from typing import Any

from ansible.module_utils.longhaul.deploy.hostfacts import update_facts, validated_facts
from ansible.module_utils.longhaul.deploy.layout import layout
from ansible.module_utils.longhaul.deploy.spec import Spec
from ansible.module_utils.longhaul.deploy.validation import validate_endpoint
from ansible.module_utils.longhaul.validate.progress import QuietProgress


def work(module: AnsibleModule, progress: ProgressWriter) -> dict[str, Any]:
    options = module.params
    where = layout(options["facts_home"], options["instance"]) if options["facts_home"] else None
    result = {"changed": False, "out_dir": options["out_dir"]}
    if module.check_mode:
        return {**result, "verdict": "INCONCLUSIVE", "reasons": ["check mode sends nothing"]}
    run = validate_endpoint(Spec.parse(options["spec"], "the option spec"), options, where, QuietProgress(progress.say))
    if options["copy_to"]:
        shutil.copyfile(Path(options["out_dir"]) / "run.json", options["copy_to"])
    result |= {"verdict": run.verdict.value, "reasons": [r.text for r in run.reasons]}
    if where is not None:
        _, facts = update_facts(where, lambda before: validated_facts(before, run))
        result["ansible_facts"] = {"longhaul": facts}
    return result


def main() -> None:
    run_module(DOCUMENTATION, work)


if __name__ == "__main__":
    main()
