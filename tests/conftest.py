"""Hypothesis for all tests: fresh examples at a desk, the same ones every time in CI; no deadlines (machines are shared)."""

from __future__ import annotations

import os

from hypothesis import settings

settings.register_profile("desk", deadline=None)
settings.register_profile("ci", deadline=None, derandomize=True)
settings.load_profile("ci" if os.environ.get("CI") else "desk")
