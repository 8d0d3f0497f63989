"""The burn-in on the real engine, without a GPU: what needs one is said to be not judged; the host is given back as it was."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from longhaul.burnin.host import reduce_spec
from longhaul.deploy.layout import Layout
from longhaul.deploy.runtimes.registry import healthy
from longhaul.deploy.runtimes.supervisor import Supervisor
from longhaul.deploy.spec import load_spec
from longhaul.results import Verdict, load_run
from support.engine import engine_python
from support.hub import command_lines
from support.runner import Outcome, run_playbook
from support.specs import make_spec

from e2e.conftest import Deployment, free_port

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).resolve().parents[2]
NEEDS_GPU = {"roofline", "clocks", "temperature", "throttling", "ECC", "all-reduce"}

FAKE_SMI = """#!/bin/sh
case "$*" in
  *"-l 1") while :; do echo "0, 1800, 1980, 650, 60, 99, 0x4"; sleep 1; done;;
  *clocks_event_reasons.active*) echo 0x4;;
  *) echo "No devices were found";;
esac
"""


@pytest.fixture(scope="module")
def results() -> Iterator[Path]:
    """Results of their own: the other tests look at the deployment's latest."""
    with tempfile.TemporaryDirectory(prefix="lh-burnin-") as name:
        yield Path(name)


def burn_in(deployment: Deployment, results: Path, run_id: str, **changes: Any) -> Outcome:
    """One burn-in with the Scout-shaped toy model on the host of the embedded default."""
    words: dict[str, Any] = {
        "context_test_results_dir": str(results),
        "report_results_dir": str(results),
        "longhaul_run_id": run_id,
        "burnin_ladder_tokens": [1000],
        "burnin_output_tokens": 8,
    }
    return deployment.run("playbooks/burnin.yml", **(words | changes))


@pytest.mark.engine
def test_a_host_that_serves_is_refused_in_one_line(deployment: Deployment, results: Path) -> None:
    starts = deployment.starts()
    done = burn_in(deployment, results, "refused")
    assert done.rc != 0
    (said,) = done.messages
    assert said.startswith("found: vllm 0.32.0 (default) at ")
    assert "burnin_replace: true" in said
    assert done.changed == 0
    assert deployment.starts() == starts
    assert not (results / "refused").exists()


@pytest.mark.engine
def test_with_replace_the_host_is_proven_and_given_back(deployment: Deployment, results: Path) -> None:
    spec = load_spec(deployment.layout)
    before = json.loads(deployment.layout.facts_file.read_text(encoding="utf-8"))
    starts = deployment.starts()
    done = burn_in(deployment, results, "proven", burnin_replace=True)
    assert done.rc == 0, done.text[-4000:]
    assert [t for t in done.changes if not t.startswith("Dummy | ")] == [], "only the model's configuration is brought"
    run = load_run(results / "proven" / "localhost.json")
    assert run.verdict is Verdict.PASS
    assert run.model == "scout-mini"
    assert run.burnin is not None
    words = {c.name: c.verdict for c in run.burnin.checks}
    assert {n for n, v in words.items() if v is None} == NEEDS_GPU
    assert {words[n] for n in ("start", "ladder", "capacity")} == {Verdict.PASS}
    assert run.capacity is not None
    assert run.capacity.engine["kv_cache_tokens"] == run.capacity.predicted["kv_cache_tokens"]
    for name in ("report.html", "junit.xml", "localhost/engine.log", "localhost/requests.jsonl"):
        assert (results / "proven" / name).stat().st_size > 100
    # What served before serves again, from its own spec, with its own verdict.
    assert load_spec(deployment.layout) == spec
    assert healthy(deployment.layout, spec)
    assert deployment.starts() == starts + 1
    after = json.loads(deployment.layout.facts_file.read_text(encoding="utf-8"))
    assert after.pop("burnin")["verdict"] == "PASS"
    assert after == before
    assert not (deployment.home / "instances").exists() or not list((deployment.home / "instances").iterdir())
    assert [p.name for p in (deployment.home / "supervisor/conf.d").glob("*.ini")] == ["default.ini"]
    assert not list(deployment.layout.facts_dir.glob("*burnin*"))


