"""Is this host fit to serve? What the machine says, as data, and named checks of it: found, required, fix.

Reading is apart from judging: ``parse_…`` turn the text of a tool into data, ``check_host`` compares it with what the
inventory promises, and only ``read_host`` touches the machine. Field names of ``nvidia-smi -q -x`` are those of driver
580 (``nvsmi_device_v13``, seen on an H200) with the names of 535-570 as a second choice.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..physics.hardware import GIB, MIB, find_gpu
from ..values import options_for

OK, WARN, FAIL, SKIPPED = "ok", "warn", "fail", "skipped"
_SEVERITY = (SKIPPED, OK, WARN, FAIL)

NVIDIA_VENDOR = "0x10de"
# PCI device ids of HGX boards whose NVSwitches are not PCI devices of NVIDIA's (fifth generation, behind a ConnectX):
# GB100 [B200] and GB110 [B300 SXM6], from the PCI ID database.
_NVSWITCH_BOARD_GPUS = frozenset({"0x2901", "0x3182"})
# What the kernel's adjtimex says when nothing disciplines the clock (include/uapi/linux/timex.h).
_TIME_ERROR, _STA_UNSYNC = 5, 0x40


@dataclass(frozen=True)
class Check:
    """One named finding. ``status``: ok, warn (works, but look), fail (do not serve), skipped (does not apply here)."""

    name: str
    status: str
    found: str
    required: str
    fix: str = ""

    def __str__(self) -> str:
        tail = f" | fix: {self.fix}" if self.fix and self.status in {WARN, FAIL} else ""
        return f"{self.status} {self.name}: found: {self.found} | required: {self.required}{tail}"


@dataclass(frozen=True)
class PciDevice:
    """A device of NVIDIA's on the PCI bus. ``kind``: gpu, nvswitch or other. ``link_width`` is 0 where the bus does not say."""

    address: str
    device_id: str
    kind: str
    link_width: int = 0


@dataclass(frozen=True)
class GpuState:
    """One GPU as ``nvidia-smi -q -x`` tells it. ``None`` where the driver says N/A; memory in bytes, links in lanes."""

    index: int
    name: str
    bus_id: str
    memory_total_bytes: int
    persistence: bool | None = None
    mig: bool | None = None
    ecc: bool | None = None
    uncorrected_volatile: int | None = None
    uncorrected_aggregate: int | None = None
    remap_pending: bool | None = None
    remap_failure: bool | None = None
    pcie_width: int | None = None
    pcie_max_width: int | None = None
    pcie_gen: int | None = None
    fabric_state: str = ""
    fabric_status: str = ""


@dataclass(frozen=True)
class SmiLog:
    """The whole of ``nvidia-smi -q -x``."""

    driver_version: str
    cuda_version: str
    gpus: tuple[GpuState, ...]


@dataclass(frozen=True)
class HostState:
    """All that the checks look at. ``services`` maps a unit to systemd's word for it (active, inactive, failed, absent).

    ``nvlinks`` maps a GPU's index to (active, inactive) links. ``clock_synchronized`` is None where the kernel does not say.
    """

    pci: tuple[PciDevice, ...] = ()
    smi: SmiLog | None = None
    smi_error: str = ""
    nvlinks: Mapping[int, tuple[int, int]] = field(default_factory=dict)
    services: Mapping[str, str] = field(default_factory=dict)
    fabric_manager_version: str = ""
    nouveau_loaded: bool = False
    shm_bytes: int = 0
    hugepages: int = 0
    hugepage_bytes: int = 0
    clock_synchronized: bool | None = None

    @property
    def gpus_on_bus(self) -> int:
        """GPUs that the PCI bus shows, driver or not."""
        return sum(device.kind == "gpu" for device in self.pci)

    @property
    def has_nvidia(self) -> bool:
        """Whether there is anything of NVIDIA's to drive."""
        return any(device.kind in {"gpu", "nvswitch"} for device in self.pci)

    @property
    def has_nvswitch(self) -> bool:
        """Whether the GPUs hang on NVSwitches, so that nothing runs without a fabric manager."""
        return has_nvswitch(self.pci)


