"""What a person is told when something is wrong: found, required, fix. One form for refusals, warnings and errors."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Finding:
    """One thing that must not (``refuse``) or should not (``warn``) go ahead. Each text is a phrase that stands alone.

    ``code`` is a stable name for programs; empty where none is needed.
    """

    found: str
    required: str
    fix: str
    severity: Literal["refuse", "warn"] = "refuse"
    code: str = ""

    def __str__(self) -> str:
        return f"found: {self.found} | required: {self.required} | fix: {self.fix}"


class UserError(Exception):
    """Input that a person can correct. ``str()`` is the finding on one line."""

    def __init__(self, found: str, required: str, fix: str) -> None:
        self.finding = Finding(found, required, fix)
        super().__init__(str(self.finding))

    @property
    def found(self) -> str:
        """What is there."""
        return self.finding.found

    @property
    def required(self) -> str:
        """What must be there."""
        return self.finding.required

    @property
    def fix(self) -> str:
        """What to do."""
        return self.finding.fix
