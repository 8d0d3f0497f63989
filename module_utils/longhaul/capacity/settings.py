"""A deployment's settings as the plan needs them."""

from __future__ import annotations

from ..engines.base import EngineSettings
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
    return PlanSettings(
        engine=engine,
        release=release,
        context_tokens=wanted.context_tokens,
        tensor_parallel=wanted.tensor_parallel,
        pipeline_parallel=wanted.pipeline_parallel,
        gpu_memory_utilization=wanted.gpu_memory_utilization,
        available_kv_gib=available_kv_gib if available_kv_gib is not None else (wanted.cpu_kv_cache_gib if on_cpu else None),
        kv_dtype=wanted.kv_cache_dtype,
        weights_dtype="fp8" if (wanted.quantization or "").startswith("fp8") else wanted.dtype,
        hybrid_kv=wanted.hybrid_kv,
        max_num_batched_tokens=wanted.max_num_batched_tokens,
        block_size=wanted.block_size_tokens,
        max_num_seqs=wanted.max_num_seqs if max_running_requests is None else max_running_requests,
        text_only=wanted.text_only,
        enforce_eager=wanted.enforce_eager,
        swa_full_tokens_ratio=wanted.swa_full_tokens_ratio,
        max_total_tokens=wanted.max_total_tokens,
        attention_backend=wanted.attention_backend,
        torch_sampler=wanted.extra_env.get("VLLM_USE_FLASHINFER_SAMPLER") == "0",
        concurrency=concurrency,
    )
