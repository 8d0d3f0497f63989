"""Llama 1 to 3 and what is built like it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from ..family import Family, ModelTypes


class Llama(Family):
    """Full attention in every layer."""

    model_types: ClassVar[ModelTypes] = {"llama": {}}
    aliases: ClassVar[Mapping[str, str]] = {"smollm": "llama"}


FAMILIES = (Llama(),)
