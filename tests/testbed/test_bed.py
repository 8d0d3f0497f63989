"""The bed itself: its hosts are what the other tests take them for, and its faults are real."""

from __future__ import annotations

import os
import re
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from support.hub import command_lines

from testbed import play
from testbed.bed import Bed, Host, command

pytestmark = pytest.mark.testbed
OF_A_BED = re.compile(r"(lhbed|longhaul-bed|longhaul-testbed-)\d+|^veth")


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
    deadline = time.monotonic() + 10
    while str(tmp_path / "slow.yml").encode() in command_lines():
        assert time.monotonic() < deadline, "a worker lives on"
        time.sleep(0.1)
    assert host.run("test -e /root/begun", check=False).returncode == 0


def test_the_machine_is_left_as_it_was_found(bed: Bed) -> None:
    """And two beds live side by side: other ports, another bridge."""
    before = machine()
    with Bed() as other:
        assert other.registry != bed.registry
        slot = Slot.of(other)
        (host,) = other.hosts(1)
        assert slot.traces()
        assert Path(f"/sys/class/net/{slot.bridge}").exists()
        # Besides what systemd makes there.
        host.run("for tree in /sys/fs/cgroup /sys/fs/cgroup/*/; do mkdir -p $tree/left/behind 2>/dev/null; done")
        assert machine() == before, "while it lives, all of it stays in its own tree"
        assert_writable()
    slot.wait_until_gone()
    assert machine() == before
    assert_writable()


def test_a_killed_owner_leaves_nothing_either(bed: Bed) -> None:
    """SIGKILL to whoever holds a bed, as when a CI job is cut off: daemons, hosts, bridge and mounts go all the same."""
    before = machine()
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
    slot = Slot(int(Path(run_dir).name.removeprefix("lhbed").partition("-")[0]), run_dir)
    slot.wait_until_gone()
    assert machine() == before
    assert_writable()


@dataclass(frozen=True)
class Slot:
    """What a bed that has ended must not have left."""

    number: int
    run_dir: str

    @staticmethod
    def of(bed: Bed) -> Slot:
        return Slot(bed._slot, str(bed.key.parent.parent))

    @property
    def bridge(self) -> str:
        return f"lhbed{self.number}"

    @property
    def cgroup(self) -> str:
        return f"longhaul-bed{self.number}"

    def traces(self) -> list[str]:
        """Its processes, mounts and folders, bridge, rules and cgroups that are there now."""
        found = [
            f"process {path.name}: {_read(path / 'cmdline')}"
            for path in Path("/proc").glob("[0-9]*")
            if f"{self.run_dir}/" in _read(path / "cmdline") or f"/{self.cgroup}/" in _read(path / "cgroup")
        ]
        places = (self.run_dir, f"/testbed/slot-{self.number}/")
        found += [line for line in Path("/proc/mounts").read_text().splitlines() if any(place in line for place in places)]
        found += [self.run_dir] * Path(self.run_dir).exists()
        found += [self.bridge] * Path(f"/sys/class/net/{self.bridge}").exists()
        rules = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout.splitlines()
        found += [rule for rule in rules if f"longhaul-testbed-{self.number} " in rule.replace('"', " ")]
        found += [str(path) for path in Path("/sys/fs/cgroup").glob(f"**/{self.cgroup}")]
        return found

    def wait_until_gone(self, timeout_s: float = 30) -> None:
        """The owner's guard takes a moment."""
        deadline = time.monotonic() + timeout_s
        while (left := self.traces()) and time.monotonic() < deadline:
            time.sleep(0.2)
        assert not left


def machine() -> dict[str, set[str]]:
    """This machine's cgroups, their mounts, its network devices and rules, without those of any bed: others come and go beside us."""
    tree = Path("/sys/fs/cgroup")
    # One tree, or one for each controller.
    patterns = ("*",) if (tree / "cgroup.controllers").exists() else ("*", "*/*")
    rules = subprocess.run(["iptables-save"], capture_output=True, text=True, check=True).stdout.splitlines()
    found = {
        "cgroups": {str(path) for pattern in patterns for path in tree.glob(pattern)},
        "cgroup mounts": {line for line in Path("/proc/mounts").read_text().splitlines() if f" {tree}" in line},
        "network": {path.name for path in Path("/sys/class/net").iterdir()},
        "rules": {line for line in rules if line.startswith("-A")},
    }
    return {name: {line for line in lines if not OF_A_BED.search(line)} for name, lines in found.items()}


def assert_writable() -> None:
    """The folder of all cgroups, as before the first bed."""
    folder = Path("/sys/fs/cgroup") / f"longhaul-test-{os.getpid()}"
    folder.mkdir()
    folder.rmdir()


def _read(path: Path) -> str:
    try:
        return path.read_bytes().decode(errors="replace").replace("\0", " ")
    except OSError:
        return ""
