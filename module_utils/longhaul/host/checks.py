"""All checks of a host together: run them, find the worst status, make facts of them."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

# Imported for the checks that they define, in this order.
from . import gpu_checks, machine_checks  # noqa: F401
from .check import CHECKS, FAIL, OK, SKIPPED, WARN, Check, Expected
from .state import HostState

_SEVERITY = (SKIPPED, OK, WARN, FAIL)


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
