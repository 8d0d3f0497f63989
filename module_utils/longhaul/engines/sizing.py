"""The pools of the two engines: what a GPU loads, what a request takes, how many tokens a pool of given bytes holds.

:mod:`capacity` asks here and judges there. Terms: a *block* is vLLM's KV page for one group of layers, ``block_size``
tokens long; a *group* is a set of layers of one attention kind that share a block table; SGLang counts token slots.
"""

from __future__ import annotations

import functools
import math
from dataclasses import KW_ONLY, dataclass, field
from typing import Literal

from ..dtypes import DTYPE_BYTES, normal_dtype
from ..errors import UserError
from ..models.architecture import AttentionKind, ModelArchitecture
from ..physics.hardware import GIB, Gpu
from ..version import Version
from .block_size import check_one_token
from .rules import SGLANG_SPLIT_ARCHITECTURES, SglangRules, VllmRules, sglang_rules, vllm_rules
from .settings import SizeSettings
from .vllm.allocator import fp8_load_slack_bytes

# The engines print memory with two decimals: the true figure lies within half of the last one.
_PRINTED_HALF_GIB = 0.005
LONGEST_TOKENS = 1 << 40

# What the engines keep KV in, as far as the plan can size it.
_KV_DTYPES = ("bf16", "fp16", "fp32", "fp8")


@dataclass(frozen=True)
class PlanSettings(SizeSettings):
    """What is to be deployed. ``None``, ``"auto"`` and ``"default"`` mean: as this engine release decides by itself.

    Lengths in tokens, memory in GiB per GPU. ``available_kv_gib`` is the engine's "Available KV cache memory" (on CPU the
    KV space); with it the plan is exact. ``text_only``: the engine is told to leave out the vision tower.
    ``concurrency``: how many requests of ``context_tokens`` are meant to run at once (a warning if they do not fit).
    """

    engine: str
    release: Version
    _: KW_ONLY
    text_only: bool = False
    available_kv_gib: float | None = None
    kv_dtype: str = "auto"
    weights_dtype: str = "auto"
    block_size: int | None = None
    cuda_graph_max_batch: int | None = None
    async_scheduling: bool | None = None
    torch_sampler: bool = False
    concurrency: int = 1

    @property
    def gpus(self) -> int:
        """GPUs taken: TP x PP."""
        return self.tensor_parallel * self.pipeline_parallel


@dataclass(frozen=True)
class KvGroup:
    """Layers that share a block table. ``layers``: their indices. ``window_tokens`` of a local kind, else ``None``."""

    kind: AttentionKind
    window_tokens: int | None
    block_size: int
    layers: tuple[int, ...]


@dataclass(frozen=True)
class Pool:
    """The KV pool at one ``available`` memory. ``tokens``: the figure that the engine prints.

    ``units`` are vLLM's blocks or SGLang's token slots; ``local_tokens`` SGLang's pool for local layers.
    """

    available_bytes: int
    units: int
    tokens: int
    concurrency: float
    local_tokens: int | None = None


