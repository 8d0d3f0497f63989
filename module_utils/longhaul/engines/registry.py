"""Engine adapters: one file an engine, one line here."""

from __future__ import annotations

from ..errors import UserError
from .base import EngineAdapter
from .sglang.adapter import SGLang
from .vllm.adapter import VLLM

ENGINES: dict[str, EngineAdapter] = {"vllm": VLLM(), "sglang": SGLang()}


def get_engine(name: str) -> EngineAdapter:
    """The adapter of that name, or a UserError that lists the known ones."""
    try:
        return ENGINES[name]
    except KeyError:
        raise UserError(f"engine {name!r}", "one of " + ", ".join(ENGINES), "set engine_name") from None
