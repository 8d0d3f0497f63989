"""Checks of a host: its GPUs, their driver, what connects them, shared memory, huge pages, clock. A check is one function here."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ..physics.hardware import GIB, find_gpu
from ..values import options_for
from .state import GpuState, HostState

OK, WARN, FAIL, SKIPPED = "ok", "warn", "fail", "skipped"


_SEVERITY = (SKIPPED, OK, WARN, FAIL)


@dataclass(frozen=True)
class Outcome:
    """What a check says. ``status``: ok, warn (works, but look), fail (do not serve), skipped (does not apply here)."""

    status: str
    found: str
    required: str
    fix: str = ""


@dataclass(frozen=True, kw_only=True)
class Check(Outcome):
    """An outcome under its check's name."""

    name: str

    def __str__(self) -> str:
        tail = f" | fix: {self.fix}" if self.fix and self.status in {WARN, FAIL} else ""
        return f"{self.status} {self.name}: found: {self.found} | required: {self.required}{tail}"


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
    """An inventory's expectations. Empty values promise nothing. UserError for an unknown name or a value that does not fit."""
    given = options_for(Expected, promises, prefix="", what="an expectation", fix="correct gpu_driver_expected")
    return Expected(**given)


# What a check needs before it can judge: nothing, an NVIDIA device, or a driver that answers.
Needs = Literal["nothing", "nvidia", "driver"]
Judge = Callable[[HostState, Expected], Outcome]


@dataclass(frozen=True)
class HostCheck:
    """A registered check; its name is its function's."""

    name: str
    needs: Needs
    judge: Judge

    def __call__(self, state: HostState, expected: Expected) -> Check:
        """The check's outcome; skipped where what it needs is missing."""
        if self.needs != "nothing" and not state.has_nvidia:
            outcome = Outcome(SKIPPED, "no NVIDIA device on the PCI bus", "a GPU to look at")
        elif self.needs == "driver" and state.smi is None:
            outcome = Outcome(SKIPPED, "the driver does not answer", "a driver that answers")
        else:
            outcome = self.judge(state, expected)
        return Check(**vars(outcome), name=self.name)


# In the order in which they are reported: that of their definition.
CHECKS: list[HostCheck] = []


def host_check(needs: Needs = "nothing") -> Callable[[Judge], Judge]:
    """Register a function as a check of every host."""

    def register(judge: Judge) -> Judge:
        CHECKS.append(HostCheck(judge.__name__, needs, judge))
        return judge

    return register


def _which(gpus: Sequence[GpuState]) -> str:
    return ", ".join(f"GPU {gpu.index}" for gpu in gpus)


@host_check()
def gpu_count(state: HostState, expected: Expected) -> Outcome:
    """As many GPUs as promised; without a promise, as many as the PCI bus shows. Without a driver the bus is counted."""
    if not state.has_nvidia:
        if not expected.gpus:
            return Outcome(SKIPPED, "no NVIDIA device on the PCI bus", "a GPU to look at")
        fix = "check the cabling, the BIOS or the inventory"
        return Outcome(FAIL, "no NVIDIA device on the PCI bus", f"{expected.gpus} GPUs", fix)
    found = state.gpus_on_bus if state.smi is None else len(state.gpus)
    required = state.gpus_on_bus if expected.gpus is None else expected.gpus
    said = f"{found} GPUs" + (f" ({state.gpus_on_bus} on the PCI bus)" if found != state.gpus_on_bus else "")
    fix = "look for 'Xid' and 'fallen off the bus' in dmesg, or correct the inventory"
    return Outcome(OK if found == required else FAIL, said, f"{required} GPUs", fix)


@host_check("nvidia")
def driver(state: HostState, expected: Expected) -> Outcome:
    """The driver answers and has the promised version; ``580`` promises any 580."""
    if state.smi is None:
        fix = "install it (role gpu_driver), or reboot after an upgrade (gpu_driver_reboot: if_needed)"
        return Outcome(FAIL, state.smi_error or "nvidia-smi does not answer", "a driver that answers", fix)
    wanted, version = expected.driver_version, state.smi.driver_version
    same = not wanted or version == wanted or version.startswith(f"{wanted}.")
    fix = "reboot into the pinned driver, or run provision"
    return Outcome(OK if same else FAIL, f"driver {version}", wanted or "any version", fix)


@host_check("driver")
def gpu_model(state: HostState, expected: Expected) -> Outcome:
    """All GPUs are of the promised model, or at least of one."""
    names = sorted({gpu.name for gpu in state.gpus})
    said = ", ".join(names) or "none"
    if expected.gpu is None:
        mixed = len(names) > 1
        return Outcome(WARN if mixed else OK, said, "GPUs of one model", "serve with GPUs of one model (engine_gpus)")
    wanted = find_gpu(expected.gpu)
    wrong = [name for name in names if (find_gpu(name) != wanted if wanted else expected.gpu.lower() not in name.lower())]
    return Outcome(FAIL if wrong else OK, said, expected.gpu, "correct the inventory's GPU model, or swap the card")


