"""Qwen 2 and 3, dense and with experts."""

from __future__ import annotations

from typing import ClassVar

from ..family import Family, ModelTypes


class Qwen(Family):
    """``use_sliding_window`` is off unless the config says so. Qwen 2 has biases on Q, K and V; Qwen 3 norms on Q and K."""

    model_types: ClassVar[ModelTypes] = {
        "qwen2": {"use_sliding_window": False, "max_window_layers": 28, "qkv_bias": True},
        "qwen3": {"head_dim": 128, "use_sliding_window": False, "max_window_layers": 28, "qk_norm": True},
        "qwen2_moe": {"use_sliding_window": False, "max_window_layers": 28, "qkv_bias": True, "decoder_sparse_step": 1},
        "qwen3_moe": {"head_dim": 128, "use_sliding_window": False, "qk_norm": True, "decoder_sparse_step": 1},
    }


FAMILIES = (Qwen(),)
