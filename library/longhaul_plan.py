#!/usr/bin/python
from __future__ import annotations

DOCUMENTATION = r"""
{
  "module": "longhaul_plan",
  "short_description": "Plan what an engine will hold, and compare with the engine after its start",
  "description": [
    "V(gate) plans from the deployment's own settings and the host's GPUs, and refuses what cannot hold one request.",
    "V(drift) sets the engine's own figures (read from its log by M(longhaul_wait)) beside the plan."],
  "attributes": {
    "check_mode": {"support": "full", "description": "Changes nothing with or without it."},
    "diff_mode": {"support": "none", "description": "It changes nothing."}},
  "options": {
    "checks": {"description": "What M(longhaul_check) takes, for this host: looked at first (V(gate)).",
      "type": "dict", "default": {}},
    "mode": {"description": "Before or after the start.", "type": "str", "choices": ["gate", "drift"], "default": "gate"},
    "engine": {"description": "Engine name.", "type": "str", "required": true},
    "version": {"description": "Engine version.", "type": "str", "required": true},
    "settings": {"description": "Engine settings.", "type": "dict", "required": true},
    "model_path": {"description": "The model's folder on the host.", "type": "path"},
    "model_config": {"description": "config.json as data, where it is known before the model is there.", "type": "dict"},
    "gpu": {"description": "Name of the GPU; empty means what nvidia-smi says.", "type": "str", "default": ""},
    "ladder_tokens": {"description": "Prompt lengths that validation will ask for.",
      "type": "list", "elements": "int", "default": []},
    "concurrency": {"description": "Requests at once that validation will ask for.",
      "type": "list", "elements": "int", "default": []},
    "output_tokens": {"description": "Tokens that each request generates.", "type": "int", "default": 0},
    "capacity": {"description": "The engine's own figures (V(drift)).", "type": "dict", "default": {}},
    "policy": {"description": "What a refusal or a drift does: V(fail), V(warn) or V(off).",
      "type": "str", "choices": ["fail", "warn", "off"], "default": "fail"},
    "home": {"description": "longhaul_home: figures of the last start are taken from its facts (V(drift)).", "type": "path"},
    "instance": {"description": "Name of the endpoint on this host.", "type": "str", "default": "default"},
    "progress_file": {"description": "Set by the action plugin.", "type": "path"}}}
"""

EXAMPLES = r"""
- name: Plan
  longhaul_plan:
    engine: vllm
    version: 0.12.0
    settings: {model_path: /models/scout, served_model_name: scout, context_tokens: 2097152, tensor_parallel: 8}
    model_path: /models/scout
"""

RETURN = r"""
planned: {description: The plan in short., returned: when one could be made, type: dict}
drift: {description: "predicted, engine, drift, exact.", returned: mode drift, type: dict}
skipped_reason: {description: Why nothing was planned., returned: when nothing was, type: str}
"""

from ansible.module_utils.longhaul_module import AnsibleModule, ProgressWriter, run_module

from pathlib import Path
from typing import Any

from ansible.module_utils.longhaul.capacity.gate import Answer, answer_drift, answer_gate, choose_gpu, drift, gate
from ansible.module_utils.longhaul.deploy.hostfacts import capacity_of_start
from ansible.module_utils.longhaul.deploy.layout import layout
from ansible.module_utils.longhaul.deploy.preflight import as_result, model_config, run_checks
from ansible.module_utils.longhaul.engines.settings import EngineSettings, settings_from
from ansible.module_utils.longhaul.files import read_json
from ansible.module_utils.longhaul.physics.hardware import Gpu, detect_gpus


def work(module: AnsibleModule, progress: ProgressWriter) -> dict[str, Any]:
    options = module.params
    checked, warnings = as_result(run_checks(options["checks"]) if options["checks"] else [])
    for warning in warnings:
        module.warn(warning)
    if checked.get("failed"):
        return checked
    if options["policy"] == "off":
        return {"changed": False, "skipped_reason": "switched off"}
    settings = settings_from(options["settings"])
    config = options["model_config"]
    if options["model_path"]:
        config = model_config(Path(options["model_path"])) or config
    gpu, count = choose_gpu(settings.device, options["gpu"], detect_gpus())
    if options["mode"] == "drift":
        answer, name = after_start(options, settings, config, gpu), "drift"
    else:
        lengths = [tokens + options["output_tokens"] for tokens in options["ladder_tokens"]]
        ladder = [(tokens, at_once) for tokens in lengths for at_once in options["concurrency"]]
        result = gate(options["engine"], options["version"], settings, config, gpu=gpu, host_gpus=count, ladder=ladder)
        answer, name = answer_gate(result, options["policy"], count), "planned"
    for warning in answer.warnings:
        module.warn(warning)
    found: dict[str, Any] = {"changed": False}
    found |= {name: dict(answer.facts)} if answer.facts is not None else {"skipped_reason": answer.skipped}
    return found | ({"failed": True, "msg": answer.refused} if answer.refused else {})


def after_start(options: dict[str, Any], settings: EngineSettings, config: dict[str, Any] | None, gpu: Gpu | None) -> Answer:
    """The engine's own figures, of this start or of the last one that was watched, beside the plan."""
    capacity = options["capacity"] or {}
    if not any(v is not None for v in capacity.values()) and options["home"]:
        capacity = capacity_of_start(read_json(layout(options["home"], options["instance"]).facts_file) or {})
    if config is None or gpu is None:
        return Answer(skipped="no model configuration, or no GPU that we know")
    return answer_drift(drift(options["engine"], options["version"], settings, config, gpu, capacity), options["policy"])


def main() -> None:
    run_module(DOCUMENTATION, work)


if __name__ == "__main__":
    main()
