"""Live progress for the modules longhaul_wait and longhaul_venv: see longhaul_live."""

from __future__ import annotations

import importlib.util
from pathlib import Path

_spec = importlib.util.spec_from_file_location("longhaul_live", Path(__file__).resolve().with_name("longhaul_live.py"))
if _spec is None or _spec.loader is None:
    raise ImportError("longhaul_live.py is missing beside this plugin")
_live = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(_live)


class ActionModule(_live.LiveAction):  # type: ignore[name-defined]
    """Start async, follow the progress file, collect the result."""
