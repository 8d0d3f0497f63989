"""The docker runtime as data: from an operator's options to the body of Docker's ``POST /containers/create``. Pure.

Every path that the engine's argv names (model, key file) is mounted at its own path, so that one argv and one set of
settings work in both runtimes. No secret is in the body: keys are files, read by the launcher inside the container.
"""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from ...engines.registry import get_engine
from ...errors import UserError
from ...values import options_for
from ..spec import Spec

LAUNCHER = "/longhaul/launch.py"
SPEC = "/longhaul/spec.json"
LABEL_ENDPOINT = "longhaul.endpoint"
LABEL_SPEC = "longhaul.spec_id"
GPU_ACCESS = ("device_request", "cdi", "none")
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_SIZE = re.compile(r"(\d+)\s*([kmgt]?)i?b?", re.IGNORECASE)
# What an engine compiles or downloads once and must keep when its container goes: folder in the cache -> place inside. Both
# images run as root with HOME=/root.
CACHES = {"cache": "/root/.cache", "triton": "/root/.triton"}


@dataclass(frozen=True)
class ContainerSettings:
    """The docker runtime's part of an endpoint. Sizes as Docker writes them (``128g``); times in seconds.

    ``image`` is ``name:tag``; ``digest`` what the registry calls it; ``image_id`` what this daemon found.
    ``mounts`` are ``source[:target[:ro|rw]]``, read-only unless said otherwise. ``caches`` maps a folder below
    ``cache_dir`` to its place inside.
    """

    image: str
    cache_dir: str
    digest: str | None = None
    image_id: str | None = None
    python: str = "python3"
    network: str = "host"
    ipc: str = "host"
    shm_size: str | None = None
    ulimits: Mapping[str, int] = field(default_factory=dict)
    gpu_access: str = "device_request"
    gpus: tuple[str, ...] = ()
    cap_drop: tuple[str, ...] = ("ALL",)
    cap_add: tuple[str, ...] = ()
    security_opt: tuple[str, ...] = ("no-new-privileges",)
    restart: str = "unless-stopped"
    log_max_size: str = "100m"
    log_max_files: int = 5
    health_interval_s: int = 30
    health_timeout_s: int = 20
    health_tolerance_s: int = 3600
    stop_timeout_s: int = 60
    init: bool = True
    caches: Mapping[str, str] = field(default_factory=lambda: dict(CACHES))
    mounts: tuple[str, ...] = ()
    devices: tuple[str, ...] = ()


def container_from(options: Mapping[str, Any]) -> ContainerSettings:
    """Ansible's options (numbers may be strings, "" and None mean: not set) -> ContainerSettings. UserError names the option."""
    values = options_for(ContainerSettings, options, prefix="engine_container_", what="container setting")
    if not values.get("image"):
        raise UserError("no engine_image", "an image with its tag", "set engine_image")
    settings = ContainerSettings(**values)
    if settings.digest and not _DIGEST.fullmatch(settings.digest):
        raise UserError(f"engine_image_digest {settings.digest!r}", "sha256: and 64 hex digits", "set engine_image_digest")
    if "@" in settings.image:
        raise UserError(
            f"engine_image {settings.image!r}", "a name with a tag, no digest", "put the digest into engine_image_digest"
        )
    if settings.gpu_access not in GPU_ACCESS:
        raise UserError(
            f"engine_container_gpu_access {settings.gpu_access!r}",
            "one of " + ", ".join(GPU_ACCESS),
            "set engine_container_gpu_access",
        )
    if settings.shm_size is not None:
        size_bytes("engine_container_shm_size", settings.shm_size)
    for mount in settings.mounts:
        parse_mount(mount)
    return settings


def size_bytes(name: str, text: str) -> int:
    """``128g`` -> bytes. Powers of 1024, as Docker reads them."""
    found = _SIZE.fullmatch(str(text).strip())
    if not found:
        raise UserError(f"{name} {text!r}", "a size such as 128g", f"set {name}")
    return int(found[1]) << {"": 0, "k": 10, "m": 20, "g": 30, "t": 40}[found[2].lower()]


def parse_mount(text: str) -> tuple[str, str, bool]:
    """``source[:target[:ro|rw]]`` -> (source, target, read only)."""
    parts = text.split(":")
    source, target, how = parts[0], parts[1] if len(parts) > 1 and parts[1] else parts[0], parts[2] if len(parts) > 2 else "ro"
    if len(parts) > 3 or how not in ("ro", "rw") or not source.startswith("/") or not target.startswith("/"):
        raise UserError(
            f"engine_container_mounts entry {text!r}",
            "/source, /source:/target or /source:/target:rw",
            "set engine_container_mounts",
        )
    return source, target, how == "ro"


