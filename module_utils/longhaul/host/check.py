"""What a check of a host is: one decorated function from the host's state and the inventory's promises to an outcome."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from ..values import options_for
from .state import HostState

OK, WARN, FAIL, SKIPPED = "ok", "warn", "fail", "skipped"


@dataclass(frozen=True)
class Outcome:
    """What a check says. ``status``: ok, warn (works, but look), fail (do not serve), skipped (does not apply here)."""

    status: str
    found: str
    required: str
    fix: str = ""


@dataclass(frozen=True)
class Check:
    """An outcome under its check's name."""

    name: str
    status: str
    found: str
    required: str
    fix: str = ""

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
        return Check(self.name, outcome.status, outcome.found, outcome.required, outcome.fix)


# In the order in which they are reported: that of their definition.
CHECKS: list[HostCheck] = []


def host_check(needs: Needs = "nothing") -> Callable[[Judge], Judge]:
    """Register a function as a check of every host."""

    def register(judge: Judge) -> Judge:
        CHECKS.append(HostCheck(judge.__name__, needs, judge))
        return judge

    return register
