"""The ``bed`` fixture. A conftest imports it: ``from testbed.fixtures import bed  # noqa: F401``."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from testbed.bed import Bed, BedError, why_not

_shared: list[Bed] = []


@pytest.fixture(scope="session")
def bed() -> Iterator[Bed]:
    """One bed for the whole session, however many conftests import this; skips, with the reason, where none can be made.

    ``LONGHAUL_TESTBED=required`` turns the skip into a failure, for a CI that must not pass without it.
    """
    if _shared:
        yield _shared[0]
        return
    reason = why_not()
    if reason:
        if os.environ.get("LONGHAUL_TESTBED") == "required":
            raise BedError(reason)
        pytest.skip(reason)
    with Bed() as made:
        _shared.append(made)
        try:
            yield made
        finally:
            _shared.clear()
