"""GPU rows, names as people and drivers write them, and what real nvidia-smi prints."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from longhaul.errors import UserError
from longhaul.physics.hardware import GIB, GPUS, MIB, find_gpu, get_gpu, parse_nvidia_smi
from support.paths import CONFIGS, ROOT

# Printed by real hosts (driver 580) with NVIDIA_SMI_QUERY.
H200 = """index, name, memory.total [MiB], memory.used [MiB], memory.reserved [MiB]
0, NVIDIA H200, 143771 MiB, 0 MiB, 616 MiB
"""
H100 = """index, name, memory.total [MiB], memory.used [MiB], memory.reserved [MiB]
0, NVIDIA H100 80GB HBM3, 81559 MiB, 0 MiB, 480 MiB
"""


@pytest.mark.parametrize(
    ("text", "name", "torch_total"), [(H200, "h200", 150_109_880_320), (H100, "h100", 85_017_493_504)], ids=["h200", "h100"]
)
def test_usable_memory_is_what_torch_reports_as_total(text: str, name: str, torch_total: int) -> None:
    (found,) = parse_nvidia_smi(text)
    assert found.gpu is not None
    assert found.gpu.name == name
    assert abs(found.gpu.usable_bytes - torch_total) < MIB
    assert abs(get_gpu(name).usable_bytes - torch_total) < MIB


def test_eight_gpus_with_other_peoples_memory_on_one() -> None:
    rows = "\n".join(f"{i}, NVIDIA H200, 143771 MiB, {4096 if i == 3 else 0} MiB" for i in range(8))
    found = parse_nvidia_smi("index, name, memory.total [MiB], memory.used [MiB]\n" + rows)
    assert [g.index for g in found] == list(range(8))
    assert [g.memory_used_bytes // MIB for g in found] == [0, 0, 0, 4096, 0, 0, 0, 0]


def test_units_may_be_missing_and_a_model_unknown() -> None:
    (found,) = parse_nvidia_smi("index, name, memory.total [MiB]\n0, NVIDIA Quux 9, 24576\n")
    assert (found.gpu, found.memory_bytes) == (None, 24 * GIB)


@pytest.mark.parametrize("text", ["", "No devices were found\n"])
def test_no_gpu_is_an_empty_list(text: str) -> None:
    assert parse_nvidia_smi(text) == ()


def test_a_driver_that_does_not_answer_is_one_line() -> None:
    with pytest.raises(UserError, match="couldn't communicate"):
        parse_nvidia_smi("NVIDIA-SMI has failed because it couldn't communicate with the NVIDIA driver.\n")


@pytest.mark.parametrize(
    ("written", "row"),
    [
        ("H100", "h100"),
        ("NVIDIA H100 80GB HBM3", "h100"),
        ("NVIDIA H100 PCIe", "h100-pcie"),
        ("NVIDIA H100 NVL", "h100-nvl"),
        ("NVIDIA H200 NVL", "h200"),
        ("NVIDIA A100-SXM4-80GB", "a100"),
        ("NVIDIA A100-SXM4-40GB", "a100-40gb"),
        ("NVIDIA B200", "b200"),
        ("NVIDIA L40S", "l40s"),
        ("NVIDIA RTX 6000 Ada Generation", "rtx6000-ada"),
        ("NVIDIA RTX PRO 6000 Blackwell Workstation Edition", "rtx6000-blackwell"),
        ("AMD Instinct MI300X", "mi300x"),
    ],
)
def test_names_as_people_and_drivers_write_them(written: str, row: str) -> None:
    found = find_gpu(written)
    assert found is not None
    assert found.name == row


def test_a_prefix_of_another_model_is_not_that_model() -> None:
    assert find_gpu("NVIDIA A1000") is None
    assert find_gpu("B2000") is None


@pytest.mark.parametrize("gpu", GPUS.values(), ids=GPUS.keys())
def test_every_row_has_its_figures_and_their_source(gpu: object) -> None:
    row = next(g for g in GPUS.values() if g is gpu)
    assert row.source
    assert row.bandwidth_bytes_per_s > 0
    assert row.peak("bf16") > 0
    assert row.vendor == "cpu" or row.memory_bytes > 30 * GIB
    if row.has_fp8:
        # Two fp8 operations in the time of one bf16 operation on every matrix unit so far.
        assert row.peak("fp8") == pytest.approx(2 * row.peak("bf16"), rel=0.02)


def test_unknown_gpus_take_explicit_figures() -> None:
    gpu = get_gpu("b9000", memory_gib=500, bandwidth_gb_per_s=20_000, peak_tflop_per_s={"bf16": 5000, "fp8": 10_000})
    assert (gpu.memory_bytes, gpu.bandwidth_bytes_per_s, gpu.peak("fp8")) == (500 * GIB, 2e13, 1e16)
    assert "operator" in gpu.source


@pytest.mark.parametrize("figures", [{}, {"memory_gib": 0}, {"memory_gib": -1}, {"memory_gib": float("nan")}])
def test_unknown_gpus_without_figures_and_bad_figures_are_refused(figures: dict[str, float]) -> None:
    with pytest.raises(UserError):
        get_gpu("b9000", **figures)  # type: ignore[arg-type]


def test_a_new_gpu_is_one_row(tmp_path: Path) -> None:
    package = tmp_path / "longhaul"
    shutil.copytree(ROOT / "module_utils" / "longhaul", package, ignore=shutil.ignore_patterns("__pycache__"))
    table = package / "physics" / "hardware.py"
    row = '    _row("x900", 100_000, 9.0, 3000.0, "X900 datasheet", fp8=6000.0, cc=(11, 0), also=("x900-oem",)),\n'
    start = "_ROWS: tuple[_Row, ...] = (\n"
    table.write_text(table.read_text(encoding="utf-8").replace(start, start + row), encoding="utf-8")
    config = CONFIGS / "llama-3.1-8b.json"
    command = [
        *(sys.executable, "-m", "longhaul", "plan", "--model", str(config), "--gpu", "NVIDIA X900-OEM", "--gpus", "1"),
        *("--engine", "vllm==0.12.0", "--context", "8192", "--json"),
    ]
    found = subprocess.run(command, env={"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, check=True)
    assert json.loads(found.stdout)["fits"] is True
