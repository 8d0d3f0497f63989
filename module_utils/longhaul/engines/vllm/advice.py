"""What vLLM refuses at its start or dies of later, whatever the plan's sums say, and which of its settings make room."""

from __future__ import annotations

from dataclasses import replace

from ...errors import Finding
from ...models.architecture import AttentionKind, ModelArchitecture
from ...physics.hardware import GIB, Gpu
from ..sizing import Change, PlanSettings
from .rules import block_faults, vllm_rules

# What the CUDA context takes before vLLM looks at the free memory (H100 and H200, driver 580).
_CONTEXT_GIB = 1.43
# Memory left beside the share and the CUDA context: 1.74 GiB was too little on two H100, 9.7 GiB enough on two H200.
# Nothing between was tried.
_PIPELINE_ROOM_GIB = 2.0


def findings(model: ModelArchitecture, gpu: Gpu, s: PlanSettings) -> list[Finding]:
    """Block sizes that vLLM refuses, and a pipeline that would leave NCCL no room."""
    chunks = {x.window_tokens for x in model.layers if x.kind is AttentionKind.CHUNKED and x.window_tokens}
    faults = block_faults(s.release, s.block_size_tokens, on_cpu=gpu.vendor == "cpu", attention_chunks=chunks)
    return [Finding(f.found, f.required, f.fix, "refuse", "block_size") for f in faults] + _pipeline_room(gpu, s)


def _pipeline_room(gpu: Gpu, s: PlanSettings) -> list[Finding]:
    """Warn of a memory share that leaves a vLLM pipeline too little for NCCL.

    NCCL makes the communicators between two stages at the first request, after the profile that sizes the KV cache: vLLM 0.25.1 in
    two stages at share 0.96 of two H100 became healthy and died of its first request (docs/results/2026-11-25-2x-h100, vllm-pp2).
    """
    if s.pipeline_parallel < 2 or gpu.vendor != "nvidia" or s.gpu_memory_utilization is None:
        return []
    share, default = s.gpu_memory_utilization, vllm_rules(s.release).memory_utilization
    left_gib = gpu.usable_bytes / GIB * (1 - share) - _CONTEXT_GIB
    if share <= default or left_gib >= _PIPELINE_ROOM_GIB:
        return []
    return [
        Finding(
            f"{max(left_gib, 0):.1f} GiB of a GPU left beside a share of {share:g} in {s.pipeline_parallel} pipeline stages",
            f"at least {_PIPELINE_ROOM_GIB:.0f} GiB: NCCL takes memory at a pipeline's first request, which no profile counts; without it "
            "a healthy server dies then",
            f"lower gpu memory utilization to the engine's own {default:g}",
            "warn",
            "pipeline_room",
        )
    ]


def changes(model: ModelArchitecture, gpu: Gpu, s: PlanSettings) -> list[Change]:
    """Fewer requests at once: the logits of a full batch take memory."""
    if s.max_num_seqs is None and s.available_kv_gib is None and gpu.vendor != "cpu":
        return [Change("max_num_seqs 16", replace(s, max_num_seqs=16), dear=True)]
    return []
