"""Read a host's state. ``parse_...`` turn the text of a tool into data; only ``read_host`` and what it calls touch the machine.

Field names of ``nvidia-smi -q -x`` are those of driver 580 (``nvsmi_device_v13``, seen on an H200), with the names of 535-570
as a second choice.
"""

from __future__ import annotations

import ctypes
import dataclasses
import os
import re
import shutil
import subprocess
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError
from ..physics.hardware import MIB
from .debs import INSTALLED_FORMAT, parse_installed
from .state import GpuState, HostState, PciDevice, SmiLog

NVIDIA_VENDOR = "0x10de"
# The shell's exit code for a command that it does not find.
NOT_INSTALLED = 127
# What the kernel's adjtimex says when nothing disciplines the clock (include/uapi/linux/timex.h).
_TIME_ERROR, _STA_UNSYNC = 5, 0x40


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
    """The state of this machine. Starts NVIDIA's tools only where the PCI bus shows an NVIDIA device."""
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


def kernel_module_versions(running: Path = Path("/sys/module/nvidia/version")) -> tuple[str, str]:
    """Version of NVIDIA's kernel module: (running, on disk); empty where there is none."""
    code, text = _ask("modinfo", "-F", "version", "nvidia")
    return _read(running), text.strip() if code == 0 else ""


def installed_packages(names: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Of these packages: (name -> version of the installed ones, names on hold). dnf's locks are not read."""
    code, text = _ask("dpkg-query", "-W", f"-f={INSTALLED_FORMAT}", *names)
    if code != NOT_INSTALLED:
        on_hold = [line.split("\t")[0] for line in text.splitlines() if line.rpartition("\t")[2].startswith("hi")]
        return parse_installed(text), on_hold
    _, text = _ask("rpm", "-q", "--qf", "%{NAME}\\t%{EVR}\\n", *names)
    return dict(line.split("\t", 1) for line in text.splitlines() if "\t" in line), []


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


def _ask(*argv: str) -> tuple[int, str]:
    """Exit code and output of a tool in a plain locale; ``NOT_INSTALLED`` where there is no such tool."""
    try:
        done = subprocess.run(
            argv,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
            # modinfo is not on every user's path.
            env={**os.environ, "LC_ALL": "C", "PATH": f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"},
            stdin=subprocess.DEVNULL,
        )
    except FileNotFoundError:
        return NOT_INSTALLED, f"{argv[0]} is not installed"
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
