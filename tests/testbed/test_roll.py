"""Rolling a fleet on real hosts: a good version, five bad ones, faults in the middle, and what must never leak.

The tests share one fleet and run in this order: each takes the hosts as the one before left them (every host serves, maybe
not the same version), so that no time goes into putting them back.
"""

from __future__ import annotations

import base64
import itertools
import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Iterator, Sequence
from typing import Any

import pytest

from testbed import engine_images, play
from testbed.bed import Bed
from testbed.fleet import Client, Fleet

pytestmark = pytest.mark.testbed

KEY = "planted-secret-5f1c9e7ab2"
PASSWORD = "planted-password-0d84c1f6"
# As they are, and as Docker's login keeps one: base64 of user:password, at each of three offsets.
PLANTED = [word.encode() for word in (KEY, PASSWORD)] + [base64.b64encode(f"puller:{PASSWORD}".encode())]
LAUNCH = "playbooks/launch.yml"
TOGETHER = {"longhaul_serial": ["100%"]}


@pytest.fixture(scope="module")
def fleet(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Three hosts, from bare to serving ``engine:1.0``."""
    hosts = bed.hosts(3, ports=(8000,), prefix="roll")
    made = Fleet(bed, hosts, engine_images.engines(bed), tmp_path_factory.mktemp("fleet"), KEY, PASSWORD)
    done = made.play("deploy.yml", timeout_s=600)
    assert done.code == 0, done.text[-4000:]
    yield made
    bed.remove(hosts)


@pytest.fixture(autouse=True)
def _all_serve(fleet: Fleet) -> None:
    """Each test finds every host serving a proven version, whatever the one before did."""
    doubtful = [
        h
        for h in fleet.hosts
        if not fleet.ask(h) or h.run("test -e /opt/longhaul/spec/rolling.json", check=False).returncode == 0
    ]
    if doubtful:
        done = fleet.play(LAUNCH, *fleet.version("1.0", **TOGETHER))
        assert done.code == 0, done.text[-4000:]


def other(tag: str) -> str:
    """The version that does not run."""
    return "2.0" if tag == "1.0" else "1.0"


def slow(seconds: int) -> dict[str, Any]:
    """A start long enough to do something in the middle of it."""
    return {"engine_extra_args": ["--start-seconds", str(seconds)]}


def image_of(fleet: Fleet, number: int, which: str = "current") -> str:
    """The tag that stands in a host's spec; also a proof that the file is whole."""
    return str(fleet.spec(fleet.hosts[number], which)["container"]["image"].rpartition(":")[2])


def rollout(fleet: Fleet, run_id: str, *words: str) -> list[str]:
    """The front end's command line."""
    front = [str(play.REPO / "scripts/rollout"), "-i", str(fleet.inventory), "--playbook", LAUNCH]
    return [*front, "--results", str(fleet.folder / "results"), "--run-id", run_id, "--keep-events", *words]


def controllers(fleet: Fleet) -> list[str]:
    """Ansible's processes that work on this fleet."""
    listing = subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, text=True, check=False).stdout
    return [line for line in listing.splitlines() if "ansible-playbook" in line and str(fleet.inventory) in line]


class ProcessListings:
    """What ``ps`` shows anybody, again and again while a run goes on: containers and hosts are processes of this machine too."""

    def __init__(self, planted: Sequence[bytes]) -> None:
        self.planted, self.seen, self.samples = planted, set[str](), 0
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def _look(self) -> None:
        while not self._stop.wait(0.3):
            listing = subprocess.run(["ps", "-eww", "-o", "args"], capture_output=True, check=False).stdout
            self.samples += b"vllm.entrypoints" in listing
            self.seen |= {line.decode() for line in listing.splitlines() if any(word in line for word in self.planted)}

    def __enter__(self) -> ProcessListings:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(timeout=10)


def test_a_fleet_comes_up_from_bare_hosts_with_facts(fleet: Fleet) -> None:
    for host in fleet.hosts:
        facts = json.loads(host.read("/etc/ansible/facts.d/longhaul.fact"))
        assert facts["deployed"]["runtime"] == "docker"
        assert facts["deployed"]["version"] == "0.12.0"
        assert facts["verdict"]["verdict"] == "PASS"
        assert fleet.ask(host)
    # Each host pulled its image from the registry on loopback, by digest.
    digests = {host.run("docker image inspect -f '{{index .RepoDigests 0}}' " + fleet.images["1.0"].reference).stdout.strip()
               for host in fleet.hosts}  # fmt: skip
    assert digests == {fleet.images["1.0"].pinned}


