"""Mistral, Ministral and Mixtral: a sliding window, where there is one, holds for every layer."""

from __future__ import annotations

from typing import ClassVar

from ..family import Family, ModelTypes


class Mistral(Family):
    """Mixtral routes in every layer."""

    model_types: ClassVar[ModelTypes] = {
        "mistral": {"num_key_value_heads": 8, "max_position_embeddings": 131072},
        "ministral": {"num_key_value_heads": 8, "head_dim": 128},
        "mixtral": {
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "num_key_value_heads": 8,
            "max_position_embeddings": 131072,
        },
    }


FAMILIES = (Mistral(),)
