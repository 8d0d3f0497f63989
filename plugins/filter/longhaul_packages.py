"""Filters for package lists."""

from __future__ import annotations

from collections.abc import Callable, Mapping


def pin(name: str, versions: Mapping[str, str] | None = None, separator: str = "=") -> str:
    """``name`` with its version, in the package manager's words, where one is given for it."""
    version = (versions or {}).get(name)
    return f"{name}{separator}{version}" if version else name


class FilterModule:
    """Registered by ansible.cfg."""

    def filters(self) -> dict[str, Callable[..., str]]:
        """Name -> function."""
        return {"longhaul_pin": pin}