def test_a_second_run_touches_nothing(fleet: Fleet) -> None:
    before = fleet.started()
    again = fleet.play("deploy.yml", "--skip-tags", "validate")
    assert again.code == 0, again.text[-3000:]
    assert again.changed == 0, again.changes()
    assert fleet.started() == before


def test_the_container_is_confined_and_holds_no_secret(fleet: Fleet) -> None:
    host = fleet.hosts[0]
    inspected = host.run("docker inspect longhaul-default").stdout
    assert KEY not in inspected
    found = json.loads(inspected)[0]
    assert found["HostConfig"]["CapDrop"] == ["ALL"]
    assert "no-new-privileges" in found["HostConfig"]["SecurityOpt"]
    writable = {m["Destination"] for m in found["Mounts"] if m["RW"]}
    assert writable == {"/root/.cache", "/root/.triton"}
    assert host.run("docker exec longhaul-default touch /opt/longhaul/models/scout-mini/x", check=False).returncode != 0
    assert KEY not in host.run("ps -eo args").stdout
    kept = host.run("cat /opt/longhaul/spec/*.json /opt/longhaul/spec/containers/*.json /etc/ansible/facts.d/*.fact").stdout
    assert fleet.images["1.0"].digest in kept
    assert KEY not in kept
    assert PASSWORD not in kept


def test_a_missing_image_stops_before_anything_is_stopped(fleet: Fleet) -> None:
    before = fleet.started()
    absent = {"engine_image": f"{fleet.bed.registry}/engine:9.9", "engine_image_digest": ""}
    done = fleet.play(LAUNCH, "-e", json.dumps(absent))
    assert done.code != 0
    assert "engine:9.9" in done.text or "manifest unknown" in done.text, done.text[-3000:]
    assert fleet.started() == before
    assert all(fleet.ask(host) for host in fleet.hosts)


# How it is bad: variables, the cause as it must be named, the exit code that scripts/rollout gives it (None: ansible-playbook runs).
BAD: dict[str, tuple[dict[str, Any], str, int | None]] = {
    # First, through the front end: its job events are those of a run that logs in to the registry and pulls.
    "out of memory": ({"engine_extra_args": ["--fail-start", "oom"]}, "out of memory", 1),
    "bad flag": ({"engine_extra_args": ["--fail-start", "bad-flag"]}, "a flag is unknown to this engine version", None),
    "never ready": (
        {"engine_extra_args": ["--fail-start", "never-ready"], "engine_start_timeout_s": 5},
        "not ready after 5 s",
        None,
    ),
    "wrong answers": ({"engine_extra_args": ["--miscount-prompt", "7"]}, "INVALID", 3),
}


@pytest.mark.parametrize("how", BAD)
def test_a_bad_version_goes_back_by_itself(fleet: Fleet, how: str) -> None:
    variables, cause, front_code = BAD[how]
    first = fleet.hosts[0]
    spec, others = fleet.spec(first)["spec_id"], fleet.started()[1:]
    # The last of them passed its health check: the load balancer must not keep it, and must get the old version back.
    hooks = fleet.hooks() if how == "wrong answers" else {}
    words = fleet.version("2.0", **variables, **hooks)
    if front_code is None:
        done = fleet.play(LAUNCH, *words)
        assert done.code == 2
        said = done.text
    else:
        run_id = how.replace(" ", "-")
        front = subprocess.run(rollout(fleet, run_id, *words), capture_output=True, text=True, timeout=240, check=False)
        said = front.stdout + front.stderr
        assert front.returncode == front_code, said[-3000:]
        kept = json.loads((fleet.folder / "results" / run_id / "rollout" / "rollout.json").read_text())
        assert kept["hosts"][first.name]["stages"]["Launch"] == "FAILED"
        assert "Launch" not in kept["hosts"][fleet.hosts[1].name]["stages"]
        assert not any(word in said.encode() for word in PLANTED)
    flat = " ".join(said.split())
    assert cause in flat, said[-3000:]
    assert "rolled back to vllm 0.12.0" in flat, said[-3000:]
    assert fleet.running_tag(first) == "1.0"
    assert fleet.ask(first)
    assert fleet.spec(first)["spec_id"] == spec
    facts = json.loads(first.read("/etc/ansible/facts.d/longhaul.fact"))
    assert facts["deployed"]["spec_id"] == spec
    assert facts["verdict"]["verdict"] == "PASS"
    assert fleet.started()[1:] == others
    if hooks:
        assert fleet.hooked() == [f"drain {first.name} up", f"undrain {first.name} up"]