def check_settings(s: PlanSettings) -> None:
    if s.engine not in {"vllm", "sglang"}:
        raise UserError(f"engine {s.engine!r}", "vllm or sglang, with a version: vllm==0.12.0", "name a supported engine")
    numbers = {
        "context": s.context_tokens,
        "tensor parallel size": s.tensor_parallel,
        "pipeline parallel size": s.pipeline_parallel,
        "max_num_batched_tokens": s.max_num_batched_tokens,
        "max_num_seqs": s.max_num_seqs,
        "concurrency": s.concurrency,
        "max_total_tokens": s.max_total_tokens,
    }
    for label, value in numbers.items():
        if value is not None and value < 1:
            raise UserError(f"{label} {value}", "a whole number of at least 1", f"give a positive {label}")
    check_one_token(s.block_size)
    if s.available_kv_gib is not None and not 0 < s.available_kv_gib < 1 << 20:
        raise UserError(f"available KV memory of {s.available_kv_gib} GiB", "a positive size in GiB", "take it from the log")
    if s.gpu_memory_utilization is not None and not 0 < s.gpu_memory_utilization <= 1:
        raise UserError(f"GPU memory utilization {s.gpu_memory_utilization}", "above 0, at most 1", "give a share such as 0.9")
    if s.swa_full_tokens_ratio is not None and not 0 < s.swa_full_tokens_ratio <= 1:
        raise UserError(f"swa-full-tokens-ratio {s.swa_full_tokens_ratio}", "above 0, at most 1", "give a share such as 0.05")
    if s.cuda_graph_max_batch is not None and s.cuda_graph_max_batch < 0:
        raise UserError(f"CUDA graph batch {s.cuda_graph_max_batch}", "0 (no graphs) or more", "give 0 to switch graphs off")
    for label, word, known in (
        ("KV dtype", s.kv_dtype, {"auto", *_KV_DTYPES}),
        ("weights dtype", s.weights_dtype, {"auto", "bf16", "fp16", "fp8", "fp32"}),
    ):
        if normal_dtype(word) not in known:
            raise UserError(f"{label} {word!r}", "one of " + ", ".join(sorted(known)), "name a dtype that the plan can size")


def kv_splits(model: ModelArchitecture, tp: int) -> bool:
    return model.mla is not None or model.kv_heads % tp == 0 or tp % model.kv_heads == 0


# --------------------------------------------------------------------------------------------------------------- memory


@dataclass(frozen=True)
class Stage:
    """One pipeline stage: its layers, and what one of its GPUs loads."""

    first: int
    end: int
    weights_bytes: int


