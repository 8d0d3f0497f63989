"""A deployment's settings as the plan needs them."""

from __future__ import annotations

from ..engines.settings import EngineSettings, size_values
from ..engines.sizing import PlanSettings
from ..version import Version


def settings_from_engine(
    wanted: EngineSettings,
    engine: str,
    release: Version,
    *,
    max_running_requests: int | None = None,
    concurrency: int = 1,
    available_kv_gib: float | None = None,
) -> PlanSettings:
    """A deployment's settings -> what the plan needs of them. On CPU the KV space is the available memory."""
    on_cpu = wanted.device == "cpu"
    own = size_values(wanted)
    if max_running_requests is not None:
        own["max_num_seqs"] = max_running_requests
    return PlanSettings(
        engine,
        release,
        **own,
        available_kv_gib=available_kv_gib if available_kv_gib is not None else (wanted.cpu_kv_cache_gib if on_cpu else None),
        kv_dtype=wanted.kv_cache_dtype,
        weights_dtype="fp8" if (wanted.quantization or "").startswith("fp8") else wanted.dtype,
        block_size=wanted.block_size_tokens,
        torch_sampler=wanted.extra_env.get("VLLM_USE_FLASHINFER_SAMPLER") == "0",
        concurrency=concurrency,
    )
