"""Specs for tests that are about something else."""

from __future__ import annotations

from typing import Any

from longhaul.deploy.runtimes.registry import RUNTIMES
from longhaul.deploy.spec import Spec, render_spec
from longhaul.engines.settings import settings_from


def make_spec(
    runtime: str = "process",
    *,
    instance: str = "default",
    python: str = "/p",
    container: dict[str, Any] | None = None,
    env: dict[str, str] | None = None,
    spec_id: str | None = None,
    **settings: Any,
) -> Spec:
    """A vLLM endpoint. ``spec_id`` gives it a name instead of its id."""
    options = {"model_path": "/m", "served_model_name": "m", "context_tokens": 8192, **settings}
    image = {"image": "vllm/vllm-openai:v0.12.0", "cache_dir": "/opt/longhaul/cache", **(container or {})}
    part = RUNTIMES[runtime].part_of_spec(image)
    made = render_spec("vllm", "0.12.0", runtime, settings_from(options), instance=instance, python=python, container=part)
    changes = {"env": env, "spec_id": spec_id}
    return Spec.parse({**made.document, **{k: v for k, v in changes.items() if v is not None}}, "test")
