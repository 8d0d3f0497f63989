"""Llama 4 (Scout, Maverick): chunked-local layers beside global ones without rope, one shared expert."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import ClassVar

from ...errors import UserError
from ..architecture import AttentionKind
from ..config import DecoderConfig
from ..family import FULL, Family, ModelTypes, Shape, expert_width


class Llama4(Family):
    """Layer i is global where ``no_rope_layers[i]`` is 0, else it attends inside aligned chunks."""

    model_types: ClassVar[ModelTypes] = {
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
        }
    }
    aliases: ClassVar[Mapping[str, str]] = {"llama4": "llama4_text"}

    def derived_layer_kinds(self, config: DecoderConfig, count: int) -> list[tuple[AttentionKind, int | None]]:
        """Missing or empty ``no_rope_layers`` mean every ``no_rope_layer_interval``-th layer; a number is that interval."""
        chunk = config.optional("attention_chunk_size")
        no_rope = config.get("no_rope_layers")
        if isinstance(no_rope, int) and not isinstance(no_rope, bool):
            no_rope = _every(no_rope, count) if no_rope > 0 else []
        if not no_rope:
            no_rope = _every(config.integer("no_rope_layer_interval"), count)
        if not isinstance(no_rope, Sequence) or len(no_rope) != count:
            found = f"no_rope_layers of {len(no_rope) if isinstance(no_rope, Sequence) else no_rope!r}"
            raise UserError(found, f"one 0 or 1 for each of {count} layers, or an interval", "correct the config")
        return [(AttentionKind.CHUNKED, chunk) if has_rope and chunk else FULL for has_rope in no_rope]

    def is_moe_layer(self, config: DecoderConfig, index: int) -> bool:
        """``moe_layers`` where given, else every ``interleave_moe_layer_step``-th."""
        chosen = config.indices("moe_layers")
        if chosen is not None:
            return index in chosen
        return (index + 1) % config.integer("interleave_moe_layer_step") == 0

    def shared_expert_parameters(self, config: DecoderConfig, shape: Shape) -> int:
        """One shared expert of a routed one's size, without a gate."""
        return 3 * shape.hidden * expert_width(config)


def _every(interval: int, count: int) -> list[int]:
    return [int((i + 1) % interval != 0) for i in range(count)]


FAMILIES = (Llama4(),)
