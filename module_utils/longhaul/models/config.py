"""Typed reading of a ``config.json``: what is missing or malformed is named in one line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from ..errors import UserError


class DecoderConfig:
    """A decoder's config with the defaults of its model type under it; typed getters that name what is wrong."""

    def __init__(self, values: Mapping[str, Any], defaults: Mapping[str, Any], model_type: str) -> None:
        self._values, self._defaults, self.model_type = values, defaults, model_type

    def get(self, *keys: str, default: Any = None) -> Any:
        for layer in (self._values, self._defaults):
            for key in keys:
                if layer.get(key) is not None:
                    return layer[key]
        return default

    def integer(self, *keys: str, default: int | None = None, least: int = 1, most: int = 1 << 40) -> int:
        value = self.get(*keys, default=default)
        if value is None:
            found = f"a {self.model_type} config without {keys[0]}"
            raise UserError(found, "the config of a transformer decoder", f"add {keys[0]}")
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            found = f"{keys[0]} = {value!r:.40} in the config"
            raise UserError(found, f"a whole number from {least} to {most}", "correct the config")
        return value

    def optional(self, *keys: str) -> int | None:
        """A whole number, or ``None`` where the config leaves it out, says null, false or 0."""
        return self.integer(*keys) if self.get(*keys) else None

    def indices(self, key: str) -> Sequence[Any] | None:
        """A list, or ``None``."""
        value = self.get(key)
        if value is not None and (not isinstance(value, Sequence) or isinstance(value, str)):
            raise UserError(f"{key} = {value!r:.40} in the config", "a list of layer numbers", "correct the config")
        return value


def positive_number(label: str, value: Any) -> float:
    """A positive, finite number out of a config."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 1e12:
        raise UserError(f"{label} = {value!r:.40} in the config", "a positive number", "correct the config")
    return float(value)
