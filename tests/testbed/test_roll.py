"""Rolling a fleet on real hosts: a good version, five bad ones, faults in the middle, and what must never leak."""

from __future__ import annotations

import itertools
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import engine_images, play
from testbed.bed import Bed
from testbed.fleet import Client, Fleet

pytestmark = pytest.mark.testbed

KEY = "planted-secret-5f1c9e7ab2"
LAUNCH = "playbooks/launch.yml"


@pytest.fixture(scope="module")
def fleet(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    """Three hosts, from bare to serving ``engine:1.0``."""
    hosts = bed.hosts(3, ports=(8000,), prefix="roll")
    made = Fleet(bed, hosts, engine_images.engines(bed), tmp_path_factory.mktemp("fleet"), KEY)
    done = made.play("deploy.yml", timeout_s=600)
    assert done.code == 0, done.text[-4000:]
    yield made
    bed.remove(hosts)


@pytest.fixture(autouse=True)
def _good_before_and_after(fleet: Fleet) -> Iterator[None]:
    """Each test finds every host healthy on 1.0, whatever the one before did."""
    if {fleet.running_tag(host) for host in fleet.hosts} != {"1.0"} or not all(fleet.ask(host) for host in fleet.hosts):
        done = fleet.play(LAUNCH)
        assert done.code == 0, done.text[-4000:]
    return


def test_a_fleet_comes_up_from_bare_hosts_with_facts(fleet: Fleet) -> None:
    for host in fleet.hosts:
        facts = json.loads(host.read("/etc/ansible/facts.d/longhaul.fact"))
        assert facts["deployed"]["runtime"] == "docker"
        assert facts["verdict"]["verdict"] == "PASS"
        assert fleet.ask(host)


def test_a_second_run_touches_nothing(fleet: Fleet) -> None:
    before = [fleet.started_at(host) for host in fleet.hosts]
    again = fleet.play("deploy.yml", "--skip-tags", "validate")
    assert again.code == 0, again.text[-3000:]
    assert again.changed == 0, again.changes()
    assert [fleet.started_at(host) for host in fleet.hosts] == before


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
    assert KEY not in host.run("cat /opt/longhaul/spec/*.json /opt/longhaul/spec/containers/*.json").stdout


def test_a_good_version_rolls_with_one_host_away_at_a_time(fleet: Fleet) -> None:
    with Client(fleet) as client:
        done = fleet.play(LAUNCH, *fleet.version("2.0"))
    assert done.code == 0, done.text[-4000:]
    assert [fleet.running_tag(host) for host in fleet.hosts] == ["2.0"] * 3
    away = client.away()
    assert all(len(spans) == 1 for spans in away.values()), away
    ordered = sorted(spans[0] for spans in away.values())
    # The first answer after an absence comes before the next host's last answer before its own.
    assert all(first[1] < second[0] for first, second in itertools.pairwise(ordered)), away
    returned = fleet.play("playbooks/rollback.yml")
    assert returned.code == 0, returned.text[-4000:]
    assert [fleet.running_tag(host) for host in fleet.hosts] == ["1.0"] * 3
    assert all(fleet.ask(host) for host in fleet.hosts)


BAD = {
    "bad flag": ({"engine_extra_args": ["--fail-start", "bad-flag"]}, "a flag is unknown to this engine version"),
    "out of memory": ({"engine_extra_args": ["--fail-start", "oom"]}, "out of memory"),
    "never ready": ({"engine_extra_args": ["--fail-start", "never-ready"], "engine_start_timeout_s": 6}, "not ready after 6 s"),
    "wrong answers": ({"engine_extra_args": ["--miscount-prompt", "7"]}, "INVALID"),
}


@pytest.mark.parametrize("how", BAD)
def test_a_bad_version_goes_back_by_itself(fleet: Fleet, how: str) -> None:
    variables, cause = BAD[how]
    others = [fleet.started_at(host) for host in fleet.hosts[1:]]
    done = fleet.play(LAUNCH, *fleet.version("2.0", **variables))
    said = " ".join(done.text.split())
    assert done.code != 0
    assert cause in said, done.text[-3000:]
    assert "rolled back to vllm 0.12.0" in said, done.text[-3000:]
    first = fleet.hosts[0]
    assert fleet.running_tag(first) == "1.0"
    assert fleet.ask(first)
    assert fleet.spec(first)["container"]["image"].endswith(":1.0")
    assert [fleet.started_at(host) for host in fleet.hosts[1:]] == others


def test_a_missing_image_stops_before_anything_is_stopped(fleet: Fleet) -> None:
    before = [fleet.started_at(host) for host in fleet.hosts]
    absent = {"engine_image": f"{fleet.bed.registry}/engine:9.9", "engine_image_digest": ""}
    done = fleet.play(LAUNCH, "-e", json.dumps(absent))
    assert done.code != 0
    assert "engine:9.9" in done.text or "manifest unknown" in done.text, done.text[-3000:]
    assert [fleet.started_at(host) for host in fleet.hosts] == before
    assert all(fleet.ask(host) for host in fleet.hosts)


def test_a_killed_controller_can_be_started_again(fleet: Fleet) -> None:
    slow = fleet.version("2.0", engine_extra_args=["--start-seconds", "8"])
    with play.Running(LAUNCH, fleet.inventory, *slow) as run:
        assert run.until(f"[{fleet.hosts[0].name}] loading weights")
        run.kill()
    first = fleet.hosts[0]
    assert fleet.spec(first, "previous")["container"]["image"].endswith(":1.0")
    # Another version than the one that was interrupted fails: the way back is 1.0, not the one that nobody proved.
    bad = fleet.play(LAUNCH, *fleet.version("2.0", engine_extra_args=["--fail-start", "oom"]))
    assert bad.code != 0
    assert fleet.running_tag(first) == "1.0"
    assert fleet.ask(first)
    good = fleet.play(LAUNCH, *slow)
    assert good.code == 0, good.text[-4000:]
    assert [fleet.running_tag(host) for host in fleet.hosts] == ["2.0"] * 3


def test_a_dead_docker_daemon_in_the_middle_corrupts_nothing(fleet: Fleet) -> None:
    slow = fleet.version("2.0", engine_extra_args=["--start-seconds", "5"])
    first = fleet.hosts[0]
    with play.Running(LAUNCH, fleet.inventory, *slow) as run:
        assert run.until(f"[{first.name}] loading weights")
        first.kill_dockerd()
        run.finish(240)
    assert fleet.spec(first)["container"]["image"].endswith((":1.0", ":2.0"))
    assert fleet.ask(first)
    again = fleet.play(LAUNCH, *slow, "--limit", first.name)
    assert again.code == 0, again.text[-4000:]
    assert fleet.running_tag(first) == "2.0"


def test_a_full_disk_leaves_the_host_as_it_was(fleet: Fleet) -> None:
    first = fleet.hosts[0]
    first.small_disk("/opt/longhaul/spec", 1)
    try:
        first.fill("/opt/longhaul/spec")
        done = fleet.play(LAUNCH, *fleet.version("2.0"))
        assert done.code != 0
        assert "No space left" in done.text, done.text[-3000:]
        assert fleet.running_tag(first) == "1.0"
        assert fleet.ask(first)
    finally:
        first.unmount("/opt/longhaul/spec")
    again = fleet.play(LAUNCH, *fleet.version("2.0"), "--limit", first.name)
    assert again.code == 0, again.text[-4000:]
    assert fleet.running_tag(first) == "2.0"


def test_a_host_that_is_cut_off_stops_the_roll_and_can_be_rolled_later(fleet: Fleet) -> None:
    slow = fleet.version("2.0", engine_extra_args=["--start-seconds", "6"])
    first = fleet.hosts[0]
    others = [fleet.started_at(host) for host in fleet.hosts[1:]]
    try:
        with play.Running(LAUNCH, fleet.inventory, *slow) as run:
            assert run.until(f"[{first.name}] loading weights")
            first.cut_ssh()
            done = run.finish(240)
    finally:
        first.restore_ssh()
    assert done.code != 0
    assert done.recap[first.name]["unreachable"] == 1, done.text[-2000:]
    assert [fleet.started_at(host) for host in fleet.hosts[1:]] == others
    again = fleet.play(LAUNCH, *slow, "-e", json.dumps({"longhaul_serial": ["100%"]}))
    assert again.code == 0, again.text[-4000:]
    assert [fleet.running_tag(host) for host in fleet.hosts] == ["2.0"] * 3


def test_the_front_end_keeps_artifacts_without_secrets(fleet: Fleet) -> None:
    """Last, so that all results of this file are there."""
    results = fleet.folder / "results"
    words = [str(play.REPO / "scripts/rollout"), "-i", str(fleet.inventory), "--playbook", LAUNCH, "--results", str(results)]
    good = subprocess.run([*words, "--run-id", "calm"], capture_output=True, text=True, timeout=240, check=False)
    assert good.returncode == 0, good.stdout[-2000:] + good.stderr[-2000:]
    bad = subprocess.run(
        [*words, "--run-id", "storm", *fleet.version("2.0", engine_extra_args=["--fail-start", "oom"])],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert bad.returncode == 1, bad.stdout[-2000:] + bad.stderr[-2000:]
    assert "rolled back to vllm 0.12.0" in bad.stdout
    kept = json.loads((results / "storm" / "rollout" / "rollout.json").read_text())
    assert kept["hosts"][fleet.hosts[0].name]["stages"]["Launch"] == "FAILED"
    for said in (good, bad):
        assert KEY not in said.stdout + said.stderr
    files = [path for path in results.rglob("*") if path.is_file()]
    assert any(path.name == "requests.jsonl" for path in files)
    assert not [path for path in files if KEY.encode() in path.read_bytes()]


def test_both_engines_are_measured_on_one_host(fleet: Fleet, tmp_path: Path) -> None:
    host = fleet.hosts[2]
    image = fleet.images["2.0"]
    sets = []
    for engine, version in (("vllm", "0.12.0"), ("sglang", "0.5.6.post2")):
        values = {
            "engine_name": engine, "engine_version": version, "engine_image": image.reference,
            "engine_image_digest": image.digest, "engine_context_tokens": 65536,
            **({"engine_cpu_kv_cache_gib": 2} if engine == "vllm" else {"engine_max_num_seqs": 4}),
        }  # fmt: skip
        path = tmp_path / f"{engine}.yml"
        path.write_text(json.dumps(values))
        sets.append(str(path))
    more = {"compare_sets": sets, "compare_results_dir": str(fleet.folder / "compare"), "engine_capacity_gate": "off"}
    done = fleet.play("playbooks/compare.yml", "--limit", host.name, "-e", json.dumps(more))
    assert done.code == 0, done.text[-4000:]
    assert "vllm" in done.text.lower()
    assert "sglang" in done.text.lower()
    assert "in1000-out8-c1" in done.text or "1,000" in done.text, done.text[-3000:]
    assert fleet.running_tag(host) == "1.0"
    assert fleet.ask(host)
