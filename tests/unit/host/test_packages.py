"""Which packages a driver is, by system and source; and which package files a host without a repository still needs."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from longhaul.errors import UserError
from longhaul.host import read
from longhaul.host.debs import Deb, needed, parse_deb, parse_installed
from longhaul.host.driver import SUPPORTED, branch_of, choose_modules, compare_installed, plan_driver, plan_for, reboot_needed
from longhaul.host.state import HostState, PciDevice

H200, V100, B200 = "0x2335", "0x1db5", "0x2901"


def test_an_h200_board_on_debian_12_gets_open_modules_and_the_same_fabric_manager() -> None:
    plan = plan_driver(
        distribution="Debian", major="12", source="upstream", version="580.95.05", nvswitch=True, device_ids=[H200] * 8
    )
    assert plan.kernel_modules == "open"
    assert plan.packages == (
        "nvidia-kernel-open-dkms=580.95.05-*",
        "nvidia-driver-cuda=580.95.05-*",
        "nvidia-persistenced=580.95.05-*",
        "nvidia-fabricmanager=580.95.05-*",
        "libnvidia-nscq=580.95.05-*",
    )
    assert plan.pinning == "nvidia-driver-pinning-580.95.05"
    assert (plan.repository, plan.architecture) == ("debian12", "x86_64")


def test_ubuntus_upstream_names_lose_their_branch_at_590() -> None:
    old = plan_driver(distribution="Ubuntu", major="22", source="upstream", version="580", device_ids=[H200])
    new = plan_driver(distribution="Ubuntu", major="24", source="upstream", version="590", device_ids=[H200])
    assert old.names == ("nvidia-dkms-580-open", "libnvidia-compute-580", "nvidia-compute-utils-580", "nvidia-utils-580")
    assert new.names == ("nvidia-dkms-open", "libnvidia-compute", "nvidia-compute-utils", "nvidia-utils")
    assert (old.repository, new.repository) == ("ubuntu2204", "ubuntu2404")
    assert old.packages == old.names  # a branch alone is pinned by the pinning package
    assert old.pinning == "nvidia-driver-pinning-580"


def test_ubuntus_own_packages_are_signed_modules_of_the_server_branch() -> None:
    plan = plan_driver(
        distribution="Ubuntu", major="24", source="distribution", version="570.172.08", nvswitch=True, device_ids=[H200]
    )
    assert "linux-modules-nvidia-570-server-open-generic" in plan.packages  # carries the kernel's version, so no pin
    assert "nvidia-fabricmanager-570=570.172.08-*" in plan.packages
    assert plan.pinning == ""


def test_rhel_uses_a_module_stream() -> None:
    plan = plan_driver(
        distribution="Rocky",
        major="9",
        source="upstream",
        version="570.172.08",
        nvswitch=True,
        device_ids=[H200],
        machine="aarch64",
    )
    assert plan.module_stream == "nvidia-driver:570-open"
    assert "nvidia-fabric-manager-570.172.08*" in plan.packages
    assert (plan.repository, plan.architecture) == ("rhel9", "sbsa")


def test_a_blackwell_board_gets_the_subnet_manager_unpinned() -> None:
    plan = plan_driver(
        distribution="Ubuntu", major="24", source="upstream", version="590.44.01", nvswitch=True, device_ids=[B200] * 8
    )
    assert "nvlsm" in plan.packages


def test_no_nvswitch_no_fabric_manager() -> None:
    plan = plan_driver(distribution="Debian", major="13", source="distribution", version="550", device_ids=[H200])
    assert plan.names == ("nvidia-open-kernel-dkms", "nvidia-smi", "nvidia-persistenced", "libcuda1")
    assert not plan.fabric_manager


@given(
    st.sampled_from([(name, major) for name, majors in SUPPORTED.items() for major in majors]),
    st.sampled_from(["570.172.08", "580.95.05", "590.44.01", "620.10.02"]),
)
def test_on_every_system_the_fabric_manager_carries_the_drivers_pin(system: tuple[str, str], version: str) -> None:
    plan = plan_driver(
        distribution=system[0], major=system[1], source="upstream", version=version, nvswitch=True, device_ids=[H200] * 8
    )
    (manager,) = [package for package in plan.packages if "fabric" in package]
    assert version in manager
    assert all(version in package for package in plan.packages)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"distribution": "Fedora"}, "Fedora 12"),
        ({"major": "11"}, "Debian 11"),
        ({"source": "internet"}, "gpu_driver_source 'internet'"),
        ({"version": "latest"}, "gpu_driver_version 'latest'"),
        ({"version": ""}, "gpu_driver_version ''"),
        ({"source": "distribution", "nvswitch": True}, "no fabric manager"),
        ({"distribution": "Rocky", "major": "9", "source": "distribution"}, "ships no NVIDIA driver"),
        ({"kernel_modules": "opened"}, "gpu_driver_kernel_modules"),
        ({"kernel_modules": "open", "device_ids": [V100]}, "older than Turing"),
        ({"kernel_modules": "proprietary", "device_ids": [B200]}, "Blackwell"),
        ({"version": "620.10.02", "kernel_modules": "proprietary"}, "branch 620"),
        ({"version": "620.10.02", "device_ids": [V100]}, "branch 620"),
    ],
)
def test_what_cannot_work_is_refused_before_anything_is_installed(changes: dict[str, object], words: str) -> None:
    good: dict[str, object] = {
        "distribution": "Debian", "major": "12", "source": "upstream", "version": "580.95.05", "device_ids": [H200],
    }  # fmt: skip
    with pytest.raises(UserError, match=words):
        plan_driver(**{**good, **changes})  # type: ignore[arg-type]


def test_modules_are_open_where_every_gpu_takes_them() -> None:
    assert choose_modules("auto", 580, [H200, H200]) == "open"
    assert choose_modules("auto", 580, [H200, V100]) == "proprietary"
    assert choose_modules("auto", 470, [H200]) == "proprietary"
    assert choose_modules("proprietary", 580, [H200]) == "proprietary"
    assert branch_of("580.65.06") == 580


def test_a_host_is_compared_with_the_plan_by_exact_version() -> None:
    plan = plan_driver(distribution="Debian", major="12", source="upstream", version="580.95.05", device_ids=[H200])
    there = dict.fromkeys(plan.names, "580.95.05-1")
    assert compare_installed(plan, "580.95.05", there, plan.names).missing == ()
    assert compare_installed(plan, "580.95.05", there, ()).unheld == plan.names
    older = {**there, "nvidia-driver-cuda": "1:580.65.06-1"}
    found = compare_installed(plan, "580.95.05", older, ())
    assert (found.missing, found.replaces) == (("nvidia-driver-cuda",), True)
    nothing = compare_installed(plan, "580.95.05", {}, ())
    assert (nothing.missing, nothing.replaces) == (plan.names, False)
    assert compare_installed(plan, "580", older, ()).missing == ()  # a branch takes any version that is there
    # 580.95.05 must not pass for 580.95.051
    assert compare_installed(plan, "580.95.05", dict.fromkeys(plan.names, "580.95.051-1"), ()).missing == plan.names


def test_a_reboot_is_asked_for_only_where_it_helps() -> None:
    assert reboot_needed(loaded="", installed="", nouveau_loaded=True) == ""
    assert reboot_needed(loaded="580.95.05", installed="580.95.05", nouveau_loaded=False) == ""
    assert reboot_needed(loaded="", installed="580.95.05", nouveau_loaded=False) == ""  # modprobe will do
    assert "570.10" in reboot_needed(loaded="570.10", installed="580.95.05", nouveau_loaded=False)
    assert "nouveau" in reboot_needed(loaded="", installed="580.95.05", nouveau_loaded=True)


def later(left: str, right: str) -> bool:
    """Versions of the tests are plain numbers."""
    return int(left) > int(right)


def deb(name: str, version: str, architecture: str = "amd64") -> Deb:
    return Deb(f"/x/{name}_{version}.deb", name, version, architecture)


def test_files_only_fill_what_is_missing_or_older() -> None:
    files = [deb("a", "1"), deb("a", "3"), deb("b", "2"), deb("c", "2"), deb("d", "1", "all"), deb("e", "9", "arm64")]
    todo = needed(files, {"b": "2", "c": "5"}, later, "amd64")
    assert [(entry.name, entry.version) for entry in todo] == [("a", "3"), ("d", "1")]


@given(
    st.dictionaries(st.sampled_from("abc"), st.integers(1, 9).map(str)),
    st.dictionaries(st.sampled_from("abc"), st.integers(1, 9).map(str), min_size=1),
)
def test_after_the_install_nothing_is_needed_and_nothing_was_lowered(installed: dict[str, str], carried: dict[str, str]) -> None:
    files = [deb(name, version) for name, version in carried.items()]
    todo = needed(files, installed, later, "amd64")
    after = {**installed, **{entry.name: entry.version for entry in todo}}
    assert needed(files, after, later, "amd64") == []
    assert all(not later(installed[name], after[name]) for name in installed)


def test_a_folder_for_another_machine_is_refused() -> None:
    with pytest.raises(UserError, match="none for amd64"):
        needed([deb("a", "1", "arm64")], {}, later, "amd64")


def test_dpkgs_answers() -> None:
    assert parse_deb("/x/a.deb", "docker.io\t20.10\tamd64\n") == Deb("/x/a.deb", "docker.io", "20.10", "amd64")
    with pytest.raises(UserError, match="not a Debian package"):
        parse_deb("/x/a.deb", "")
    text = "docker.io\t20.10\thi \nrunc\t1.1\tii \ngone\t2\trc \nhalf\t\tun \n"
    assert parse_installed(text) == {"docker.io": "20.10", "runc": "1.1"}


def test_the_plan_of_a_host_from_the_roles_options() -> None:
    wanted = {"distribution": "Debian", "major": "12", "source": "upstream", "version": "580.65.06", "nvswitch": "auto"}
    board = HostState(pci=(PciDevice("0000:00:00.0", "0x2335", "gpu"), PciDevice("0000:00:01.0", "0x22a3", "nvswitch")))
    plan, version = plan_for(board, wanted)
    assert version == "580.65.06"
    assert any("fabric" in name for name in plan.names), "the bus shows NVSwitches"
    for word in ("no", False, "false"):
        without, _ = plan_for(board, {**wanted, "nvswitch": word})
        assert not any("fabric" in name for name in without.names)
    own, version = plan_for(board, {**wanted, "packages": ["my-driver=1.2", "other"]})
    assert (own.names, own.packages, version) == (("my-driver", "other"), ("my-driver=1.2", "other"), "")
    with pytest.raises(UserError, match="gpu_driver_nvswitch 'perhaps'"):
        plan_for(board, {**wanted, "nvswitch": "perhaps"})


@pytest.mark.parametrize(
    ("tools", "installed", "held"),
    [
        ({"dpkg-query": "printf 'a\\t1.0\\tii \\nb\\t2.0\\thi \\nc\\t3.0\\trc \\n'"}, {"a": "1.0", "b": "2.0"}, ["b"]),
        ({"dpkg-query": "echo 'no packages found' >&2; exit 1"}, {}, []),
        ({"rpm": "printf 'a\\t1.0-1\\n'; echo 'package b is not installed'; exit 1"}, {"a": "1.0-1"}, []),
        ({}, {}, []),
    ],
)
def test_the_package_database_is_asked_whichever_it_is(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tools: dict[str, str], installed: dict[str, str], held: list[str]
) -> None:
    asked: list[tuple[str, ...]] = []

    def ask(*argv: str) -> tuple[int, str]:
        asked.append(argv)
        if argv[0] not in tools:
            return 127, f"{argv[0]} is not installed"
        done = subprocess.run(["sh", "-c", tools[argv[0]]], capture_output=True, text=True, check=False)
        return done.returncode, done.stdout or done.stderr

    monkeypatch.setattr(read, "_ask", ask)
    assert read.installed_packages(["a", "b"]) == (installed, held)
    assert all(argv[-2:] == ("a", "b") for argv in asked)


def test_the_kernel_modules_versions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    running = tmp_path / "version"
    monkeypatch.setattr(read, "_ask", lambda *argv: (0, "580.65.06\n"))
    assert read.kernel_module_versions(running) == ("", "580.65.06")
    running.write_text("575.1\n", encoding="utf-8")
    monkeypatch.setattr(read, "_ask", lambda *argv: (1, "modinfo: ERROR: Module nvidia not found."))
    assert read.kernel_module_versions(running) == ("575.1", "")
