"""The bed itself: its hosts are what the other tests take them for, and its faults are real."""

from __future__ import annotations

import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import play
from testbed.bed import Bed, Host, command

pytestmark = pytest.mark.testbed


@pytest.fixture(scope="module")
def host(bed: Bed) -> Iterator[Host]:
    made = bed.hosts(1)
    yield made[0]
    bed.remove(made)


def ssh(bed: Bed, host: Host, *options: str) -> subprocess.CompletedProcess[str]:
    argv = ["ssh", "-i", str(bed.key), *bed.ssh_args.split(), *options, "-o", "ConnectTimeout=3", "-o", "BatchMode=yes"]
    return subprocess.run(
        [*argv, "-p", str(host.ssh_port), "root@127.0.0.1", "systemctl is-system-running; hostname"],
        capture_output=True, text=True, timeout=30, check=False,
    )  # fmt: skip


def test_a_host_runs_systemd_and_is_known_by_its_key(bed: Bed, host: Host) -> None:
    said = ssh(bed, host)
    assert said.stdout.split() == ["running", host.name]


def test_a_host_with_another_key_is_refused(bed: Bed, host: Host, tmp_path: Path) -> None:
    other = tmp_path / "known_hosts"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(tmp_path / "key")], check=True)
    key = (tmp_path / "key.pub").read_text().split()
    other.write_text(f"[127.0.0.1]:{host.ssh_port} {key[0]} {key[1]}\n")
    # The first mention of an option wins.
    argv = ["ssh", "-o", f"UserKnownHostsFile={other}", "-i", str(bed.key), *bed.ssh_args.split(), "-o", "BatchMode=yes"]
    said = subprocess.run(
        [*argv, "-p", str(host.ssh_port), "root@127.0.0.1", "true"], capture_output=True, text=True, timeout=30, check=False
    )
    assert said.returncode == 255
    assert "Host key verification failed" in said.stderr


def test_ansible_reaches_it_through_the_written_inventory(bed: Bed, host: Host, tmp_path: Path) -> None:
    inventory = bed.write_inventory(tmp_path / "inventory", {"engines": [host]}, {"some_variable": 3})
    said = play.ansible(inventory, "engines", "-m", "ansible.builtin.debug", "-a", "var=some_variable")
    assert said.returncode == 0, said.stdout + said.stderr
    assert "some_variable: 3" in said.stdout.replace('"', "")
    assert play.ansible(inventory, "all", "-m", "ansible.builtin.ping").returncode == 0


def test_cut_ssh_hangs_as_a_pulled_cable_does_and_comes_back(bed: Bed, host: Host) -> None:
    host.cut_ssh()
    try:
        assert ssh(bed, host).returncode == 255
        assert host.run("hostname").stdout.strip() == host.name  # the host itself lives on
    finally:
        host.restore_ssh()
    assert ssh(bed, host).returncode == 0


def test_a_small_disk_keeps_its_files_and_fills_up(host: Host) -> None:
    host.run("mkdir -p /opt/some && echo before > /opt/some/file")
    host.small_disk("/opt/some", 2)
    try:
        assert host.read("/opt/some/file") == "before\n"
        host.fill("/opt/some")
        late = host.run("head -c 100000 /dev/zero > /opt/some/more", check=False)
        assert late.returncode != 0
        assert "No space left" in late.stderr
        host.unfill("/opt/some")
        assert host.run("head -c 100000 /dev/zero > /opt/some/more", check=False).returncode == 0
    finally:
        host.unmount("/opt/some")
    assert host.read("/opt/some/file") == "before\n"


def test_a_killed_controller_takes_its_workers_with_it(bed: Bed, host: Host, tmp_path: Path) -> None:
    inventory = bed.write_inventory(tmp_path / "inventory", {"engines": [host]})
    (tmp_path / "slow.yml").write_text(
        "- hosts: all\n  gather_facts: false\n  tasks:\n"
        "    - name: Mark\n      ansible.builtin.command: touch /root/begun\n"
        "    - name: Wait\n      ansible.builtin.command: sleep 60\n"
    )
    with play.Running(tmp_path / "slow.yml", inventory) as run:
        assert run.until("TASK [Wait]")
        run.kill()
        done = run.finish()
    assert done.code == -9
    assert host.run("test -e /root/begun", check=False).returncode == 0


def test_nothing_of_a_bed_is_left_behind(bed: Bed) -> None:
    """And two beds live side by side: other ports, another bridge."""
    with Bed() as other:
        assert other.registry != bed.registry
        run_dir, bridge = other.key.parent.parent, other._bridge
        other.hosts(1, ports=(), docker=False)
        assert Path(f"/sys/class/net/{bridge}").exists()
    deadline = time.monotonic() + 5
    while Path(f"/sys/class/net/{bridge}").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not Path(f"/sys/class/net/{bridge}").exists()
    assert not run_dir.exists()
    rules = subprocess.run(["iptables-save"], capture_output=True, text=True, check=False).stdout
    assert f"longhaul-testbed-{bridge.removeprefix('lhbed')}" not in rules
    living = [path for path in Path("/proc").glob("[0-9]*/cmdline") if str(run_dir).encode() in _read(path)]
    assert living == []


def test_a_killed_owner_leaves_nothing_either(bed: Bed) -> None:
    """SIGKILL to whoever holds a bed, as when a CI job is cut off: daemons, hosts, bridge and mounts go all the same."""
    owner = subprocess.Popen(command("up", "1"), cwd=play.REPO / "tests", stdout=subprocess.PIPE, text=True)
    try:
        assert owner.stdout is not None
        said = next(line for line in owner.stdout if ": ssh " in line)
        owner.kill()
    finally:
        owner.kill()
        owner.wait()
        owner.stdout.close()
    run_dir = next(word for word in said.split() if word.endswith("/keys/client")).removesuffix("/keys/client")
    deadline = time.monotonic() + 30
    while (left := _left(run_dir)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not left


def _left(run_dir: str) -> list[str]:
    """Processes, mounts, and the folder itself."""
    living = [path.parent.name for path in Path("/proc").glob("[0-9]*/cmdline") if f"{run_dir}/".encode() in _read(path)]
    mounts = [line for line in Path("/proc/mounts").read_text().splitlines() if run_dir in line]
    return living + mounts + [run_dir] * Path(run_dir).exists()


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError:
        return b""
