"""A model as its ``config.json`` tells it: layers by attention kind, heads, experts, parameter counts, KV shapes.

Nothing here knows an engine. Where a hub config leaves a key out, the default is the one of the Hugging Face
``transformers`` configuration class of that model type (the engines read configs through the same classes); the table
``_DEFAULTS`` holds them. Layer patterns that a config does not spell out (``layer_types`` missing) are derived as
``transformers`` and the engines' model files derive them; see :func:`_layer_kinds`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from ..errors import UserError


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


DTYPE_BYTES: Mapping[str, float] = {
    "float32": 4.0,
    "bfloat16": 2.0,
    "float16": 2.0,
    "float8_e4m3fn": 1.0,
    "float8_e5m2": 1.0,
    "int8": 1.0,
}

# Model types this room understands, with the keys their hub configs may leave out. Source of every default: the model's
# configuration class in Hugging Face transformers (models/<type>/configuration_<type>.py), read in release 5.19.
_DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "llama": {},
    "llama4_text": {
        "head_dim": 128,
        "num_key_value_heads": 8,
        "intermediate_size_mlp": 16384,
        "num_experts_per_tok": 1,
        "num_local_experts": 16,
        "interleave_moe_layer_step": 1,
        "no_rope_layer_interval": 4,
        "attention_chunk_size": 8192,
        "vocab_size": 202048,
        "max_position_embeddings": 131072,
    },
    "mistral": {"num_key_value_heads": 8, "max_position_embeddings": 131072},
    "ministral": {"num_key_value_heads": 8, "head_dim": 128},
    "mixtral": {"num_local_experts": 8, "num_experts_per_tok": 2, "num_key_value_heads": 8, "max_position_embeddings": 131072},
    "qwen2": {"use_sliding_window": False, "max_window_layers": 28, "qkv_bias": True},
    "qwen3": {"head_dim": 128, "use_sliding_window": False, "max_window_layers": 28, "qk_norm": True},
    "qwen2_moe": {"use_sliding_window": False, "max_window_layers": 28, "qkv_bias": True, "decoder_sparse_step": 1},
    "qwen3_moe": {"head_dim": 128, "use_sliding_window": False, "qk_norm": True, "decoder_sparse_step": 1},
    "gemma": {"tie_word_embeddings": True, "head_dim": 256},
    "gemma2": {
        "tie_word_embeddings": True,
        "head_dim": 256,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 256000,
        "sliding_window": 4096,
        "sliding_window_pattern": 2,
        "max_position_embeddings": 8192,
        "norms_per_layer": 4,
    },
    "gemma3_text": {
        "tie_word_embeddings": True,
        "head_dim": 256,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "vocab_size": 262208,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "max_position_embeddings": 131072,
        "norms_per_layer": 4,
        "qk_norm": True,
        "hidden_size": 2304,
        "intermediate_size": 9216,
        "num_hidden_layers": 26,
    },
    "gpt_oss": {
        "head_dim": 64,
        "num_key_value_heads": 8,
        "sliding_window": 128,
        "sliding_window_pattern": 2,
        "attention_bias": True,
        "max_position_embeddings": 131072,
    },
    "cohere2": {"tie_word_embeddings": True, "sliding_window": 4096, "sliding_window_pattern": 4, "norms_per_layer": 1},
    "phi3": {},
    "olmo2": {"qk_norm_wide": True},
    "granite": {},
    "starcoder2": {"gated": False, "use_bias": True, "norm_bias": True, "tie_word_embeddings": True},
    "deepseek_v2": {"moe_layer_freq": 1, "first_k_dense_replace": 0},
    "deepseek_v3": {
        "q_lora_rank": 1536,
        "kv_lora_rank": 512,
        "qk_nope_head_dim": 128,
        "qk_rope_head_dim": 64,
        "v_head_dim": 128,
        "n_shared_experts": 1,
        "n_routed_experts": 256,
        "num_experts_per_tok": 8,
        "moe_intermediate_size": 2048,
        "moe_layer_freq": 1,
        "first_k_dense_replace": 3,
        "max_position_embeddings": 4096,
    },
}
# Hub names for the same decoder.
_ALIASES: Mapping[str, str] = {"gemma3": "gemma3_text", "llama4": "llama4_text", "kimi_k2": "deepseek_v3", "smollm": "llama"}
# Where a multimodal config keeps its decoder.
_TEXT_KEYS = ("text_config", "language_config", "llm_config")
_LAYER_TYPES: Mapping[str, AttentionKind] = {
    "full_attention": AttentionKind.GLOBAL,
    "global": AttentionKind.GLOBAL,
    "chunked_attention": AttentionKind.CHUNKED,
    "sliding_attention": AttentionKind.SLIDING,
}


def load_architecture(source: str | Path | Mapping[str, Any]) -> ModelArchitecture:
    """Read a ``config.json``, a folder that holds one, or the parsed object. Anything else is a UserError."""
    if isinstance(source, Mapping):
        return _from_config(source, str(source.get("_name_or_path") or "model"))
    path = Path(source).expanduser()
    if path.is_dir():
        path = path / "config.json"
    want = "a Hugging Face config.json, or the folder that holds it"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise UserError(f"no file {path}", want, "name the model's folder or its config.json") from exc
    except (OSError, ValueError) as exc:
        raise UserError(f"{path} is not JSON ({str(exc).splitlines()[0]})", want, "fetch the config again") from exc
    if not isinstance(raw, dict):
        raise UserError(f"{path} holds a JSON {type(raw).__name__}", "a JSON object", "name the model's config.json")
    name = path.parent.name if path.name == "config.json" else path.stem
    return _from_config(raw, str(raw.get("_name_or_path") or name or "model"))


class _Config:
    """A decoder's config with the defaults of its model type under it; typed getters that name what is wrong."""

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any], model_type: str) -> None:
        self._values, self._defaults, self.model_type = values, defaults, model_type

    def get(self, *keys: str, default: Any = None) -> Any:
        for layer in (self._values, self._defaults):
            for key in keys:
                if layer.get(key) is not None:
                    return layer[key]
        return default

    def integer(self, *keys: str, default: int | None = None, least: int = 1, most: int = 1 << 40) -> int:
        value = self.get(*keys, default=default)
        if value is None:
            raise UserError(
                f"a {self.model_type} config without {keys[0]}", "the config of a transformer decoder", f"add {keys[0]}"
            )
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            raise UserError(
                f"{keys[0]} = {value!r:.40} in the config", f"a whole number from {least} to {most}", "mend the config"
            )
        return value

    def optional(self, *keys: str) -> int | None:
        """A whole number, or ``None`` where the config leaves it out, says null, false or 0."""
        return self.integer(*keys) if self.get(*keys) else None

    def indices(self, key: str) -> Sequence[Any] | None:
        """A list, or ``None``."""
        value = self.get(key)
        if value is not None and (not isinstance(value, Sequence) or isinstance(value, str)):
            raise UserError(f"{key} = {value!r:.40} in the config", "a list of layer numbers", "mend the config")
        return value


