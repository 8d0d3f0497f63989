"""The folder in which what is slow to make is kept: corpora and converted tokenizers."""

from __future__ import annotations

import os
from pathlib import Path


def default_cache_dir() -> Path:
    """``$LONGHAUL_CACHE``, else ``$XDG_CACHE_HOME/longhaul``, else ``~/.cache/longhaul``."""
    own = os.environ.get("LONGHAUL_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "longhaul"
