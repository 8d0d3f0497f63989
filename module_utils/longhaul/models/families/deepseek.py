"""DeepSeek V2 and V3 (R1, Kimi-K2): multi-head latent attention, dense layers first, shared experts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ..family import Family, ModelTypes, Shape


class DeepSeekV2(Family):
    """Dense layers first, then experts."""

    model_types: ClassVar[ModelTypes] = {"deepseek_v2": {"moe_layer_freq": 1, "first_k_dense_replace": 0}}


class DeepSeekV3(Family):
    """The router has a correction bias per expert."""

    model_types: ClassVar[ModelTypes] = {
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
        }
    }
    aliases: ClassVar[Mapping[str, str]] = {"kimi_k2": "deepseek_v3"}

    def router_parameters(self, shape: Shape) -> int:
        """With ``e_score_correction_bias``."""
        return super().router_parameters(shape) + shape.experts


FAMILIES = (DeepSeekV2(), DeepSeekV3())