@dataclass(frozen=True)
class Expected:
    """What the inventory promises of the host. ``None``: promise nothing, do not judge.

    ``memory_gib`` is per GPU; without it the model's own memory counts. ``nvlinks`` is active links per GPU.
    ``hugepages`` are pages of the default size.
    """

    gpus: int | None = None
    gpu: str | None = None
    memory_gib: float | None = None
    driver_version: str | None = None
    persistence: bool = True
    ecc: bool = True
    mig: bool = False
    nvlinks: int | None = None
    pcie_width: int | None = None
    shm_gib: float | None = None
    hugepages: int | None = None
    clock_sync: bool = True


def expected_from(promises: Mapping[str, Any]) -> Expected:
    """``Expected`` from an inventory's words; empty values promise nothing. Raises UserError for what it does not know."""
    given = options_for(Expected, promises, prefix="", what="an expectation", fix="correct gpu_driver_expected")
    return Expected(**given)


# Reading


def classify(device_class: str) -> str:
    """PCI class word (``0x030200``) -> kind: display controllers are GPUs, 0x0680 bridges are NVSwitches."""
    number = int(device_class, 16)
    if number >> 16 == 0x03:
        return "gpu"
    return "nvswitch" if number >> 8 == 0x0680 else "other"


def nvidia_devices(folder: Path = Path("/sys/bus/pci/devices")) -> tuple[PciDevice, ...]:
    """NVIDIA's devices on the PCI bus, by address; needs no driver, no tool and no privilege."""
    found = []
    for device in sorted(folder.glob("*")):
        if _read(device / "vendor") != NVIDIA_VENDOR:
            continue
        width = _read(device / "current_link_width")
        kind = classify(_read(device / "class") or "0x0")
        found.append(PciDevice(device.name, _read(device / "device"), kind, int(width) if width.isdigit() else 0))
    return tuple(found)


def has_nvswitch(devices: Sequence[PciDevice]) -> bool:
    """NVSwitches on the bus, or several GPUs of a kind that comes on NVSwitch boards only."""
    boards = sum(device.device_id.lower() in _NVSWITCH_BOARD_GPUS for device in devices)
    return boards > 1 or any(device.kind == "nvswitch" for device in devices)


def parse_smi_xml(text: str) -> SmiLog:
    """Read ``nvidia-smi -q -x``. Raises UserError where it is not that."""
    try:
        root = ET.fromstring(text)  # noqa: S314 - the driver's own output on the same host
    except ET.ParseError as error:
        first = next((line.strip() for line in text.splitlines() if line.strip()), "nothing")
        raise UserError(f"nvidia-smi said {first[:120]!r}", "its XML report", "run 'nvidia-smi -q -x' on the host") from error
    gpus = tuple(_gpu(number, node) for number, node in enumerate(root.findall("gpu")))
    return SmiLog(_text(root, "driver_version"), _text(root, "cuda_version"), gpus)


def _gpu(index: int, node: ET.Element) -> GpuState:
    def total(kind: str) -> int | None:
        names = ("sram_uncorrectable_parity", "sram_uncorrectable_secded", "sram_uncorrectable", "dram_uncorrectable")
        numbers = [_number(_text(node, f"ecc_errors/{kind}/{name}")) for name in names]
        known = [number for number in numbers if number is not None]
        return sum(known) if known else None

    links = "pci/pci_gpu_link_info"
    return GpuState(
        index=index,
        name=_text(node, "product_name"),
        bus_id=node.get("id", ""),
        memory_total_bytes=(_number(_text(node, "fb_memory_usage/total")) or 0) * MIB,
        persistence=_switch(_text(node, "persistence_mode")),
        mig=_switch(_text(node, "mig_mode/current_mig")),
        ecc=_switch(_text(node, "ecc_mode/current_ecc")),
        uncorrected_volatile=total("volatile"),
        uncorrected_aggregate=total("aggregate"),
        remap_pending=_switch(_text(node, "remapped_rows/remapped_row_pending")),
        remap_failure=_switch(_text(node, "remapped_rows/remapped_row_failure")),
        pcie_width=_number(_text(node, f"{links}/link_widths/current_link_width")),
        pcie_max_width=_number(_text(node, f"{links}/link_widths/max_link_width")),
        pcie_gen=_number(_text(node, f"{links}/pcie_gen/current_link_gen")),
        fabric_state=_known(_text(node, "fabric/state")),
        fabric_status=_known(_text(node, "fabric/status")),
    )


