"""One bare host: an image from a file without any registry; two engines compared; the real vLLM CPU engine in a container."""

from __future__ import annotations

import base64
import json
import re
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from testbed import engine_images, images, play
from testbed.bed import Bed
from testbed.fleet import Fleet
from testbed.images import Image

pytestmark = pytest.mark.testbed

KEY = "one-host-key"
INSTALL = """
- hosts: all
  gather_subset: [min]
  tasks:
    - ansible.builtin.include_role: {name: engine, tasks_from: install}
"""
PASSWORD, WRONG = "planted-password-7c1e", "planted-mistake-93bf"


@pytest.fixture(scope="module")
def fleet(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    hosts = bed.hosts(1, ports=(8000,), prefix="single", installed=True)
    yield Fleet(bed, hosts, engine_images.engines(bed, ("1.0",)), tmp_path_factory.mktemp("single"), KEY)
    bed.remove(hosts)


def insecure(fleet: Fleet) -> dict[str, Any]:
    """Both registries of this file, the one that takes anybody and the private one: one address."""
    return {"container_runtime_insecure_registries": [fleet.bed.registry.partition(":")[0] + "/32"]}


def test_an_image_from_a_file_needs_no_registry(fleet: Fleet, tmp_path: Path) -> None:
    tar = images.save(fleet.bed, fleet.images["1.0"], tmp_path / "engine.tar")
    carried = {"engine_image_file": str(tar), "engine_image_digest": "", **insecure(fleet)}
    words = ["-e", json.dumps(carried)]
    first = fleet.play("playbooks/provision.yml", *words)
    assert first.code == 0, first.text[-3000:]
    done = fleet.play("playbooks/launch.yml", *words)
    assert done.code == 0, done.text[-3000:]
    host = fleet.hosts[0]
    assert fleet.running_tag(host) == "1.0"
    assert fleet.ask(host)
    assert fleet.spec(host)["container"]["image_id"].startswith("sha256:")
    known = f"docker image inspect -f '{{{{json .RepoDigests}}}}' {fleet.images['1.0'].reference}"
    assert json.loads(host.run(known).stdout) == [], "it came from no registry"
    assert not host.run("ls /opt/longhaul/images/*.tar", check=False).stdout
    again = fleet.play("playbooks/launch.yml", *words)
    assert (again.code, again.changed) == (0, 0), again.changes()


def test_a_disk_that_fills_up_after_the_spec_was_written_costs_one_restart(fleet: Fleet) -> None:
    host, place = fleet.hosts[0], "/opt/longhaul/spec/containers"
    carried = {"engine_image_digest": "", "engine_max_num_seqs": 7}
    was = fleet.spec(host)["spec_id"]
    host.small_disk(place, 1)
    try:
        host.fill(place)
        done = fleet.play("playbooks/launch.yml", "-e", json.dumps(carried))
        assert done.code == 2
        (line,) = [line for line in done.text.splitlines() if ": failed at '" in line]
        assert "rolled back to vllm 0.12.0" in line
        assert "No space left on device" in line
        assert fleet.ask(host)
        assert fleet.spec(host)["spec_id"] == was
        assert fleet.spec(host, "failed")["settings"]["max_num_seqs"] == 7
    finally:
        host.unmount(place)
    done = fleet.play("playbooks/launch.yml", "-e", json.dumps(carried))
    assert done.code == 0, done.text[-3000:]
    assert fleet.spec(host)["settings"]["max_num_seqs"] == 7
    assert fleet.spec(host, "previous")["spec_id"] == was
    assert fleet.ask(host)


@pytest.fixture
def private(fleet: Fleet, tmp_path: Path) -> Iterator[Image]:
    """``engine:1.0`` in a registry that asks for a user and a password."""
    host = fleet.bed.registry.partition(":")[0]
    address = f"{host}:5001"
    # Debian's perl and its C library make what htpasswd -B makes.
    digest = subprocess.run(
        ["perl", "-e", 'print crypt($ARGV[0], q($2y$05$) . "abcdefghijklmnopqrstuu")', PASSWORD],
        capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip
    assert digest.startswith("$2y$"), "this C library knows no bcrypt"
    (tmp_path / "htpasswd").write_text(f"puller:{digest}\n")
    config = {
        "version": "0.1", "log": {"level": "warn"}, "storage": {"filesystem": {"rootdirectory": str(tmp_path / "registry")}},
        "http": {"addr": address}, "auth": {"htpasswd": {"realm": "private", "path": str(tmp_path / "htpasswd")}},
    }  # fmt: skip
    (tmp_path / "registry.yml").write_text(json.dumps(config))
    with subprocess.Popen(
        ["docker-registry", "serve", str(tmp_path / "registry.yml")], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    ) as server:
        try:
            (tmp_path / "password").write_text(PASSWORD)
            reference = f"{address}/engine:private"
            deadline = time.monotonic() + 60
            while True:
                with (tmp_path / "password").open("rb") as word:
                    login = fleet.bed.docker("login", "-u", "puller", "--password-stdin", address, stdin=word, check=False)
                if login.returncode == 0:
                    break
                assert time.monotonic() < deadline, login.stderr
                time.sleep(0.2)
            fleet.bed.docker("tag", fleet.images["1.0"].reference, reference)
            yield images.pushed(fleet.bed, reference)
            fleet.bed.docker("logout", address)
        finally:
            server.terminate()


def test_a_private_registry_s_password_stays_nowhere(fleet: Fleet, private: Image, tmp_path: Path) -> None:
    host = fleet.hosts[0]
    began = host.run("date +%s").stdout.strip()
    values = {
        "engine_registry": private.reference.partition("/")[0], "engine_registry_username": "puller",
        "engine_image": private.reference, "engine_image_digest": private.digest,
    }  # fmt: skip
    playbook = tmp_path / "install.yml"
    playbook.write_text(INSTALL)
    refused = play.play(playbook, fleet.inventory, "-e", json.dumps({**values, "engine_registry_password": WRONG}))
    assert refused.code == 2
    (line,) = [line for line in refused.text.splitlines() if ": failed at '" in line]
    assert "for user puller failed" in line
    assert "fix: set engine_registry, engine_registry_username and engine_registry_password" in line
    assert WRONG not in refused.text

    done = play.play(playbook, fleet.inventory, "-e", json.dumps({**values, "engine_registry_password": PASSWORD}))
    assert done.code == 0, done.text[-3000:]
    pulled = host.run(f"docker image inspect -f '{{{{json .}}}}' {private.reference}").stdout
    assert private.pinned in pulled
    events = host.run(f"docker events --since {began} --until $(date +%s) --format '{{{{json .}}}}'").stdout
    assert '"pull"' in events
    kept = host.run(
        "cat /root/.docker/config.json 2>/dev/null; cat /opt/longhaul/spec/*.json; journalctl -q -u docker", check=False
    )
    for word in (PASSWORD, WRONG, *(base64.b64encode(f"puller:{x}".encode()).decode() for x in (PASSWORD, WRONG))):
        assert word not in pulled + events + kept.stdout + done.text


def test_both_engines_answer_the_same_prompts_and_stand_in_one_table(fleet: Fleet, tmp_path: Path) -> None:
    """The table says what was made: SGLang's stand-in takes 0.3 s longer to the first token."""
    host = fleet.hosts[0]
    before = fleet.started_at(host)
    sets = []
    for engine, version, ttft_s in (("vllm", "0.12.0", 0.1), ("sglang", "0.5.6.post2", 0.4)):
        values: dict[str, Any] = {
            "engine_name": engine, "engine_version": version, "engine_image": fleet.images["1.0"].reference,
            "engine_context_tokens": 65536, "engine_extra_env": {"STANDIN_ARGS": f"--ttft {ttft_s}"},
            "context_test_ladder_tokens": [500, 2000],
            **({"engine_cpu_kv_cache_gib": 2} if engine == "vllm" else {"engine_max_num_seqs": 4}),
        }  # fmt: skip
        path = tmp_path / f"{engine}.yml"
        path.write_text(json.dumps(values))
        sets.append(str(path))
    more = {"compare_sets": sets, "compare_results_dir": str(tmp_path / "results"), "engine_capacity_gate": "off"}
    done = fleet.play("playbooks/compare.yml", "-e", json.dumps(more))
    assert done.code == 0, done.text[-4000:]

    table = done.text[done.text.index(f"A  {host.name}, vllm 0.12.0") : done.text.index("Beyond noise: ")]
    assert f"B  {host.name}, sglang 0.5.6.post2" in table
    rows = [re.split(r"\s{2,}", line.strip()) for line in table[table.index("TOKENS IN+OUT") :].splitlines()]
    first = {row[0]: row for row in rows if "TTFT p50" in row}
    assert sorted(first) == ["2,000+8", "500+8"]
    for size, load, figure, left, right, change, noise, judged in first.values():
        assert (load, figure, judged) == ("1", "TTFT p50", "beyond noise"), size
        assert re.fullmatch(r"[2-5]\.\d+\N{MULTIPLICATION SIGN} slower", change), change
        assert left.endswith(" ms")
        assert 100 <= float(left.split()[0]) < 400, left
        assert 400 <= float(right.split()[0]) < 1000, right
        assert noise.startswith("\N{PLUS-MINUS SIGN}")
    assert [row[0] for row in rows if row[-1] in ("beyond noise", "within noise") and len(row) == 6] == [
        "Prefill rate", "TPOT p50", "E2E p50", "Prefill rate", "TPOT p50", "E2E p50",
    ]  # fmt: skip
    assert "2 of 2 points compared" in table

    sent = {}
    for side in "ab":
        (lines,) = (tmp_path / "results").glob(f"compare-*-{side}/{host.name}/requests.jsonl")
        sent[side] = [json.loads(line)["prompt_sha256"] for line in lines.read_text().splitlines()]
    assert len(set(sent["a"])) == len(sent["a"]) >= 6, "three fresh prompts of each length"
    assert sorted(sent["a"]) == sorted(sent["b"])

    # What was deployed serves again: the very container, started again.
    assert fleet.running_tag(host) == "1.0"
    assert fleet.started_at(host).split()[0] == before.split()[0]
    assert fleet.ask(host)
    assert host.run("docker ps --format '{{.Names}}'").stdout.split() == ["longhaul-default"]


def test_a_comparison_that_fails_leaves_what_was_deployed_serving(fleet: Fleet, tmp_path: Path) -> None:
    host = fleet.hosts[0]
    values = {
        "engine_name": "vllm", "engine_version": "0.12.0", "engine_image": fleet.images["1.0"].reference,
        "engine_context_tokens": 65536, "engine_cpu_kv_cache_gib": 2,
    }  # fmt: skip
    for name, changes in (("bad", {"engine_extra_args": ["--fail-start", "oom"]}), ("odd", {"engine_gpus": [0]}), ("good", {})):
        (tmp_path / f"{name}.yml").write_text(json.dumps({**values, **changes}))
    refused = fleet.play(
        "playbooks/compare.yml", "-e", json.dumps({"compare_sets": [str(tmp_path / "good.yml"), str(tmp_path / "odd.yml")]})
    )
    assert refused.code == 2
    assert refused.changed == 0
    assert "found: engine_gpus in" in " ".join(refused.text.split())
    more = {"compare_sets": [str(tmp_path / "bad.yml"), str(tmp_path / "good.yml")], "engine_capacity_gate": "off",
            "compare_results_dir": str(tmp_path / "results")}  # fmt: skip
    failed = fleet.play("playbooks/compare.yml", "-e", json.dumps(more))
    assert failed.code == 2
    assert "ran out of memory" in failed.text
    assert fleet.running_tag(host) == "1.0"
    assert fleet.ask(host)


def test_the_real_vllm_serves_from_a_container(fleet: Fleet) -> None:
    image = images.vllm(fleet.bed)
    real = {
        "engine_version": "0.32.0", "engine_image": image.reference, "engine_image_digest": image.digest,
        "engine_cpu_kv_cache_gib": 1, "engine_context_tokens": 8192, "engine_start_timeout_s": 480,
        "engine_capacity_drift": "warn",
        # These hosts are containers themselves: their own /dev/shm is Docker's 64 MiB, of which vLLM wants 160.
        "engine_container_ipc": "private", "engine_container_shm_size": "1g",
    }  # fmt: skip
    # The host has its runtime from the tests before; alone, this one installs it.
    done = fleet.play("playbooks/provision.yml", "-e", json.dumps({**real, **insecure(fleet)}), timeout_s=900)
    assert done.code == 0, done.text[-4000:]
    done = fleet.play("playbooks/launch.yml", "-e", json.dumps(real), timeout_s=900)
    assert done.code == 0, done.text[-4000:]
    host = fleet.hosts[0]
    spec = fleet.spec(host)
    assert spec["version"] == "0.32.0"
    facts = json.loads(host.read("/etc/ansible/facts.d/longhaul.fact"))
    assert facts["verdict"]["verdict"] == "PASS", facts["verdict"]["reasons"]
    assert facts["deployed"]["start"]["capacity"]["kv_cache_tokens"] > 0
    assert fleet.ask(host, timeout_s=60)
    # What it compiled and fetched lies on the host, for the next container.
    assert host.run("ls -A /opt/longhaul/cache/vllm/cache").stdout.strip()
