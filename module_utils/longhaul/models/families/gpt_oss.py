"""gpt-oss: every second layer slides over 128 tokens; attention sinks, biases in router and experts."""

from __future__ import annotations

from typing import ClassVar

from ..config import DecoderConfig
from ..family import Family, ModelTypes, Shape, expert_width


class GptOss(Family):
    """Experts in every layer."""

    model_types: ClassVar[ModelTypes] = {
        "gpt_oss": {
            "head_dim": 64,
            "num_key_value_heads": 8,
            "sliding_window": 128,
            "sliding_window_pattern": 2,
            "attention_bias": True,
            "max_position_embeddings": 131072,
        }
    }

    def attention_parameters(self, config: DecoderConfig, shape: Shape) -> int:
        """With one attention sink per head."""
        return super().attention_parameters(config, shape) + shape.heads

    def expert_parameters(self, config: DecoderConfig, shape: Shape) -> int:
        """With biases on all three matrices."""
        return super().expert_parameters(config, shape) + 2 * expert_width(config) + shape.hidden

    def router_parameters(self, shape: Shape) -> int:
        """With a bias per expert."""
        return super().router_parameters(shape) + shape.experts


FAMILIES = (GptOss(),)