def parse_nvlink(text: str) -> dict[int, tuple[int, int]]:
    """Read ``nvidia-smi nvlink -s``: GPU index -> (active links, inactive links). GPUs without NVLink are left out."""
    found: dict[int, tuple[int, int]] = {}
    gpu = -1
    for line in text.splitlines():
        head = re.match(r"\s*GPU (\d+):", line)
        if head:
            gpu = int(head.group(1))
        link = re.match(r"\s*Link \d+:\s*(.*\S)", line)
        if link and gpu >= 0:
            active, inactive = found.get(gpu, (0, 0))
            dead = "inactive" in link.group(1).lower() or "disabled" in link.group(1).lower()
            found[gpu] = (active, inactive + 1) if dead else (active + 1, inactive)
    return found


def parse_fabric_manager_version(text: str) -> str:
    """Read ``nv-fabricmanager --version`` ("Fabric Manager version is : 580.65.06"); empty where it is not that."""
    found = re.search(r"version\s*(?:is)?\s*:?\s*(\d+(?:\.\d+)+)", text, re.IGNORECASE)
    return found.group(1) if found else ""


def parse_hugepages(meminfo: str) -> tuple[int, int]:
    """Read ``/proc/meminfo``: (pages of the default size, bytes of one such page)."""
    pages = re.search(r"^HugePages_Total:\s*(\d+)", meminfo, re.MULTILINE)
    size = re.search(r"^Hugepagesize:\s*(\d+) kB", meminfo, re.MULTILINE)
    return (int(pages.group(1)) if pages else 0, int(size.group(1)) * 1024 if size else 0)


def read_host() -> HostState:
    """Ask this machine. Starts ``nvidia-smi`` and friends only where there is something of NVIDIA's."""
    pci = nvidia_devices()
    pages, page_bytes = parse_hugepages(_read(Path("/proc/meminfo")))
    shm = Path("/dev/shm")  # noqa: S108 - the mount itself is what is looked at
    state = HostState(
        pci=pci,
        nouveau_loaded=Path("/sys/module/nouveau").exists(),
        shm_bytes=shutil.disk_usage(shm).total if shm.is_dir() else 0,
        hugepages=pages,
        hugepage_bytes=page_bytes,
        clock_synchronized=clock_synchronized(),
    )
    if not state.has_nvidia:
        return state
    smi, error = None, ""
    code, text = _ask("nvidia-smi", "-q", "-x")
    if code == 0:
        smi = parse_smi_xml(text)
    else:
        error = next((line.strip() for line in text.splitlines() if line.strip()), f"exit code {code}")
    return dataclasses.replace(
        state,
        smi=smi,
        smi_error=error,
        nvlinks=parse_nvlink(_ask("nvidia-smi", "nvlink", "-s")[1]) if smi else {},
        services={unit: service_state(unit) for unit in ("nvidia-persistenced", "nvidia-fabricmanager")},
        fabric_manager_version=parse_fabric_manager_version(_ask("nv-fabricmanager", "--version")[1]),
    )


