"""vLLM's KV pool: equal blocks that all groups of layers draw from. The sums are the engine's own, release by release.

A *block* is the KV page of one group of layers, ``block`` tokens long. Without a given size of the KV memory it is estimated from
what vLLM was seen to take beside weights and KV.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass, field

from ...dtypes import normal_dtype
from ...errors import UserError
from ...models.architecture import AttentionKind, ModelArchitecture
from ...physics.hardware import GIB, Gpu
from ...version import Version
from ..sizing import KvGroup, PlanSettings, Pool, Sizing, Stage, cut_stages, hybrid_mode
from .allocator import fp8_load_slack_bytes
from .rules import VERIFIED, VllmRules, vllm_rules


def stage_layers(layers: int, stages: int) -> list[int]:
    """Layers of each pipeline stage: the stages before the last take a remainder (distributed/utils.py: get_pp_indices)."""
    sizes = [layers // stages] * stages
    for i in range(layers % stages):
        sizes[-(i + 2)] += 1
    return sizes


@dataclass(frozen=True)
class VllmSizing(Sizing):
    """vLLM v1: a pool of equal blocks that all groups draw from (v1/core/kv_cache_utils.py)."""

    rules: VllmRules = field(default_factory=lambda: vllm_rules(Version.parse(VERIFIED[1])))
    block: int = 16
    in_flight: int = 0

    @functools.cached_property
    def block_bytes(self) -> int:
        """One block on the fullest stage: a page for each layer of its largest group."""
        widest = max(max(self.layers_in(st, g) for g in self.groups) for st in self.stages)
        return widest * self.block * self.layer_token_bytes

    def group_blocks(self, group: KvGroup, tokens: int) -> int:
        """Blocks that one request of ``tokens`` takes from a group (v1/kv_cache_interface.py: max_memory_usage_bytes)."""
        if group.window_tokens is None:
            return -(-tokens // group.block_size)
        if group.kind is AttentionKind.CHUNKED:
            return -(-min(group.window_tokens + self.in_flight, tokens) // group.block_size)
        return -(-min(group.window_tokens - 1 + self.in_flight, tokens) // group.block_size) + 1

    def request_blocks(self, tokens: int) -> int:
        """Blocks of one request over all groups."""
        return sum(self.group_blocks(g, tokens) for g in self.groups)

    @functools.cached_property
    def load_slack_bytes(self) -> int:
        on_load = normal_dtype(self.settings.weights_dtype) == "fp8" and self.model.quantization is None
        if not (on_load and self.rules.unsplit_load) or self.gpu.vendor == "cpu":
            return 0
        tp = self.settings.tensor_parallel
        return max(fp8_load_slack_bytes(self.model, tp, stage.first, stage.end) for stage in self.stages)

    @functools.cached_property
    def last_stage_less_bytes(self) -> int:
        """Memory the last pipeline stage lacks compared with the first. vLLM prints the first stage's; the last also samples.

        0.95 and 0.90 of the fp32 logits in two starts of vLLM 0.25.1 with PyTorch's sampler (H100, H200; "visit-memory" in the logs).
        """
        return round(0.92 * fp32_logits_bytes(self.model, self.gpu, self.settings, self.batched)) if len(self.stages) > 1 else 0

    def estimate(self) -> tuple[int, int, int]:
        if self.gpu.vendor == "cpu":
            raise UserError("a CPU plan without KV space", "--available-kv-gib", "give VLLM_CPU_KVCACHE_SPACE, in GiB")
        share = self.settings.gpu_memory_utilization
        share = self.rules.memory_utilization if share is None else share
        overhead, margin = _runtime_overhead_bytes(self.model, self.gpu, self.settings, self.batched)
        weights = max(x.weights_bytes for x in self.stages)
        best = int(self.gpu.usable_bytes * share) - weights - self.rope - self.load_slack_bytes - overhead
        return best - margin, best, best + margin

    def _tokens(self, blocks: int) -> int:
        context = self.settings.context_tokens
        if self.rules.printed_tokens == "blocks":
            return blocks // len(self.groups) * self.block
        # The engine multiplies floats; so must the exact figure.
        return int(blocks / self.request_blocks(context) * context)

    def pool(self, available: int) -> Pool:
        blocks = max(available // self.block_bytes, 0)
        return Pool(available, blocks, self._tokens(blocks), blocks / self.request_blocks(self.settings.context_tokens))

    def pool_sum(self, pool: Pool) -> str:
        context = self.settings.context_tokens
        per = self.request_blocks(context)
        head = f"{pool.available_bytes:,} B // {self.block_bytes:,} B per block = {pool.units:,} blocks"
        ratio = f"{pool.units:,} / {per:,} per request of {context:,} = {pool.concurrency:.2f}x"
        if self.rules.printed_tokens == "blocks":
            figure = f"{pool.units:,} // {len(self.groups)} groups x {self.block} = {pool.tokens:,} tokens"
        else:
            figure = f"int({pool.concurrency:.6f} x {context:,}) = {pool.tokens:,} tokens"
        return f"{head}; {ratio}; {figure}"

    def at_once(self, available: int, tokens: int) -> float:
        # One block is the pool's null block and never handed out (v1/core/block_pool.py).
        return max(available // self.block_bytes - 1, 0) / self.request_blocks(tokens)

    def request_bytes(self, tokens: int) -> int:
        return self.request_blocks(tokens) * self.block_bytes

    def explains(self, printed: int, low: int, high: int) -> bool:
        context, size = self.settings.context_tokens, self.block_bytes
        first, last = max(low // size, 0), max(high // size, 0)
        if self.rules.printed_tokens == "blocks":
            guess = printed // self.block * len(self.groups)
        else:
            guess = math.ceil(printed * self.request_blocks(context) / context)
        near = range(max(first, guess - 2), min(last, guess + len(self.groups) + 2) + 1)
        return any(self._tokens(n) == printed for n in near)

    def engine_starts(self, available: int) -> bool:
        """Whether this release's own start-up check lets the server start (it may, and then hold no request)."""
        context = self.settings.context_tokens
        if self.rules.start_check == "layers":
            kinds = [KvGroup(x.kind, x.window_tokens, self.block, (x.index,)) for x in self.model.layers]
            blocks = max(sum(self.group_blocks(k, context) for k in kinds[st.first : st.end]) for st in self.stages)
            return blocks * self.block * self.layer_token_bytes <= available
        if self.rules.start_check == "first_group":
            return self.group_blocks(self.groups[0], context) * self.block_bytes <= available
        held = self.block_bytes if self.rules.check_reserves_null_block else 0
        return self.request_bytes(context) <= available - held

    def own_figures(self, pool: Pool) -> Mapping[str, int]:
        return {"kv_blocks": pool.units}

    def own_steps(self) -> tuple[tuple[str, str, str], ...]:
        cell, context = self.layer_token_bytes, self.settings.context_tokens
        widest = self.block_bytes // (self.block * cell)
        how = " + ".join(f"{self.group_blocks(g, context):,}" for g in self.groups)
        if any(g.window_tokens is not None for g in self.groups):
            how += f"; a local group holds its window and {self.in_flight:,} tokens in flight"
        return (
            ("one block", f"{self.block_bytes:,} B", f"{self.block} tokens x {cell:,} B x {widest} layers"),
            ("blocks per request", f"{self.request_blocks(context):,}", how),
        )


