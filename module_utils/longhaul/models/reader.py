"""``config.json`` -> :class:`ModelArchitecture`. Knows the hub's spellings; what is special about a family is in its file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..errors import UserError
from .architecture import Mla, ModelArchitecture
from .config import DecoderConfig, positive_number
from .family import Family, Shape
from .quantization import read_quantization
from .registry import family_of
from .vision import vision_parameters

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
    vision, vision_exact = vision_parameters(raw, hidden)
    names = raw.get("architectures") or text.get("architectures") or []
    names = names if isinstance(names, list) else [names]
    positions = _max_positions(c, family)
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
        quantization=read_quantization(raw.get("quantization_config") or text.get("quantization_config")),
        embedding_parameters=vocab * hidden,
        head_parameters=vocab * hidden,
        final_norm_parameters=hidden * (2 if c.get("norm_bias") else 1),
        vision_parameters=vision,
        vision_exact=vision_exact,
        rope_dim=mla.qk_rope_head_dim
        if mla
        else int(head_dim * positive_number("partial_rotary_factor", c.get("partial_rotary_factor", default=1.0))),
        rope_positions=_rope_positions(c, positions),
    )


def _mla(c: DecoderConfig) -> Mla | None:
    if c.get("kv_lora_rank") is None:
        return None
    return Mla(
        kv_lora_rank=c.integer("kv_lora_rank"),
        q_lora_rank=c.optional("q_lora_rank"),
        qk_nope_head_dim=c.integer("qk_nope_head_dim"),
        qk_rope_head_dim=c.integer("qk_rope_head_dim"),
        v_head_dim=c.integer("v_head_dim"),
    )


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


def _rope_positions(c: DecoderConfig, positions: int | None) -> int:
    """Rows of the rotary cos/sin table that the engine keeps in GPU memory."""
    return c.optional("max_position_embeddings") or positions or 0