def test_a_good_version_rolls_with_one_host_away_at_a_time(fleet: Fleet) -> None:
    # No absence is shorter than a start: a client that asks oftener than that misses none.
    start_s = 3
    target = fleet.version("2.0", **slow(start_s), **fleet.hooks())
    with ProcessListings(PLANTED) as listings, Client(fleet) as client:
        done = fleet.play(LAUNCH, *target)
    assert done.code == 0, done.text[-4000:]
    assert fleet.tags() == ["2.0"] * 3
    away = client.away()
    assert all(len(spans) == 1 for spans in away.values()), away
    ordered = sorted(spans[0] for spans in away.values())
    # The first answer after an absence comes before the next host's last answer before its own.
    assert all(first[1] < second[0] for first, second in itertools.pairwise(ordered)), away
    assert client.longest_pause_s() < start_s
    names = [host.name for host in fleet.hosts]
    assert fleet.hooked() == [f"{what} {name} up" for name in names for what in ("drain", "undrain")]
    assert listings.samples > 10
    assert not listings.seen


def test_a_rollback_by_hand_returns_to_the_version_before(fleet: Fleet) -> None:
    before = [image_of(fleet, number, "previous") for number in range(3)]
    assert before == ["1.0"] * 3
    done = fleet.play("playbooks/rollback.yml", "-e", json.dumps(TOGETHER))
    assert done.code == 0, done.text[-4000:]
    assert fleet.tags() == ["1.0"] * 3
    assert all(fleet.ask(host) for host in fleet.hosts)


def test_a_killed_controller_can_be_started_again(fleet: Fleet) -> None:
    first, others = fleet.hosts[0], fleet.started()[1:]
    was = fleet.running_tag(first)
    new = other(was)
    # So long that the watch which the controller leaves on the host is still there when the next run replaces the container.
    target = fleet.version(new, **slow(20))
    with play.Running(LAUNCH, fleet.inventory, *target) as run:
        assert run.until(f"[{first.name}] loading weights")
        run.kill()
    assert image_of(fleet, 0, "previous") == was
    # Another version than the one that was interrupted fails: the way back is the one before, not the one that nobody proved.
    bad = fleet.play(LAUNCH, *fleet.version(new, engine_extra_args=["--fail-start", "oom"]))
    assert bad.code == 2, bad.text[-4000:]
    assert "rolled back to vllm 0.12.0" in " ".join(bad.text.split()), bad.text[-4000:]
    assert fleet.running_tag(first) == was, bad.text[-4000:]
    assert fleet.ask(first), bad.text[-4000:]
    assert fleet.started()[1:] == others
    good = fleet.play(LAUNCH, *target, "--limit", first.name)
    assert good.code == 0, good.text[-4000:]
    assert fleet.running_tag(first) == new, good.text[-4000:]


def test_a_dead_docker_daemon_in_the_middle_corrupts_nothing(fleet: Fleet) -> None:
    first, tag = fleet.hosts[0], other(fleet.running_tag(fleet.hosts[0]))
    target = fleet.version(tag, **slow(4))
    others = fleet.started()[1:]
    with play.Running(LAUNCH, fleet.inventory, *target, "--limit", f"{first.name},{fleet.hosts[1].name}") as run:
        assert run.until(f"[{first.name}] loading weights")
        first.kill_dockerd()
        done = run.finish(240)
    # It either came through or went back: whole, serving, and the next host only touched where this one was proven.
    assert image_of(fleet, 0) == fleet.running_tag(first)
    assert fleet.ask(first)
    assert (done.code == 0) == (fleet.running_tag(first) == tag), done.text[-3000:]
    assert fleet.started_at(fleet.hosts[2]) == others[1]
    if done.code:
        assert fleet.started()[1:] == others
        again = fleet.play(LAUNCH, *target, "--limit", first.name)
        assert again.code == 0, again.text[-4000:]
    assert fleet.running_tag(first) == tag


