"""Refuse early: every input that a person can get wrong, found before anything changes.

Two layers: the variables alone (no host needed), then the host. A check is one function, decorated with the options that it
needs; it runs where all of them are given. Each finding says what was found, what is required, and the fix.
"""

from __future__ import annotations

import dataclasses
import functools
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..engines.registry import ENGINES, get_engine
from ..engines.settings import SETTINGS, Setting, settings_from
from ..errors import Finding, UserError
from ..files import free_bytes, read_json
from ..version import Version
from .compare_sets import check_sets
from .engine_variables import unknown_variables
from .layout import DEFAULT_INSTANCE, Layout, layout
from .model_store import SOURCES, check_model_dir
from .ports import port_holder, port_is_free, port_taken
from .runtimes.registry import RUNTIMES
from .spec import load_spec

# Docker's own 64 MiB are known to be too little for NCCL between the GPUs of a host.
NCCL_SHM_BYTES = 2**30


@dataclass(frozen=True)
class PreflightCheck:
    """A registered check and the names of the options that it takes, in the order of its arguments."""

    needs: tuple[str, ...]
    run: Callable[..., list[Finding]]


CHECKS: list[PreflightCheck] = []


def preflight_check(*needs: str) -> Callable[[Callable[..., Iterable[Finding]]], Callable[..., list[Finding]]]:
    """Register a function as a check. ``needs`` are options of the module longhaul_check, and what :func:`_given` derives.

    The function returns or yields findings; a UserError that it raises is its last one.
    """

    def register(run: Callable[..., Iterable[Finding]]) -> Callable[..., list[Finding]]:
        @functools.wraps(run)
        def all_findings(*values: Any) -> list[Finding]:
            findings: list[Finding] = []
            try:
                findings.extend(run(*values))
            except UserError as error:
                findings.append(error.finding)
            return findings

        CHECKS.append(PreflightCheck(needs, all_findings))
        return all_findings

    return register


def whole_number(name: str, value: Any, least: int = 1) -> int | Finding:
    """``value`` as an integer of at least ``least``. Strings of digits count; booleans, fractions and suffixes do not.

    More than 18 digits are refused too: no size comes near, so that is a typing error.
    """
    text = str(value)
    if isinstance(value, bool) or not re.fullmatch(r"-?[0-9]{1,18}", text) or int(text) < least:
        kind = "a positive integer" if least == 1 else f"an integer of at least {least}"
        return Finding(f"{name} {value!r}", f"{kind} (tokens are plain integers: 2097152, not 2M)", f"set {name}")
    return int(text)


@preflight_check("engine")
def check_engine(options: Mapping[str, Any]) -> Iterator[Finding]:
    """Engine, version, runtime and settings are known, in bounds, and go together. No host needed.

    ``variables``: names of all ``engine_*`` variables of the host, of which each must be known.
    """
    name, runtime, settings = options.get("name"), options.get("runtime"), dict(options.get("settings") or {})
    yield from unknown_variables(options.get("variables") or ())
    if name not in ENGINES:
        yield Finding(f"engine_name {name!r}", "one of " + ", ".join(ENGINES), "set engine_name")
    if runtime not in RUNTIMES:
        yield Finding(f"engine_runtime {runtime!r}", "one of " + ", ".join(RUNTIMES), "set engine_runtime")
    wrong = [finding for setting in SETTINGS if (finding := out_of_bounds(setting, settings.get(setting.name)))]
    yield from wrong
    version = Version.parse(str(options.get("version") or ""))
    if not wrong and name in ENGINES:
        ENGINES[str(name)].launch(settings_from(settings), version)


def out_of_bounds(setting: Setting, value: Any) -> Finding | None:
    """What is wrong with a number that has bounds; ``None`` where nothing is, or where it may be left empty and is."""
    least, most = setting.about.least, setting.about.most
    if least is None or (value in (None, "") and setting.kind.endswith("| None")):
        return None
    if setting.kind.startswith("int"):
        number = whole_number(setting.variable, value, int(least))
        if isinstance(number, Finding):
            return number
        if most is None or number <= most:
            return None
        return Finding(f"{setting.variable} {number}", f"{least:.0f} to {most:.0f}", f"set {setting.variable}")
    if most is None or _between(value, least, most):
        return None
    return Finding(f"{setting.variable} {value!r}", f"a fraction from {least} to {most}", f"set {setting.variable}")


@preflight_check("model_store")
def check_model_store(options: Mapping[str, Any]) -> Iterator[Finding]:
    """The model's source is known and has what it needs. No host needed."""
    source = options.get("source")
    needed = {"path": "path", "hub": "hub_repo", "dummy": "dummy"}.get(str(source))
    if source not in SOURCES:
        yield Finding(f"model_store_source {source!r}", "one of " + ", ".join(SOURCES), "set model_store_source")
    elif needed and not options.get(needed):
        yield Finding(
            f"model_store_{needed} empty", f"a value, since model_store_source is {source}", f"set model_store_{needed}"
        )
    elif source == "path" and not str(options["path"]).startswith("/"):
        yield Finding(f"model_store_path {options['path']!r}", "an absolute path on the host", "set model_store_path")
    elif source == "hub" and not re.fullmatch(r"[\w.-]+/[\w.-]+", str(options["hub_repo"])):
        yield Finding(f"model_store_hub_repo {options['hub_repo']!r}", "owner/name", "set model_store_hub_repo")


