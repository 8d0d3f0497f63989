"""Cohere 2 (Command R7B, Command A): every fourth layer global, one norm per layer."""

from __future__ import annotations

from typing import ClassVar

from ..family import Family, ModelTypes


class Cohere2(Family):
    """Attention and feed-forward run in parallel behind one norm."""

    model_types: ClassVar[ModelTypes] = {
        "cohere2": {"tie_word_embeddings": True, "sliding_window": 4096, "sliding_window_pattern": 4, "norms_per_layer": 1}
    }


FAMILIES = (Cohere2(),)
