"""What every decoder family answers, and the plain answers that most families share.

A family is one file in ``families/``: a subclass of :class:`Family` that says which model types it reads and overrides only
what is special about it. Where a hub config leaves a key out, the default is the one of that model type's configuration class
in Hugging Face transformers (models/<type>/configuration_<type>.py, read in release 5.19): the engines read configs through
the same classes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from ..errors import UserError
from .architecture import AttentionKind, Layer, Mla
from .config import DecoderConfig

ModelTypes = Mapping[str, Mapping[str, Any]]
FULL: tuple[AttentionKind, int | None] = (AttentionKind.GLOBAL, None)
_LAYER_TYPES: Mapping[str, AttentionKind] = {
    "full_attention": AttentionKind.GLOBAL,
    "global": AttentionKind.GLOBAL,
    "chunked_attention": AttentionKind.CHUNKED,
    "sliding_attention": AttentionKind.SLIDING,
}


@dataclass(frozen=True)
class Shape:
    """Sizes that all layers of a decoder share."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mla: Mla | None
    experts: int
    experts_per_token: int


class Family:
    """The plain decoder: GQA or MLA, gated feed-forward, experts where the config names them.

    ``model_types`` maps each ``model_type`` that the family reads to the keys its hub configs may leave out. Beside the hub's
    own keys these say what no config spells out: ``norms_per_layer`` (2), ``qk_norm`` (per head) or ``qk_norm_wide`` (over all
    heads), ``qkv_bias``, ``gated`` (True: three matrices in the feed-forward instead of two), ``norm_bias``.
    ``aliases`` maps other names for the same decoder to one of ``model_types``.
    ``positions_are_scaled``: ``max_position_embeddings`` counts the rope scaling already.
    """

    model_types: ClassVar[ModelTypes] = {}
    aliases: ClassVar[Mapping[str, str]] = {}
    positions_are_scaled = False

    def layer_kinds(self, config: DecoderConfig, count: int) -> list[tuple[AttentionKind, int | None]]:
        """Attention kind and window (tokens) of each of ``count`` layers.

        ``layer_types`` wins. Else every ``sliding_window_pattern``-th layer is global (Gemma-2/3, gpt-oss, Cohere-2), or
        ``use_sliding_window`` turns on the window from layer ``max_window_layers`` (Qwen), or a ``sliding_window`` holds for
        every layer (Mistral). The engines' model files follow the same rules.
        """
        for width in ("sliding_window", "attention_chunk_size"):
            config.optional(width)  # a malformed width is refused even where this model type does not use it
        if config.get("layer_types") is not None:
            return kinds_from_layer_types(config, count)
        return self.derived_layer_kinds(config, count)

    def derived_layer_kinds(self, config: DecoderConfig, count: int) -> list[tuple[AttentionKind, int | None]]:
        """The same where the config has no ``layer_types``."""
        window = config.optional("sliding_window")
        if not window or config.get("use_sliding_window") is False:
            return [FULL] * count
        local = (AttentionKind.SLIDING, window)
        pattern = config.get("sliding_window_pattern", "_sliding_window_pattern")
        if isinstance(pattern, int) and pattern > 0:
            return [local if (i + 1) % pattern else FULL for i in range(count)]
        if config.get("use_sliding_window"):
            first = config.integer("max_window_layers", default=0, least=0)
            return [local if i >= first else FULL for i in range(count)]
        return [local] * count

    def is_moe_layer(self, config: DecoderConfig, index: int) -> bool:
        """Whether this layer routes to experts, in a model that has experts.

        Qwen: every ``decoder_sparse_step``-th but those in ``mlp_only_layers``. DeepSeek: from ``first_k_dense_replace`` on,
        every ``moe_layer_freq``-th. Others: every layer.
        """
        if config.get("decoder_sparse_step") is not None:
            if index in (config.indices("mlp_only_layers") or ()):
                return False
            return (index + 1) % config.integer("decoder_sparse_step") == 0
        if config.get("first_k_dense_replace") is not None:
            first = config.integer("first_k_dense_replace", least=0)
            return index >= first and index % config.integer("moe_layer_freq", default=1) == 0
        return True

    def attention_parameters(self, config: DecoderConfig, shape: Shape) -> int:
        """Parameters of one layer's attention: projections, their biases, query and key norms."""
        hidden, heads, mla = shape.hidden, shape.heads, shape.mla
        if mla:
            qk = mla.qk_nope_head_dim + mla.qk_rope_head_dim
            query = hidden * heads * qk if not mla.q_lora_rank else mla.q_lora_rank * (hidden + 1 + heads * qk)
            latent = hidden * mla.cache_width + mla.kv_lora_rank
            key_value = mla.kv_lora_rank * heads * (mla.qk_nope_head_dim + mla.v_head_dim)
            return query + latent + key_value + heads * mla.v_head_dim * hidden
        query, key_value = heads * shape.head_dim, shape.kv_heads * shape.head_dim
        total = 2 * hidden * query + 2 * hidden * key_value
        if config.get("attention_bias") or config.get("use_bias"):
            total += query + 2 * key_value + hidden
        elif config.get("qkv_bias"):
            total += query + 2 * key_value
        if config.get("qk_norm"):
            total += 2 * shape.head_dim
        if config.get("qk_norm_wide"):
            total += query + key_value
        return total

    def expert_parameters(self, config: DecoderConfig, shape: Shape) -> int:
        """Parameters of one routed expert."""
        return 3 * shape.hidden * expert_width(config)

    def router_parameters(self, shape: Shape) -> int:
        """Parameters of one layer's router."""
        return shape.hidden * shape.experts

    def shared_expert_parameters(self, config: DecoderConfig, shape: Shape) -> int:
        """Parameters of what every token goes through beside its routed experts."""
        if config.get("n_shared_experts"):
            return 3 * shape.hidden * expert_width(config) * config.integer("n_shared_experts")
        if config.get("shared_expert_intermediate_size"):
            # The last term is the shared expert's gate.
            return 3 * shape.hidden * config.integer("shared_expert_intermediate_size") + shape.hidden
        return 0

    def dense_parameters(self, config: DecoderConfig, shape: Shape) -> int:
        """Parameters of the feed-forward of a layer without experts."""
        hidden, gated = shape.hidden, config.get("gated", default=True)
        inner = config.integer("intermediate_size_mlp", "intermediate_size", "ffn_dim", "n_inner", default=4 * hidden)
        total = (3 if gated else 2) * hidden * inner
        if config.get("mlp_bias") or config.get("use_bias"):
            total += inner * (2 if gated else 1) + hidden
        return total

    def layer(self, config: DecoderConfig, shape: Shape, index: int, kind: AttentionKind, window: int | None) -> Layer:
        """One layer with its parameters, term by term as the model files build them."""
        attention = self.attention_parameters(config, shape)
        norms = shape.hidden * config.integer("norms_per_layer", default=2) * (2 if config.get("norm_bias") else 1)
        if not (shape.experts and self.is_moe_layer(config, index)):
            dense = self.dense_parameters(config, shape)
            return Layer(index, kind, window, False, attention, dense, dense, 0, norms)
        expert = self.expert_parameters(config, shape)
        always = self.router_parameters(shape) + self.shared_expert_parameters(config, shape)
        return Layer(
            index=index,
            kind=kind,
            window_tokens=window,
            moe=True,
            attention_parameters=attention,
            ffn_parameters=shape.experts * expert + always,
            ffn_active_parameters=min(shape.experts_per_token, shape.experts) * expert + always,
            expert_parameters=shape.experts * expert,
            norm_parameters=norms,
        )


