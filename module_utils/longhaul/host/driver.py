"""Name the packages of a data-center driver for a system, pinned to one version. Pure.

Package names: NVIDIA's own repository as in its Driver Installation Guide (r580-r620: compute-only systems, version locking,
the renames of branch 590 on Ubuntu); Ubuntu's and Debian's own archives as their package lists show them. The fabric manager
must have exactly the driver's version (Fabric Manager User Guide), so it carries the same pin.
"""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from ..values import converted
from .state import HostState

SOURCES = ("upstream", "distribution", "files")
KERNEL_MODULES = ("auto", "open", "proprietary")
SUPPORTED = {"Debian": ("12", "13"), "Ubuntu": ("22", "24"), "RedHat": ("9",), "Rocky": ("9",), "AlmaLinux": ("9",)}
# Open modules exist from Turing on, are the default from 560 on, and the only ones that Blackwell takes.
_FIRST_OPEN_BRANCH = 515
_FIRST_OPEN_ONLY_BRANCH = 620
_FIRST_UNVERSIONED_BRANCH = {"Ubuntu": 590}
_FIRST_PINNING_BRANCH = 575
_FIRST_UNVERSIONED_FABRIC_BRANCH = 580
# PCI device ids below this are Volta (0x1d81-0x1dff) or older, and cannot use the open modules.
_FIRST_TURING_ID = 0x1E00
# Released apart from the driver, so they cannot carry its version.
_UNPINNED = ("nvlsm", "linux-modules-nvidia-")
# GPUs of an NVLink-5 board need the subnet manager beside the fabric manager.
_SUBNET_MANAGER_GPUS = frozenset({0x2901, 0x3182})


@dataclass(frozen=True)
class DriverPlan:
    """What to install. ``packages`` carry the pin in the package manager's own words (``name=580.65.06-*``).

    ``names`` are the same without it, for holding. ``pinning`` is installed first where the repository has such a package;
    ``module_stream`` is dnf's. ``repository`` is the distribution's folder in NVIDIA's repository (``debian12``).
    ``unpinned`` are the names whose version is their own.
    """

    kernel_modules: str
    packages: tuple[str, ...]
    names: tuple[str, ...]
    pinning: str
    module_stream: str
    fabric_manager: bool
    repository: str
    architecture: str
    unpinned: tuple[str, ...]


@dataclass(frozen=True)
class Installed:
    """A plan against a host: ``missing`` names (absent or of another version), whether that ``replaces`` packages that are
    there, and which names are ``unheld``."""

    missing: tuple[str, ...]
    replaces: bool
    unheld: tuple[str, ...]


def branch_of(version: str) -> int:
    """``580`` or ``580.65.06`` -> 580. Raises UserError for anything else."""
    found = re.fullmatch(r"(\d{3})(\.\d+){0,2}", version.strip())
    if not found:
        raise UserError(
            f"gpu_driver_version {version!r}", "a branch (580) or a full version (580.65.06)", "set gpu_driver_version, quoted"
        )
    return int(found.group(1))


def choose_modules(wanted: str, branch: int, device_ids: Sequence[str]) -> str:
    """open or proprietary. ``auto``: open wherever every GPU can use it. Raises UserError where the two exclude each other."""
    if wanted not in KERNEL_MODULES:
        raise UserError(
            f"gpu_driver_kernel_modules {wanted!r}", "one of " + ", ".join(KERNEL_MODULES), "set gpu_driver_kernel_modules"
        )
    numbers = [int(device, 16) for device in device_ids]
    too_old = [device for device, number in zip(device_ids, numbers, strict=True) if number < _FIRST_TURING_ID]
    able = not too_old and branch >= _FIRST_OPEN_BRANCH
    if wanted == "open" and not able:
        why = f"GPU {too_old[0]} is older than Turing" if too_old else f"branch {branch} has no open modules"
        raise UserError(
            why, "a Turing or newer GPU and branch 515 or newer for open modules", "set gpu_driver_kernel_modules: auto"
        )
    if branch >= _FIRST_OPEN_ONLY_BRANCH and (wanted == "proprietary" or not able):
        raise UserError(
            f"driver branch {branch} with proprietary modules", f"open modules from branch {_FIRST_OPEN_ONLY_BRANCH} on",
            "set gpu_driver_kernel_modules: auto, or an older gpu_driver_version",
        )  # fmt: skip
    if wanted == "proprietary" and any(number in _SUBNET_MANAGER_GPUS for number in numbers):
        raise UserError("Blackwell GPUs with proprietary modules", "open modules", "set gpu_driver_kernel_modules: auto")
    return "open" if able and wanted != "proprietary" else "proprietary"