@preflight_check("ladder")
def check_ladder(options: Mapping[str, Any]) -> Iterator[Finding]:
    """Every point of the ladder fits the context: the deployed server's where one is known, else the variable's. No host needed."""
    deployed = options.get("deployed_context_tokens")
    context = options.get("context_tokens") if deployed is None else deployed
    whose, raised = ("", "raise") if deployed is None else (" that is deployed", "deploy with a larger")
    output = whole_number("context_test_output_tokens", options.get("output_tokens"))
    if isinstance(output, Finding):
        yield output
    points: list[tuple[int, int]] = []
    for name in ("ladder_tokens", "concurrency"):
        values = options.get(name)
        if not isinstance(values, Sequence) or isinstance(values, str) or not values:
            yield Finding(f"context_test_{name} {values!r}", "a list of positive integers", f"set context_test_{name}")
            continue
        for value in values:
            number = whole_number(f"context_test_{name} entry", value)
            if isinstance(number, Finding):
                yield number
            elif name == "ladder_tokens" and not isinstance(output, Finding):
                points.append((number, output))
    rows = options.get("points") or []
    for row in rows if isinstance(rows, list) else [rows]:
        if not isinstance(row, Mapping) or "input_tokens" not in row:
            yield Finding(f"context_test_points entry {row!r}", "input_tokens, output_tokens and concurrency", "correct it")
            continue
        sizes = [
            whole_number(f"{name} of a context_test_points entry", row.get(name, default))
            for name, default in (("input_tokens", None), ("output_tokens", options.get("output_tokens")), ("concurrency", 1))
        ]
        yield from (size for size in sizes if isinstance(size, Finding))
        match sizes:
            case [int(length), int(answer), int()]:
                points.append((length, answer))
    limit = None if context is None else whole_number("engine_context_tokens", context)
    for number, answer in points:
        if isinstance(limit, int) and number + answer > limit:
            yield Finding(
                f"ladder point {number} + {answer} output = {number + answer} tokens",
                f"at most the context of {limit}{whose}",
                f"lower context_test_ladder_tokens, context_test_points or context_test_output_tokens, or {raised} engine_context_tokens",
            )


@preflight_check("model_path", "model_path_required")
def check_model_folder(path: str, required: bool) -> list[Finding]:
    """Where it is required, a model's folder holds config.json and weights."""
    if required:
        check_model_dir(Path(path))
    return []


@preflight_check("context_tokens", "model_config", "model_place")
def check_positions(context_tokens: Any, config: Mapping[str, Any], where: str) -> Iterator[Finding]:
    """The context is within the positions that the model's config.json allows."""
    number = whole_number("engine_context_tokens", context_tokens)
    text = config.get("text_config") if isinstance(config.get("text_config"), Mapping) else config
    positions = (text or {}).get("max_position_embeddings")
    # What is no number is refused by check_engine.
    if isinstance(positions, int) and isinstance(number, int) and number > positions:
        yield Finding(
            f"engine_context_tokens {number}",
            f"at most {positions}, the positions of the model in {where}",
            f"set engine_context_tokens to {positions} or less",
        )


@preflight_check("where", "needed_bytes")
def check_home(where: Layout, needed_bytes: int) -> Iterator[Finding]:
    """This user may write the home, and there is room. Creates nothing."""
    needed_gib, probe = int(needed_bytes) / 2**30, where.home
    while not probe.exists() and probe != probe.parent:
        probe = probe.parent
    if not probe.is_dir() or not os.access(probe, os.W_OK | os.X_OK):
        found = f"{where.home} is not writable by uid {os.geteuid()} ({probe} is in the way)"
        yield Finding(found, "a home this user may write", "set longhaul_home, or become root")
    elif (free_gib := free_bytes(where.home) / 2**30) < needed_gib:
        fix = "free space, or set longhaul_home to a larger file system"
        yield Finding(f"{free_gib:.1f} GiB free for {where.home}", f"{needed_gib:.1f} GiB", fix)


@preflight_check("where", "port", "host")
def check_port(where: Layout, port: int, host: str) -> list[Finding]:
    """The port is free, or held by this very endpoint."""
    port = int(port)
    if port_is_free(port, host):
        return []
    holder = port_holder(port)
    spec = load_spec(where)
    if any(kind(where).owns_port(spec, port, holder) for kind in RUNTIMES.values()):
        return []
    return [port_taken(port, host, holder).finding]


def shm_bytes(path: str = "/dev/shm") -> int | None:  # noqa: S108 - looked at, not written
    """Size of this host's shared memory; ``None`` where there is none to see."""
    try:
        seen = os.statvfs(path)
    except OSError:
        return None
    return seen.f_blocks * seen.f_frsize