@host_check("driver")
def gpu_memory(state: HostState, expected: Expected) -> Outcome:
    """Each GPU has the promised memory, or what its model has."""
    known = find_gpu(expected.gpu) if expected.gpu else None
    wanted = expected.memory_gib if expected.memory_gib is not None else (known.memory_gib if known else None)
    sizes = sorted({round(gpu.memory_total_bytes / GIB, 1) for gpu in state.gpus})
    said = ", ".join(f"{size} GiB" for size in sizes)
    if wanted is None:
        return Outcome(OK, said, "any size")
    # The driver's reserve differs by version by a few hundred MiB.
    short = [size for size in sizes if size < wanted * 0.98]
    return Outcome(FAIL if short else OK, said, f"{wanted:.1f} GiB per GPU", "correct the inventory, or look at MIG and ECC")


@host_check("driver")
def ecc(state: HostState, expected: Expected) -> Outcome:
    """ECC is on and has seen no uncorrected error."""
    broken = [gpu for gpu in state.gpus if gpu.uncorrected_volatile]
    if broken:
        said = ", ".join(f"GPU {gpu.index}: {gpu.uncorrected_volatile} uncorrected errors since the last reset" for gpu in broken)
        return Outcome(FAIL, said, "no uncorrected error", "drain the host, reset the GPU; when it returns, replace the GPU")
    off = [gpu for gpu in state.gpus if gpu.ecc is False]
    if off and expected.ecc:
        return Outcome(FAIL, f"off on {_which(off)}", "ECC on", "nvidia-smi -e 1, then reboot")
    old = [gpu for gpu in state.gpus if gpu.uncorrected_aggregate]
    if old:
        said = ", ".join(f"GPU {gpu.index}: {gpu.uncorrected_aggregate} uncorrected errors in its life" for gpu in old)
        return Outcome(WARN, said, "no uncorrected error", "watch this GPU")
    if all(gpu.ecc is None for gpu in state.gpus):
        return Outcome(SKIPPED, "these GPUs have no ECC to report", "ECC on")
    return Outcome(OK, "no uncorrected error", "no uncorrected error")


@host_check("driver")
def row_remapping(state: HostState, expected: Expected) -> Outcome:
    """No row of GPU memory waits for a remapping or could not get one."""
    failed = [gpu for gpu in state.gpus if gpu.remap_failure]
    if failed:
        return Outcome(FAIL, f"failed on {_which(failed)}", "no failed remapping", "replace the GPU")
    pending = [gpu for gpu in state.gpus if gpu.remap_pending]
    if pending:
        return Outcome(WARN, f"pending on {_which(pending)}", "nothing pending", "reset the GPU or reboot")
    return Outcome(OK, "nothing pending", "nothing pending")


@host_check("driver")
def mig(state: HostState, expected: Expected) -> Outcome:
    """MIG is on or off as promised."""
    on = [gpu for gpu in state.gpus if gpu.mig]
    wrong = [gpu for gpu in state.gpus if gpu.mig is not None and gpu.mig != expected.mig]
    said = f"on: {_which(on)}" if on else "off"
    return Outcome(FAIL if wrong else OK, said, "on" if expected.mig else "off", "nvidia-smi -mig 0 on an idle GPU")


@host_check("driver")
def persistence(state: HostState, expected: Expected) -> Outcome:
    """The driver stays loaded while no program uses a GPU."""
    daemon = state.services.get("nvidia-persistenced", "absent")
    off = [gpu for gpu in state.gpus if gpu.persistence is False]
    said = f"off on {_which(off)}" if off else "on"
    status = (FAIL if expected.persistence else OK) if off else OK
    required = "on" if expected.persistence else "any"
    return Outcome(status, f"{said}, nvidia-persistenced {daemon}", required, "systemctl enable --now nvidia-persistenced")


@host_check("driver")
def fabric_manager(state: HostState, expected: Expected) -> Outcome:
    """On NVSwitch hosts the fabric manager runs, in the driver's exact version."""
    driver_version = state.smi.driver_version if state.smi else ""
    service, version = state.services.get("nvidia-fabricmanager", "absent"), state.fabric_manager_version
    if not state.has_nvswitch:
        return Outcome(SKIPPED, "no NVSwitch", "a fabric manager only on NVSwitch hosts")
    said = f"nvidia-fabricmanager {service}" + (f", version {version}" if version else "")
    required = f"active, version {driver_version} (the driver's, exactly)"
    if service != "active":
        return Outcome(FAIL, said, required, "install it (role gpu_driver) and read journalctl -u nvidia-fabricmanager")
    wrong = bool(version) and version != driver_version
    return Outcome(FAIL if wrong else OK, said, required, "install the fabric manager of the driver's version")


