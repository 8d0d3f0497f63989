"""A fleet on real hosts, deployed like production but for the stand-in in the image; and a client that never stops asking."""

from __future__ import annotations

import itertools
import json
import sys
import threading
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from testbed import play
from testbed.bed import REPO, Bed, Host
from testbed.images import Image

KEY_ON_HOST = "/etc/engine-key"
# What a load balancer's command would be called with; it notes whether the host answered at that moment.
HOOK = """#!{python} -I
import pathlib, sys, urllib.request
what, host, url = sys.argv[1:]
try:
    urllib.request.build_opener(urllib.request.ProxyHandler({{}})).open(url + "/health", timeout=3).close()
    how = "up"
except OSError:
    how = "down"
with pathlib.Path(__file__).with_name("hooks.log").open("a") as log:
    log.write(f"{{what}} {{host}} {{how}}\\n")
"""
PORT = 8000
_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass
class Fleet:
    """Hosts, an inventory that deploys ``engine:1.0`` to them, and the folder where results go."""

    bed: Bed
    hosts: Sequence[Host]
    images: Mapping[str, Image]
    folder: Path
    key: str
    password: str = "none"
    inventory: Path = field(init=False)

    def __post_init__(self) -> None:
        for host in self.hosts:
            host.write(KEY_ON_HOST, self.key + "\n")
            host.run(f"chmod 600 {KEY_ON_HOST}")
        key_here = self.folder / "secrets" / "key"
        key_here.parent.mkdir(parents=True, exist_ok=True)
        key_here.write_text(self.key + "\n")
        hook = self.folder / "hook"
        hook.write_text(HOOK.format(python=sys.executable))
        hook.chmod(0o755)
        first = self.images["1.0"]
        variables: dict[str, Any] = {
            "container_runtime_insecure_registries": [self.bed.registry],
            "engine_name": "vllm",
            "engine_version": "0.12.0",
            "engine_runtime": "docker",
            "engine_device": "cpu",
            "engine_image": first.reference,
            "engine_image_digest": first.digest,
            # The bed's registry takes anybody; the password is there to be looked for where it must not be.
            "engine_registry": self.bed.registry,
            "engine_registry_username": "puller",
            "engine_registry_password": self.password,
            "engine_host": "0.0.0.0",
            "engine_port": PORT,
            "engine_api_key_file": KEY_ON_HOST,
            "engine_context_tokens": 65536,
            "engine_cpu_kv_cache_gib": 2,
            "engine_served_model_name": "scout-mini",
            "engine_load_format": "dummy",
            "engine_enforce_eager": True,
            # The hosts here may not raise limits; see docs on the testbed.
            "engine_container_ulimits": {},
            # Only a start that hangs waits for it.
            "engine_start_timeout_s": 120,
            "engine_stop_timeout_s": 10,
            # The stand-in claims a pool of its own.
            "engine_capacity_drift": "off",
            "engine_needed_gib": 0.1,
            "model_store_source": "dummy",
            "model_store_dummy": "scout-mini",
            "context_test_from": "controller",
            "context_test_tokenizer_dir": str(REPO / "roles/model_store/files/models/scout-mini"),
            "context_test_api_key_file": str(key_here),
            "context_test_ladder_tokens": [1000],
            "context_test_output_tokens": 8,
            "context_test_concurrency": [1],
            "context_test_results_dir": str(self.folder / "results"),
            "report_results_dir": str(self.folder / "results"),
            "rollout_ladder_tokens": [500],
            "rollout_output_tokens": 4,
            "rollout_drain_wait_s": 10,
        }
        content = self.bed.inventory({"engines": list(self.hosts)}, variables)
        for host in self.hosts:
            content["all"]["hosts"][host.name]["context_test_url"] = host.url(PORT)
        self.inventory = self.folder / "inventory"
        self.inventory.mkdir(parents=True, exist_ok=True)
        (self.inventory / "hosts.json").write_text(json.dumps(content, indent=1))

    def version(self, tag: str, **more: Any) -> list[str]:
        """``-e`` words that ask for an image by its tag, and for other variables."""
        image = self.images[tag]
        return ["-e", json.dumps({"engine_image": image.reference, "engine_image_digest": image.digest, **more})]

    def hooks(self) -> dict[str, str]:
        """Variables with which a roll tells a load balancer that is not there; ``hooked`` says what it was told."""
        (self.folder / "hooks.log").unlink(missing_ok=True)
        words = f"{self.folder / 'hook'} {{0}} {{{{{{{{ inventory_hostname }}}}}}}} {{{{{{{{ context_test_url }}}}}}}}"
        return {"rollout_drain_command": words.format("drain"), "rollout_undrain_command": words.format("undrain")}

    def hooked(self) -> list[str]:
        """``drain HOST up`` or the like, in the order of the calls."""
        log = self.folder / "hooks.log"
        return log.read_text().splitlines() if log.exists() else []

    def play(self, playbook: str, *words: str, timeout_s: float = 420) -> play.Played:
        """Run a playbook over the fleet."""
        return play.play(playbook, self.inventory, *words, timeout_s=timeout_s)

    def running_tag(self, host: Host) -> str:
        """Which image serves on a host: the tag that stands in the container's environment; ``none`` where no container runs."""
        return host.run("docker exec longhaul-default printenv STANDIN_IMAGE_TAG || echo none").stdout.strip()

    def tags(self) -> list[str]:
        """``running_tag`` of all hosts."""
        return [self.running_tag(host) for host in self.hosts]

    def started(self) -> list[str]:
        """``started_at`` of all hosts."""
        return [self.started_at(host) for host in self.hosts]

    def started_at(self, host: Host) -> str:
        """Changes exactly when the serving container was started again."""
        return host.run("docker inspect -f '{{.Id}} {{.State.StartedAt}}' longhaul-default || echo none").stdout.strip()

    def spec(self, host: Host, which: str = "current") -> dict[str, Any]:
        """A spec as it lies on a host."""
        found: dict[str, Any] = json.loads(host.read(f"/opt/longhaul/spec/{which}.json"))
        return found

    def ask(self, host: Host, timeout_s: float = 20) -> bool:
        """One completion."""
        body = json.dumps({"model": "scout-mini", "prompt": [1, 2, 3], "max_tokens": 2, "stream": True}).encode()
        request = urllib.request.Request(host.url(PORT) + "/v1/completions", data=body)
        request.add_header("Content-Type", "application/json")
        request.add_header("Authorization", f"Bearer {self.key}")
        try:
            with _OPENER.open(request, timeout=timeout_s) as answer:
                return bool(answer.status == 200 and answer.read())
        except OSError:
            return False


