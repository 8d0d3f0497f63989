"""From bare hosts to Docker that runs a container, by the playbook's own roles; and what must survive that."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import images, play
from testbed.bed import Bed, Host

pytestmark = pytest.mark.testbed

# What the operator wrote by hand before we came: a key of theirs, and a log size other than our default.
THEIRS = {"debug": True, "log-opts": {"max-size": "10m"}, "labels": ["rack=b7"]}
PLAYBOOK = """
- hosts: all
  gather_facts: true
  tasks:
    - ansible.builtin.include_role: {name: gpu_driver}
    - ansible.builtin.include_role: {name: container_runtime}
"""


@pytest.fixture(scope="module")
def hosts(bed: Bed) -> Iterator[list[Host]]:
    made = bed.hosts(2, prefix="bare")
    yield made
    bed.remove(made)


@pytest.fixture(scope="module")
def inventory(bed: Bed, hosts: list[Host], tmp_path_factory: pytest.TempPathFactory) -> Path:
    variables = {"container_runtime_insecure_registries": [bed.registry]}
    return bed.write_inventory(tmp_path_factory.mktemp("provision") / "inventory", {"engines": hosts}, variables)


@pytest.fixture(scope="module")
def playbook(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("playbook") / "roles.yml"
    path.write_text(PLAYBOOK)
    return path


@pytest.fixture(scope="module")
def provisioned(hosts: list[Host], inventory: Path, playbook: Path) -> tuple[play.Played, play.Played]:
    """The dry run on bare hosts, then the real one."""
    hosts[0].write("/etc/docker/daemon.json", json.dumps(THEIRS))
    dry = play.play(playbook, inventory, "--check", "--diff")
    untouched = [host.run("ls /usr/sbin/dockerd /etc/docker/daemon.json.longhaul", check=False).returncode for host in hosts]
    assert all(untouched), "check mode changed something"
    return dry, play.play(playbook, inventory)


def test_check_mode_on_bare_hosts_says_what_would_change(provisioned: tuple[play.Played, play.Played], hosts: list[Host]) -> None:
    dry, _ = provisioned
    assert dry.code == 0, dry.text[-3000:]
    assert dry.changed > 0
    said = [text for text in " ".join(dry.text.split()).split("msg: ") if "would install" in text]
    assert said
    assert all("docker.io" in text for text in said)
    assert '"live-restore": true' in dry.text  # the diff of daemon.json


def test_a_host_without_a_gpu_says_so_in_one_line(provisioned: tuple[play.Played, play.Played], hosts: list[Host]) -> None:
    for host in hosts:
        assert f"gpu_driver: skipped, {host.name} has no NVIDIA device on its PCI bus" in provisioned[1].text


def test_the_findings_are_local_facts(provisioned: tuple[play.Played, play.Played], hosts: list[Host]) -> None:
    facts = json.loads(hosts[1].read("/etc/ansible/facts.d/longhaul_host.fact"))
    assert facts["nvidia"] is False
    status = {check["name"]: check["status"] for check in facts["checks"]}
    assert status["gpu_count"] == "skipped"
    assert status["dev_shm"] == "ok"


def test_docker_pulls_from_the_registry_and_runs(
    provisioned: tuple[play.Played, play.Played], bed: Bed, hosts: list[Host]
) -> None:
    assert provisioned[1].code == 0, provisioned[1].text[-3000:]
    image = images.standin(bed, ("1.0",))["1.0"]
    for host in hosts:
        said = host.run(f"docker run --rm {image.pinned} python3 -c 'print(6*7)'", timeout_s=180)
        assert said.stdout.strip() == "42"


def test_the_operators_settings_survive(provisioned: tuple[play.Played, play.Played], bed: Bed, hosts: list[Host]) -> None:
    merged = json.loads(hosts[0].read("/etc/docker/daemon.json"))
    assert merged["debug"] is True
    assert merged["labels"] == ["rack=b7"]
    assert merged["log-opts"] == {"max-size": "10m", "max-file": "5"}
    assert merged["live-restore"] is True
    assert merged["insecure-registries"] == [bed.registry]
    assert "kept as the host has it: log-opts.max-size" in provisioned[1].text
    copies = hosts[0].run("ls /etc/docker").stdout
    assert any(name.startswith("daemon.json.") and name.endswith("~") for name in copies.split())  # theirs, as it was
    assert json.loads(hosts[1].read("/etc/docker/daemon.json"))["log-opts"]["max-size"] == "100m"


def test_the_packages_are_held(provisioned: tuple[play.Played, play.Played], hosts: list[Host]) -> None:
    assert "docker.io" in hosts[0].run("apt-mark showhold").stdout.split()


def test_a_second_run_changes_nothing(
    provisioned: tuple[play.Played, play.Played], hosts: list[Host], inventory: Path, playbook: Path
) -> None:
    again = play.play(playbook, inventory)
    assert again.code == 0, again.text[-3000:]
    assert again.changed == 0, again.changes()
    dry = play.play(playbook, inventory, "--check", "--diff", "--limit", hosts[0].name)
    assert dry.code == 0, dry.text[-3000:]
    assert dry.changed == 0, dry.changes()


def test_containers_live_through_a_change_that_restarts_the_daemon(
    provisioned: tuple[play.Played, play.Played], bed: Bed, hosts: list[Host], inventory: Path, playbook: Path
) -> None:
    host = hosts[1]
    image = images.standin(bed, ("1.0",))["1.0"]
    host.run(f"docker run -d --name lives {image.reference} sleep 600", timeout_s=120)
    before = host.run("docker inspect -f '{{.State.Pid}} {{.State.StartedAt}}' lives; systemctl show -p MainPID docker").stdout
    changed = play.play(playbook, inventory, "--limit", host.name, "-e", '{"container_runtime_log_max_files": 7}')
    assert changed.code == 0, changed.text[-3000:]
    after = host.run("docker inspect -f '{{.State.Pid}} {{.State.StartedAt}}' lives; systemctl show -p MainPID docker").stdout
    assert after.splitlines()[0] == before.splitlines()[0]
    assert after.splitlines()[1] != before.splitlines()[1]
    assert json.loads(host.read("/etc/docker/daemon.json"))["log-opts"]["max-file"] == "7"
    host.run("docker rm -f lives")


def test_a_broken_daemon_json_is_refused_and_left_alone(
    provisioned: tuple[play.Played, play.Played], hosts: list[Host], inventory: Path, playbook: Path
) -> None:
    host = hosts[1]
    good = host.read("/etc/docker/daemon.json")
    host.write("/etc/docker/daemon.json", '{"debug": true,}')
    try:
        refused = play.play(playbook, inventory, "--limit", host.name)
        assert refused.code == 2
        assert "/etc/docker/daemon.json is not JSON" in refused.text
        assert host.read("/etc/docker/daemon.json") == '{"debug": true,}'
    finally:
        host.write("/etc/docker/daemon.json", good)


BAD_INPUT = {
    "source": ({"container_runtime_source": "upstream"}, "docker.io is installed | required: no other Docker"),
    "word": (
        {"container_runtime_source": "internet"},
        "found: container_runtime_source internet | required: one of distribution",
    ),
    "version": ({"container_runtime_version": "99.9"}, "docker.io=99.9"),
    "folder": ({"container_runtime_source": "files"}, "required: a folder with the package files"),
    "gpus": ({"gpu_driver_expected": {"gpus": 8}}, "found: no NVIDIA device on the PCI bus | required: 8 GPUs"),
    "reboot": ({"gpu_driver_reboot": "always"}, "required: never or if_needed"),
}


def test_bad_input_is_one_clear_line(
    provisioned: tuple[play.Played, play.Played], bed: Bed, hosts: list[Host], tmp_path: Path
) -> None:
    """Every mistake under a name of its own for the same host: one run tells all of them apart."""
    host = hosts[1]
    content = bed.inventory({"engines": []}, {"container_runtime_insecure_registries": [bed.registry]})
    content["all"]["hosts"] = {name: {"ansible_port": host.ssh_port, **vars_} for name, (vars_, _) in BAD_INPUT.items()}
    (tmp_path / "hosts.json").write_text(json.dumps(content))
    (tmp_path / "roles.yml").write_text(PLAYBOOK)
    before = host.run("cat /etc/docker/daemon.json; dpkg -l | sha256sum; ls /etc/apt/sources.list.d").stdout
    refused = play.play(tmp_path / "roles.yml", tmp_path / "hosts.json")
    assert refused.code == 2
    lines = {line.split(":")[0].strip(): line for line in refused.text.splitlines() if ": failed at '" in line}
    for name, (_, words) in BAD_INPUT.items():
        assert refused.recap[name]["failed"] == 1
        assert words in " ".join(lines[name].split()), lines[name]
    assert host.run("cat /etc/docker/daemon.json; dpkg -l | sha256sum; ls /etc/apt/sources.list.d").stdout == before


def test_an_air_gapped_host_installs_from_carried_files(
    provisioned: tuple[play.Played, play.Played], bed: Bed, hosts: list[Host], playbook: Path, tmp_path: Path
) -> None:
    # A host with a network collects the files: Docker and all that a bare host lacks for it.
    fetch = "mkdir -p /root/debs && cd /root/debs && apt-get install -y -q --no-install-recommends --reinstall --download-only"
    bare = bed.hosts(1, prefix="gap")[0]
    try:
        plan = bare.run(
            "apt-get update -q >/dev/null && apt-get install -s --no-install-recommends docker.io apparmor python3-requests"
            " | awk '/^Inst/{print $2}'",
            timeout_s=300,
        ).stdout.split()
        assert "docker.io" in plan
        hosts[0].run(f"{fetch} -o Dir::Cache::Archives=/root/debs {' '.join(plan)}", timeout_s=300)
        folder = tmp_path / "debs"
        bed.docker("cp", f"{hosts[0].container}:/root/debs", folder)
        # The gap: no list of packages, no way out.
        bare.run("rm -rf /var/lib/apt/lists/* /etc/apt/sources.list; ip route del default")
        variables = {"container_runtime_source": "files", "container_runtime_files_dir": str(folder)}
        inventory = bed.write_inventory(tmp_path / "inventory", {"engines": [bare]}, variables)
        done = play.play(playbook, inventory)
        assert done.code == 0, done.text[-3000:]
        assert bare.run("docker version --format '{{.Server.Version}}'").stdout.strip()
        again = play.play(playbook, inventory)
        assert (again.code, again.changed) == (0, 0), again.changes()
    finally:
        bed.remove([bare])


# What the PCI bus of an HGX H200 host shows: eight GPUs, and a switch. Only the bus is made up; packages and repositories are real.
FAKE_BUS = """set -e
mkdir -p /run/bus && cd /run/bus
device() { mkdir -p "$1"; echo 0x10de > "$1/vendor"; echo "$2" > "$1/class"; echo "$3" > "$1/device"; }
for n in 0 1 2 3 4 5 6 7; do device 0000:1$n:00.0 0x030200 0x2335; done
device 0000:20:00.0 0x068000 0x22a3
mount --bind /run/bus /sys/bus/pci/devices
"""


def test_a_driver_is_planned_installed_and_held_up_to_the_point_where_it_needs_a_gpu(bed: Bed, tmp_path: Path) -> None:
    path = tmp_path / "driver.yml"
    path.write_text("- hosts: all\n  tasks:\n    - ansible.builtin.include_role: {name: gpu_driver}\n")
    (host,) = made = bed.hosts(1, prefix="gpu", docker=False)
    try:
        host.run(FAKE_BUS)
        variables = {"gpu_driver_source": "distribution", "gpu_driver_version": "535", "gpu_driver_expected": {"gpus": 8}}
        inventory = bed.write_inventory(tmp_path / "inventory", {"engines": made}, variables)

        def text(*words: str) -> tuple[int, str]:
            played = play.play(path, inventory, *words)
            return played.code, " ".join(played.text.split())

        code, said = text()
        assert code == 2
        assert (
            "found: NVSwitches, and Debian's own packages hold no fabric manager | required: gpu_driver_source: upstream" in said
        )

        host.run("rm -r /run/bus/0000:20:00.0")
        code, said = text("--check")
        assert code == 0, said[-2000:]
        assert "would install nvidia-open-kernel-dkms, nvidia-smi, nvidia-persistenced, libcuda1" in said
        assert host.run("dpkg -l nvidia-smi", check=False).returncode != 0

        code, said = text("-e", json.dumps({"gpu_driver_manage": False}))
        assert code == 2
        assert "fail driver: found: nvidia-smi is not installed | required: a driver that answers" in said

        few = {"gpu_driver_packages": ["nvidia-smi", "nvidia-persistenced"], "gpu_driver_kernel_headers": False}
        code, said = text("-e", json.dumps(few))
        assert code == 2
        assert "modprobe: FATAL" in said
        assert "required: the nvidia module loads" in said
        assert host.run("apt-mark showhold").stdout.split() == ["nvidia-persistenced", "nvidia-smi"]
        assert "blacklist nouveau" in host.read("/etc/modprobe.d/longhaul-nouveau.conf")
    finally:
        bed.remove(made)