def service_state(unit: str) -> str:
    """systemd's word for a unit; absent where there is no such unit or no systemd."""
    code, text = _ask("systemctl", "show", "-p", "LoadState", "-p", "ActiveState", unit)
    words = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)
    if code or words.get("LoadState") in {None, "not-found"}:
        return "absent"
    return words.get("ActiveState", "absent")


def clock_synchronized() -> bool | None:
    """Whether something (NTP, PTP, a hypervisor's clock) disciplines the kernel's clock: ``adjtimex(2)`` in read mode."""
    # struct timex is 208 bytes on 64-bit Linux and begins with `modes` (0 = read only); `status` is the int at byte 40.
    buffer = ctypes.create_string_buffer(256)
    try:
        state = ctypes.CDLL(None, use_errno=True).adjtimex(buffer)
    except (OSError, AttributeError):
        return None
    if state < 0:
        return None
    status = int.from_bytes(buffer.raw[40:44], "little")
    return state != _TIME_ERROR and not status & _STA_UNSYNC


# Judging


def check_host(state: HostState, expected: Expected) -> tuple[Check, ...]:
    """Every check, in a fixed order, each with one of the four states; none is left out silently."""
    return (
        *_gpu_checks(state, expected),
        _shm(state, expected),
        _hugepages(state, expected),
        _clock(state, expected),
    )


def worst(checks: Sequence[Check]) -> str:
    """The worst status among checks (fail, warn, ok, skipped)."""
    return max((check.status for check in checks), key=_SEVERITY.index, default=SKIPPED)


_GPU_CHECKS = (
    "gpu_count", "driver", "gpu_model", "gpu_memory", "ecc", "row_remapping", "mig", "persistence",
    "fabric_manager", "fabric_state", "nvlink", "pcie_width", "nouveau",
)  # fmt: skip


def _gpu_checks(state: HostState, expected: Expected) -> tuple[Check, ...]:
    if not state.has_nvidia:
        if expected.gpus:
            missing = Check(
                "gpu_count",
                FAIL,
                "no NVIDIA device on the PCI bus",
                f"{expected.gpus} GPUs",
                "check the cabling, the BIOS or the inventory",
            )
            return (missing, *(Check(name, SKIPPED, "no NVIDIA device", "a GPU to look at") for name in _GPU_CHECKS[1:]))
        return tuple(Check(name, SKIPPED, "no NVIDIA device on the PCI bus", "a GPU to look at") for name in _GPU_CHECKS)
    nouveau = Check(
        "nouveau", FAIL if state.nouveau_loaded else OK, "loaded" if state.nouveau_loaded else "not loaded", "not loaded",
        "reboot: the driver role has blacklisted it",
    )  # fmt: skip
    if state.smi is None:
        driver = Check(
            "driver",
            FAIL,
            state.smi_error or "nvidia-smi does not answer",
            "a driver that answers",
            "install it (role gpu_driver), or reboot after an upgrade (gpu_driver_reboot: if_needed)",
        )
        blind = [Check(name, SKIPPED, "the driver does not answer", "a driver that answers") for name in _GPU_CHECKS[2:-1]]
        return (_count(state, expected, state.gpus_on_bus), driver, *blind, nouveau)
    gpus = state.smi.gpus
    return (
        _count(state, expected, len(gpus)),
        _driver(state.smi, expected),
        _model(gpus, expected),
        _memory(gpus, expected),
        _ecc(gpus, expected),
        _remapping(gpus),
        _mig(gpus, expected),
        _persistence(state, gpus, expected),
        _fabric_manager(state, state.smi),
        _fabric_state(state, gpus),
        _nvlink(state, expected),
        _pcie(gpus, expected),
        nouveau,
    )


def _count(state: HostState, expected: Expected, found: int) -> Check:
    required = state.gpus_on_bus if expected.gpus is None else expected.gpus
    said = f"{found} GPUs" + (f" ({state.gpus_on_bus} on the PCI bus)" if found != state.gpus_on_bus else "")
    status = OK if found == required else FAIL
    return Check(
        "gpu_count",
        status,
        said,
        f"{required} GPUs",
        "look for 'Xid' and 'fallen off the bus' in dmesg, or correct the inventory",
    )