def _number(label: str, value: Any) -> float:
    """A positive, finite number out of a config."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e12:
        raise UserError(f"{label} = {value!r:.40} in the config", "a positive number", "mend the config")
    return float(value)


def _from_config(raw: Mapping[str, Any], name: str) -> ModelArchitecture:
    text = next((raw[k] for k in _TEXT_KEYS if isinstance(raw.get(k), Mapping)), raw)
    model_type = str(text.get("model_type") or raw.get("model_type") or "")
    model_type = _ALIASES.get(model_type, model_type)
    if not model_type and not any(k in text for k in ("num_hidden_layers", "n_layer")):
        raise UserError(
            "a config with neither model_type nor num_hidden_layers",
            "the config.json of a transformer decoder",
            "name the model's own config, not a tokenizer's or a generation config",
        )
    if any(k in text for k in ("state_size", "ssm_cfg", "mamba_d_state", "linear_num_key_heads", "time_mix_extra_dim")):
        raise UserError(
            f"model type {model_type or 'unknown'} with recurrent (state-space or linear-attention) layers",
            "a transformer whose layers all keep a KV cache",
            "size it with the engine itself; the plan would not be exact",
        )
    c = _Config(text, _DEFAULTS.get(model_type, {}), model_type or "decoder")
    hidden = c.integer("hidden_size", "n_embd", "d_model")
    count = c.integer("num_hidden_layers", "n_layer", "n_layers", most=10_000)
    heads = c.integer("num_attention_heads", "n_head", "n_heads")
    kv_heads = c.integer("num_key_value_heads", "num_kv_heads", default=heads)
    head_dim = c.integer("head_dim", default=hidden // heads)
    if heads % kv_heads:
        raise UserError(f"{heads} heads over {kv_heads} KV heads", "heads divisible by KV heads", "mend the config")
    mla = _mla(c)
    kinds = _layer_kinds(c, count)
    vocab = c.integer("vocab_size")
    tied = bool(c.get("tie_word_embeddings", default=raw.get("tie_word_embeddings", False)))
    experts = c.integer("num_local_experts", "num_experts", "n_routed_experts", default=0, least=0)
    active = c.integer("num_experts_per_tok", "num_experts_per_token", default=0, least=0)
    shape = _Shape(hidden, heads, kv_heads, head_dim, mla, experts, active)
    layers = tuple(_layer(c, shape, i, kind, window) for i, (kind, window) in enumerate(kinds))
    vision, vision_exact = _vision_parameters(raw, hidden)
    names = raw.get("architectures") or text.get("architectures") or []
    names = names if isinstance(names, list) else [names]
    positions = _max_positions(c)
    return ModelArchitecture(
        name=name,
        model_type=model_type or "decoder",
        architecture=str(names[0]) if names else "",
        layers=layers,
        hidden_size=hidden,
        heads=heads,
        kv_heads=kv_heads,
        head_dim=head_dim,
        vocab_size=vocab,
        max_positions=positions,
        dtype=str(text.get("torch_dtype") or text.get("dtype") or raw.get("torch_dtype") or raw.get("dtype") or "bfloat16"),
        experts=experts if any(x.moe for x in layers) else 0,
        experts_per_token=active if any(x.moe for x in layers) else 0,
        mla=mla,
        tied_embeddings=tied,
        quantization=_quantization(raw.get("quantization_config") or text.get("quantization_config")),
        embedding_parameters=vocab * hidden,
        head_parameters=vocab * hidden,
        final_norm_parameters=hidden * (2 if c.get("norm_bias") else 1),
        vision_parameters=vision,
        vision_exact=vision_exact,
        rope_dim=mla.qk_rope_head_dim
        if mla
        else int(head_dim * _number("partial_rotary_factor", c.get("partial_rotary_factor", default=1.0))),
        rope_positions=_rope_positions(c, positions),
    )


def _mla(c: _Config) -> Mla | None:
    if c.get("kv_lora_rank") is None:
        return None
    return Mla(
        kv_lora_rank=c.integer("kv_lora_rank"),
        q_lora_rank=c.optional("q_lora_rank"),
        qk_nope_head_dim=c.integer("qk_nope_head_dim"),
        qk_rope_head_dim=c.integer("qk_rope_head_dim"),
        v_head_dim=c.integer("v_head_dim"),
    )


def _layer_kinds(c: _Config, count: int) -> list[tuple[AttentionKind, int | None]]:
    """Attention kind and window of each layer.

    Rules (transformers' configuration classes; the engines' model files follow them): ``layer_types`` wins. Llama-4:
    layer i is global (NoPE) where ``no_rope_layers[i]`` is 0; missing or empty means every
    ``no_rope_layer_interval``-th (4), and without ``attention_chunk_size`` all are global. Gemma-2/3, gpt-oss, Cohere-2:
    every ``sliding_window_pattern``-th layer is global (2, 6, 2, 4). Qwen: ``use_sliding_window`` turns on the window
    from layer ``max_window_layers``. Mistral and its like: a ``sliding_window`` holds for every layer.
    """
    window = c.optional("sliding_window")
    chunk = c.optional("attention_chunk_size")
    types = c.get("layer_types")
    if types is not None:
        return _kinds_from_types(types, count, window, chunk, c)
    full: tuple[AttentionKind, int | None] = (AttentionKind.GLOBAL, None)
    if c.model_type == "llama4_text":
        no_rope = c.get("no_rope_layers")
        if isinstance(no_rope, int) and not isinstance(no_rope, bool):
            no_rope = [int((i + 1) % no_rope != 0) for i in range(count)] if no_rope > 0 else []
        if not no_rope:
            step = c.integer("no_rope_layer_interval")
            no_rope = [int((i + 1) % step != 0) for i in range(count)]
        if not isinstance(no_rope, Sequence) or len(no_rope) != count:
            raise UserError(
                f"no_rope_layers of {len(no_rope) if isinstance(no_rope, Sequence) else no_rope!r}",
                f"one 0 or 1 for each of {count} layers, or an interval",
                "mend the config",
            )
        return [(AttentionKind.CHUNKED, chunk) if x and chunk else full for x in no_rope]
    if not window or c.get("use_sliding_window") is False:
        return [full] * count
    local = (AttentionKind.SLIDING, window)
    pattern = c.get("sliding_window_pattern", "_sliding_window_pattern")
    if isinstance(pattern, int) and pattern > 0:
        return [local if (i + 1) % pattern else full for i in range(count)]
    if c.get("use_sliding_window"):
        first = c.integer("max_window_layers", default=0, least=0)
        return [local if i >= first else full for i in range(count)]
    return [local] * count


def _kinds_from_types(types: Any, count: int, window: Any, chunk: Any, c: _Config) -> list[tuple[AttentionKind, int | None]]:
    if not isinstance(types, Sequence) or isinstance(types, str) or len(types) != count:
        raise UserError(
            f"layer_types of {len(types) if isinstance(types, Sequence) else types!r}", f"{count} entries", "mend the config"
        )
    found: list[tuple[AttentionKind, int | None]] = []
    for word in types:
        kind = _LAYER_TYPES.get(str(word))
        if kind is None:
            raise UserError(
                f"layer type {word!r} in a {c.model_type} config",
                "layers of " + ", ".join(sorted(_LAYER_TYPES)),
                "size it with the engine itself; the plan would not be exact",
            )
        width = {AttentionKind.GLOBAL: None, AttentionKind.CHUNKED: chunk, AttentionKind.SLIDING: window}[kind]
        if kind is not AttentionKind.GLOBAL and not width:
            # A chunked or sliding layer whose width is null attends to everything.
            kind = AttentionKind.GLOBAL
        found.append((kind, int(width) if width and kind is not AttentionKind.GLOBAL else None))
    return found


@dataclass(frozen=True)
class _Shape:
    """What every layer shares."""

    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    mla: Mla | None
    experts: int
    active: int


def _layer(c: _Config, shape: _Shape, index: int, kind: AttentionKind, window: int | None) -> Layer:
    """Parameters of one layer, term by term as the model files build them."""
    hidden, heads, mla, experts = shape.hidden, shape.heads, shape.mla, shape.experts
    if mla:
        qk = mla.qk_nope_head_dim + mla.qk_rope_head_dim
        query = hidden * heads * qk if not mla.q_lora_rank else mla.q_lora_rank * (hidden + 1 + heads * qk)
        attention = query + hidden * mla.cache_width + mla.kv_lora_rank
        attention += mla.kv_lora_rank * heads * (mla.qk_nope_head_dim + mla.v_head_dim) + heads * mla.v_head_dim * hidden
    else:
        query, kv = heads * shape.head_dim, shape.kv_heads * shape.head_dim
        attention = 2 * hidden * query + 2 * hidden * kv
        if c.get("attention_bias") or c.get("use_bias"):
            attention += query + 2 * kv + hidden
        elif c.get("qkv_bias"):
            attention += query + 2 * kv
        if c.get("qk_norm"):
            attention += 2 * shape.head_dim
        if c.get("qk_norm_wide"):
            attention += query + kv
        if c.model_type == "gpt_oss":
            attention += heads  # attention sinks, one a head
    norms = hidden * c.integer("norms_per_layer", default=2) * (2 if c.get("norm_bias") else 1)
    if not (experts and _is_moe_layer(c, index)):
        inner = c.integer("intermediate_size_mlp", "intermediate_size", "ffn_dim", "n_inner", default=4 * hidden)
        ffn = (3 if c.get("gated", default=True) else 2) * hidden * inner
        if c.get("mlp_bias") or c.get("use_bias"):
            ffn += inner * (2 if c.get("gated", default=True) else 1) + hidden
        return Layer(index, kind, window, False, attention, ffn, ffn, 0, norms)
    inner = c.integer("moe_intermediate_size", "intermediate_size")
    expert = 3 * hidden * inner
    router = hidden * experts
    if c.model_type == "gpt_oss":
        expert += 2 * inner + hidden
        router += experts
    if c.model_type == "deepseek_v3":
        router += experts  # e_score_correction_bias
    shared = 0
    if c.model_type == "llama4_text":
        shared = 3 * hidden * inner
    elif c.get("n_shared_experts"):
        shared = 3 * hidden * inner * c.integer("n_shared_experts")
    elif c.get("shared_expert_intermediate_size"):
        shared = 3 * hidden * c.integer("shared_expert_intermediate_size") + hidden
    return Layer(
        index=index,
        kind=kind,
        window_tokens=window,
        moe=True,
        attention_parameters=attention,
        ffn_parameters=experts * expert + router + shared,
        ffn_active_parameters=min(shape.active, experts) * expert + router + shared,
        expert_parameters=experts * expert,
        norm_parameters=norms,
    )


def _is_moe_layer(c: _Config, index: int) -> bool:
    """Which layers route: Llama-4 ``moe_layers`` or every ``interleave_moe_layer_step``-th; Qwen ``decoder_sparse_step``
    and ``mlp_only_layers``; DeepSeek from ``first_k_dense_replace`` on, every ``moe_layer_freq``-th; else all."""
    if c.model_type == "llama4_text":
        chosen = c.indices("moe_layers")
        if chosen is not None:
            return index in chosen
        return (index + 1) % c.integer("interleave_moe_layer_step") == 0
    if c.get("decoder_sparse_step") is not None:
        if index in (c.indices("mlp_only_layers") or ()):
            return False
        return (index + 1) % c.integer("decoder_sparse_step") == 0
    if c.get("first_k_dense_replace") is not None:
        first = c.integer("first_k_dense_replace", least=0)
        return index >= first and index % c.integer("moe_layer_freq", default=1) == 0
    return True


def _rope(c: _Config) -> Mapping[str, Any]:
    """The rope parameters, whichever of the three hub spellings holds them; a nested one by layer type gives its last."""
    rope = c.get("rope_scaling", "rope_parameters")
    if not isinstance(rope, Mapping):
        return {}
    inner = [v for v in rope.values() if isinstance(v, Mapping)]
    return inner[-1] if inner else rope


def _max_positions(c: _Config) -> int | None:
    """The longest context that the engines accept without an override, in tokens.

    vLLM config/model.py ``_get_and_verify_max_len`` and SGLang hf_transformers_utils ``get_context_length``: rope types
    su, longrope and llama3 are already in ``max_position_embeddings``; yarn counts from the original positions; others
    multiply, except for Gemma-3 whose figure is scaled already.
    """
    keys = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length", "max_seq_length")
    found = [v for v in (c.get(k) for k in keys) if isinstance(v, int) and not isinstance(v, bool) and v > 0]
    longest = c.optional("model_max_length") or (min(found) if found else None)
    if longest is None:
        return None
    rope = _rope(c)
    kind = str(rope.get("rope_type") or rope.get("type") or "default")
    if "gemma3" in c.model_type or kind in {"su", "longrope", "llama3", "default", "mrope"}:
        return int(longest)
    if kind == "yarn" and rope.get("original_max_position_embeddings"):
        longest = int(_number("original_max_position_embeddings", rope["original_max_position_embeddings"]))
    return int(longest * _number("rope factor", rope.get("factor") or 1.0))


def _rope_positions(c: _Config, positions: int | None) -> int:
    """Rows of the rotary cos/sin table that the engine keeps in GPU memory."""
    return c.optional("max_position_embeddings") or positions or 0


def _quantization(raw: Any) -> Quantization | None:
    """``quantization_config`` -> bits a stored weight, scales included where their group size is given."""
    if not isinstance(raw, Mapping) or not raw:
        return None
    method = str(raw.get("quant_method") or raw.get("quant_algo") or "").lower()
    if method == "fp8":
        block = raw.get("weight_block_size")
        scale = 0.0
        if isinstance(block, list) and len(block) == 2:
            scale = 32.0 / (_number("weight_block_size", block[0]) * _number("weight_block_size", block[1]))
        return Quantization("fp8", 8.0 + scale, "linear")
    if method == "mxfp4":
        # 4-bit elements, one 8-bit scale for each 32 (OCP Microscaling formats 1.0).
        return Quantization("mxfp4", 4.25, "experts")
    if method in {"awq", "gptq", "gptq_marlin", "awq_marlin"}:
        bits = _number("bits", raw.get("bits") or raw.get("w_bit") or 4)
        group = raw.get("group_size") or raw.get("q_group_size") or 128
        # -1: one scale a column.
        return Quantization(method, bits + ((16.0 + bits) / _number("group_size", group) if group != -1 else 0.0), "linear")
    if method == "compressed-tensors":
        groups = raw.get("config_groups") or {}
        first: Any = next(iter(groups.values()), {}) if isinstance(groups, Mapping) else {}
        weights = (first.get("weights") if isinstance(first, Mapping) else None) or {}
        bits = _number("num_bits", weights.get("num_bits") or 8)
        group = weights.get("group_size") or -1
        return Quantization(method, bits + (16.0 / _number("group_size", group) if group != -1 else 0.0), "linear")
    if method == "bitsandbytes":
        four = bool(raw.get("load_in_4bit") or raw.get("_load_in_4bit"))
        return Quantization(method, 4.5 if four else 8.0, "linear")
    if method == "modelopt" or "fp4" in method or "fp8" in method:
        return Quantization(method, 4.5 if "4" in method + str(raw.get("quant_algo", "")).lower() else 8.0, "linear")
    raise UserError(
        f"quantization method {method or 'unknown'!r} in the config",
        "fp8, mxfp4, awq, gptq, compressed-tensors, bitsandbytes or modelopt",
        "give the engine's own figure with --available-kv-gib",
    )


def _vision_parameters(raw: Mapping[str, Any], text_hidden: int) -> tuple[int, bool]:
    """Parameters of the vision tower and projector, and whether the count is term by term (Llama-4, SigLIP) or a ViT's."""
    v = raw.get("vision_config")
    if not isinstance(v, Mapping):
        return 0, True
    kind = str(v.get("model_type") or "")
    c = _Config(v, {}, kind or "vision")
    if c.get("hidden_size", "width", "embed_dim") is None or c.get("num_hidden_layers", "depth", "layers") is None:
        return 0, False  # left to the model class's defaults: not counted, and said to be inexact
    hidden = c.integer("hidden_size", "width", "embed_dim")
    depth = c.integer("num_hidden_layers", "depth", "layers", most=10_000)
    inner = c.integer("intermediate_size", default=4 * hidden)
    patch = c.integer("patch_size", default=14)
    image = v.get("image_size")
    side = (
        c.integer("image_size", default=336) if not isinstance(image, list) else int(_number("image_size", (image or [336])[0]))
    ) // patch
    block = 4 * (hidden * hidden + hidden) + 2 * hidden * inner + inner + hidden + 4 * hidden
    tower = depth * block + 3 * patch * patch * hidden
    if kind == "llama4_vision_model":
        # Class token, positions, two LayerNorms; pixel-shuffle adapter of two matrices; projector to the text model.
        out, projected = c.integer("projector_output_dim", default=4096), c.integer("projector_input_dim", default=4096)
        tower += hidden + (side * side + 1) * hidden + 4 * hidden
        tower += inner * projected + projected * out
        return tower + c.integer("vision_output_dim", default=out) * text_hidden, True
    if kind == "siglip_vision_model":
        # Patch bias, positions, last LayerNorm; Gemma-3 projects with one matrix and a norm.
        return tower + hidden + side * side * hidden + 2 * hidden + hidden * text_hidden + hidden, True
    return tower + hidden * text_hidden, False
