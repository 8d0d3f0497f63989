"""Every variable of role ``engine``: the settings of the endpoint, and where and how it is installed and run.

The table feeds roles/engine/defaults/main.yml and meta/argument_specs.yml (``scripts/dev/engine-variables.py`` writes both),
the refusal of unknown ``engine_*`` names, what ``playbooks/compare.yml`` takes from a set, and what modules get of a host's variables.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..engines.registry import DEFAULT_ENGINE, takers_note
from ..engines.settings import PREFIX, SECTIONS, SETTINGS, Compare, Section, Setting
from ..errors import Finding
from .runtimes.container import GPU_ACCESS
from .runtimes.registry import RUNTIMES

# What the role's tasks hand to playbooks, and no operator sets.
RESULT_PREFIX = "engine_result_"
_HOME = "{{ longhaul_home | default('/opt/longhaul' if ansible_facts['user_uid'] == 0 else ansible_facts['env']['HOME'] ~ '/.longhaul') }}"
_CAPACITY: Section = "Capacity: planned before the start, compared with the engine after it"
_START: Section = "Start and stop"
_PROCESS: Section = "Installation (runtime process)"
_DOCKER: Section = "Image (runtime docker)"
# The adapter knows it (plugins/filter/longhaul.py asks).
_IMAGE = "{{ engine_name | longhaul_engine_image(engine_version) }}"


@dataclass(frozen=True)
class Variable:
    """One variable as the role's defaults and argument_specs state it.

    ``kind`` is Ansible's type, ``elements`` that of a list's items; empty: the type of ``default``. ``container``: the field of
    ContainerSettings that it becomes; ``setting``: the declaration in engines/settings.py that it comes from.
    """

    name: str
    section: Section
    help: str
    default: Any
    kind: str = ""
    elements: str = ""
    choices: tuple[str, ...] = ()
    secret: bool = False
    compare: Compare = "never"
    container: str = ""
    setting: Setting | None = None

    @property
    def is_computed(self) -> bool:
        """Whether the default is an expression of Jinja."""
        return "{{" in str(self.default)

    @property
    def ansible_type(self) -> str:
        """The type in argument_specs."""
        return self.kind or type(self.default).__name__

    @property
    def item_type(self) -> str:
        """The type of a list's items; empty for anything else."""
        return (self.elements or "str") if self.ansible_type == "list" else ""


def _of_setting(setting: Setting) -> Variable:
    """A declared setting as a variable of the role."""
    about = setting.about
    plain = setting.kind.removesuffix(" | None")
    kind = {"tuple": "list", "Mapping": "dict"}.get(plain.split("[")[0], plain)
    text = " ".join(filter(None, (about.help, takers_note(setting.name), about.empty and f"Empty means {about.empty}.")))
    if "on" in setting.choices:
        text += " Quote it."  # YAML reads a bare on or off as a boolean
    default = setting.role_default
    return Variable(setting.variable, about.section, text, default, kind, "", setting.choices, False, about.compare, "", setting)


def _container(field: str, text: str, default: Any, **more: Any) -> Variable:
    """A variable that becomes a field of ContainerSettings."""
    return Variable(f"engine_container_{field}", "Container (runtime docker)", text, default, container=field, **more)