@host_check("driver")
def fabric_state(state: HostState, expected: Expected) -> Outcome:
    """On NVSwitch hosts every GPU has joined the fabric."""
    if not state.has_nvswitch:
        return Outcome(SKIPPED, "no NVSwitch", "Completed, Success on NVSwitch hosts")
    told = [gpu for gpu in state.gpus if gpu.fabric_state]
    if not told:
        return Outcome(SKIPPED, "this driver reports no fabric state", "Completed, Success")
    bad = [gpu for gpu in told if gpu.fabric_state != "Completed" or gpu.fabric_status not in {"", "Success"}]
    said = ", ".join(sorted({f"{gpu.fabric_state}/{gpu.fabric_status or '-'}" for gpu in (bad or told)}))
    where = f" on {_which(bad)}" if bad else ""
    return Outcome(FAIL if bad else OK, said + where, "Completed, Success", "restart nvidia-fabricmanager while no engine runs")


@host_check("driver")
def nvlink(state: HostState, expected: Expected) -> Outcome:
    """Every NVLink is active, or as many per GPU as promised."""
    if not state.nvlinks and not expected.nvlinks:
        return Outcome(SKIPPED, "no NVLink reported", "all links active")
    said = (
        ", ".join(f"GPU {index}: {active} of {active + dead}" for index, (active, dead) in sorted(state.nvlinks.items()))
        or "no link"
    )
    if expected.nvlinks is not None:
        count = len(state.gpus)
        short = len(state.nvlinks) < count or any(active < expected.nvlinks for active, _ in state.nvlinks.values())
        required = f"{expected.nvlinks} active links per GPU"
    else:
        short = any(dead for _, dead in state.nvlinks.values())
        required = "all links active"
    return Outcome(
        FAIL if short else OK, said, required, "look for NVLink Xids (74) in dmesg; reset the GPUs; reseat or replace the board"
    )


@host_check("driver")
def pcie_width(state: HostState, expected: Expected) -> Outcome:
    """Every GPU has its full PCIe width, or the promised one."""
    narrow = []
    for gpu in state.gpus:
        required = expected.pcie_width or gpu.pcie_max_width
        if gpu.pcie_width is not None and required is not None and gpu.pcie_width < required:
            narrow.append(gpu)
    if all(gpu.pcie_width is None for gpu in state.gpus):
        return Outcome(SKIPPED, "the driver does not say", "full width")
    said = ", ".join(sorted({f"x{gpu.pcie_width} gen {gpu.pcie_gen}" for gpu in (narrow or state.gpus)}))
    where = f" on {_which(narrow)}" if narrow else ""
    required_text = f"x{expected.pcie_width}" if expected.pcie_width else "the slot's full width"
    return Outcome(FAIL if narrow else OK, said + where, required_text, "reseat the card or riser; check the slot's bifurcation")


@host_check("nvidia")
def nouveau(state: HostState, expected: Expected) -> Outcome:
    """The free driver is not loaded: beside it NVIDIA's cannot load."""
    said = "loaded" if state.nouveau_loaded else "not loaded"
    return Outcome(FAIL if state.nouveau_loaded else OK, said, "not loaded", "reboot: the driver role has blacklisted it")


@host_check()
def dev_shm(state: HostState, expected: Expected) -> Outcome:
    """Shared memory (/dev/shm) is as large as promised."""
    said = f"{state.shm_bytes / GIB:.1f} GiB"
    if expected.shm_gib is None:
        return Outcome(OK, said, "any size (containers bring their own)")
    small = state.shm_bytes < expected.shm_gib * GIB
    return Outcome(
        FAIL if small else OK, said, f"{expected.shm_gib:g} GiB", "mount -o remount,size=… /dev/shm, and in /etc/fstab"
    )


@host_check()
def hugepages(state: HostState, expected: Expected) -> Outcome:
    """As many huge pages are reserved as promised."""
    said = f"{state.hugepages} pages of {state.hugepage_bytes // 1024} KiB"
    if expected.hugepages is None:
        # Reserved pages are memory that weights and page cache cannot use.
        return Outcome(OK, said, "any number")
    status = OK if state.hugepages == expected.hugepages else FAIL
    return Outcome(status, said, f"{expected.hugepages} pages", "set vm.nr_hugepages in /etc/sysctl.d, then reboot")


@host_check()
def clock_sync(state: HostState, expected: Expected) -> Outcome:
    """Something disciplines the clock."""
    said = {True: "synchronized", False: "not synchronized", None: "the kernel does not say"}[state.clock_synchronized]
    if not expected.clock_sync:
        return Outcome(OK, said, "anything")
    # Timings are taken on one clock each, so a free-running clock spoils log comparison and TLS, not a measurement.
    status = OK if state.clock_synchronized else (SKIPPED if state.clock_synchronized is None else WARN)
    return Outcome(status, said, "synchronized", "install and start chrony")


def check_host(state: HostState, expected: Expected) -> tuple[Check, ...]:
    """Every check, in a fixed order, each with one of the four states; none is left out silently."""
    return tuple(check(state, expected) for check in CHECKS)


def worst(checks: Sequence[Check]) -> str:
    """The worst status among checks (fail, warn, ok, skipped)."""
    return max((check.status for check in checks), key=_SEVERITY.index, default=SKIPPED)


def as_facts(state: HostState, checks: Sequence[Check]) -> dict[str, Any]:
    """Facts for Ansible: devices, driver, GPUs, checks and the worst status. Nothing in them changes without a cause."""
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