def check_shm(options: Mapping[str, Any], host_bytes: int | None) -> list[Finding]:
    """The engine's processes have enough shared memory to exchange messages.

    ``options``: engine, version, device, ranks (tensor x pipeline parallel), and for the docker runtime ipc and shm_size.
    ``host_bytes`` is the host's shared memory, ``None`` where it is unknown.
    """
    try:
        ranks, version = int(options.get("ranks") or 1), Version.parse(str(options.get("version") or ""))
    except (UserError, ValueError):
        return []  # said by check_engine
    if options.get("engine") not in ENGINES:
        return []  # said by check_engine
    engine = get_engine(str(options["engine"])).shared_memory(version, ranks, str(options.get("device")))
    needed = max(engine.needed_bytes, NCCL_SHM_BYTES if ranks > 1 else 0)
    kind = RUNTIMES.get(str(options.get("runtime")))
    own = kind.own_shm_bytes(options) if kind else None
    have = host_bytes if own is None else own
    if have is None or have >= needed:
        return []
    certain = engine.checked and have < engine.needed_bytes
    return [
        Finding(
            f"{have / 2**20:.0f} MiB of /dev/shm {'on the host' if own is None else 'in the container'}",
            f"{needed / 2**20:.0f} MiB, through which the engine's processes talk",
            "mount -o remount,size=16g /dev/shm, or with runtime docker set engine_container_ipc private and engine_container_shm_size"
            if own is None
            else "set engine_container_shm_size, e.g. 16g",
            "refuse" if certain else "warn",
        )
    ]


@preflight_check("endpoints")
def check_unique_endpoints(endpoints: Iterable[Sequence[str]]) -> Iterator[Finding]:
    """``(inventory name, address, home, instance, port)``: two names must mean neither one endpoint nor one port."""
    seen: dict[tuple[str, str, str], str] = {}
    ports: dict[tuple[str, str], str] = {}
    for name, address, home, instance, port in (map(str, endpoint) for endpoint in endpoints):
        key = (address, home, instance)
        if key in seen:
            yield Finding(
                f"hosts {seen[key]} and {name} are one endpoint ({address}, instance {instance})",
                "one inventory name per endpoint",
                "give one of them another longhaul_instance (and engine_port)",
            )
        elif (address, port) in ports:
            yield Finding(
                f"hosts {ports[address, port]} and {name} are endpoints of one machine ({address}) with engine_port {port} both",
                "a port of its own for each endpoint of a machine",
                f"set another engine_port for {name}",
            )
        seen.setdefault(key, name)
        ports.setdefault((address, port), name)


@preflight_check("shm")
def check_own_shm(options: Mapping[str, Any]) -> list[Finding]:
    """:func:`check_shm` with this host's shared memory."""
    return check_shm(options, shm_bytes())


@preflight_check("compare")
def check_compared_sets(options: Mapping[str, Any]) -> list[Finding]:
    """The two sets of variables of a comparison differ only where they may."""
    return check_sets(options["files"], options["sets"])


def run_checks(options: Mapping[str, Any]) -> list[Finding]:
    """All findings of all checks whose options are given (see the module longhaul_check)."""
    findings: list[Finding] = []
    given = _given(options, findings)
    for check in CHECKS:
        if all(name in given for name in check.needs):
            findings += check.run(*(given[name] for name in check.needs))
    return findings


def _given(options: Mapping[str, Any], findings: list[Finding]) -> dict[str, Any]:
    """The options that are given (neither ``None`` nor empty text), and what follows from them.

    ``where`` is the endpoint's layout; a home that is none adds to ``findings``. ``model_config`` is read from the model's
    folder unless it is known; ``model_place`` says where it comes from.
    """
    given = {name: value for name, value in options.items() if value is not None and value != ""}
    given.setdefault("host", "127.0.0.1")
    given.setdefault("model_path_required", False)
    if "home" in given:
        try:
            given["where"] = layout(str(given["home"]), str(given.get("instance", DEFAULT_INSTANCE)))
        except UserError as error:
            findings.append(error.finding)
    given["model_place"] = str(given.get("model_path", "the model store"))
    if "model_path" in given and (given["model_path_required"] or "model_config" not in given):
        found = model_config(Path(given["model_place"]))
        given.pop("model_config", None)
        if found is not None:
            given["model_config"] = found
    return given


def as_result(findings: Iterable[Finding]) -> tuple[dict[str, Any], list[str]]:
    """Findings -> (what an Ansible module returns, its warnings). It fails where anything is refused."""
    found = list(findings)
    refused = [f for f in found if f.severity == "refuse"]
    result: dict[str, Any] = {"changed": False, "findings": [dataclasses.asdict(f) for f in found]}
    if refused:
        result |= {"failed": True, "msg": "\n".join(dict.fromkeys(map(str, refused)))}
    return result, [str(f) for f in found if f.severity == "warn"]


def model_config(path: Path) -> dict[str, Any] | None:
    """config.json of a folder on this host, when it is there and readable."""
    try:
        return read_json(path / "config.json")
    except UserError:
        return None


def _between(value: Any, low: float, high: float) -> bool:
    try:
        return low <= float(value) <= high
    except (TypeError, ValueError):
        return False
