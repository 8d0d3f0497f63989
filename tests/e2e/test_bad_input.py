"""Input that a person can get wrong: one clear line, before anything changes. No engine is needed.

Many bad hosts share one run: a playbook costs seconds, a host in it little. Where a host must fail at a certain check, all
else about it is right.
"""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from longhaul.deploy.layout import Layout
from longhaul.deploy.spec import render_spec, store_spec
from longhaul.engines.settings import settings_from
from standin.fixture import StandIn
from support.runner import Outcome, run_playbook

from e2e.conftest import free_port

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).resolve().parents[2]
SMOLLM2 = ROOT / "roles/model_store/files/models/smollm2-135m-instruct.json"


def old_python() -> str | None:
    """An interpreter that Ansible still talks to and Longhaul no longer runs on, if this machine has one that runs."""
    names = [
        found
        for name in ("python3.9", "python3.8")
        for folder in os.get_exec_path()
        if (found := shutil.which(name, path=folder))
    ]
    if shutil.which("pyenv"):
        root = subprocess.run(["pyenv", "root"], capture_output=True, text=True, check=False).stdout.strip()
        names += [str(p) for minor in ("3.9", "3.8") for p in sorted(Path(root).glob(f"versions/{minor}.*/bin/python3"))]
    for name in names:
        done = subprocess.run(
            [name, "-c", "import sys; print(*sys.version_info[:2])"], capture_output=True, text=True, check=False
        )
        if done.stdout.split() in (["3", "9"], ["3", "8"]):
            return name
    return None


@dataclass(frozen=True)
class Hosts:
    """One run over hosts of which each has its own fault."""

    outcome: Outcome
    folder: Path
    port: int
    names: tuple[str, ...]

    def said(self, host: str) -> str:
        """The message of the one failure of that host."""
        lost = [h for _, h, event in self.outcome.tasks if event in ("failed", "unreachable")]
        found = [m for h, m in zip(lost, self.outcome.messages, strict=True) if h == host]
        assert len(found) == 1, (host, found, self.outcome.text[-3000:])
        return found[0]

    def line(self, host: str) -> str:
        """The same, which must be one line with its three parts."""
        text = self.said(host)
        assert "\n" not in text, text
        assert text.startswith("found: "), text
        found, required, fix = text.split(" | ")[:3]
        assert required.startswith("required: "), text
        assert fix.startswith("fix: "), text
        assert len(found) > 8
        return text


def inventory(path: Path, hosts: Mapping[str, Mapping[str, Any]], folder: Path) -> Path:
    """The embedded default for each host, with a home and a port of its own, and that host's fault."""
    default = yaml.safe_load((ROOT / "inventory/local/group_vars/all.yml").read_text(encoding="utf-8"))
    shared = {
        **default,
        "ansible_connection": "local",
        "ansible_python_interpreter": sys.executable,
        "context_test_ladder_tokens": [1000],
        "context_test_points": [],
        "engine_needed_gib": 0.001,
    }
    made = {name: {"longhaul_home": str(folder / name), "engine_port": free_port(), **fault} for name, fault in hosts.items()}
    # Templates and quoting are YAML's business.
    path.write_text(yaml.safe_dump({"all": {"hosts": made, "vars": shared}}), encoding="utf-8")
    return path


def stretched_model(folder: Path) -> Path:
    """SmolLM2 with positions for more than its KV cache will hold."""
    folder.mkdir()
    config = {**json.loads(SMOLLM2.read_text(encoding="utf-8")), "max_position_embeddings": 200_000}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


