"""The one exception a person is meant to read: found, required, fix."""

from __future__ import annotations


class UserError(Exception):
    """Input that a person can mend. Rendered on one line: what was found, what is required, how to fix it."""

    def __init__(self, found: str, required: str, fix: str) -> None:
        super().__init__(f"found: {found} | required: {required} | fix: {fix}")
        self.found = found
        self.required = required
        self.fix = fix