def _default_batched_tokens(s: PlanSettings, gpu: Gpu, rules: VllmRules) -> int:
    """max_num_batched_tokens of the API server (engine/arg_utils.py: get_batch_defaults)."""
    if s.max_num_batched_tokens is not None:
        return s.max_num_batched_tokens
    if gpu.vendor == "cpu":
        tokens, default_seqs = 2048 * s.gpus, 128 * s.gpus
    elif rules.large_gpu_batch and gpu.usable_bytes >= 160 * GIB:
        tokens, default_seqs = 16384, 1024
    elif gpu.usable_bytes >= 70 * GIB and not gpu.name.startswith("a100"):
        tokens, default_seqs = 8192, 1024
    else:
        tokens, default_seqs = 2048, 256
    return min(tokens, (s.max_num_seqs or default_seqs) * s.context_tokens)


def _default_seqs(s: PlanSettings, gpu: Gpu) -> int:
    if s.max_num_seqs is not None:
        return s.max_num_seqs
    return 1024 if gpu.usable_bytes >= 70 * GIB and not gpu.name.startswith("a100") else 256


def fp32_logits_bytes(model: ModelArchitecture, gpu: Gpu, s: PlanSettings, batched: int) -> int:
    """vLLM: what the logits of a full batch take in fp32, as its memory profile samples them."""
    return 4 * min(_default_seqs(s, gpu), batched) * model.vocab_size