@pytest.fixture(scope="module")
def hosts() -> Iterator[Hosts]:
    """Every bad host in one preflight, and two good ones among them."""
    with tempfile.TemporaryDirectory(prefix="lh-bad-") as name, socket.socket() as holder:
        folder = Path(name)
        (folder / "empty").mkdir()
        holder.bind(("127.0.0.1", 0))
        holder.listen()
        port = int(holder.getsockname()[1])
        faults: dict[str, dict[str, Any]] = {
            "good": {},
            "engine": {"engine_name": "llamacpp"},
            "runtime": {"engine_runtime": "podman"},
            "name": {"engine_gpu_memory_utilisation": 0.9},
            "source": {"model_store_source": "ftp"},
            "context-words": {"engine_context_tokens": "2M"},
            "context-zero": {"engine_context_tokens": 0},
            "context-negative": {"engine_context_tokens": -8192},
            "context-positions": {"engine_context_tokens": 8193},
            "ladder": {"context_test_ladder_tokens": [1000, 8170]},
            "no-config": {"model_store_source": "path", "model_store_path": str(folder / "empty")},
            "home": {"longhaul_home": "/dev/null/x"},
            "disk": {"engine_needed_gib": 4_000_000},
            "port": {"engine_port": port},
            "capacity": {
                "model_store_source": "path",
                "model_store_path": str(stretched_model(folder / "stretched")),
                "engine_context_tokens": 100_000,
            },
            "unreachable": {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": free_port()},
        }
        old = old_python()
        if old:
            faults["python"] = {"ansible_python_interpreter": old}
        homes = folder / "homes"
        outcome = run_playbook("playbooks/preflight.yml", {}, inventory=inventory(folder / "hosts.yml", faults, homes))
        assert not homes.exists(), "nothing may be made before all is checked"
        yield Hosts(outcome, folder, port, tuple(faults))


def test_bad_hosts_fail_and_good_ones_go_on(hosts: Hosts) -> None:
    outcome = hosts.outcome
    assert outcome.rc != 0
    lost = {h for h, n in outcome.stats["failures"].items() if n} | {h for h, n in outcome.stats["dark"].items() if n}
    assert lost == set(hosts.names) - {"good"}
    assert outcome.changed == 0
    assert ("Check the ladder", "good") not in [(t, h) for t, h, e in outcome.tasks if e == "failed"]
    assert "the others went on: good" in outcome.text


@pytest.mark.parametrize(
    ("host", "words"),
    [
        ("engine", ["engine_name 'llamacpp'", "sglang, vllm", "set engine_name"]),
        ("name", ["engine_gpu_memory_utilisation, which nothing reads", "role engine", "write engine_gpu_memory_utilization;"]),
        ("runtime", ["engine_runtime 'podman'", "process, docker", "set engine_runtime"]),
        ("source", ["model_store_source 'ftp'", "bundled, dummy, path, hub", "set model_store_source"]),
        ("context-words", ["engine_context_tokens '2M'", "positive integer", "set engine_context_tokens"]),
        ("context-zero", ["engine_context_tokens", "0", "positive integer"]),
        ("context-negative", ["engine_context_tokens", "-8192", "positive integer"]),
        ("context-positions", ["engine_context_tokens 8193", "at most 8192", "set engine_context_tokens to 8192"]),
        ("ladder", ["8170 + 32 output = 8202", "8192", "context_test_ladder_tokens"]),
        ("no-config", ["no config.json in", "/empty", "name the folder that holds config.json"]),
        ("home", ["/dev/null/x is not writable", "/dev/null is in the way", "set longhaul_home"]),
        ("disk", ["GiB free for", "4000000.0 GiB", "free space"]),
    ],
)
def test_one_line_with_found_required_and_fix(hosts: Hosts, host: str, words: list[str]) -> None:
    text = hosts.line(host)
    for word in words:
        assert word in text
    assert text in hosts.outcome.text.split("HOSTS THAT DID NOT MAKE IT")[1], "the summary at the end says it again"


def test_a_port_in_use_names_who_holds_it(hosts: Hosts) -> None:
    text = hosts.line("port")
    assert f"port {hosts.port} on 127.0.0.1 is held by pid {os.getpid()} (" in text
    assert "set engine_port" in text


def test_a_plan_that_cannot_hold_one_request_names_the_nearest_that_can(hosts: Hosts) -> None:
    text = hosts.said("capacity")
    assert "\n" not in text
    assert "100000" in text.replace(",", "")
    near = text.split("nearest plans that fit: ")[1]
    assert "context" in near


def test_an_unreachable_host_is_named_in_the_summary(hosts: Hosts) -> None:
    summary = hosts.outcome.text.split("HOSTS THAT DID NOT MAKE IT")[1]
    (line,) = [x for x in summary.splitlines() if x.strip().startswith("unreachable: ")]
    assert "unreachable at 'Gathering Facts'" in line


def test_a_python_that_is_too_old(hosts: Hosts) -> None:
    if "python" not in hosts.names:
        pytest.skip("no Python 3.8 or 3.9 that runs here; tests/unit/deploy covers the check with a made-up version")
    text = hosts.line("python")
    assert "Python 3." in text
    assert "required: Python 3.10 or newer" in text
    assert "ansible_python_interpreter" in text


def test_two_names_of_one_endpoint_stop_the_play(tmp_path: Path) -> None:
    one = {"longhaul_home": str(tmp_path / "home")}
    made = inventory(
        tmp_path / "hosts.yml", {"first": one, "second": one, "third": {**one, "longhaul_instance": "three"}}, tmp_path
    )
    done = run_playbook("playbooks/preflight.yml", {}, inventory=made)
    assert done.rc != 0
    assert "found: hosts first and second are one endpoint" in done.messages[0]
    assert "longhaul_instance" in done.messages[0]
    assert "third" not in done.messages[0]
    assert not (tmp_path / "home").exists()


def test_validation_holds_the_ladder_against_what_is_deployed(tmp_path: Path) -> None:
    """The context that was given at the deployment alone (-e) stands in the spec, not in the inventory."""
    faults: dict[str, dict[str, Any]] = {
        "holds": {"engine_context_tokens": 2048, "context_test_ladder_tokens": [8160]},
        "beyond": {"engine_context_tokens": 16_384, "context_test_ladder_tokens": [8160, 8161]},
        "empty": {"engine_context_tokens": 2048, "context_test_ladder_tokens": [2016, 2017]},
    }
    shared = {
        "context_test_from": "controller",
        "context_test_results_dir": str(tmp_path / "results"),
        "report_results_dir": str(tmp_path / "results"),
        "context_test_accept": ["PASS", "INCONCLUSIVE"],  # what the stand-in's hardware could do is not known
    }
    deployed = {"model_path": str(stretched_model(tmp_path / "m")), "served_model_name": "m", "context_tokens": 8192}
    with StandIn("--served-model-name", "m", "--max-model-len", "8192", "--ttft", "0.1", "--gap", "0.002") as server:
        for name in ("holds", "beyond"):
            settings = settings_from({**deployed, "device": "cpu", "port": server.url.rsplit(":", 1)[1]})
            spec = render_spec("vllm", "0.32.0", "process", settings, instance="default", python="/p")
            store_spec(Layout(tmp_path / "homes" / name), spec)
        made = inventory(tmp_path / "hosts.yml", faults, tmp_path / "homes")
        done = Hosts(run_playbook("playbooks/validate.yml", shared, inventory=made), tmp_path, 0, tuple(faults))
        dry = run_playbook("playbooks/validate.yml", shared, inventory=made, cmdline="--check")
    assert "8161 + 32 output = 8193 tokens" in done.line("beyond")
    assert "at most the context of 8192 that is deployed |" in done.line("beyond")
    assert "at most the context of 2048 |" in done.line("empty"), "nothing is deployed: the variable counts"
    assert {h for h, n in done.outcome.stats["failures"].items() if n} == {"beyond", "empty"}
    assert (tmp_path / "results" / "latest" / "holds.json").exists(), "measured"
    assert {h for h, n in dry.stats["failures"].items() if n} == {"empty"}, "the larger server would be deployed by then"
