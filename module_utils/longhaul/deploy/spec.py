"""The spec of an endpoint: everything needed to start it, nothing secret. ``current.json`` and ``previous.json``.

``render_spec`` is pure; ``store_spec`` keeps the last different spec as ``previous`` and replaces ``current`` atomically,
so that at every instant one complete spec is on disk.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from typing import Any

from ..engines.registry import get_engine
from ..engines.settings import EngineSettings, counted
from ..errors import UserError
from ..files import read_json, to_json, write_atomic
from ..keys import read_key
from ..version import Version
from .layout import Layout
from .rolling import begin, is_unproven, keep_as_previous, settle

SPEC_SCHEMA = "longhaul.spec/1"
# A model's identity must not depend on who wrote it or when.
UNHASHED = ("spec_id",)


def render_spec(
    engine: str,
    version: str,
    runtime: str,
    settings: EngineSettings,
    *,
    instance: str,
    python: str,
    environment_hash: str | None = None,
    container: Mapping[str, Any] | None = None,
    model: Mapping[str, Any] | None = None,
    url: str | None = None,
    extra: Mapping[str, Any] | None = None,
) -> dict[str, Any]:
    """Settings -> spec, with argv from the engine's adapter. Same input, same ``spec_id``.

    ``python`` is the interpreter that argv starts with; ``environment_hash`` the lock's hash (process runtime);
    ``container`` image, digest, mounts and limits (docker runtime).
    """
    adapter = get_engine(engine)
    launch = adapter.launch(settings, Version.parse(version))
    reach = "127.0.0.1" if settings.host in ("0.0.0.0", "::", "") else settings.host  # noqa: S104 - compared, not bound
    spec: dict[str, Any] = {
        "schema": SPEC_SCHEMA,
        "instance": instance,
        "engine": engine,
        "version": version,
        "runtime": runtime,
        "argv": [python, *launch.argv],
        "env": dict(launch.env),
        "secret_env": dict(launch.secret_env),
        "settings": {
            **dataclasses.asdict(settings),
            "extra_args": list(settings.extra_args),
            "extra_env": dict(settings.extra_env),
        },
        "environment_hash": environment_hash,
        "container": dict(container) if container else None,
        "model": dict(model) if model else {},
        "url": url or f"http://{f'[{reach}]' if ':' in reach else reach}:{settings.port}",
        **dict(extra or {}),
    }
    spec["spec_id"] = spec_id(spec)
    return spec


def spec_id(spec: Mapping[str, Any]) -> str:
    """Twelve hex digits that change exactly when the deployment would; a setting of a later release, left unset, changes nothing."""
    body = {k: v for k, v in spec.items() if k not in UNHASHED}
    body["settings"] = counted(body["settings"])
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:12]


def load_spec(where: Layout, which: str = "current") -> dict[str, Any] | None:
    """The current or previous spec, or ``None``. UserError where the file is damaged or of another schema."""
    path = where.current_spec if which == "current" else where.previous_spec
    spec = read_json(path)
    if spec is not None and spec.get("schema") != SPEC_SCHEMA:
        raise UserError(f"{path} has schema {spec.get('schema')!r}", SPEC_SCHEMA, "deploy again with this release")
    return spec


def require_spec(where: Layout) -> dict[str, Any]:
    """The current spec, or a UserError that says nothing is deployed."""
    spec = load_spec(where)
    if spec is None:
        raise UserError(
            f"nothing deployed at {where.state}", "a deployed endpoint", "run ansible-playbook deploy.yml, or set longhaul_home"
        )
    return spec


def store_spec(where: Layout, spec: Mapping[str, Any], *, dry_run: bool = False) -> tuple[bool, dict[str, Any] | None]:
    """Make ``spec`` current; the one it replaces becomes previous, if it was ever proven. Returns (changed, the spec before)."""
    before = load_spec(where)
    if before is not None and before.get("spec_id") == spec["spec_id"]:
        if not dry_run:
            settle(where)
        return False, before
    if not dry_run:
        # A spec that a roll began with and never proved is nothing to return to.
        doubtful = before is not None and is_unproven(where, before["spec_id"])
        begin(where, spec)
        if before is not None and not doubtful:
            keep_as_previous(where, before)
        write_atomic(where.current_spec, to_json(spec))
        settle(where)
    return True, before


def restore_previous(where: Layout, *, dry_run: bool = False) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Swap current and previous (so that a rollback can be rolled back). Returns (now current, what was current).

    A current spec that nobody proved is left, not swapped: there is nothing to return to in it.
    """
    previous = load_spec(where, "previous")
    before = load_spec(where)
    if previous is None or (before is not None and before.get("spec_id") == previous.get("spec_id")):
        raise UserError(
            f"no {where.previous_spec}" if previous is None else f"{where.previous_spec} is what is deployed already",
            "an earlier deployment to return to",
            "deploy a good version forward instead",
        )
    if not dry_run:
        doubtful = before is not None and is_unproven(where, before["spec_id"])
        begin(where, previous)
        write_atomic(where.current_spec, to_json(previous))
        if before is not None and not doubtful:
            write_atomic(where.previous_spec, to_json(before))
        settle(where)
    return previous, before


def read_api_key(spec: Mapping[str, Any], path: str | None, remote: bool) -> str | None:
    """The key of the endpoint: from ``path``, else (on the server's machine) from the file that the engine was started with."""
    chosen = path or (None if remote else spec["settings"].get("api_key_file"))
    if not chosen:
        return None
    return read_key(chosen, "context_test_api_key_file")
