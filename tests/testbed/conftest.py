"""Tests here run against real hosts."""

from __future__ import annotations

import pytest

from testbed.fixtures import bed, skip_together  # noqa: F401


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Called with the items of the whole session; only those that need a bed are looked at."""
    skip_together(items)
