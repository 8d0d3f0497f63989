"""The spec of an endpoint: everything that is needed to start it, and no secret. On disk: ``current.json``, ``previous.json``.

``Spec`` is what the other rooms read; ``Spec.document`` is what lies on disk. ``render_spec`` is pure. ``store_spec`` keeps the
last different spec as ``previous`` and replaces ``current`` atomically, so that one complete spec is on disk at every instant.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..engines.registry import get_engine
from ..engines.settings import EngineSettings, counted, settings_from
from ..errors import UserError
from ..files import read_json, to_json, write_atomic
from ..keys import read_key
from ..version import Version
from . import rolling
from .layout import Layout
from .rolling import begin, is_unproven, keep_as_previous, settle

SPEC_SCHEMA = "longhaul.spec/1"


@dataclass(frozen=True)
class Spec:
    """One endpoint as it is, or will be, deployed.

    ``argv`` starts the engine, ``env`` is its environment without secrets, ``secret_env`` maps a variable to the file that the
    launcher reads it from. ``container`` is the docker runtime's part, ``environment_hash`` the process runtime's.
    ``document`` is the spec as JSON: it holds what an older or newer release wrote, and the id is computed from it.
    """

    spec_id: str
    instance: str
    engine: str
    version: str
    runtime: str
    argv: tuple[str, ...]
    env: Mapping[str, str]
    secret_env: Mapping[str, str]
    settings: EngineSettings
    url: str
    environment_hash: str | None
    container: Mapping[str, Any] | None
    model: Mapping[str, Any]
    document: Mapping[str, Any] = field(repr=False)

    @property
    def label(self) -> str:
        """Engine and version, for people."""
        return f"{self.engine} {self.version}"

    @property
    def gpus(self) -> int:
        """GPUs that the engine takes: one per rank of tensor and pipeline parallelism."""
        return self.settings.tensor_parallel * self.settings.pipeline_parallel

    @classmethod
    def parse(cls, document: Mapping[str, Any], source: str) -> Spec:
        """A spec from its JSON. UserError that names ``source`` where the document is damaged or not a spec of Longhaul."""
        if document.get("schema") != SPEC_SCHEMA:
            raise UserError(f"{source} has schema {document.get('schema')!r}", SPEC_SCHEMA, "deploy again with this release")
        fix = f"move {source} away and deploy again" if source.startswith("/") else "deploy again"
        for name, (kind, word) in _PARTS.items():
            value = document.get(name)
            if not isinstance(value, kind) and not (value is None and name in _OPTIONAL):
                said = f"{name} {value!r:.60}" if name in document else f"no {name}"
                raise UserError(f"{source} has {said}", word, fix)
        known = {f.name for f in dataclasses.fields(EngineSettings)}
        try:
            # This release cannot act on a setting of a newer one. The document keeps it.
            settings = settings_from({k: v for k, v in document["settings"].items() if k in known})
        except (UserError, TypeError) as error:
            said = error.found if isinstance(error, UserError) else str(error)
            raise UserError(f"{source} has unusable settings ({said})", "the settings that Longhaul wrote", fix) from error
        return cls(
            **{name: document[name] for name in ("spec_id", "instance", "engine", "version", "runtime", "url")},
            argv=tuple(map(str, document["argv"])),
            env=dict(document["env"]),
            secret_env=dict(document["secret_env"]),
            settings=settings,
            environment_hash=document.get("environment_hash"),
            container=document.get("container"),
            model=dict(document.get("model") or {}),
            document=dict(document),
        )


_PARTS: dict[str, tuple[type, str]] = {
    **dict.fromkeys(("spec_id", "instance", "engine", "version", "runtime", "url", "environment_hash"), (str, "text")),
    **dict.fromkeys(("env", "secret_env", "settings", "container", "model"), (Mapping, "a JSON object")),
    "argv": (list, "a list of words"),
}
_OPTIONAL = ("environment_hash", "container", "model")


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
) -> Spec:
    """Settings -> spec, with argv from the engine's adapter. Same input, same ``spec_id``.

    ``python`` is the interpreter that argv starts with; ``environment_hash`` the lock's hash (process runtime);
    ``container`` image, digest, mounts and limits (docker runtime).
    """
    adapter = get_engine(engine)
    launch = adapter.launch(settings, Version.parse(version))
    reach = "127.0.0.1" if settings.host in ("0.0.0.0", "::", "") else settings.host  # noqa: S104 - compared, not bound
    document: dict[str, Any] = {
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
        "url": f"http://{f'[{reach}]' if ':' in reach else reach}:{settings.port}",
    }
    document["spec_id"] = spec_id(document)
    return Spec.parse(document, "the rendered spec")


def spec_id(document: Mapping[str, Any]) -> str:
    """Twelve hex digits that change exactly when the deployment would. A setting of a later release, left unset, changes nothing."""
    body = {k: v for k, v in document.items() if k != "spec_id"}
    body["settings"] = counted(body["settings"])
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()[:12]


def read_spec(path: Path) -> Spec | None:
    """The spec in a file; ``None`` where there is no file. UserError where it is damaged or of another schema."""
    document = read_json(path)
    return None if document is None else Spec.parse(document, str(path))


def load_spec(where: Layout, which: str = "current") -> Spec | None:
    """The current or previous spec, or ``None``. UserError where the file is damaged or of another schema."""
    return read_spec(where.current_spec if which == "current" else where.previous_spec)


def require_spec(where: Layout) -> Spec:
    """The current spec, or a UserError that says nothing is deployed."""
    spec = load_spec(where)
    if spec is None:
        raise UserError(
            f"nothing deployed at {where.state}", "a deployed endpoint", "run ansible-playbook deploy.yml, or set longhaul_home"
        )
    return spec


def store_spec(where: Layout, spec: Spec, *, dry_run: bool = False) -> tuple[bool, Spec | None]:
    """Make ``spec`` current; the one it replaces becomes previous, if it was ever proven. Returns (changed, the spec before)."""
    before = load_spec(where)
    if before is not None and before.spec_id == spec.spec_id:
        if not dry_run:
            settle(where)
        return False, before
    if not dry_run:
        # A rollback must not return to a spec that was never proven.
        doubtful = before is not None and is_unproven(where, before.spec_id)
        begin(where, spec.spec_id)
        if before is not None and not doubtful:
            keep_as_previous(where, before.document)
        write_atomic(where.current_spec, to_json(spec.document))
        settle(where)
    return True, before


def restore_previous(where: Layout, *, dry_run: bool = False) -> tuple[Spec, Spec | None]:
    """Swap current and previous (so that a rollback can be rolled back). Returns (now current, what was current).

    A current spec that nobody has proven does not become the previous one: a rollback must not return to it.
    """
    previous = load_spec(where, "previous")
    before = load_spec(where)
    if previous is None or (before is not None and before.spec_id == previous.spec_id):
        raise UserError(
            f"no {where.previous_spec}" if previous is None else f"{where.previous_spec} is what is deployed already",
            "an earlier deployment to return to",
            "deploy a good version forward instead",
        )
    if not dry_run:
        doubtful = before is not None and is_unproven(where, before.spec_id)
        begin(where, previous.spec_id)
        write_atomic(where.current_spec, to_json(previous.document))
        if before is not None and not doubtful:
            write_atomic(where.previous_spec, to_json(before.document))
        settle(where)
    return previous, before


def give_back(where: Layout) -> Spec:
    """Make the previous spec current again after a roll that failed (see :func:`rolling.give_back`). Returns what is current now."""
    rolling.give_back(where)
    return require_spec(where)


def read_api_key(spec: Spec, path: str | None, remote: bool) -> str | None:
    """The key of the endpoint: from ``path``, else (on the server's machine) from the file that the engine was started with."""
    chosen = path or (None if remote else spec.settings.api_key_file)
    return read_key(chosen, "context_test_api_key_file") if chosen else None
