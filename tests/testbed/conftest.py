"""Tests here run against real hosts."""

from testbed.fixtures import bed  # noqa: F401