@pytest.mark.engine
def test_an_engine_that_dies_fails_the_burnin_with_its_words_and_the_host_is_given_back(
    deployment: Deployment, results: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With a made-up nvidia-smi besides: it samples from the beginning to the end, over many modules, and is gone then."""
    tool = tmp_path / "nvidia-smi"
    tool.write_text(FAKE_SMI, encoding="utf-8")
    tool.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    spec = load_spec(deployment.layout)
    done = burn_in(deployment, results, "dead", burnin_replace=True, engine_extra_args=["--no-such-flag", "1"])
    assert done.rc != 0
    assert "burn-in FAIL" in done.messages[-1]
    assert "--no-such-flag" in done.messages[-1]
    assert "\n" not in done.messages[-1]
    assert done.changes == [], "the second time there is nothing to install: a burn-in itself changes nothing"
    run = load_run(results / "dead" / "localhost.json")
    assert (run.verdict, run.points, run.complete) == (Verdict.FAIL, (), False)
    assert run.burnin is not None
    # A start takes many seconds before it comes to the flags; a sampler that ended with its module has one sample.
    assert run.burnin.gpus[0].samples > 5
    assert run.burnin.gpus[0].throttle_reasons == ("sw_power_cap",)
    assert str(tool).encode() not in command_lines()
    assert "--no-such-flag" in (results / "dead" / "report.md").read_text(encoding="utf-8")
    assert load_spec(deployment.layout) == spec
    assert healthy(deployment.layout, spec)
    assert Supervisor(deployment.layout).state().alive


@pytest.mark.engine
def test_the_all_reduce_runs_with_the_engines_own_torch(tmp_path: Path) -> None:
    """Two processes over gloo: the program, its arithmetic and its spawning; NCCL and GPUs are not here."""
    script = (ROOT / "roles/burnin/files/allreduce.py").read_text(encoding="utf-8")
    memory = {"device": "cpu", "cpu_kv_cache_gib": 1, "tensor_parallel": 2}
    spec = make_spec(python=str(engine_python()), env={"NCCL_NVLS_ENABLE": "0"}, **memory)
    found = reduce_spec(Layout(tmp_path), spec, script, mib=4, timeout_s=300)
    assert (found["gpus"], found["bytes"], found["backend"]) == (2, 4 * 2**20, "gloo")
    # 2 (n - 1) / n is 1 for two.
    assert found["bus_gb_per_s"] == found["algorithm_gb_per_s"] > 0
    assert found["environment"]["NCCL_NVLS_ENABLE"] == "0"


def test_check_mode_on_a_clean_host_makes_nothing() -> None:
    with tempfile.TemporaryDirectory(prefix="lh-clean-") as name:
        results = dict.fromkeys(("context_test_results_dir", "report_results_dir"), f"{name}/results")
        done = run_playbook(
            "playbooks/burnin.yml",
            {"longhaul_home": f"{name}/home", "engine_port": free_port(), **results},
            cmdline="--check",
        )
        assert done.rc == 0, done.text[-4000:]
        assert list(Path(name).iterdir()) == []
        assert "Process | Install the engine's environment" in done.changes
        assert not [t for t, _, _ in done.tasks if "Start the engine" in t]


# Each mistake under a name of its own: one run tells all of them apart.
BAD_INPUT: dict[str, tuple[dict[str, Any], list[str]]] = {
    "word": ({"burnin_limits": {"least_mfu": "fast"}}, ["burn-in limit least_mfu 'fast'", "a number"]),
    "name": ({"burnin_limits": {"speed": 1}}, ["burn-in limit 'speed'", "least_mfu"]),
    "instance": ({"burnin_instance": "default"}, ["burnin_instance 'default'", "a name of its own"]),
}


def test_wrong_input_is_one_line_before_anything_changes(tmp_path: Path) -> None:
    default = yaml.safe_load((ROOT / "inventory/local/group_vars/all.yml").read_text(encoding="utf-8"))
    shared = {**default, "ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    hosts = {name: {"longhaul_home": str(tmp_path / name), **change} for name, (change, _) in BAD_INPUT.items()}
    inventory = tmp_path / "hosts.yml"
    inventory.write_text(yaml.safe_dump({"all": {"hosts": hosts, "vars": shared}}), encoding="utf-8")
    done = run_playbook("playbooks/burnin.yml", {}, inventory=inventory)
    assert done.rc != 0
    lost = [host for _, host, event in done.tasks if event == "failed"]
    assert sorted(lost) == sorted(BAD_INPUT)
    for host, said in zip(lost, done.messages, strict=True):
        assert "\n" not in said
        assert [w for w in BAD_INPUT[host][1] if w not in said] == []
    assert list(tmp_path.iterdir()) == [inventory]