def plan_driver(
    *,
    distribution: str,
    major: str,
    source: str,
    version: str,
    kernel_modules: str = "auto",
    nvswitch: bool = False,
    device_ids: Sequence[str] = (),
    machine: str = "x86_64",
) -> DriverPlan:
    """Names for one system. ``distribution`` and ``major`` as Ansible's facts say them, ``machine`` as ``uname -m``.

    ``device_ids`` are PCI ids of the GPUs (``0x2335``). Raises UserError for what the system or the source cannot give.
    """
    if source not in SOURCES:
        raise UserError(f"gpu_driver_source {source!r}", "one of " + ", ".join(SOURCES), "set gpu_driver_source")
    if major not in SUPPORTED.get(distribution, ()):
        systems = "; ".join(f"{name} {', '.join(majors)}" for name, majors in SUPPORTED.items())
        raise UserError(
            f"{distribution} {major}", f"one of {systems}", "install the driver yourself and set gpu_driver_manage: false"
        )
    branch = branch_of(version)
    flavour = choose_modules(kernel_modules, branch, device_ids)
    is_open = flavour == "open"
    subnet = any(int(device, 16) in _SUBNET_MANAGER_GPUS for device in device_ids) and nvswitch
    family = "Ubuntu" if distribution == "Ubuntu" else "Debian" if distribution == "Debian" else "RedHat"
    if source == "distribution":
        names = _distribution_names(family, branch, is_open, nvswitch)
    else:
        names = _upstream_names(family, branch, is_open, nvswitch, subnet)
    # A full version pins; a branch alone pins nothing here.
    suffix = f"-{version.strip()}*" if family == "RedHat" else f"={version.strip()}-*"
    pin = "" if "." not in version or source == "files" else suffix
    # Debian's persistence daemon is a source package of its own.
    own_versions = (*_UNPINNED, "nvidia-persistenced") if family == "Debian" and source == "distribution" else _UNPINNED
    unpinned = tuple(name for name in names if name.startswith(own_versions))
    packages = tuple(name if not pin or name in unpinned else f"{name}{pin}" for name in names)
    stream = ""
    if family == "RedHat" and source == "upstream":
        stream = f"nvidia-driver:{branch}-open" if is_open else f"nvidia-driver:{branch}-dkms"
    pinning = ""
    if family != "RedHat" and source == "upstream" and branch >= _FIRST_PINNING_BRANCH:
        pinning = f"nvidia-driver-pinning-{version.strip()}"
    return DriverPlan(
        kernel_modules=flavour,
        packages=packages,
        names=names,
        pinning=pinning,
        module_stream=stream,
        fabric_manager=nvswitch,
        repository={"Ubuntu": f"ubuntu{major}04", "Debian": f"debian{major}", "RedHat": f"rhel{major}"}[family],
        architecture="sbsa" if machine in {"aarch64", "arm64"} else "x86_64",
        unpinned=unpinned,
    )


def plan_for(state: HostState, wanted: Mapping[str, Any]) -> tuple[DriverPlan, str]:
    """The plan for a host from the role's options, and the version to hold it against (empty where packages are given).

    ``wanted``: distribution, major, machine, source, version, kernel_modules, nvswitch (auto: what the PCI bus shows), and
    packages, which take the place of the planned ones.
    """
    nvswitch, version = wanted.get("nvswitch"), str(wanted.get("version") or "")
    plan = plan_driver(
        distribution=str(wanted.get("distribution")),
        major=str(wanted.get("major")),
        machine=str(wanted.get("machine", "x86_64")),
        source=str(wanted.get("source")),
        version=version,
        kernel_modules=str(wanted.get("kernel_modules", "auto")),
        nvswitch=state.has_nvswitch if nvswitch in (None, "", "auto") else converted("gpu_driver_nvswitch", nvswitch, "bool"),
        device_ids=[device.device_id for device in state.pci if device.kind == "gpu"],
    )
    if not wanted.get("packages"):
        return plan, version
    packages = tuple(map(str, wanted["packages"]))
    names = tuple(package.split("=")[0] for package in packages)
    return dataclasses.replace(plan, names=names, packages=packages), ""