def test_a_full_disk_leaves_the_host_as_it_was(fleet: Fleet) -> None:
    first, was = fleet.hosts[0], fleet.running_tag(fleet.hosts[0])
    target = fleet.version(other(was))
    others = fleet.started()[1:]
    first.small_disk("/opt/longhaul/spec", 1)
    try:
        first.fill("/opt/longhaul/spec")
        done = fleet.play(LAUNCH, *target)
        assert done.code != 0
        assert "No space left" in done.text, done.text[-3000:]
        assert fleet.running_tag(first) == was
        assert fleet.ask(first)
        assert fleet.started()[1:] == others
    finally:
        first.unmount("/opt/longhaul/spec")
    again = fleet.play(LAUNCH, *target, "--limit", first.name)
    assert again.code == 0, again.text[-4000:]
    assert fleet.running_tag(first) == other(was)


def test_a_host_that_is_cut_off_stops_the_roll_and_can_be_rolled_later(fleet: Fleet) -> None:
    first, tag = fleet.hosts[0], other(fleet.running_tag(fleet.hosts[0]))
    target = fleet.version(tag, **slow(3))
    others = fleet.started()[1:]
    try:
        with play.Running(LAUNCH, fleet.inventory, *target) as run:
            assert run.until(f"[{first.name}] loading weights")
            first.cut_ssh()
            done = run.finish(240)
    finally:
        first.restore_ssh()
    assert done.code != 0
    assert done.recap[first.name]["unreachable"] == 1, done.text[-2000:]
    assert fleet.started()[1:] == others
    again = fleet.play(LAUNCH, *target, "-e", json.dumps(TOGETHER))
    assert again.code == 0, again.text[-4000:]
    assert fleet.tags() == [tag] * 3


def test_ctrl_c_stops_the_front_end_and_the_next_run_completes(fleet: Fleet) -> None:
    first, was = fleet.hosts[0], fleet.running_tag(fleet.hosts[0])
    others = fleet.started()[1:]
    target = fleet.version(other(was), **slow(5))
    child = subprocess.Popen(
        rollout(fleet, "stopped", *target), stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert child.stdout is not None
        assert any(f"{first.name}: Restart the engine: changed" in line for line in child.stdout)
        begun = time.monotonic()
        os.killpg(child.pid, signal.SIGINT)  # as a terminal does
        said, errors = child.communicate(timeout=60)
    finally:
        child.kill()
        child.wait()
    assert child.returncode == 130, said + errors
    assert time.monotonic() - begun < 40, "it ends at once, long before the roll would"
    assert "run again to continue" in errors
    assert "Traceback" not in said + errors
    kept = json.loads((fleet.folder / "results" / "stopped" / "rollout" / "rollout.json").read_text())
    assert kept["exit_code"] == 130
    deadline = time.monotonic() + 30
    while (living := controllers(fleet)) and time.monotonic() < deadline:
        time.sleep(0.2)
    assert not living
    assert fleet.started()[1:] == others
    again = subprocess.run(
        rollout(fleet, "continued", *target, "-e", json.dumps(TOGETHER)), capture_output=True, text=True, timeout=240, check=False
    )
    assert again.returncode == 0, again.stdout[-2000:] + again.stderr[-2000:]
    assert fleet.tags() == [other(was)] * 3


def test_nothing_that_is_kept_holds_a_secret(fleet: Fleet) -> None:
    """Last of the rolls, so that all results of this file are there: of good, bad and stopped ones, with every job event."""
    results = fleet.folder / "results"
    files = [path for path in results.rglob("*") if path.is_file()]
    assert any(path.name == "requests.jsonl" for path in files)
    assert any(path.name == "ansible.log" for path in files)
    events = b"".join(path.read_bytes() for path in files if path.parent.name == "job_events")
    assert b"Pull from the registry" in events
    assert b"Log in to the registry" in events
    assert not [path for path in files if any(word in path.read_bytes() for word in PLANTED)]
    # The same on the hosts: what we keep there, and the whole of what Docker says about its containers.
    for host in fleet.hosts:
        looked = host.run(
            f"grep -rlE '{KEY}|{PASSWORD}' /opt/longhaul /etc/ansible /var/log /tmp /root/.ansible* 2>/dev/null;"
            f" docker ps -aq | xargs docker inspect | grep -E '{KEY}|{PASSWORD}'; journalctl --no-pager | grep -E '{KEY}|{PASSWORD}'",
            check=False,
        )
        assert looked.stdout == ""
