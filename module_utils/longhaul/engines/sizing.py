"""What every engine's sizing shares: the settings of a plan, the weights per GPU, and the questions that a sizing answers.

``capacity/`` asks here and judges there; the sums are in each engine's own ``sizing.py``. A *group* is a set of layers of one
attention kind that share a block table.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import ClassVar, Literal

from ..dtypes import DTYPE_BYTES, normal_dtype
from ..errors import Finding, UserError
from ..models.architecture import AttentionKind, ModelArchitecture
from ..physics.hardware import GIB, Gpu
from ..version import Version
from .rules import least_faults, refuse_first
from .settings import SizeSettings

# Engines print memory with two decimals: the true figure is at most half of the last one away.
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
    weights_dtype: str = "auto"
    cuda_graph_max_batch: int | None = None
    async_scheduling: bool | None = None
    torch_sampler: bool = False
    concurrency: int = 1

    @property
    def gpus(self) -> int:
        """GPUs taken: TP x PP."""
        return self.tensor_parallel * self.pipeline_parallel


@dataclass(frozen=True)
class Change:
    """A change of a plan that could make it fit. ``dear``: it costs more than a smaller dtype of the KV cache."""

    name: str
    settings: PlanSettings
    dear: bool = False


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
    """Raise UserError for figures that no engine can take."""
    words = {
        "context_tokens": "context",
        "tensor_parallel": "tensor parallel size",
        "pipeline_parallel": "pipeline parallel size",
    }
    for name in (*words, "max_num_batched_tokens", "max_num_seqs", "concurrency", "max_total_tokens"):
        label, value = words.get(name, name), getattr(s, name)
        if value is not None and value < 1:
            raise UserError(f"{label} {value}", "a whole number of at least 1", f"give a positive {label}")
    refuse_first(least_faults(s.block_size_tokens))
    if s.available_kv_gib is not None and not 0 < s.available_kv_gib < 1 << 20:
        raise UserError(f"available KV memory of {s.available_kv_gib} GiB", "a positive size in GiB", "take it from the log")
    if s.gpu_memory_utilization is not None and not 0 < s.gpu_memory_utilization <= 1:
        raise UserError(f"GPU memory utilization {s.gpu_memory_utilization}", "above 0, at most 1", "give a share such as 0.9")
    if s.swa_full_tokens_ratio is not None and not 0 < s.swa_full_tokens_ratio <= 1:
        raise UserError(f"swa-full-tokens-ratio {s.swa_full_tokens_ratio}", "above 0, at most 1", "give a share such as 0.05")
    if s.cuda_graph_max_batch is not None and s.cuda_graph_max_batch < 0:
        raise UserError(f"CUDA graph batch {s.cuda_graph_max_batch}", "0 (no graphs) or more", "give 0 to switch graphs off")
    for label, word, known in (
        ("KV dtype", s.kv_cache_dtype, {"auto", *_KV_DTYPES}),
        ("weights dtype", s.weights_dtype, {"auto", "bf16", "fp16", "fp8", "fp32"}),
    ):
        if normal_dtype(word) not in known:
            raise UserError(f"{label} {word!r}", "one of " + ", ".join(sorted(known)), "name a dtype that the plan can size")


def kv_splits(model: ModelArchitecture, tp: int) -> bool:
    """Whether the KV heads can be shared out over that many GPUs, split or replicated."""
    return model.mla is not None or model.kv_heads % tp == 0 or tp % model.kv_heads == 0


# --------------------------------------------------------------------------------------------------------------- memory


@dataclass(frozen=True)
class Stage:
    """One pipeline stage: its layers, and what one of its GPUs loads."""

    first: int
    end: int
    weights_bytes: int


def cut_stages(model: ModelArchitecture, s: PlanSettings, layers: Sequence[int]) -> tuple[Stage, ...]:
    """Weights per GPU by stage. ``layers``: how many layers each stage has, as the engine cuts them.

    Sharded over TP: embedding, head, attention, feed-forward. Whole on every GPU: routers, norms, MLA's down-projections, and KV
    projections beyond one head per GPU (replicated).
    """
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
    stages: list[Stage] = []
    for number, count in enumerate(layers):
        first = stages[-1].end if stages else 0
        end = first + count
        total = sum(per_layer[first:end])
        last = number == len(layers) - 1
        if number == 0:
            total += embedding + vision
        if last:
            total += 0.0 if model.tied_embeddings and number == 0 else head
            total += model.final_norm_parameters * base_bytes
        stages.append(Stage(first, end, round(total)))
    return tuple(stages)


# --------------------------------------------------------------------------------------------------------------- sizing


@dataclass(frozen=True)
class Sizing:
    """All that does not depend on how much memory there is: groups, costs, weights. Each engine has its own kind."""

    # Bytes of one element of the cos/sin table.
    rope_element_bytes: ClassVar[int] = 2

    model: ModelArchitecture
    gpu: Gpu
    settings: PlanSettings
    stages: tuple[Stage, ...]
    batched: int
    hybrid: Literal["on", "off", "uniform"]
    groups: tuple[KvGroup, ...] = ()

    @property
    def load_slack_bytes(self) -> int:
        """Bytes per GPU that loading the weights leaves unusable."""
        return 0

    @functools.cached_property
    def kv_dtype(self) -> str:
        """What the engine keeps KV in: as told, else as the model computes."""
        told, weights = normal_dtype(self.settings.kv_cache_dtype), normal_dtype(self.settings.weights_dtype)
        if told != "auto":
            return told
        if weights in {"fp32", "fp16"}:
            return weights
        # Engines serve an fp32 checkpoint in 16 bit unless told otherwise.
        return {"fp32": "bf16", "fp8": "bf16"}.get(normal_dtype(self.model.dtype), normal_dtype(self.model.dtype))

    @property
    def kv_dtype_bytes(self) -> float:
        """Bytes of one element of KV."""
        return DTYPE_BYTES.get(self.kv_dtype, 2.0)

    @property
    def rope(self) -> int:
        """Bytes of the cos/sin table: one row per position, shared by all layers."""
        return self.model.rope_positions * self.model.rope_dim * self.rope_element_bytes

    @property
    def last_stage_less_bytes(self) -> int:
        """KV memory that the last of several pipeline stages lacks compared with the one whose figure the engine prints."""
        return 0

    # What each engine answers.
    def available(self) -> tuple[int, int, int]:
        """(low, best, high) bytes for KV on one GPU."""
        return self.given() or self.estimate()

    def estimate(self) -> tuple[int, int, int]:
        """The same where the settings do not name them. Raises UserError where the engine's memory cannot be estimated."""
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
        """KV bytes per GPU of one request."""
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

    def findings(self, pool: Pool) -> list[Finding]:
        """Reasons of this engine to refuse such a pool, other than its size."""
        return []

    def engine_starts(self, available: int) -> bool:
        """Whether the engine's own start-up check lets a server start that cannot hold one request of the context."""
        return False

    def own_figures(self, pool: Pool) -> Mapping[str, int]:
        """What the engine tells of such a pool beyond tokens and concurrency, under the names of ``EngineCapacity``."""
        return {}

    def own_steps(self) -> tuple[tuple[str, str, str], ...]:
        """The engine's own lines of the sum: (label, value, how)."""
        return ()

    @functools.cached_property
    def layer_token_bytes(self) -> int:
        """KV bytes per token and layer on one GPU. MLA's latent is whole on every GPU; KV heads are split, then replicated."""
        if self.model.mla:
            return round(self.model.mla.cache_width * self.kv_dtype_bytes)
        heads = max(1, self.model.kv_heads // self.settings.tensor_parallel)
        return round(2 * heads * self.model.head_dim * self.kv_dtype_bytes)

    def layers_in(self, stage: Stage, group: KvGroup) -> int:
        """Layers of that group in that stage."""
        return sum(stage.first <= i < stage.end for i in group.layers)

    def marginal_token_bytes(self) -> int:
        """KV bytes per GPU of one more token of a long request. Only groups that keep every token pay for it."""
        growing = [g for g in self.groups if g.window_tokens is None]
        return max((sum(self.layers_in(st, g) for g in growing) for st in self.stages), default=0) * self.layer_token_bytes

    def given(self) -> tuple[int, int, int] | None:
        """(low, best, high) bytes for KV where the settings name them, within the rounding of a printed figure; else ``None``."""
        gib = self.settings.available_kv_gib
        if gib is None:
            return None
        best = round(gib * GIB)
        # A figure for a GPU with two decimals or fewer comes from a log, which rounds it.
        rounded = self.gpu.vendor != "cpu" and abs(gib * 100 - round(gib * 100)) < 1e-6
        half = round(_PRINTED_HALF_GIB * GIB) if rounded else 0
        return best - half, best, best + half


def hybrid_mode(model: ModelArchitecture, wanted: str, default: bool) -> Literal["on", "off", "uniform"]:
    """Whether layers of several kinds get pools of their own; ``uniform``: the model has one kind only."""
    kinds = {(x.kind, x.window_tokens) for x in model.layers}
    if len(kinds) == 1:
        return "uniform"
    return "on" if wanted == "on" or (wanted == "default" and default) else "off"
