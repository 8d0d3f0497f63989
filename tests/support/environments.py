"""Small environments for tests: the roles' own locks, installed once under .cache (git-ignored)."""

from __future__ import annotations

import fcntl
import sys
from pathlib import Path

from longhaul.deploy.environments import build_environment, is_built, parse_lock

ROOT = Path(__file__).resolve().parents[2]
CACHE = ROOT / ".cache"


def _built(name: str, lock_file: str) -> Path:
    lock = parse_lock((ROOT / lock_file).read_text(encoding="utf-8"))
    path = CACHE / name
    CACHE.mkdir(exist_ok=True)
    with (CACHE / f"{name}.lock").open("w") as guard:
        fcntl.flock(guard, fcntl.LOCK_EX)
        if not is_built(path, lock):
            build_environment(path, lock, [sys.executable, "python3.11", "python3"], say=lambda _: None)
    return path


def supervisor_env() -> Path:
    """The environment that holds supervisord."""
    return _built("supervisor", "roles/engine/files/locks/supervisor.lock")


def client_env() -> Path:
    """The environment of the model store and the context test."""
    return _built("client", "roles/client_env/files/client.lock")
