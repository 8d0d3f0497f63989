"""The ``bed`` fixture. A conftest imports it: ``from testbed.fixtures import bed  # noqa: F401``."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest

from testbed.bed import Bed, BedError, why_not

_shared: list[Bed] = []


def _unavailable(reason: str) -> str:
    """Raise where the testbed is required, else the line that pytest shows for every test that it skips."""
    if os.environ.get("LONGHAUL_TESTBED") == "required":
        raise BedError(f"LONGHAUL_TESTBED=required, and no testbed can be made here: {reason}")
    return f"no testbed here: {reason}"


def _reason() -> str | None:
    return "LONGHAUL_TESTBED=off" if os.environ.get("LONGHAUL_TESTBED") == "off" else why_not()


def skip_together(items: list[pytest.Item]) -> None:
    """Where no bed can be made, one line for each file of tests instead of one for each test."""
    reason = _reason()
    if reason and os.environ.get("LONGHAUL_TESTBED") != "required":
        for item in items:
            if item.get_closest_marker("testbed"):
                item.add_marker(pytest.mark.skip(reason=_unavailable(reason)))


@pytest.fixture(scope="session")
def bed() -> Iterator[Bed]:
    """One bed for the whole session, however many conftests import this; skips, with the reason, where none can be made.

    ``LONGHAUL_TESTBED=required`` turns the skip into a failure, for a CI that must not pass without it;
    ``LONGHAUL_TESTBED=off`` skips it wherever it is.
    """
    if _shared:
        yield _shared[0]
        return
    reason = _reason()
    if reason:
        pytest.skip(_unavailable(reason))
    made = Bed()
    try:
        made.__enter__()
    except BedError as broken:
        # Rights that a machine has on paper only show when something is started.
        pytest.skip(_unavailable(" ".join(str(broken).split())))
    _shared.append(made)
    try:
        yield made
    finally:
        _shared.clear()
        made.close()