def host_folders(spec: Spec) -> list[str]:
    """Folders that must exist on the host before the container is made (Docker would make them as root, or refuse)."""
    settings = container_from(spec.container or {})
    return [f"{settings.cache_dir}/{name}" for name in settings.caches]


def reference(settings: ContainerSettings) -> str:
    """The image's name for Docker: with the registry's digest where it is known, else with the tag."""
    return f"{settings.image}@{settings.digest}" if settings.digest else settings.image


def create_body(spec: Spec, *, endpoint: str, spec_file: str, launcher: str) -> dict[str, Any]:
    """The body of ``POST /containers/create`` for a spec. ``endpoint`` labels whose it is (the state folder on the host).

    The health check is for people and dashboards: Docker restarts nothing because of it, and it calls a server unhealthy only
    after ``health_tolerance_s`` without an answer, longer than the longest prefill.
    """
    settings = container_from(spec.container or {})
    mounts = [
        _bind(launcher, LAUNCHER),
        _bind(spec_file, SPEC),
        *(_bind(f"{settings.cache_dir}/{name}", target, read_only=False) for name, target in sorted(settings.caches.items())),
    ]
    if spec.settings.model_path.startswith("/"):
        mounts.append(_bind(spec.settings.model_path, spec.settings.model_path))
    mounts += [_bind(path, path) for path in sorted(set(spec.secret_env.values()))]
    mounts += [_bind(source, target, read_only=read_only) for source, target, read_only in map(parse_mount, settings.mounts)]
    host: dict[str, Any] = {
        "NetworkMode": settings.network,
        "IpcMode": settings.ipc,
        "Init": settings.init,
        "RestartPolicy": {"Name": settings.restart},
        "LogConfig": {
            "Type": "json-file",
            "Config": {"max-size": settings.log_max_size, "max-file": str(settings.log_max_files)},
        },
        "Mounts": mounts,
        "Ulimits": [{"Name": name, "Soft": soft, "Hard": soft} for name, soft in sorted(settings.ulimits.items())],
        "CapDrop": list(settings.cap_drop),
        "CapAdd": list(settings.cap_add),
        "SecurityOpt": list(settings.security_opt),
        "DeviceRequests": _gpu_requests(settings, spec.settings.device),
        "Devices": [{"PathOnHost": d, "PathInContainer": d, "CgroupPermissions": "rwm"} for d in settings.devices],
    }
    # Where the host's /dev/shm is shared there is no size to set.
    if settings.shm_size and settings.ipc != "host":
        host["ShmSize"] = size_bytes("engine_container_shm_size", settings.shm_size)
    health = spec.url + get_engine(spec.engine).health_path
    return {
        "Image": reference(settings),
        "Entrypoint": [settings.python, LAUNCHER, SPEC],
        "Cmd": [],
        "Labels": {LABEL_ENDPOINT: endpoint, LABEL_SPEC: spec.spec_id, "longhaul.engine": spec.label},
        "StopSignal": "SIGTERM",
        "StopTimeout": settings.stop_timeout_s,
        "Healthcheck": {
            "Test": ["CMD", settings.python, LAUNCHER, "--health", health, str(settings.health_timeout_s - 1)],
            "Interval": settings.health_interval_s * 10**9,
            "Timeout": settings.health_timeout_s * 10**9,
            "Retries": max(1, math.ceil(settings.health_tolerance_s / settings.health_interval_s)),
            "StartPeriod": settings.health_tolerance_s * 10**9,
        },
        "HostConfig": host,
    }


def _bind(source: str, target: str, *, read_only: bool = True) -> dict[str, Any]:
    return {"Type": "bind", "Source": source, "Target": target, "ReadOnly": read_only}


def _gpu_requests(settings: ContainerSettings, device: str) -> list[dict[str, Any]]:
    if device != "cuda" or settings.gpu_access == "none":
        return []
    if settings.gpu_access == "cdi":
        return [{"Driver": "cdi", "DeviceIDs": [f"nvidia.com/gpu={g}" for g in settings.gpus or ("all",)]}]
    if settings.gpus:
        return [{"Driver": "nvidia", "DeviceIDs": list(settings.gpus), "Capabilities": [["gpu"]]}]
    return [{"Driver": "nvidia", "Count": -1, "Capabilities": [["gpu"]]}]


def as_options(settings: ContainerSettings) -> dict[str, Any]:
    """The settings as plain JSON values for the spec; :func:`container_from` reads them back to the same settings."""
    return {
        name: list(value) if isinstance(value, tuple) else dict(value) if isinstance(value, Mapping) else value
        for name, value in ((f.name, getattr(settings, f.name)) for f in dataclasses.fields(settings))
    }
