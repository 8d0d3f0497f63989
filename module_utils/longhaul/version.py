"""Longhaul's own version, and how versions of engines are read and ordered."""

from __future__ import annotations

from dataclasses import dataclass

from .errors import UserError

__version__ = "0.1.0"


@dataclass(frozen=True, order=True)
class Version:
    """A release of an engine, ordered. Post-releases count: 0.5.6.post2 is newer than 0.5.6."""

    release: tuple[int, ...]
    post: int = 0

    @classmethod
    def parse(cls, text: str) -> Version:
        """Read ``0.12.0``, ``v0.12.0``, ``0.5.6.post2`` or an image tag (``v0.5.6.post2-runtime``, ``0.32.0+cpu``).

        Raises UserError for anything else.
        """
        words = text.strip().lstrip("v").split("-", maxsplit=1)[0].split("+", maxsplit=1)[0].split(".")
        post = int(words.pop()[4:]) if words[-1].startswith("post") and words[-1][4:].isdecimal() else 0
        if not words or not all(word.isdecimal() for word in words):
            raise UserError(
                f"engine version {text!r}",
                "a release number such as 0.12.0 or 0.5.6.post2",
                "give the engine's release: engine_version, or --engine NAME==VERSION",
            )
        numbers = [int(word) for word in words]
        return cls((*numbers, *[0] * (3 - len(numbers))), post)

    def __str__(self) -> str:
        return ".".join(map(str, self.release)) + (f".post{self.post}" if self.post else "")
