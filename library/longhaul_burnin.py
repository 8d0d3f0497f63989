#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
{
  "module": "longhaul_burnin",
  "short_description": "The steps of a burn-in on its host besides starting the engine and measuring the ladder",
  "description": [
    "V(look) refuses a host that serves, unless O(replace) allows to stop it.",
    "V(begun) stops what serves, writes down what must be started again, and starts to sample the GPUs.",
    "V(reduced) measures the all-reduce with the interpreter or image, environment and GPUs of the burn-in's spec.",
    "V(judged) ends the sampling, judges, and writes evidence and facts.",
    "V(ended) removes the burn-in's instance and names the endpoints to start again.",
    "A verdict other than PASS does not fail the task. The playbook's gate fails, after the reports are written.",
    "Reports no change, because the burn-in leaves the host as it found it."],
  "attributes": {
    "check_mode": {"support": "full", "description": "V(look) refuses as usual; the other steps do nothing."},
    "diff_mode": {"support": "none", "description": "The burn-in leaves the host as it found it."}},
  "options": {
    "home": {"description": "longhaul_home on the host.", "type": "path", "required": true},
    "instance": {"description": "Name of the burn-in's own endpoint.", "type": "str", "default": "burnin"},
    "state": {"description": "Which step.",
      "type": "str", "choices": ["look", "begun", "reduced", "judged", "ended"], "required": true},
    "host_instance": {"description": "The endpoint whose local facts keep the verdict.", "type": "str", "default": "default"},
    "run_id": {"description": "Name of the run.", "type": "str", "default": ""},
    "name": {"description": "The host's name in the results.", "type": "str", "default": ""},
    "replace": {"description": "Stop what serves here.", "type": "bool", "default": false},
    "stop_timeout_s": {"description": "Seconds until a stopping engine is killed.", "type": "int", "default": 60},
    "limits": {"description": "What a healthy host shows (longhaul.burnin.judge.Limits).", "type": "dict", "default": {}},
    "script": {"description": "The all-reduce program's text.", "type": "str", "default": ""},
    "gpu_indexes": {"description": "GPUs of the endpoint, which must be empty (V(begun)); none means all.",
      "type": "list", "elements": "int", "default": []},
    "mib": {"description": "Size of the all-reduced buffer in MiB.", "type": "int", "default": 1024},
    "device": {"description": "cuda, rocm or cpu (V(begun)).", "type": "str", "default": "cuda"},
    "timeout_s": {"description": "Seconds for the all-reduce.", "type": "int", "default": 180},
    "allreduce": {"description": "What V(reduced) returned.", "type": "dict"},
    "failure": {"description": "Why the burn-in ended early.", "type": "str", "default": ""},
    "progress_file": {"description": "Set by the action plugin.", "type": "path"}}}
"""

EXAMPLES = r"""
- name: Refuse a host that serves
  longhaul_burnin: {home: /opt/longhaul, state: look}
"""

RETURN = r"""
serving: {description: Endpoints that run here., returned: state look, type: list}
paused: {description: Endpoints to start again., returned: state begun and ended, type: list}
allreduce: {description: "bus_gb_per_s and more, or skipped, or error.", returned: state reduced, type: dict}
verdict: {description: "PASS, FAIL, INVALID or INCONCLUSIVE.", returned: state judged, type: str}
checks: {description: One line a finding., returned: state judged, type: list}
out_dir: {description: Where the evidence lies., returned: state judged, type: str}
"""

from ansible.module_utils.longhaul_module import AnsibleModule, ProgressWriter, endpoint, run_module

from typing import Any

from ansible.module_utils.longhaul.burnin import host
from ansible.module_utils.longhaul.burnin.judge import limits_from
from ansible.module_utils.longhaul.deploy.spec import load_spec


def work(module: AnsibleModule, progress: ProgressWriter) -> dict[str, Any]:
    options = module.params
    where = endpoint(module)
    state, run_id = options["state"], options["run_id"]
    limits = limits_from(options["limits"])
    result = {"changed": False}
    if state == "look":
        host.check_instance(where, options["host_instance"])
        others = host.serving(where)
        host.refuse_if_serving(others, options["replace"])
        return {**result, "serving": [other.instance for other in others]}
    if module.check_mode:
        return result
    if state == "begun":
        given = {name: options[name] for name in ("replace", "stop_timeout_s")}
        return result | host.begin(where, run_id, **given, on_gpu=options["device"] != "cpu", gpus=options["gpu_indexes"])
    if state == "reduced":
        spec, script = load_spec(where), options["script"]
        found = host.measure_all_reduce(where, run_id, spec, script, mib=options["mib"], timeout_s=options["timeout_s"])
        return {**result, "allreduce": found}
    if state == "ended":
        return {**result, "paused": host.end(where, run_id)}
    ends = {name: options[name] for name in ("allreduce", "failure")}
    run, facts = host.conclude(where, options["host_instance"], run_id, host=options["name"], limits=limits, **ends)
    return {
        **result,
        "verdict": run.verdict.value,
        "reasons": [r.text for r in run.reasons],
        "checks": [str(c) for c in run.burnin.checks] if run.burnin else [],
        "out_dir": str(host.evidence(where, run_id)),
        "ansible_facts": {"longhaul": facts},
    }


def main() -> None:
    run_module(DOCUMENTATION, work)


if __name__ == "__main__":
    main()
