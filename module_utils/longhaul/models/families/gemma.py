"""Gemma 1 to 3: sliding layers with every n-th global, four norms per layer from Gemma 2 on."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ..family import Family, ModelTypes


class Gemma(Family):
    """Gemma 1 and 2."""

    model_types: ClassVar[ModelTypes] = {
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
    }


class Gemma3(Family):
    """Gemma 3 and 3n: their positions count the rope scaling already. Gemma 3n is read as a plain decoder otherwise."""

    positions_are_scaled = True
    model_types: ClassVar[ModelTypes] = {
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
        "gemma3n": {},
        "gemma3n_text": {},
    }
    aliases: ClassVar[Mapping[str, str]] = {"gemma3": "gemma3_text"}


FAMILIES = (Gemma(), Gemma3())
