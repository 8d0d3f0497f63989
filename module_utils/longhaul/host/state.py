"""What a host is, as data: its PCI bus, its driver's report, its memory and its clock."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

# PCI device ids of HGX boards whose NVSwitches are not PCI devices of NVIDIA's (fifth generation, behind a ConnectX):
# GB100 [B200] and GB110 [B300 SXM6], from the PCI ID database.
_NVSWITCH_BOARD_GPUS = frozenset({"0x2901", "0x3182"})


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
    def gpus(self) -> tuple[GpuState, ...]:
        """GPUs that the driver reports."""
        return self.smi.gpus if self.smi else ()

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
        # Several GPUs of a kind that comes on NVSwitch boards only show no switch on the bus.
        boards = sum(device.device_id.lower() in _NVSWITCH_BOARD_GPUS for device in self.pci)
        return boards > 1 or any(device.kind == "nvswitch" for device in self.pci)
