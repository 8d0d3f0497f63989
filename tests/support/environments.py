"""Environments for tests: the roles' own locks, installed once into the cache."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from longhaul.deploy.environments import build_environment, is_built, parse_lock

from support import cache

ROOT = Path(__file__).resolve().parents[2]


def built(name: str, lock_file: Path, pythons: Sequence[str], extra_index_urls: Sequence[str] = ()) -> Path:
    """The environment of a lock. An environment cannot be moved: it is made in place, and its stamp is written last."""
    lock = parse_lock(lock_file.read_text(encoding="utf-8"))
    with cache.in_place(f"{name}-{lock.sha256[:12]}") as path:
        if not is_built(path, lock):
            build_environment(path, lock, pythons, say=print, extra_index_urls=extra_index_urls, tools=cache.root() / "tools")
    return path


def supervisor_env() -> Path:
    """The environment that holds supervisord."""
    lock = ROOT / "roles/engine/files/locks/supervisor.lock"
    return built("environments/supervisor", lock, [sys.executable, "python3.11", "python3"])


def client_env() -> Path:
    """The environment of the model store and the context test."""
    return built("environments/client", ROOT / "roles/client_env/files/client.lock", [sys.executable, "python3.11", "python3"])