# fmt: off
_OTHERS: tuple[Variable, ...] = (
    Variable("engine_home", "Where", "Folder on the host for everything that Longhaul keeps there.", _HOME),
    Variable("engine_instance", "Where",
             "Name of this endpoint on its machine. Give each a name of its own where a machine runs two.",
             "{{ longhaul_instance | default('default') }}"),
    Variable("engine_name", "What", "Engine: a folder of module_utils/longhaul/engines, such as vllm or sglang.", DEFAULT_ENGINE,
             compare="default"),
    Variable("engine_version", "What",
             "Release of the engine, such as 0.12.0 or 0.5.6.post2. Options are rendered for exactly this one.", "0.12.0",
             compare="default"),
    Variable("engine_runtime", "What", "How the engine runs: process (a virtual environment under supervisord) or docker.",
             "docker", choices=tuple(RUNTIMES)),
    Variable("engine_force_restart", "What", "Start the engine again although nothing changed.", False),
    Variable("engine_gpus", "Size", "Indexes of the GPUs for this endpoint. Empty means all.", [], elements="int",
             container="gpus"),
    Variable("engine_capacity_gate", _CAPACITY,
             'What happens where the plan cannot hold one request: fail, warn or "off". Quote off.', "fail",
             choices=("fail", "warn", "off")),
    Variable("engine_capacity_drift", _CAPACITY,
             'What happens where the engine\'s own figures are more than 2% off an exact plan: fail, warn or "off". Quote off.',
             "fail", choices=("fail", "warn", "off")),
    Variable("engine_gpu", _CAPACITY, "Name of the GPU (h200, h100 and so on). Empty means what nvidia-smi says.", ""),
    Variable("engine_capacity_ladder_tokens", _CAPACITY,
             "Prompt lengths that validation will ask for. The plan warns where they must queue.",
             "{{ context_test_ladder_tokens | default([]) }}", "list", "int"),
    Variable("engine_capacity_concurrency", _CAPACITY, "Requests at once that validation will ask for.",
             "{{ context_test_concurrency | default([]) }}", "list", "int"),
    Variable("engine_start_timeout_s", _START, "Seconds after which a start that is neither ready nor dead is given up.", 3600),
    Variable("engine_stop_timeout_s", _START, "Seconds after which a stopping engine is killed.", 60, container="stop_timeout_s"),
    Variable("engine_start_at_boot", _START, "Start with the machine, where systemd runs and we are root (runtime process).",
             True),
    Variable("engine_lock_file", _PROCESS,
             "Pinned lock file on the controller. Empty means the shipped one for engine, device and version, if there is one.",
             ""),
    Variable("engine_requirements", _PROCESS, "Requirements without pins, resolved by pip instead of a lock.", []),
    Variable("engine_python", _PROCESS, "Interpreters to try, in order. The lock says which version it needs.",
             ["python3.11", "python3.12", "python3.13", "python3.10", "python3"]),
    Variable("engine_pip_extra_index_urls", _PROCESS,
             "Package indexes that are asked only for packages with a local version, such as torch==2.13.0+cpu.",
             ["https://download.pytorch.org/whl/cpu"]),
    Variable("engine_wheelhouse", _PROCESS, "Folder of wheels on the host. With it, pip asks no index.",
             "{{ longhaul_wheelhouse | default('') }}"),
    Variable("engine_system_site_packages", _PROCESS,
             "Let the environment see the interpreter's own packages (for images that carry torch).", False),
    Variable("engine_needed_gib", _PROCESS, "Free disk that preflight requires, in GiB.", 4, "float"),
    Variable("engine_image", _DOCKER, "Name of the image, with a tag. By default the engine's own image of that release.", _IMAGE,
             compare="default", container="image"),
    Variable("engine_image_digest", _DOCKER,
             "Digest of the image: sha256: and 64 hex digits, as its registry states it (for an image from a file, its own id). "
             "Empty means that the tag is trusted.",
             "", compare="default"),
    Variable("engine_image_pull", _DOCKER,
             "When the image is pulled: missing (once) or always (the registry is asked in each run).", "missing",
             choices=("missing", "always")),
    Variable("engine_image_file", _DOCKER, "Tar file that docker save wrote, loaded instead of a pull. Empty means the registry.",
             "", compare="default"),
    Variable("engine_image_file_on", _DOCKER, "Where that tar file is: controller (it is copied to each host) or host.",
             "controller", choices=("controller", "host")),
    Variable("engine_registry", _DOCKER, "Registry to log in to.", "https://index.docker.io/v1/"),
    Variable("engine_registry_username", _DOCKER, "User of the registry. Empty means no log-in.", ""),
    Variable("engine_registry_password", _DOCKER, "Password or token of the registry, from a vault. Hidden from all output.", "",
             secret=True),
    Variable("engine_docker_packages", _DOCKER,
             "Packages that Ansible's Docker modules need on the host. Installed only where an image must be fetched.",
             ["python3-requests"]),
    _container("python", "Interpreter inside the image.", "python3"),
    _container("network", "Network mode. With host, the engine listens on engine_host as in runtime process.", "host"),
    _container("ipc",
               "IPC mode. With host, the container shares the host's /dev/shm, which NCCL needs large; with private it has its own.",
               "host"),
    _container("shm_size", "Size of /dev/shm where it is not the host's, such as 128g. Empty means Docker's 64 MB.", ""),
    _container("ulimits", "Limits of the container's processes; -1 means none.", {"memlock": -1, "stack": 67108864}),
    _container("gpu_access", "How the container gets its GPUs: device_request (NVIDIA's runtime hook), cdi or none.",
               "device_request", choices=GPU_ACCESS),
    _container("cap_drop", "Capabilities taken away.", ["ALL"]),
    _container("cap_add", "Capabilities given back, such as [IPC_LOCK] for RDMA.", []),
    _container("security_opt", "Docker's security options.", ["no-new-privileges"]),
    _container("restart",
               "What Docker does when the engine dies after it was up: no, on-failure, always or unless-stopped. Quote no.",
               "unless-stopped", choices=("no", "on-failure", "always", "unless-stopped")),
    _container("log_max_size", "Size at which the container's log is rotated.", "100m"),
    _container("log_max_files", "Rotated log files to keep.", 5),
    _container("health_interval_s", "Seconds between two health checks.", 30),
    _container("health_timeout_s", "Seconds that one health check may take.", 20),
    _container("health_tolerance_s",
               "Seconds without an answer after which Docker calls the container unhealthy: longer than the longest prefill. "
               "Nothing is restarted for it.",
               3600, compare="inventory"),
    _container("init", "Run a small init as process 1, which reaps children.", True),
    _container("cache_dir", "Folder on the host for compile caches and downloads. They outlive the container and its upgrades.",
               "{{ engine_home }}/cache/{{ engine_name }}"),
    _container("caches", "Folders below it, each with its place inside the container.",
               {"cache": "/root/.cache", "triton": "/root/.triton"}),
    _container("mounts", "More mounts: /source, /source:/target or /source:/target:rw.", []),
    _container("devices", "More devices, such as [/dev/infiniband].", []),
)
# fmt: on