def _driver(smi: SmiLog, expected: Expected) -> Check:
    wanted = expected.driver_version
    same = not wanted or smi.driver_version == wanted or smi.driver_version.startswith(f"{wanted}.")
    return Check(
        "driver",
        OK if same else FAIL,
        f"driver {smi.driver_version}",
        wanted or "any version",
        "reboot into the pinned driver, or run provision",
    )


def _model(gpus: Sequence[GpuState], expected: Expected) -> Check:
    names = sorted({gpu.name for gpu in gpus})
    said = ", ".join(names) or "none"
    if expected.gpu is None:
        mixed = len(names) > 1
        return Check("gpu_model", WARN if mixed else OK, said, "GPUs of one model", "serve with GPUs of one model (engine_gpus)")
    wanted = find_gpu(expected.gpu)
    wrong = [name for name in names if (find_gpu(name) != wanted if wanted else expected.gpu.lower() not in name.lower())]
    return Check("gpu_model", FAIL if wrong else OK, said, expected.gpu, "correct the inventory's GPU model, or swap the card")


def _memory(gpus: Sequence[GpuState], expected: Expected) -> Check:
    known = find_gpu(expected.gpu) if expected.gpu else None
    wanted = expected.memory_gib if expected.memory_gib is not None else (known.memory_gib if known else None)
    sizes = sorted({round(gpu.memory_total_bytes / GIB, 1) for gpu in gpus})
    said = ", ".join(f"{size} GiB" for size in sizes)
    if wanted is None:
        return Check("gpu_memory", OK, said, "any size")
    # The driver's reserve differs by version by a few hundred MiB.
    short = [size for size in sizes if size < wanted * 0.98]
    return Check(
        "gpu_memory", FAIL if short else OK, said, f"{wanted:.1f} GiB per GPU", "correct the inventory, or look at MIG and ECC"
    )


def _which(gpus: Sequence[GpuState]) -> str:
    return ", ".join(f"GPU {gpu.index}" for gpu in gpus)


def _ecc(gpus: Sequence[GpuState], expected: Expected) -> Check:
    broken = [gpu for gpu in gpus if gpu.uncorrected_volatile]
    if broken:
        said = ", ".join(f"GPU {gpu.index}: {gpu.uncorrected_volatile} uncorrected errors since the last reset" for gpu in broken)
        return Check("ecc", FAIL, said, "no uncorrected error", "drain the host, reset the GPU; when it returns, replace the GPU")
    off = [gpu for gpu in gpus if gpu.ecc is False]
    if off and expected.ecc:
        return Check("ecc", FAIL, f"off on {_which(off)}", "ECC on", "nvidia-smi -e 1, then reboot")
    old = [gpu for gpu in gpus if gpu.uncorrected_aggregate]
    if old:
        said = ", ".join(f"GPU {gpu.index}: {gpu.uncorrected_aggregate} uncorrected errors in its life" for gpu in old)
        return Check("ecc", WARN, said, "no uncorrected error", "watch this GPU")
    if all(gpu.ecc is None for gpu in gpus):
        return Check("ecc", SKIPPED, "these GPUs have no ECC to report", "ECC on")
    return Check("ecc", OK, "no uncorrected error", "no uncorrected error")


def _remapping(gpus: Sequence[GpuState]) -> Check:
    failed = [gpu for gpu in gpus if gpu.remap_failure]
    if failed:
        return Check("row_remapping", FAIL, f"failed on {_which(failed)}", "no failed remapping", "replace the GPU")
    pending = [gpu for gpu in gpus if gpu.remap_pending]
    if pending:
        return Check("row_remapping", WARN, f"pending on {_which(pending)}", "nothing pending", "reset the GPU or reboot")
    return Check("row_remapping", OK, "nothing pending", "nothing pending")


