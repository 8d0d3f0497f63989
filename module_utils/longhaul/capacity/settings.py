"""A deployment's settings as the plan needs them."""

from __future__ import annotations

from ..engines.registry import get_engine
from ..engines.settings import EngineSettings, size_values
from ..engines.sizing import PlanSettings
from ..version import Version


def settings_from_engine(
    wanted: EngineSettings,
    engine: str,
    release: Version,
    *,
    concurrency: int = 1,
    available_kv_gib: float | None = None,
) -> PlanSettings:
    """A deployment's settings -> what the plan needs of them. On CPU the KV space is the available memory."""
    on_cpu = wanted.device == "cpu"
    planned = PlanSettings(
        engine,
        release,
        **size_values(wanted),
        available_kv_gib=available_kv_gib if available_kv_gib is not None else (wanted.cpu_kv_cache_gib if on_cpu else None),
        weights_dtype="fp8" if (wanted.quantization or "").startswith("fp8") else wanted.dtype,
        concurrency=concurrency,
    )
    return get_engine(engine).planned(wanted, planned)
