"""One bare host: an image from a file without any registry; then the real vLLM CPU engine in a container."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from testbed import engine_images, images
from testbed.bed import Bed
from testbed.fleet import Fleet

pytestmark = pytest.mark.testbed

KEY = "one-host-key"


@pytest.fixture(scope="module")
def fleet(bed: Bed, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Fleet]:
    hosts = bed.hosts(1, ports=(8000,), prefix="single")
    yield Fleet(bed, hosts, engine_images.engines(bed, ("1.0",)), tmp_path_factory.mktemp("single"), KEY)
    bed.remove(hosts)


def test_an_image_from_a_file_needs_no_registry(fleet: Fleet, tmp_path: Path) -> None:
    tar = images.save(fleet.bed, fleet.images["1.0"], tmp_path / "engine.tar")
    carried = {"engine_image_file": str(tar), "engine_image_digest": "", "container_runtime_insecure_registries": []}
    words = ["-e", json.dumps(carried)]
    first = fleet.play("playbooks/provision.yml", *words)
    assert first.code == 0, first.text[-3000:]
    done = fleet.play("playbooks/launch.yml", *words)
    assert done.code == 0, done.text[-3000:]
    host = fleet.hosts[0]
    assert fleet.running_tag(host) == "1.0"
    assert fleet.ask(host)
    assert fleet.spec(host)["container"]["image_id"].startswith("sha256:")
    assert not host.run("ls /opt/longhaul/images/*.tar", check=False).stdout
    again = fleet.play("playbooks/launch.yml", *words)
    assert (again.code, again.changed) == (0, 0), again.changes()


def test_the_real_vllm_serves_from_a_container(fleet: Fleet) -> None:
    image = images.vllm(fleet.bed)
    real = {
        "engine_version": "0.32.0", "engine_image": image.reference, "engine_image_digest": image.digest,
        "engine_cpu_kv_cache_gib": 1, "engine_context_tokens": 8192, "engine_start_timeout_s": 300,
        "container_runtime_insecure_registries": [fleet.bed.registry], "engine_capacity_drift": "warn",
        # These hosts are containers themselves: their own /dev/shm is Docker's 64 MiB, of which vLLM wants 160.
        "engine_container_ipc": "private", "engine_container_shm_size": "1g",
    }  # fmt: skip
    words = ["-e", json.dumps(real)]
    assert fleet.play("playbooks/provision.yml", *words, timeout_s=600).code == 0
    done = fleet.play("playbooks/launch.yml", *words, timeout_s=600)
    assert done.code == 0, done.text[-4000:]
    host = fleet.hosts[0]
    spec = fleet.spec(host)
    assert spec["version"] == "0.32.0"
    facts = json.loads(host.read("/etc/ansible/facts.d/longhaul.fact"))
    assert facts["verdict"]["verdict"] == "PASS"
    assert facts["deployed"]["start"]["capacity"]["kv_cache_tokens"] > 0
    assert fleet.ask(host, timeout_s=60)
    # What it compiled and fetched lies on the host, for the next container.
    assert host.run("ls -A /opt/longhaul/cache/vllm/cache").stdout.strip()
