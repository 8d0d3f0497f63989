"""Dense decoders that differ from Llama by a norm or a bias only: Phi-3, Granite, OLMo-2, StarCoder2."""

from __future__ import annotations

from typing import ClassVar

from ..family import Family, ModelTypes


class Dense(Family):
    """OLMo-2 norms queries and keys over all heads. StarCoder2 has biases everywhere and no gate."""

    model_types: ClassVar[ModelTypes] = {
        "phi3": {},
        "granite": {},
        "olmo2": {"qk_norm_wide": True},
        "starcoder2": {"gated": False, "use_bias": True, "norm_bias": True, "tie_word_embeddings": True},
    }


FAMILIES = (Dense(),)