def _upstream_names(family: str, branch: int, is_open: bool, nvswitch: bool, subnet: bool) -> tuple[str, ...]:
    """NVIDIA's repository, compute only: no X, no Wayland."""
    if family == "Ubuntu":
        tail = "" if branch >= _FIRST_UNVERSIONED_BRANCH["Ubuntu"] else f"-{branch}"
        names = [
            f"nvidia-dkms{tail}-open" if is_open else f"nvidia-dkms{tail}",
            f"libnvidia-compute{tail}", f"nvidia-compute-utils{tail}", f"nvidia-utils{tail}",
        ]  # fmt: skip
    elif family == "Debian":
        names = ["nvidia-kernel-open-dkms" if is_open else "nvidia-kernel-dkms", "nvidia-driver-cuda", "nvidia-persistenced"]
    else:
        names = ["kmod-nvidia-open-dkms" if is_open else "kmod-nvidia-latest-dkms", "nvidia-driver-cuda", "nvidia-persistenced"]
    if nvswitch:
        unversioned = branch >= _FIRST_UNVERSIONED_FABRIC_BRANCH
        if family == "RedHat":
            names.append("nvidia-fabricmanager" if unversioned else "nvidia-fabric-manager")
        else:
            names.append("nvidia-fabricmanager" if unversioned else f"nvidia-fabricmanager-{branch}")
        names.append("libnvidia-nscq" if unversioned or family == "RedHat" else f"libnvidia-nscq-{branch}")
    if subnet:
        names.append("nvlsm")
    return tuple(names)


def _distribution_names(family: str, branch: int, is_open: bool, nvswitch: bool) -> tuple[str, ...]:
    if family == "RedHat":
        raise UserError(
            "gpu_driver_source distribution",
            "upstream or files: this distribution ships no NVIDIA driver",
            "set gpu_driver_source",
        )
    if family == "Debian":
        if nvswitch:
            raise UserError(
                "NVSwitches, and Debian's own packages hold no fabric manager",
                "gpu_driver_source: upstream or files",
                "set gpu_driver_source",
            )
        return ("nvidia-open-kernel-dkms" if is_open else "nvidia-kernel-dkms", "nvidia-smi", "nvidia-persistenced", "libcuda1")
    flavour = f"{branch}-server-open" if is_open else f"{branch}-server"
    names = [
        # Built and signed by the distribution: works with Secure Boot and needs no compiler.
        f"linux-modules-nvidia-{flavour}-generic",
        f"nvidia-headless-no-dkms-{flavour}", f"nvidia-utils-{branch}-server", f"nvidia-compute-utils-{branch}-server",
    ]  # fmt: skip
    if nvswitch:
        names += [f"nvidia-fabricmanager-{branch}", f"libnvidia-nscq-{branch}"]
    return tuple(names)


def reboot_needed(*, loaded: str, installed: str, nouveau_loaded: bool) -> str:
    """Why the host must be rebooted before the driver works, in one line; empty where it need not.

    ``loaded`` is the version of the running kernel module (``/sys/module/nvidia/version``), ``installed`` the one on disk
    (``modinfo -F version nvidia``); either may be empty.
    """
    if not installed:
        return ""
    if nouveau_loaded:
        return "nouveau holds the GPUs"
    if loaded and loaded != installed:
        return f"the kernel runs driver {loaded}, {installed} is installed"
    return ""


def compare_installed(plan: DriverPlan, version: str, installed: Mapping[str, str], held: Sequence[str]) -> Installed:
    """What of a plan the host lacks. ``installed`` maps package names to versions (epochs allowed), ``held`` names held ones."""
    exact = version.strip() if version.count(".") >= 1 else ""

    def right(name: str) -> bool:
        if name not in installed:
            return False
        if not exact or name in plan.unpinned:
            return True
        return installed[name].split(":")[-1].startswith((f"{exact}-", f"{exact}+", f"{exact}~")) or installed[name] == exact

    missing = tuple(name for name in plan.names if not right(name))
    replaces = any(name in installed for name in missing)
    return Installed(missing, replaces, tuple(name for name in plan.names if name not in held))