def _runtime_overhead_bytes(model: ModelArchitecture, gpu: Gpu, s: PlanSettings, batched: int) -> tuple[int, int]:
    """Estimated bytes beyond weights and KV on a GPU of the last pipeline stage, which samples, and the margin of that estimate.

    Outside PyTorch 0.24 GiB, 0.62 GiB with all-reduces, 0.08 GiB in a pipeline without; fp32 logits of a full batch and what the
    sampler makes of them, 3.7 times with PyTorch's, twice with FlashInfer's; activations of one batch; from 0.21.0 on what the
    engine reserves for CUDA graphs; 4 GiB for the dummy images that a vision model is profiled with.
    The parts as vLLM 0.25.1 with PyTorch's sampler found them for Llama-4-Scout on H200 and H100 (docs/results, "visit-memory" in
    the logs), in GiB: TP1 0.24 + 3.30 + 0.41, TP2 0.62 + 3.13 + 1.47 (chunk 16,384: 3.41, 32,768: 3.97, exactly linear), the last of two
    stages 0.07 + 3.46 + 0.41. FlashInfer's share is counted, not measured. The engine extrapolates its graphs from the first two: whether
    the second needed a new block of 20 MiB or not makes 1.47 or, seen twice on H100, 0.51 GiB of them.
    """
    tp, pp = s.tensor_parallel, s.pipeline_parallel
    outside = 0.62 if tp > 1 else 0.08 if pp > 1 else 0.24
    logits = fp32_logits_bytes(model, gpu, s, batched)
    widest = max((x.ffn_active_parameters // max(model.hidden_size, 1) for x in model.layers), default=0)
    if s.torch_sampler:
        # While it samples: two hidden states and the experts' workspace are held; what the layers took is free again.
        peak = 3.7 * logits + 2 * batched * (2 * model.hidden_size + widest // 3 // tp)
    else:
        peak = 2.0 * logits + 2 * batched * (6 * model.hidden_size + widest // tp)
    if pp > 1:
        # What the stage before hands over: hidden state and residual.
        peak += 2 * batched * 2 * model.hidden_size
    graphs = 0.0
    if vllm_rules(s.release).graphs_reserved and not s.enforce_eager:
        graphs = 0.41 if tp == 1 else len(model.layers) / pp * 1.47 / 48
    vision = 0 if s.text_only or not model.vision_parameters else 4 * GIB
    total = int((outside + graphs) * GIB + peak + vision)
    return total, total // 2 + GIB // 2


def _vllm_groups(model: ModelArchitecture, mode: str, rules: VllmRules, block: int) -> tuple[KvGroup, ...]:
    """The engine's grouping: layers of one kind in equal groups as large as the rarest kind has layers; kinds of nearly
    equal counts are padded up to the larger. ``layers[i::n]`` go to group i, so that pipeline stages share every group."""
    everything = tuple(range(len(model.layers)))
    if mode == "uniform":
        only = model.layers[0]
        return (KvGroup(only.kind, only.window_tokens, block, everything),)
    if mode == "off":
        return (KvGroup(AttentionKind.GLOBAL, None, block, everything),)
    kinds: dict[tuple[AttentionKind, int | None], list[int]] = {}
    for layer in model.layers:
        kinds.setdefault((layer.kind, layer.window_tokens), []).append(layer.index)
    least, most = min(map(len, kinds.values())), max(map(len, kinds.values()))
    size = most if most < least * rules.padding_ratio else least
    groups = []
    for (kind, window), indices in kinds.items():
        count = -(-len(indices) // size)
        groups += [KvGroup(kind, window, block, tuple(indices[i::count])) for i in range(count)]
    return tuple(groups)


def _vllm_block(model: ModelArchitecture, gpu: Gpu, s: PlanSettings, rules: VllmRules) -> int:
    """The engine's block size: 16 on GPUs (MLA kernels: 64 on Hopper, 128 on Blackwell), 128 on CPU (platforms/*.py)."""
    if rules.sliding_block == "kernel" and all(x.kind is AttentionKind.SLIDING for x in model.layers):
        # The kernel's smallest, whatever --block-size says.
        return 32 if gpu.vendor == "cpu" else 16
    if s.block_size_tokens is not None:
        return s.block_size_tokens
    if gpu.vendor == "cpu":
        return rules.cpu_mla_block if model.mla else 128
    if model.mla:
        return 128 if (gpu.compute_capability or (0, 0)) >= (10, 0) else 64
    return 16


def vllm_sizing(model: ModelArchitecture, gpu: Gpu, s: PlanSettings, stages: tuple[Stage, ...] | None = None) -> VllmSizing:
    """vLLM's sizing. ``stages``: weights counted before (they do not depend on the context)."""
    stages = stages or cut_stages(model, s, stage_layers(len(model.layers), s.pipeline_parallel))
    rules = vllm_rules(s.release)
    has_chunks = any(x.kind is AttentionKind.CHUNKED for x in model.layers)
    mode = hybrid_mode(model, s.hybrid_kv, rules.chunked_hybrid_default if has_chunks else True)
    block, batched = _vllm_block(model, gpu, s, rules), _default_batched_tokens(s, gpu, rules)
    batches = 1
    if rules.counts_batches_in_flight:
        overlapped = gpu.vendor != "cpu" if s.async_scheduling is None else s.async_scheduling
        batches = s.pipeline_parallel + (overlapped and (s.pipeline_parallel == 1 or rules.one_batch_over_stages))
    groups = _vllm_groups(model, mode, rules, block)
    return VllmSizing(model, gpu, s, stages, batched, mode, groups, rules, block, batched * batches)
