"""Where the repository and the tests' own data lie."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
DATA = ROOT / "tests" / "data"
CONFIGS = DATA / "configs"
LOGS = DATA / "logs"