def _mig(gpus: Sequence[GpuState], expected: Expected) -> Check:
    on = [gpu for gpu in gpus if gpu.mig]
    wrong = [gpu for gpu in gpus if gpu.mig is not None and gpu.mig != expected.mig]
    said = f"on: {_which(on)}" if on else "off"
    return Check("mig", FAIL if wrong else OK, said, "on" if expected.mig else "off", "nvidia-smi -mig 0 on an idle GPU")


def _persistence(state: HostState, gpus: Sequence[GpuState], expected: Expected) -> Check:
    daemon = state.services.get("nvidia-persistenced", "absent")
    off = [gpu for gpu in gpus if gpu.persistence is False]
    said = f"off on {_which(off)}" if off else "on"
    status = (FAIL if expected.persistence else OK) if off else OK
    return Check(
        "persistence", status, f"{said}, nvidia-persistenced {daemon}", "on" if expected.persistence else "any",
        "systemctl enable --now nvidia-persistenced",
    )  # fmt: skip


def _fabric_manager(state: HostState, smi: SmiLog) -> Check:
    service, version = state.services.get("nvidia-fabricmanager", "absent"), state.fabric_manager_version
    if not state.has_nvswitch:
        return Check("fabric_manager", SKIPPED, "no NVSwitch", "a fabric manager only on NVSwitch hosts")
    said = f"nvidia-fabricmanager {service}" + (f", version {version}" if version else "")
    required = f"active, version {smi.driver_version} (the driver's, exactly)"
    if service != "active":
        return Check(
            "fabric_manager", FAIL, said, required, "install it (role gpu_driver) and read journalctl -u nvidia-fabricmanager"
        )
    wrong = bool(version) and version != smi.driver_version
    return Check("fabric_manager", FAIL if wrong else OK, said, required, "install the fabric manager of the driver's version")


def _fabric_state(state: HostState, gpus: Sequence[GpuState]) -> Check:
    if not state.has_nvswitch:
        return Check("fabric_state", SKIPPED, "no NVSwitch", "Completed, Success on NVSwitch hosts")
    told = [gpu for gpu in gpus if gpu.fabric_state]
    if not told:
        return Check("fabric_state", SKIPPED, "this driver reports no fabric state", "Completed, Success")
    bad = [gpu for gpu in told if gpu.fabric_state != "Completed" or gpu.fabric_status not in {"", "Success"}]
    said = ", ".join(sorted({f"{gpu.fabric_state}/{gpu.fabric_status or '-'}" for gpu in (bad or told)}))
    where = f" on {_which(bad)}" if bad else ""
    return Check(
        "fabric_state",
        FAIL if bad else OK,
        said + where,
        "Completed, Success",
        "restart nvidia-fabricmanager while no engine runs",
    )


def _nvlink(state: HostState, expected: Expected) -> Check:
    if not state.nvlinks and not expected.nvlinks:
        return Check("nvlink", SKIPPED, "no NVLink reported", "all links active")
    said = (
        ", ".join(f"GPU {index}: {active} of {active + dead}" for index, (active, dead) in sorted(state.nvlinks.items()))
        or "no link"
    )
    if expected.nvlinks is not None:
        count = len(state.smi.gpus) if state.smi else 0
        short = len(state.nvlinks) < count or any(active < expected.nvlinks for active, _ in state.nvlinks.values())
        required = f"{expected.nvlinks} active links per GPU"
    else:
        short = any(dead for _, dead in state.nvlinks.values())
        required = "all links active"
    return Check(
        "nvlink",
        FAIL if short else OK,
        said,
        required,
        "look for NVLink Xids (74) in dmesg; reset the GPUs; reseat or replace the board",
    )


