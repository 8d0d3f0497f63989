"""Host checks against a real report of an H200 (driver 580, one GPU, passed through), and what goes wrong on real hosts."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from longhaul.errors import UserError
from longhaul.host.checks import CHECKS, Check, Expected, Outcome, as_facts, check_host, expected_from, host_check, worst
from longhaul.host.read import nvidia_devices, parse_fabric_manager_version, parse_hugepages, parse_nvlink, parse_smi_xml
from longhaul.host.state import GpuState, HostState, PciDevice, SmiLog
from longhaul.physics.hardware import GIB
from support.paths import DATA

REPORT = (DATA / "nvidia_smi_q_x_h200_580.xml").read_text()
NVLINK = """GPU 0: NVIDIA H200 (UUID: GPU-0)
\t Link 0: 26.562 GB/s
\t Link 1: 26.562 GB/s
GPU 1: NVIDIA H200 (UUID: GPU-1)
\t Link 0: 26.562 GB/s
\t Link 1: <inactive>
"""


def board(gpus: int = 8, **changes: Any) -> HostState:
    """A healthy HGX H200 board."""
    one = GpuState(
        index=0,
        name="NVIDIA H200",
        bus_id="0",
        memory_total_bytes=143771 * 1024**2,
        persistence=True,
        mig=False,
        ecc=True,
        uncorrected_volatile=0,
        uncorrected_aggregate=0,
        remap_pending=False,
        remap_failure=False,
        pcie_width=16,
        pcie_max_width=16,
        pcie_gen=5,
        fabric_state="Completed",
        fabric_status="Success",
    )
    devices = [PciDevice(f"0000:{n:02x}:00.0", "0x2335", "gpu", 16) for n in range(gpus)]
    devices += [PciDevice(f"0000:{n:02x}:00.0", "0x22a3", "nvswitch", 2) for n in range(32, 36)]
    state = HostState(
        pci=tuple(devices),
        smi=SmiLog("580.95.05", "13.0", tuple(dataclasses.replace(one, index=n) for n in range(gpus))),
        nvlinks=dict.fromkeys(range(gpus), (18, 0)),
        services={"nvidia-persistenced": "active", "nvidia-fabricmanager": "active"},
        fabric_manager_version="580.95.05",
        shm_bytes=1024 * GIB,
        clock_synchronized=True,
    )
    return dataclasses.replace(state, **changes)


def with_gpu(state: HostState, index: int, **changes: Any) -> HostState:
    assert state.smi is not None
    gpus = list(state.smi.gpus)
    gpus[index] = dataclasses.replace(gpus[index], **changes)
    return dataclasses.replace(state, smi=dataclasses.replace(state.smi, gpus=tuple(gpus)))


def only(checks: tuple[Check, ...], name: str) -> Check:
    (found,) = [check for check in checks if check.name == name]
    return found


H200 = Expected(gpus=8, gpu="h200", nvlinks=18, driver_version="580.95.05", shm_gib=128)


def test_the_real_report_of_an_h200() -> None:
    log = parse_smi_xml(REPORT)
    assert (log.driver_version, log.cuda_version, len(log.gpus)) == ("580.159.04", "13.0", 1)
    gpu = log.gpus[0]
    assert gpu.name == "NVIDIA H200"
    assert gpu.memory_total_bytes == 143771 * 1024**2
    assert (gpu.persistence, gpu.mig, gpu.ecc) == (True, False, True)
    assert (gpu.uncorrected_volatile, gpu.uncorrected_aggregate, gpu.remap_pending, gpu.remap_failure) == (0, 0, False, False)
    assert (gpu.pcie_width, gpu.pcie_max_width, gpu.pcie_gen) == (16, 16, 5)
    assert gpu.fabric_state == ""  # N/A: passed through alone


def test_an_older_drivers_report_names_ecc_differently() -> None:
    old = REPORT.replace("<sram_uncorrectable_parity>0</sram_uncorrectable_parity>", "").replace(
        "<sram_uncorrectable_secded>0</sram_uncorrectable_secded>", "<sram_uncorrectable>3</sram_uncorrectable>"
    )
    assert parse_smi_xml(old).gpus[0].uncorrected_volatile == 3


@pytest.mark.parametrize(
    "text", ["", "NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.", "<a><b></a>"]
)
def test_no_report_is_one_clear_line(text: str) -> None:
    with pytest.raises(UserError, match="required: its XML report"):
        parse_smi_xml(text)


def test_a_healthy_board_passes_every_check() -> None:
    checks = check_host(board(), H200)
    assert {check.name: check.status for check in checks if check.status != "ok"} == {}
    assert worst(checks) == "ok"


@pytest.mark.parametrize(
    ("state", "name", "status", "words"),
    [
        (board(7), "gpu_count", "fail", "7 GPUs"),
        (with_gpu(board(), 3, uncorrected_volatile=2), "ecc", "fail", "GPU 3: 2 uncorrected"),
        (with_gpu(board(), 3, uncorrected_aggregate=2), "ecc", "warn", "in its life"),
        (with_gpu(board(), 5, ecc=False), "ecc", "fail", "off on GPU 5"),
        (with_gpu(board(), 0, remap_failure=True), "row_remapping", "fail", "GPU 0"),
        (with_gpu(board(), 0, remap_pending=True), "row_remapping", "warn", "GPU 0"),
        (with_gpu(board(), 1, mig=True), "mig", "fail", "GPU 1"),
        (with_gpu(board(), 6, persistence=False), "persistence", "fail", "off on GPU 6"),
        (with_gpu(board(), 2, pcie_width=8), "pcie_width", "fail", "x8 gen 5 on GPU 2"),
        (with_gpu(board(), 2, name="NVIDIA H100 80GB HBM3"), "gpu_model", "fail", "H100"),
        (with_gpu(board(), 2, memory_total_bytes=80 * GIB), "gpu_memory", "fail", "80.0 GiB"),
        (with_gpu(board(), 4, fabric_state="In Progress", fabric_status=""), "fabric_state", "fail", "In Progress/- on GPU 4"),
        (board(fabric_manager_version="580.65.06"), "fabric_manager", "fail", "580.65.06"),
        (board(services={"nvidia-fabricmanager": "failed"}), "fabric_manager", "fail", "failed"),
        (board(nvlinks={**dict.fromkeys(range(7), (18, 0)), 7: (17, 1)}), "nvlink", "fail", "GPU 7: 17 of 18"),
        (board(nvlinks=dict.fromkeys(range(7), (18, 0))), "nvlink", "fail", "GPU 6"),
        (board(shm_bytes=64 * GIB), "dev_shm", "fail", "64.0 GiB"),
        (board(clock_synchronized=False), "clock_sync", "warn", "not synchronized"),
        (board(nouveau_loaded=True), "nouveau", "fail", "loaded"),
    ],
)
def test_each_fault_is_named_alone_with_its_fix(state: HostState, name: str, status: str, words: str) -> None:
    checks = check_host(state, H200)
    found = only(checks, name)
    assert found.status == status
    assert words in found.found
    assert found.required
    assert found.fix
    others = {check.name for check in checks if check.status in {"warn", "fail"}} - {name}
    # A GPU that is gone takes no other finding with it.
    assert others == set()


def test_a_driver_of_another_version_is_found() -> None:
    assert only(check_host(board(), dataclasses.replace(H200, driver_version="580.65.06")), "driver").status == "fail"
    assert only(check_host(board(), dataclasses.replace(H200, driver_version="580")), "driver").status == "ok"


def test_a_silent_driver_is_a_failure_and_what_it_hides_is_skipped() -> None:
    state = board(smi=None, smi_error="Failed to initialize NVML: Driver/library version mismatch")
    checks = check_host(state, H200)
    assert only(checks, "driver").status == "fail"
    assert "version mismatch" in only(checks, "driver").found
    assert only(checks, "gpu_count").status == "ok"  # the bus still shows all eight
    assert only(checks, "ecc").status == "skipped"


def test_without_a_gpu_all_gpu_checks_are_skipped() -> None:
    checks = check_host(HostState(shm_bytes=GIB, clock_synchronized=True), Expected())
    assert {check.status for check in checks if check.name not in {"dev_shm", "hugepages", "clock_sync"}} == {"skipped"}
    assert worst(checks) == "ok"


def test_a_promised_gpu_that_is_not_there_is_a_failure() -> None:
    found = only(check_host(HostState(), Expected(gpus=8)), "gpu_count")
    assert (found.status, found.required) == ("fail", "8 GPUs")


def test_hugepages_are_judged_only_when_promised() -> None:
    state = HostState(hugepages=16, hugepage_bytes=2 * 1024**2)
    assert only(check_host(state, Expected()), "hugepages").status == "ok"
    assert only(check_host(state, Expected(hugepages=1024)), "hugepages").status == "fail"


@given(st.sampled_from([board(), board(2), board(smi=None), HostState(), board(nvlinks={})]), st.booleans())
def test_every_check_is_always_there_once(state: HostState, promised: bool) -> None:
    checks = check_host(state, H200 if promised else Expected())
    assert [check.name for check in checks] == [check.name for check in check_host(board(), H200)]


def test_nvlink_counts_dead_links() -> None:
    assert parse_nvlink(NVLINK) == {0: (2, 0), 1: (1, 1)}
    assert parse_nvlink("") == {}


def test_small_parsers() -> None:
    assert parse_fabric_manager_version("Fabric Manager version is : 580.65.06\n") == "580.65.06"
    assert parse_fabric_manager_version("nv-fabricmanager is not installed") == ""
    assert parse_hugepages("HugePages_Total:    1024\nHugePages_Free: 3\nHugepagesize:       2048 kB\n") == (1024, 2 * 1024**2)
    assert parse_hugepages("") == (0, 0)


def test_the_bus_is_read_without_a_driver(tmp_path: Path) -> None:
    devices = {
        "0000:00:06.0": ("0x10de", "0x030200", "0x2335", "16"),
        "0000:07:00.0": ("0x10de", "0x068000", "0x22a3", "2"),
        "0000:01:00.0": ("0x1af4", "0x020000", "0x1041", None),
        "0000:09:00.0": ("0x10de", "0x040300", "0x22ba", None),
    }
    for address, (vendor, kind, device, width) in devices.items():
        folder = tmp_path / address
        folder.mkdir()
        (folder / "vendor").write_text(f"{vendor}\n")
        (folder / "class").write_text(f"{kind}\n")
        (folder / "device").write_text(f"{device}\n")
        if width:
            (folder / "current_link_width").write_text(f"{width}\n")
    found = nvidia_devices(tmp_path)
    assert [(device.kind, device.link_width) for device in found] == [("gpu", 16), ("nvswitch", 2), ("other", 0)]
    assert HostState(pci=found).has_nvswitch
    assert not HostState(pci=found[2:]).has_nvidia  # a sound device alone is nothing to drive


def test_a_blackwell_board_has_nvswitches_though_the_bus_shows_none() -> None:
    b200 = PciDevice("0000:00:00.0", "0x2901", "gpu", 16)
    assert not HostState(pci=(b200,)).has_nvswitch
    assert HostState(pci=(b200, b200)).has_nvswitch


def test_expectations_from_an_inventory() -> None:
    assert expected_from(
        {"gpus": "8", "gpu": "h200", "ecc": "false", "shm_gib": 128, "nvlinks": None, "driver_version": ""}
    ) == Expected(gpus=8, gpu="h200", ecc=False, shm_gib=128.0)
    with pytest.raises(UserError, match="an expectation 'gpu_count'"):
        expected_from({"gpu_count": 8})
    with pytest.raises(UserError, match="gpus 'eight'"):
        expected_from({"gpus": "eight"})
    with pytest.raises(UserError, match="true or false"):
        expected_from({"ecc": "yes please"})


def test_facts_are_plain_and_carry_every_check() -> None:
    facts = as_facts(board(), check_host(board(), H200))
    assert facts["status"] == "ok"
    assert facts["nvswitch"] is True
    assert len(facts["gpus"]) == 8
    assert {"name", "status", "found", "required", "fix"} == set(facts["checks"][0])


def test_a_new_check_is_one_function() -> None:
    before = [check.name for check in CHECKS]
    try:

        @host_check("driver")
        def spare_gpu(state: HostState, expected: Expected) -> Outcome:
            return Outcome("warn" if len(state.gpus) < 9 else "ok", f"{len(state.gpus)} GPUs", "a spare one", "buy one")

        for state, status in ((board(), "warn"), (board(9), "ok"), (board(smi=None), "skipped"), (HostState(), "skipped")):
            assert only(check_host(state, Expected()), "spare_gpu").status == status
        checks = check_host(board(), H200)
        assert worst(checks) == "warn"
        assert as_facts(board(), checks)["checks"][-1]["name"] == "spare_gpu"
        assert "fix: buy one" in str(checks[-1])
    finally:
        del CHECKS[len(before) :]
    assert [check.name for check in check_host(board(), H200)] == before