def variables(settings: Iterable[Setting] = SETTINGS) -> tuple[Variable, ...]:
    """All variables in the order of the role's defaults: section by section, in each the settings last."""
    rows = (*_OTHERS, *map(_of_setting, settings))
    return tuple(sorted(rows, key=lambda row: SECTIONS.index(row.section)))


VARIABLES: tuple[Variable, ...] = variables()
NAMES: frozenset[str] = frozenset(row.name for row in VARIABLES)


def setting_options(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """A host's ``engine_*`` variables -> options of :func:`engines.settings.settings_from`.

    The runtime says which environment variables limit the engine to the endpoint's GPUs.
    """
    found = {s.name: chosen[s.variable] for s in SETTINGS if s.variable in chosen}
    gpus = chosen.get("engine_gpus")
    kind = RUNTIMES.get(str(chosen.get("engine_runtime")))
    if gpus and chosen.get("engine_device") == "cuda" and kind is not None and (limited := kind.gpu_env(list(map(str, gpus)))):
        found["extra_env"] = {**(found.get("extra_env") or {}), **limited}
    return found


def container_options(chosen: Mapping[str, Any]) -> dict[str, Any]:
    """A host's ``engine_*`` variables -> options of :func:`deploy.runtimes.container.container_from`."""
    return {row.container: chosen[row.name] for row in VARIABLES if row.container and row.name in chosen}


def inputs(part: str) -> tuple[str, ...]:
    """Names of the variables that ``setting_options`` ("settings") or ``container_options`` ("container") reads."""
    if part == "container":
        return tuple(row.name for row in VARIABLES if row.container)
    return (*(row.name for row in VARIABLES if row.setting), "engine_gpus", "engine_runtime")


def nearest(name: str) -> str:
    """The known variable that somebody who wrote ``name`` most likely meant; empty where none is near."""
    word = name.removeprefix(PREFIX)
    known = sorted(known.removeprefix(PREFIX) for known in NAMES)
    near = [k for k in known if k.startswith(word)] or difflib.get_close_matches(word, known, n=1)
    return PREFIX + near[0] if near else ""


def unknown_variables(names: Iterable[str]) -> list[Finding]:
    """One finding for each ``engine_*`` name that nothing reads, with the nearest name that is read."""
    found = []
    for name in sorted(set(names) - NAMES):
        if not name.startswith(PREFIX) or name.startswith(RESULT_PREFIX):
            continue
        near = nearest(name)
        fix = (f"write {near}" if near else "remove it") + "; give a variable of your own another prefix"
        required = "a variable of role engine (docs/variables/engine.md)"
        found.append(Finding(f"{name}, which nothing reads", required, fix))
    return found
