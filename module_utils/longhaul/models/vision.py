"""The vision tower of a multimodal model: only its parameters count, it keeps no KV."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from .config import DecoderConfig, positive_number


def vision_parameters(raw: Mapping[str, Any], text_hidden: int) -> tuple[int, bool]:
    """Parameters of the vision tower and projector, and whether the count is term by term (Llama-4, SigLIP) or a ViT's."""
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
    side = (
        c.integer("image_size", default=336)
        if not isinstance(image, list)
        else int(positive_number("image_size", (image or [336])[0]))
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