class Client:
    """Asks every host twice a second, each from a thread of its own, until it is left."""

    def __init__(self, fleet: Fleet) -> None:
        self.fleet = fleet
        self.answers: dict[str, list[tuple[float, float, bool]]] = {host.name: [] for host in fleet.hosts}
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask, args=(host,), daemon=True) for host in fleet.hosts]

    def _ask(self, host: Host) -> None:
        while not self._stop.is_set():
            begun = time.monotonic()
            good = self.fleet.ask(host)
            self.answers[host.name].append((begun, time.monotonic(), good))
            self._stop.wait(max(0.0, 0.5 - (time.monotonic() - begun)))

    def __enter__(self) -> Client:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join(timeout=30)

    def longest_pause_s(self) -> float:
        """The longest time in which nobody asked some host. A request that was answered shows that its server lived throughout."""
        pairs = (pair for answers in self.answers.values() for pair in itertools.pairwise(answers))
        return max(later[0] - earlier[1] for earlier, later in pairs)

    def away(self) -> dict[str, list[tuple[float, float]]]:
        """Host -> times without an answer, from the first failed request to the last in a row."""
        spans: dict[str, list[tuple[float, float]]] = {}
        for name, answers in self.answers.items():
            found: list[tuple[float, float]] = []
            before = True
            for when, _, good in answers:
                if not good:
                    found = [*found, (when, when)] if before else [*found[:-1], (found[-1][0], when)]
                before = good
            spans[name] = found
        return spans
