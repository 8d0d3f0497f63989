"""The engines: one line for each. A test puts a third one here and deploys it (tests/e2e/test_third_engine.py)."""

from __future__ import annotations

from ..errors import UserError
from ..models.architecture import ModelArchitecture
from ..physics.hardware import Gpu
from .base import EngineAdapter
from .sglang.adapter import ADAPTER as SGLANG
from .sizing import PlanSettings, Sizing, Stage
from .vllm.adapter import ADAPTER as VLLM

# Every adapter that is imported above. Ansible brings to a host what is imported by name, so that no folder is searched.
ENGINES: dict[str, EngineAdapter] = {x.name: x for x in tuple(globals().values()) if isinstance(x, EngineAdapter)}
# The engine of a deployment that names none.
DEFAULT_ENGINE = VLLM.name


def get_engine(name: str) -> EngineAdapter:
    """The adapter of that name, or a UserError that lists the known ones."""
    try:
        return ENGINES[name]
    except KeyError:
        raise UserError(f"engine {name!r}", "one of " + ", ".join(ENGINES), "set engine_name") from None


def takers_note(setting: str) -> str:
    """Which engines take a setting, as a sentence; empty where all do."""
    takers = [engine.name for engine in ENGINES.values() if setting in engine.takes]
    return f"Only for {' and '.join(takers)}." if 0 < len(takers) < len(ENGINES) else ""


def sizing_of(model: ModelArchitecture, gpu: Gpu, s: PlanSettings, stages: tuple[Stage, ...] | None = None) -> Sizing:
    """What the engine of a plan would do with its memory. ``stages``: weights counted before."""
    return get_engine(s.engine).sizing(model, gpu, s, stages)
