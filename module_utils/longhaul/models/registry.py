"""Which family reads which model type. A family is one file in ``families/`` and its name in ``_MODULES``.

The names are spelled out because Ansible ships to a host only what is imported by name.
"""

from __future__ import annotations

from .families import cohere, deepseek, dense, gemma, gpt_oss, llama, llama4, mistral, qwen
from .family import Family

_MODULES = (cohere, deepseek, dense, gemma, gpt_oss, llama, llama4, mistral, qwen)


def family_of(model_type: str) -> tuple[str, Family]:
    """(the model type under its main name, the family that reads it). An unknown type is read as a plain decoder."""
    for module in _MODULES:
        for family in module.FAMILIES:
            name = family.aliases.get(model_type, model_type)
            if name in family.model_types:
                return name, family
    return model_type, Family()
