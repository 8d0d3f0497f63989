"""What a model is, whoever serves it: layers by attention kind, heads, experts, parameter counts, KV shapes.

Only data. ``reader`` makes it from a ``config.json``; ``families/`` knows what is special about each family.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class AttentionKind(str, Enum):
    """What a layer attends to. Chunked-local: inside aligned chunks (Llama-4). Sliding: the last ``window`` tokens."""

    GLOBAL = "global"
    CHUNKED = "chunked_local"
    SLIDING = "sliding_window"


@dataclass(frozen=True)
class Mla:
    """Multi-head latent attention (DeepSeek): one latent vector a token and layer, shared by all heads.

    KV width a token and layer = ``kv_lora_rank + qk_rope_head_dim`` elements; there is no separate V.
    """

    kv_lora_rank: int
    q_lora_rank: int | None
    qk_nope_head_dim: int
    qk_rope_head_dim: int
    v_head_dim: int

    @property
    def cache_width(self) -> int:
        """Elements cached a token and layer (576 for DeepSeek-V3)."""
        return self.kv_lora_rank + self.qk_rope_head_dim


@dataclass(frozen=True)
class Quantization:
    """How the checkpoint stores its matrices. ``scope``: all linear layers, or only the experts (gpt-oss mxfp4)."""

    method: str
    bits_per_weight: float
    scope: str


@dataclass(frozen=True)
class Layer:
    """One decoder layer. ``window_tokens``: chunk or window of a local layer, else ``None``. Counts are parameters.

    ``moe``: its feed-forward is a mixture of experts. ``ffn_parameters`` counts all experts, ``ffn_active_parameters``
    those that one token goes through (shared expert and router included).
    """

    index: int
    kind: AttentionKind
    window_tokens: int | None
    moe: bool
    attention_parameters: int
    ffn_parameters: int
    ffn_active_parameters: int
    expert_parameters: int
    norm_parameters: int


@dataclass(frozen=True)
class ModelArchitecture:
    """A decoder-only transformer (the text part of a multimodal one, with the other towers' parameters counted aside).

    ``parameters`` is the text model (embedding, head, layers, norms); ``vision_parameters`` what an engine loads on top
    unless told that the deployment is text-only. ``active_parameters``: those that one token touches, embedding rows
    apart counted as the whole table (the published convention: "17B active"). ``linear_parameters_per_token``: weights
    of all matrix products that every prompt token goes through (attention projections, router, active experts); the
    output head is apart (``head_parameters``) because a prefill applies it to the last token only.
    """

    name: str
    model_type: str
    architecture: str
    layers: tuple[Layer, ...]
    hidden_size: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab_size: int
    max_positions: int | None
    dtype: str
    experts: int
    experts_per_token: int
    mla: Mla | None
    tied_embeddings: bool
    quantization: Quantization | None
    embedding_parameters: int
    head_parameters: int
    final_norm_parameters: int
    vision_parameters: int
    vision_exact: bool
    rope_dim: int
    rope_positions: int
    swiglu: bool = True

    @property
    def parameters(self) -> int:
        """All parameters of the text model. Tied embeddings count once."""
        layers = sum(x.attention_parameters + x.ffn_parameters + x.norm_parameters for x in self.layers)
        head = 0 if self.tied_embeddings else self.head_parameters
        return self.embedding_parameters + head + self.final_norm_parameters + layers

    @property
    def total_parameters(self) -> int:
        """Text model and vision tower with its projector."""
        return self.parameters + self.vision_parameters

    @property
    def active_parameters(self) -> int:
        """Parameters of the text model that one token touches (equal to ``parameters`` for a dense model)."""
        return self.parameters - sum(x.ffn_parameters - x.ffn_active_parameters for x in self.layers)

    @property
    def expert_parameters(self) -> int:
        """Parameters of the routed experts, all of them."""
        return sum(x.expert_parameters for x in self.layers)

    @property
    def linear_parameters_per_token(self) -> int:
        """Weights in the matrix products every token goes through: 2 FLOP each. Without embedding and output head."""
        return sum(x.attention_parameters + x.ffn_active_parameters for x in self.layers)

    @property
    def is_moe(self) -> bool:
        """Whether any layer routes to experts."""
        return any(x.moe for x in self.layers)

    def count(self, kind: AttentionKind) -> int:
        """Layers of that attention kind."""
        return sum(x.kind is kind for x in self.layers)

    def windows(self, kind: AttentionKind) -> tuple[int, ...]:
        """The window of each layer of that kind, in layer order (chunk size or sliding window, tokens)."""
        return tuple(x.window_tokens or 0 for x in self.layers if x.kind is kind)

    @property
    def kv_elements_per_token_per_layer(self) -> int:
        """Cached elements a token and layer, over all KV heads: 2 * kv_heads * head_dim, or the MLA latent."""
        return self.mla.cache_width if self.mla else 2 * self.kv_heads * self.head_dim