def _stage_bounds(layers: int, stages: int, engine: str) -> list[tuple[int, int]]:
    """How the engines cut layers into stages: vLLM gives a remainder to the stages before the last one
    (distributed/utils.py: get_pp_indices), SGLang to the last stages."""
    sizes = [layers // stages] * stages
    for i in range(layers % stages):
        sizes[-(i + 2) if engine == "vllm" else -(i + 1)] += 1
    bounds, start = [], 0
    for size in sizes:
        bounds.append((start, start + size))
        start += size
    return bounds


def stages_of(model: ModelArchitecture, s: PlanSettings) -> tuple[Stage, ...]:
    """Weights a GPU by stage. Sharded over TP: embedding, head, attention, feed-forward. Whole on every GPU: routers,
    norms, MLA's down-projections, and KV projections beyond one head a GPU (replicated)."""
    tp = s.tensor_parallel
    base_bytes = 4.0 if normal_dtype(s.weights_dtype) == "fp32" else 2.0
    quant = model.quantization
    linear_bytes = expert_bytes = base_bytes
    if normal_dtype(s.weights_dtype) == "fp8":
        linear_bytes = expert_bytes = 1.0
    elif quant and normal_dtype(s.weights_dtype) == "auto":
        expert_bytes = quant.bits_per_weight / 8
        linear_bytes = expert_bytes if quant.scope == "linear" else base_bytes
    if model.mla:
        whole = model.hidden_size * (model.mla.cache_width + (model.mla.q_lora_rank or 0))
        kv_all = kv_here = 0
    else:
        whole = 0
        kv_all = 2 * model.hidden_size * model.kv_heads * model.head_dim
        kv_here = 2 * model.hidden_size * model.head_dim * max(1, model.kv_heads // tp)
    per_layer = []
    for layer in model.layers:
        router = model.hidden_size * model.experts if layer.moe else 0
        attention = (layer.attention_parameters - kv_all - whole) / tp + kv_here + whole
        shared = (layer.ffn_parameters - layer.expert_parameters - router) / tp
        per_layer.append(
            (attention + shared) * linear_bytes
            + layer.expert_parameters / tp * expert_bytes
            + (router + layer.norm_parameters) * base_bytes
        )
    vision = 0.0 if s.text_only else model.vision_parameters / tp * base_bytes
    embedding, head = model.embedding_parameters / tp * base_bytes, model.head_parameters / tp * base_bytes
    bounds = _stage_bounds(len(model.layers), s.pipeline_parallel, s.engine)
    stages = []
    for number, (first, end) in enumerate(bounds):
        total = sum(per_layer[first:end])
        last = number == len(bounds) - 1
        if number == 0:
            total += embedding + vision
        if last:
            total += 0.0 if model.tied_embeddings and number == 0 else head
            total += model.final_norm_parameters * base_bytes
        stages.append(Stage(first, end, round(total)))
    return tuple(stages)


def _rope_bytes(model: ModelArchitecture, s: PlanSettings) -> int:
    """The cos/sin table: one row a position, shared by all layers. vLLM keeps it in the model's dtype, SGLang in fp32."""
    return model.rope_positions * model.rope_dim * (4 if s.engine == "sglang" else 2)


def _default_batched_tokens(s: PlanSettings, gpu: Gpu, rules: VllmRules) -> int:
    """max_num_batched_tokens of the API server (engine/arg_utils.py: get_batch_defaults)."""
    if s.max_num_batched_tokens is not None:
        return s.max_num_batched_tokens
    seqs = s.max_num_seqs
    if gpu.vendor == "cpu":
        tokens, default_seqs = 2048 * s.gpus, 128 * s.gpus
    elif rules.large_gpu_batch and gpu.usable_bytes >= 160 * GIB:
        tokens, default_seqs = 16384, 1024
    elif gpu.usable_bytes >= 70 * GIB and not gpu.name.startswith("a100"):
        tokens, default_seqs = 8192, 1024
    else:
        tokens, default_seqs = 2048, 256
    return min(tokens, (seqs or default_seqs) * s.context_tokens)


def _default_seqs(s: PlanSettings, gpu: Gpu) -> int:
    if s.max_num_seqs is not None:
        return s.max_num_seqs
    return 1024 if gpu.usable_bytes >= 70 * GIB and not gpu.name.startswith("a100") else 256


def fp32_logits_bytes(model: ModelArchitecture, gpu: Gpu, s: PlanSettings, batched: int) -> int:
    """vLLM: what the logits of a full batch take in fp32, as its memory profile samples them."""
    return 4 * min(_default_seqs(s, gpu), batched) * model.vocab_size


def _runtime_overhead_bytes(model: ModelArchitecture, gpu: Gpu, s: PlanSettings, batched: int) -> tuple[int, int]:
    """Estimated memory beyond weights and KV on a GPU (of the last pipeline stage, which samples), and its margin, both bytes.

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


# --------------------------------------------------------------------------------------------------------------- sizing


def _round_bytes(gib: float) -> int:
    return round(gib * GIB)


@dataclass(frozen=True)
class Sizing:
    """All that does not depend on how much memory there is: groups, costs, weights. One engine each below."""

    model: ModelArchitecture
    gpu: Gpu
    settings: PlanSettings
    stages: tuple[Stage, ...]
    rope: int
    kv_dtype: str
    kv_dtype_bytes: float
    batched: int
    hybrid: Literal["on", "off", "uniform"]
    groups: tuple[KvGroup, ...] = ()

    @property
    def load_slack_bytes(self) -> int:
        """Bytes of a GPU that loading the weights leaves unusable beside them."""
        return 0

    # What each engine answers.
    def available(self) -> tuple[int, int, int]:
        """(low, best, high) bytes for KV on one GPU."""
        raise NotImplementedError

    def pool(self, available: int) -> Pool:
        """The pool at that many bytes."""
        raise NotImplementedError

    def pool_sum(self, pool: Pool) -> str:
        """The sum that led to ``pool.tokens``, in words."""
        raise NotImplementedError

    def at_once(self, available: int, tokens: int) -> float:
        """How many requests of ``tokens`` run at once (the engine's own reserve taken off)."""
        raise NotImplementedError

    def request_bytes(self, tokens: int) -> int:
        """KV bytes a GPU of one request."""
        raise NotImplementedError

    def explains(self, printed: int, low: int, high: int) -> bool:
        """Whether some pool between ``low`` and ``high`` bytes prints exactly that many tokens."""
        raise NotImplementedError

    def fixed_costs(self, pool: Pool) -> tuple[tuple[str, int], ...]:
        """The engine's own fixed costs that grow with the context, outside the pool: (label, bytes)."""
        return ()

    def fixed_room(self) -> int | None:
        """Bytes that those fixed costs may take, ``None`` if unlimited."""
        return None

    @functools.cached_property
    def layer_token_bytes(self) -> int:
        """KV bytes a token and layer on one GPU. MLA's latent is whole on every GPU; KV heads are split, then replicated."""
        if self.model.mla:
            return round(self.model.mla.cache_width * self.kv_dtype_bytes)
        heads = max(1, self.model.kv_heads // self.settings.tensor_parallel)
        return round(2 * heads * self.model.head_dim * self.kv_dtype_bytes)

    def layers_in(self, stage: Stage, group: KvGroup) -> int:
        """Layers of that group in that stage."""
        return sum(stage.first <= i < stage.end for i in group.layers)

    def marginal_token_bytes(self) -> int:
        """One more token of a long request: only groups that keep every token pay, each a whole block row of the pool."""
        growing = [g for g in self.groups if g.window_tokens is None]
        return max((sum(self.layers_in(st, g) for g in growing) for st in self.stages), default=0) * self.layer_token_bytes

    def _estimate(self, utilization: float) -> tuple[int, int, int]:
        overhead, margin = _runtime_overhead_bytes(self.model, self.gpu, self.settings, self.batched)
        weights = max(x.weights_bytes for x in self.stages)
        best = int(self.gpu.usable_bytes * utilization) - weights - self.rope - self.load_slack_bytes - overhead
        return best - margin, best, best + margin

    def _given(self) -> tuple[int, int, int] | None:
        gib = self.settings.available_kv_gib
        if gib is None:
            return None
        best = _round_bytes(gib)
        # A figure with at most two decimals on a GPU was read off a log: the true one was rounded.
        rounded = self.gpu.vendor != "cpu" and abs(gib * 100 - round(gib * 100)) < 1e-6
        half = _round_bytes(_PRINTED_HALF_GIB) if rounded else 0
        return best - half, best, best + half


@dataclass(frozen=True)
class VllmSizing(Sizing):
    """vLLM v1: a pool of equal blocks that all groups draw from (v1/core/kv_cache_utils.py)."""

    rules: VllmRules = field(default_factory=lambda: vllm_rules(Version((0, 33, 0))))
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
        """KV memory that the last of several stages has less than the first, whose figure is the one that vLLM prints: it samples.

        0.95 and 0.90 of the fp32 logits in two starts of vLLM 0.25.1 with PyTorch's sampler (H100, H200; "visit-memory" in the logs).
        """
        return round(0.92 * fp32_logits_bytes(self.model, self.gpu, self.settings, self.batched)) if len(self.stages) > 1 else 0

    def available(self) -> tuple[int, int, int]:
        given = self._given()
        if given:
            return given
        if self.gpu.vendor == "cpu":
            raise UserError("a CPU plan without KV space", "--available-kv-gib", "give VLLM_CPU_KVCACHE_SPACE, in GiB")
        share = self.settings.gpu_memory_utilization
        return self._estimate(self.rules.memory_utilization if share is None else share)

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
        head = f"{pool.available_bytes:,} B // {self.block_bytes:,} B a block = {pool.units:,} blocks"
        ratio = f"{pool.units:,} / {per:,} a request of {context:,} = {pool.concurrency:.2f}x"
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
            need = max(
                sum(self.group_blocks(k, context) for k in kinds[st.first : st.end]) * self.block * self.layer_token_bytes
                for st in self.stages
            )
            return need <= available
        if self.rules.start_check == "first_group":
            return self.group_blocks(self.groups[0], context) * self.block_bytes <= available
        held = self.block_bytes if self.rules.check_reserves_null_block else 0
        return self.request_bytes(context) <= available - held


@dataclass(frozen=True)
class SglangSizing(Sizing):
    """SGLang: token slots of all layers, or two pools (full and local layers) where the model and release split them."""

    rules: SglangRules = field(default_factory=lambda: sglang_rules(Version((0, 5, 23))))
    page: int = 1
    kvcache_ratio: float = 0.0

    @functools.cached_property
    def _layer_counts(self) -> tuple[int, int]:
        """(full, local) layers of the stage that holds most bytes."""
        counts = []
        for st in self.stages:
            inside = self.model.layers[st.first : st.end]
            full = sum(x.window_tokens is None for x in inside)
            counts.append((full, len(inside) - full))
        return max(counts, key=lambda c: c[0] + self._ratio * c[1])

    @property
    def _ratio(self) -> float:
        # Default of --swa-full-tokens-ratio in every release read (server_args.py).
        return self.settings.swa_full_tokens_ratio if self.settings.swa_full_tokens_ratio is not None else 0.8

    @property
    def mem_fraction(self) -> float:
        """--mem-fraction-static, or the release's own default (server_args.py: _handle_gpu_memory_settings)."""
        s = self.settings
        if s.gpu_memory_utilization is not None:
            return s.gpu_memory_utilization
        total = self.gpu.memory_bytes / (1 << 20)
        if total <= 0:
            return 0.9
        reserved = 512 + max(self.batched, 2048) * 1.5 + self.graph_batch * 2 + s.gpus / 8 * 1024
        if total > 60 * 1024:
            reserved = max(reserved, 10 * 1024)
        return round((total - reserved) / total, 3)

    @property
    def graph_batch(self) -> int:
        """--cuda-graph-max-bs, or its default by GPU memory and TP; 0 when graphs are off."""
        if self.settings.enforce_eager or self.gpu.vendor == "cpu":
            return 0
        if self.settings.cuda_graph_max_batch is not None:
            return self.settings.cuda_graph_max_batch
        total_mib, small = self.gpu.memory_bytes / (1 << 20), self.settings.tensor_parallel < 4
        for limit, few, many in ((20, 8, 8), (35, 24, 80), (60, 32, 160), (160, 256, 512)):
            if total_mib < limit * 1024:
                return few if small else many
        return 512

    def available(self) -> tuple[int, int, int]:
        given = self._given()
        if given:
            return given
        weights = max(x.weights_bytes for x in self.stages)
        # The pool takes what the fraction leaves after weights; context and collectives count against it too.
        overhead, margin = GIB + GIB // 2, GIB + GIB // 2
        best = int(self.gpu.usable_bytes * self.mem_fraction) - weights - self.rope - overhead
        return best - margin, best, best + margin

    def _align(self, tokens: float) -> int:
        return int(tokens) // self.page * self.page

    def _split(self, available: int) -> tuple[int, int | None]:
        """(full, local) token slots. Integers and floats as the releases mix them."""
        cell, limit = self.layer_token_bytes, self.settings.max_total_tokens
        full_layers, local_layers = self._layer_counts
        if self.hybrid != "on":
            slots = self._align(max(available, 0) // (cell * (full_layers + local_layers)))
            return (min(slots, self._align(limit)) if limit else slots), None
        if self.rules.split_sum == "direct":
            slots = self._align(max(available, 0) // (cell * full_layers + self._ratio * cell * local_layers))
            slots = min(slots, self._align(limit)) if limit else slots
            return slots, self._align(int(slots * self._ratio))
        whole = self._align(max(available, 0) // (cell * (full_layers + local_layers)))
        whole = min(whole, self._align(limit)) if limit else whole
        chunk = max((x.window_tokens or 0 for x in self.model.layers), default=0)
        if self.kvcache_ratio and chunk:
            share = 1 - self.kvcache_ratio + self.kvcache_ratio * chunk / self.settings.context_tokens
            local = 4 * whole * share // (3 * share + 1)
            return self._align(4 * whole - 12 * whole * share // (3 * share + 1)), self._align(local)
        if self.rules.split_sum == "layers":
            full = int(whole * (full_layers + local_layers) / (self._ratio * local_layers + full_layers))
        else:
            full = int(
                whole * (cell * full_layers + cell * local_layers) / (cell * full_layers + self._ratio * cell * local_layers)
            )
        return self._align(full), self._align(int(full * self._ratio))

    def pool(self, available: int) -> Pool:
        full, local = self._split(available)
        return Pool(available, full, full, self._holds(full, local, self.settings.context_tokens), local)

    def _local_need(self, tokens: int) -> int:
        """Local slots of one request: window and the chunk being prefilled. Before 0.5.8 Llama-4's whole prompt."""
        if self.kvcache_ratio:
            return self._whole_pages(tokens)
        window = max((x.window_tokens or 0 for x in self.model.layers), default=0)
        return self._whole_pages(min(tokens, window + self.batched))

    def _whole_pages(self, tokens: int) -> int:
        return -(-tokens // self.page) * self.page

    def _holds(self, full: int, local: int | None, tokens: int) -> float:
        held = full / self._whole_pages(tokens)
        return held if local is None else min(held, local / self._local_need(tokens))

    def pool_sum(self, pool: Pool) -> str:
        cell = self.layer_token_bytes
        full_layers, local_layers = self._layer_counts
        pages = f" in whole pages of {self.page}" if self.page > 1 else ""
        if pool.local_tokens is None:
            layers = full_layers + local_layers
            return f"{pool.available_bytes:,} B // ({layers} layers x {cell:,} B) = {pool.tokens:,} tokens{pages}"
        return (
            f"{pool.available_bytes:,} B over {full_layers} full and {local_layers} local layers x {cell:,} B"
            f" = {pool.tokens:,} full and {pool.local_tokens:,} local tokens{pages}"
        )

    def at_once(self, available: int, tokens: int) -> float:
        full, local = self._split(available)
        # A request is admitted only if a page is left beside it (managers/schedule_policy.py: add_one_req).
        return self._holds(max(full - self.page, 0), local, tokens)

    def request_bytes(self, tokens: int) -> int:
        full_layers, local_layers = self._layer_counts
        paged = self._whole_pages(tokens)
        local_tokens = self._local_need(tokens) if self.hybrid == "on" else paged
        return self.layer_token_bytes * (full_layers * paged + local_layers * local_tokens)

    def explains(self, printed: int, low: int, high: int) -> bool:
        return printed % self.page == 0 and self.pool(low).tokens <= printed <= self.pool(high).tokens

    def request_rows(self, pool: Pool) -> int:
        """Rows of the request table: --max-running-requests, or 2048 to 4096 by the pool's size."""
        context = self.settings.context_tokens
        rows = self.settings.max_num_seqs or max(min(int(pool.tokens / context * 512), 4096), 2048)
        return rows + self.rules.table_padding_rows

    def fixed_costs(self, pool: Pool) -> tuple[tuple[str, int], ...]:
        width = self.settings.context_tokens + 4
        table = self.request_rows(pool) * width * 4
        graphs = 2 * self.graph_batch * -(-self.settings.context_tokens // self.page) * 4
        return (("request table", table), ("CUDA graph page tables (fa3)", graphs))

    def fixed_room(self) -> int | None:
        return int(self.gpu.usable_bytes * (1 - self.mem_fraction)) if self.gpu.memory_bytes else None


def _hybrid_mode(model: ModelArchitecture, wanted: str, default: bool) -> Literal["on", "off", "uniform"]:
    kinds = {(x.kind, x.window_tokens) for x in model.layers}
    if len(kinds) == 1:
        return "uniform"
    return "on" if wanted == "on" or (wanted == "default" and default) else "off"


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
    if s.block_size is not None:
        return s.block_size
    if gpu.vendor == "cpu":
        return rules.cpu_mla_block if model.mla else 128
    if model.mla:
        return 128 if (gpu.compute_capability or (0, 0)) >= (10, 0) else 64
    return 16


def sglang_batched_tokens(s: PlanSettings, gpu: Gpu) -> int:
    """--chunked-prefill-size, or its default by GPU memory (server_args.py: _handle_gpu_memory_settings)."""
    return s.max_num_batched_tokens or (16384 if gpu.memory_bytes >= 160 * GIB else 8192)


def sizing_of(model: ModelArchitecture, gpu: Gpu, s: PlanSettings, stages: tuple[Stage, ...] | None = None) -> Sizing:
    """The sizing of that engine. ``stages``: weights counted before (they do not depend on the context)."""
    kv_dtype = normal_dtype(s.kv_dtype)
    if kv_dtype == "auto":
        # Both engines serve an fp32 checkpoint in 16 bit unless told otherwise.
        kv_dtype = {"fp32": "bf16", "fp8": "bf16"}.get(normal_dtype(model.dtype), normal_dtype(model.dtype))
        if normal_dtype(s.weights_dtype) in {"fp32", "fp16"}:
            kv_dtype = normal_dtype(s.weights_dtype)
    bytes_each = DTYPE_BYTES.get(kv_dtype, 2.0)
    stages, rope = stages or stages_of(model, s), _rope_bytes(model, s)
    if s.engine == "vllm":
        rules = vllm_rules(s.release)
        has_chunks = any(x.kind is AttentionKind.CHUNKED for x in model.layers)
        mode = _hybrid_mode(model, s.hybrid_kv, rules.chunked_hybrid_default if has_chunks else True)
        block, batched = _vllm_block(model, gpu, s, rules), _default_batched_tokens(s, gpu, rules)
        batches = 1
        if rules.counts_batches_in_flight:
            overlapped = gpu.vendor != "cpu" if s.async_scheduling is None else s.async_scheduling
            stages_count = s.pipeline_parallel
            batches = stages_count + (overlapped and (stages_count == 1 or rules.one_batch_over_stages))
        groups = _vllm_groups(model, mode, rules, block)
        return VllmSizing(
            model, gpu, s, stages, rope, kv_dtype, bytes_each, batched, mode, groups, rules, block, batched * batches
        )
    sg_rules = sglang_rules(s.release)
    llama4 = model.architecture == "Llama4ForConditionalGeneration"
    if sg_rules.split_by_list:
        splits, default = model.architecture in SGLANG_SPLIT_ARCHITECTURES, True
    else:
        splits, default = llama4 or any(x.kind is AttentionKind.SLIDING for x in model.layers), not llama4
    mode = _hybrid_mode(model, s.hybrid_kv, default)
    ratio = 1.0 if llama4 and sg_rules.llama4_split == "kvcache_ratio" and mode == "on" else 0.0
    if mode == "on" and (not splits or (ratio and s.context_tokens <= (model.windows(AttentionKind.CHUNKED) or (0,))[0])):
        mode = "off"
    full = tuple(x.index for x in model.layers if x.window_tokens is None)
    local = tuple(x.index for x in model.layers if x.window_tokens is not None)
    everything = tuple(range(len(model.layers)))
    page = s.block_size or 1
    if mode == "on" and full:
        window = model.layers[local[0]]
        groups = (KvGroup(AttentionKind.GLOBAL, None, page, full), KvGroup(window.kind, window.window_tokens, page, local))
    else:
        mode = "uniform" if mode == "uniform" else "off"
        groups = (KvGroup(AttentionKind.GLOBAL, None, page, everything),)
    batched = sglang_batched_tokens(s, gpu)
    return SglangSizing(model, gpu, s, stages, rope, kv_dtype, bytes_each, batched, mode, groups, sg_rules, page, ratio)
