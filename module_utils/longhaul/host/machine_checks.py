"""Checks of a host's memory and clock. A check is one function here."""

from __future__ import annotations

from ..physics.hardware import GIB
from .check import FAIL, OK, SKIPPED, WARN, Expected, Outcome, host_check
from .state import HostState


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
