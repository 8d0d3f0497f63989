"""What a run costs where nothing changes: launch.yml and deploy.yml over hosts that serve, preflight.yml over many more.

Each time is given as a ratio to ``ansible all -m setup`` on the same hosts, which is what any playbook pays for reaching them.

    python benchmarks/playbook_speed.py [--hosts 3] [--many 20] [--rounds 3] [--profile]

Needs what the testbed needs (root, Docker); see tests/testbed/bed.py. The aim is a ratio below 6. Writes one JSON line per measurement.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(ROOT / "module_utils"), str(ROOT / "tests")]

from testbed import engine_images, play  # noqa: E402
from testbed.bed import Bed  # noqa: E402
from testbed.fleet import Fleet  # noqa: E402

KEY = "benchmark"


def timed(work: Callable[[], Any]) -> float:
    """Seconds that it takes."""
    begun = time.perf_counter()
    work()
    return time.perf_counter() - begun


def setup(inventory: Path) -> None:
    """The yardstick."""
    done = play.ansible(inventory, "all", "-m", "setup")
    if done.returncode:
        said = [line for line in (done.stdout + done.stderr).splitlines() if "=>" in line and "SUCCESS" not in line]
        raise SystemExit("\n".join(said) or (done.stdout + done.stderr)[-1500:])


def unchanged(inventory: Path, playbook: str, profile: bool) -> None:
    """A run that must change nothing."""
    extra = {"ANSIBLE_CALLBACKS_ENABLED": "ansible.posix.profile_tasks"} if profile else None
    done = play.play(playbook, inventory, "--skip-tags", "validate", env=extra)
    if done.code or done.changed:
        raise SystemExit(f"{playbook}: exit {done.code}, changed {done.changed}\n{done.changes()}\n{done.text[-1500:]}")
    if profile:
        print(done.text[done.text.index("TASKS RECAP") :], file=sys.stderr)


def measure(name: str, hosts: int, inventory: Path, playbook: str, rounds: int, profile: bool) -> None:
    """One line: seconds of both, and the ratio of the medians. They run in turns, so that a busy machine is busy for both."""
    setup(inventory)  # opens the connections that both then share
    yardstick, ours = [], []
    for _ in range(rounds):
        yardstick.append(timed(lambda: setup(inventory)))
        ours.append(timed(lambda: unchanged(inventory, playbook, False)))
    if profile:
        unchanged(inventory, playbook, True)
    line = {
        "playbook": playbook,
        "hosts": hosts,
        "they are": name,
        "setup_s": [round(x, 2) for x in yardstick],
        "no_change_s": [round(x, 2) for x in ours],
        "ratio": round(statistics.median(ours) / statistics.median(yardstick), 2),
    }
    print(json.dumps(line), flush=True)


def main() -> int:
    """Both fleets, one after the other."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hosts", type=int, default=3)
    parser.add_argument("--many", type=int, default=20)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--profile", action="store_true", help="also print which tasks took the time")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder, Bed() as bed:
        if options.hosts:
            hosts = bed.hosts(options.hosts, ports=(8000,), prefix="speed", installed=True)
            fleet = Fleet(bed, hosts, engine_images.engines(bed), Path(folder) / "fleet", KEY)
            done = fleet.play("playbooks/provision.yml", timeout_s=900)
            done = fleet.play("playbooks/launch.yml") if done.code == 0 else done
            if done.code:
                raise SystemExit(done.text[-3000:])
            for playbook in ("playbooks/launch.yml", "deploy.yml"):
                measure("docker, serving", options.hosts, fleet.inventory, playbook, options.rounds, options.profile)
            bed.remove(hosts)
        if options.many:
            # No engine runs there: what is measured is the way to many hosts and what every task costs on them.
            many = bed.many_hosts(options.many)
            variables = {
                "engine_runtime": "docker", "engine_device": "cpu", "engine_version": "0.32.0", "engine_cpu_kv_cache_gib": 1,
                "engine_container_ipc": "private", "engine_container_shm_size": "1g",
                "engine_needed_gib": 0.1, "model_store_source": "dummy", "engine_context_tokens": 65536,
            }  # fmt: skip
            inventory = bed.write_inventory(Path(folder) / "many", {"engines": many}, variables)
            measure("bare", options.many, inventory, "playbooks/preflight.yml", options.rounds, options.profile)
    return 0


if __name__ == "__main__":
    sys.exit(main())