def _pcie(gpus: Sequence[GpuState], expected: Expected) -> Check:
    narrow = []
    for gpu in gpus:
        required = expected.pcie_width or gpu.pcie_max_width
        if gpu.pcie_width is not None and required is not None and gpu.pcie_width < required:
            narrow.append(gpu)
    if all(gpu.pcie_width is None for gpu in gpus):
        return Check("pcie_width", SKIPPED, "the driver does not say", "full width")
    said = ", ".join(sorted({f"x{gpu.pcie_width} gen {gpu.pcie_gen}" for gpu in (narrow or gpus)}))
    where = f" on {_which(narrow)}" if narrow else ""
    required_text = f"x{expected.pcie_width}" if expected.pcie_width else "the slot's full width"
    return Check(
        "pcie_width",
        FAIL if narrow else OK,
        said + where,
        required_text,
        "reseat the card or riser; check the slot's bifurcation",
    )


def _shm(state: HostState, expected: Expected) -> Check:
    said = f"{state.shm_bytes / GIB:.1f} GiB"
    if expected.shm_gib is None:
        return Check("dev_shm", OK, said, "any size (containers bring their own)")
    small = state.shm_bytes < expected.shm_gib * GIB
    return Check(
        "dev_shm", FAIL if small else OK, said, f"{expected.shm_gib:g} GiB", "mount -o remount,size=… /dev/shm, and in /etc/fstab"
    )


def _hugepages(state: HostState, expected: Expected) -> Check:
    said = f"{state.hugepages} pages of {state.hugepage_bytes // 1024} KiB"
    if expected.hugepages is None:
        # Reserved pages are memory that weights and page cache cannot use.
        return Check("hugepages", OK, said, "any number")
    status = OK if state.hugepages == expected.hugepages else FAIL
    return Check("hugepages", status, said, f"{expected.hugepages} pages", "set vm.nr_hugepages in /etc/sysctl.d, then reboot")


def _clock(state: HostState, expected: Expected) -> Check:
    said = {True: "synchronized", False: "not synchronized", None: "the kernel does not say"}[state.clock_synchronized]
    if not expected.clock_sync:
        return Check("clock_sync", OK, said, "anything")
    # Timings are taken on one clock each, so a free-running clock spoils log comparison and TLS, not a measurement.
    status = OK if state.clock_synchronized else (SKIPPED if state.clock_synchronized is None else WARN)
    return Check("clock_sync", status, said, "synchronized", "install and start chrony")


def as_facts(state: HostState, checks: Sequence[Check]) -> dict[str, Any]:
    """Plain data for Ansible: what is there, the checks, the worst of them; nothing that changes from run to run by itself."""
    smi = state.smi
    return {
        "nvidia": state.has_nvidia,
        "nvswitch": state.has_nvswitch,
        "pci": [dataclasses.asdict(device) for device in state.pci],
        "driver_version": smi.driver_version if smi else "",
        "cuda_version": smi.cuda_version if smi else "",
        "gpus": [dataclasses.asdict(gpu) for gpu in smi.gpus] if smi else [],
        "fabric_manager_version": state.fabric_manager_version,
        "nouveau_loaded": state.nouveau_loaded,
        "status": worst(checks),
        "checks": [dataclasses.asdict(check) for check in checks],
    }


# Small things


def _ask(*argv: str) -> tuple[int, str]:
    """Exit code and output of a tool in a plain locale; 127 where it is not installed."""
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            env={**os.environ, "LC_ALL": "C"},
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        return 127, f"{argv[0]} is not installed"
    except subprocess.TimeoutExpired:
        return 124, f"{argv[0]} did not answer within 60 s"
    return done.returncode, done.stdout or done.stderr


def _read(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""


def _text(node: ET.Element, path: str) -> str:
    return (node.findtext(path) or "").strip()


def _known(text: str) -> str:
    return "" if text in {"N/A", "[N/A]"} else text


def _number(text: str) -> int | None:
    found = re.match(r"(\d+)", text)
    return int(found.group(1)) if found else None


def _switch(text: str) -> bool | None:
    return {"enabled": True, "yes": True, "disabled": False, "no": False}.get(text.lower())
