"""``config.json`` -> :class:`ModelArchitecture`. Knows the hub's spellings; what is special about a family is in its file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from .architecture import Mla, ModelArchitecture, Quantization
from .config import DecoderConfig, positive_number
from .family import Family, Shape
from .registry import family_of

# Where a multimodal config keeps its decoder.
_TEXT_KEYS = ("text_config", "language_config", "llm_config")


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


def _from_config(raw: Mapping[str, Any], name: str) -> ModelArchitecture:
    text = next((raw[k] for k in _TEXT_KEYS if isinstance(raw.get(k), Mapping)), raw)
    model_type = str(text.get("model_type") or raw.get("model_type") or "")
    model_type, family = family_of(model_type)
    if not model_type and not any(k in text for k in ("num_hidden_layers", "n_layer")):
        found, required = "a config with neither model_type nor num_hidden_layers", "the config.json of a transformer decoder"
        raise UserError(found, required, "name the model's own config, not a tokenizer's or a generation config")
    if any(k in text for k in ("state_size", "ssm_cfg", "mamba_d_state", "linear_num_key_heads", "time_mix_extra_dim")):
        found = f"model type {model_type or 'unknown'} with recurrent (state-space or linear-attention) layers"
        required = "a transformer whose layers all keep a KV cache"
        raise UserError(found, required, "size it with the engine itself; the plan would not be exact")
    c = DecoderConfig(text, family.model_types.get(model_type, {}), model_type or "decoder")
    hidden = c.integer("hidden_size", "n_embd", "d_model")
    count = c.integer("num_hidden_layers", "n_layer", "n_layers", most=10_000)
    heads = c.integer("num_attention_heads", "n_head", "n_heads")
    kv_heads = c.integer("num_key_value_heads", "num_kv_heads", default=heads)
    head_dim = c.integer("head_dim", default=hidden // heads)
    if heads % kv_heads:
        raise UserError(f"{heads} heads over {kv_heads} KV heads", "heads divisible by KV heads", "correct the config")
    mla = _mla(c)
    kinds = family.layer_kinds(c, count)
    vocab = c.integer("vocab_size")
    tied = bool(c.get("tie_word_embeddings", default=raw.get("tie_word_embeddings", False)))
    experts = c.integer("num_local_experts", "num_experts", "n_routed_experts", default=0, least=0)
    active = c.integer("num_experts_per_tok", "num_experts_per_token", default=0, least=0)
    shape = Shape(hidden, heads, kv_heads, head_dim, mla, experts, active)
    layers = tuple(family.layer(c, shape, i, kind, window) for i, (kind, window) in enumerate(kinds))
    vision, vision_exact = _vision_parameters(raw, hidden)
    names = raw.get("architectures") or text.get("architectures") or []
    names = names if isinstance(names, list) else [names]
    positions = _max_positions(c, family)
    rotary_share = c.get("partial_rotary_factor", default=1.0)
    has_experts = any(x.moe for x in layers)
    words = (text.get("torch_dtype"), text.get("dtype"), raw.get("torch_dtype"), raw.get("dtype"))
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
        dtype=str(next((w for w in words if w), "bfloat16")),
        experts=experts if has_experts else 0,
        experts_per_token=active if has_experts else 0,
        mla=mla,
        tied_embeddings=tied,
        quantization=_quantization(raw.get("quantization_config") or text.get("quantization_config")),
        embedding_parameters=vocab * hidden,
        head_parameters=vocab * hidden,
        final_norm_parameters=hidden * (2 if c.get("norm_bias") else 1),
        vision_parameters=vision,
        vision_exact=vision_exact,
        rope_dim=mla.qk_rope_head_dim if mla else int(head_dim * positive_number("partial_rotary_factor", rotary_share)),
        rope_positions=c.optional("max_position_embeddings") or positions or 0,
    )


def _mla(c: DecoderConfig) -> Mla | None:
    if c.get("kv_lora_rank") is None:
        return None
    head_dims = (c.integer(key) for key in ("qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim"))
    return Mla(c.integer("kv_lora_rank"), c.optional("q_lora_rank"), *head_dims)


def _rope(c: DecoderConfig) -> Mapping[str, Any]:
    """The rope parameters, whichever of the three hub spellings holds them; a nested one by layer type gives its last."""
    rope = c.get("rope_scaling", "rope_parameters")
    if not isinstance(rope, Mapping):
        return {}
    inner = [v for v in rope.values() if isinstance(v, Mapping)]
    return inner[-1] if inner else rope


def _max_positions(c: DecoderConfig, family: Family) -> int | None:
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
    if family.positions_are_scaled or kind in {"su", "longrope", "llama3", "default", "mrope"}:
        return int(longest)
    if kind == "yarn" and rope.get("original_max_position_embeddings"):
        longest = int(positive_number("original_max_position_embeddings", rope["original_max_position_embeddings"]))
    return int(longest * positive_number("rope factor", rope.get("factor") or 1.0))


def _quantization(raw: Any) -> Quantization | None:
    """``quantization_config`` -> bits a stored weight, scales included where their group size is given."""
    if not isinstance(raw, Mapping) or not raw:
        return None
    method = str(raw.get("quant_method") or raw.get("quant_algo") or "").lower()
    if method == "fp8":
        block = raw.get("weight_block_size")
        sides = [positive_number("weight_block_size", x) for x in block] if isinstance(block, list) else []
        return Quantization(method, 8.0 + (32.0 / math.prod(sides) if len(sides) == 2 else 0.0), "linear")
    if method == "mxfp4":
        # 4-bit elements, one 8-bit scale for each 32 (OCP Microscaling formats 1.0).
        return Quantization(method, 4.25, "experts")
    if method in {"awq", "gptq", "gptq_marlin", "awq_marlin"}:
        bits = positive_number("bits", raw.get("bits") or raw.get("w_bit") or 4)
        group = raw.get("group_size") or raw.get("q_group_size") or 128
        return Quantization(method, bits + _scale_bits(16.0 + bits, group), "linear")
    if method == "compressed-tensors":
        groups = raw.get("config_groups") or {}
        first: Any = next(iter(groups.values()), {}) if isinstance(groups, Mapping) else {}
        weights = (first.get("weights") if isinstance(first, Mapping) else None) or {}
        bits = positive_number("num_bits", weights.get("num_bits") or 8)
        return Quantization(method, bits + _scale_bits(16.0, weights.get("group_size") or -1), "linear")
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


def _scale_bits(bits: float, group: Any) -> float:
    """Bits a weight that the scales take: ``bits`` for each group of weights. A group of -1 is a column: none to speak of."""
    return 0.0 if group == -1 else bits / positive_number("group_size", group)


def _vision_parameters(raw: Mapping[str, Any], text_hidden: int) -> tuple[int, bool]:
    """Parameters of the vision tower and projector, and whether the count is term by term (Llama-4, SigLIP) or a ViT's.

    The tower keeps no KV: only its parameters count.
    """
    v = raw.get("vision_config")
    if not isinstance(v, Mapping):
        return 0, True
    kind = str(v.get("model_type") or "")
    c = DecoderConfig(v, {}, kind or "vision")
    if c.get("hidden_size", "width", "embed_dim") is None or c.get("num_hidden_layers", "depth", "layers") is None:
        return 0, False  # left to the model class's defaults: not counted, and said to be inexact
    hidden = c.integer("hidden_size", "width", "embed_dim")
    depth = c.integer("num_hidden_layers", "depth", "layers", most=10_000)
    inner = c.integer("intermediate_size", default=4 * hidden)
    patch = c.integer("patch_size", default=14)
    image = v.get("image_size")
    width = (image or [336])[0] if isinstance(image, list) else c.integer("image_size", default=336)
    side = int(positive_number("image_size", width)) // patch
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