def expert_width(config: DecoderConfig) -> int:
    """Inner width of one expert, in elements."""
    return config.integer("moe_intermediate_size", "intermediate_size")


def kinds_from_layer_types(config: DecoderConfig, count: int) -> list[tuple[AttentionKind, int | None]]:
    """``layer_types`` as the config spells them out. A local layer whose width is null attends to everything."""
    types = config.get("layer_types")
    if not isinstance(types, Sequence) or isinstance(types, str) or len(types) != count:
        found = len(types) if isinstance(types, Sequence) else repr(types)
        raise UserError(f"layer_types of {found}", f"{count} entries", "correct the config")
    widths = {
        AttentionKind.GLOBAL: None,
        AttentionKind.CHUNKED: config.optional("attention_chunk_size"),
        AttentionKind.SLIDING: config.optional("sliding_window"),
    }
    kinds: list[tuple[AttentionKind, int | None]] = []
    for word in types:
        kind = _LAYER_TYPES.get(str(word))
        if kind is None:
            found, required = (
                f"layer type {word!r} in a {config.model_type} config",
                "layers of " + ", ".join(sorted(_LAYER_TYPES)),
            )
            raise UserError(found, required, "size it with the engine itself; the plan would not be exact")
        kinds.append((kind, widths[kind]) if widths[kind] else FULL)
    return kinds
