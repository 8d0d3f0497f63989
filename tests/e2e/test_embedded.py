"""The embedded default on the real engine: deployed, proven, idempotent, restarted once, failing with a name."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

import pytest
from longhaul.deploy.runtimes.supervisor import Supervisor
from longhaul.results import RunResult, Verdict, load_run
from longhaul.validate.config import Point, ValidateConfig
from longhaul.validate.run import validate

from e2e.conftest import LADDER, Deployment

pytestmark = [pytest.mark.e2e, pytest.mark.engine]
ROOT = Path(__file__).resolve().parents[2]


def facts(deployment: Deployment) -> dict[str, Any]:
    """The local facts as Ansible's own setup module reads them."""
    words = [str(Path(sys.executable).parent / "ansible"), "localhost", "-i", str(ROOT / "inventory/local"), "-m", "setup"]
    words += ["-a", f"filter=ansible_local fact_path={deployment.layout.facts_dir}"]
    done = subprocess.run(
        words,
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={
            **os.environ,
            "ANSIBLE_NOCOLOR": "1",
            "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
            "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
        },
    )
    text = done.stdout.split("=>", 1)[1]
    local: dict[str, Any] = json.loads(text)["ansible_facts"]["ansible_local"]["longhaul"]
    return local


def test_first_deployment_proves_the_context(deployment: Deployment) -> None:
    first = deployment.first
    assert first is not None
    assert first.rc == 0, first.text[-4000:]
    local = facts(deployment)
    assert local["verdict"]["verdict"] == "PASS"
    assert local["deployed"]["context_tokens"] == 8192
    # The engine's own figure is the planned one, to the token.
    assert local["capacity"]["exact"] is True
    assert local["capacity"]["engine"]["kv_cache_tokens"] == local["planned"]["kv_cache_tokens"]
    # And its metrics' blocks are the planned ones.
    assert local["capacity"]["engine"]["kv_blocks"] == local["capacity"]["predicted"]["kv_blocks"]
    run = load_run(next(iter(sorted((deployment.results / "latest").glob("*.json")))))
    assert run.verdict is Verdict.PASS
    assert {(p.input_tokens, p.concurrency) for p in run.points} == {(1000, 1), (7900, 1), (2100, 4)}
    assert all(p.token_error_max == 0 and p.cache_state == "COLD" for p in run.points)
    for name in ("report.html", "report.md", "junit.xml"):
        assert (deployment.results / "latest" / name).stat().st_size > 500
    raw = (deployment.results / "latest" / "localhost" / "requests.jsonl").read_text(encoding="utf-8").splitlines()
    timed = [line for line in raw if not json.loads(line)["warmup"]]
    assert len(timed) >= sum(p.completed for p in run.points)
    # With -e too, the ladder is the validation's: the roll's own proof stays one short prompt.
    (proof,) = (deployment.home / "results").glob("roll-*")
    assert [(p.input_tokens, p.concurrency) for p in load_run(proof / "run.json").points] == [(1000, 1)]
    assert "loading weights" in first.text
    assert "evidence:" in first.text


def test_the_model_answers_sensibly(deployment: Deployment) -> None:
    question = {
        "model": "smollm2-135m-instruct",
        "messages": [{"role": "user", "content": "What is the capital of France?"}],
        "max_tokens": 20,
        "temperature": 0,
    }
    request = urllib.request.Request(
        deployment.url + "/v1/chat/completions", json.dumps(question).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        text = json.loads(answer.read())["choices"][0]["message"]["content"]
    assert "Paris" in text


def test_second_run_changes_nothing(deployment: Deployment) -> None:
    starts = deployment.starts()
    again = deployment.run("deploy.yml", **LADDER)
    assert again.rc == 0, again.text[-4000:]
    assert again.changes == []
    assert again.changed == 0
    assert deployment.starts() == starts


def test_check_mode_changes_nothing_on_a_deployed_host(deployment: Deployment) -> None:
    before = deployment.layout.current_spec.read_text(encoding="utf-8")
    done = deployment.run("deploy.yml", "--check --diff", engine_max_num_seqs=16)
    assert done.rc == 0, done.text[-4000:]
    assert "Configure | Write the spec" in " ".join(done.changes)
    assert '"max_num_seqs": 16' in done.text, "the diff shows what would change"
    assert deployment.layout.current_spec.read_text(encoding="utf-8") == before


def test_one_setting_restarts_exactly_once(deployment: Deployment) -> None:
    starts = deployment.starts()
    before = json.loads(deployment.layout.current_spec.read_text(encoding="utf-8"))
    done = deployment.run("deploy.yml", "--skip-tags validate", engine_max_num_seqs=24)
    assert done.rc == 0, done.text[-4000:]
    assert deployment.starts() == starts + 1
    now = json.loads(deployment.layout.current_spec.read_text(encoding="utf-8"))
    assert now["argv"][now["argv"].index("--max-num-seqs") + 1] == "24"
    assert json.loads(deployment.layout.previous_spec.read_text(encoding="utf-8")) == before
    verdict = json.loads(deployment.layout.facts_file.read_text(encoding="utf-8"))["verdict"]
    assert verdict["run_id"].startswith("roll-"), "the verdict of the spec before is gone: this one was proven by the roll"
    deployment.more["engine_max_num_seqs"] = 24


def test_tags_validate_only_validates(deployment: Deployment) -> None:
    starts = deployment.starts()
    done = deployment.run("deploy.yml", "--tags validate", **LADDER)
    assert done.rc == 0, done.text[-4000:]
    assert not [task for task, _, _ in done.tasks if "Configure" in task or "Install the engine" in task]
    assert deployment.starts() == starts
    assert facts(deployment)["verdict"]["verdict"] == "PASS"


def test_validation_from_the_controller(deployment: Deployment) -> None:
    done = deployment.run("playbooks/validate.yml", context_test_from="controller", **LADDER)
    assert done.rc == 0, done.text[-4000:]
    assert done.changed == 0
    run = load_run(deployment.results / "latest" / "localhost.json")
    assert run.environment["measured_from"] == "controller"
    assert facts(deployment)["verdict"]["run_id"] == run.run_id


def measured(deployment: Deployment, out: Path, points: tuple[Point, ...], **changes: Any) -> RunResult:
    """One validation run from here, as ``longhaul validate`` does it."""
    model = deployment.home / "models/smollm2-135m-instruct"
    values: dict[str, Any] = {"warmup": False, "seed": 7, "tokenizer_dir": model, "corpus_dir": out.parent / "corpus"}
    config = ValidateConfig(
        url=deployment.url, engine="vllm", host="localhost", out_dir=out, run_id=out.name, points=points, **(values | changes)
    )
    return validate(config, lambda step: None)


def test_the_same_prompt_twice_is_invalid_with_the_right_cached_share(deployment: Deployment, tmp_path: Path) -> None:
    points = (Point(2000, 4),)
    open_door: dict[str, Any] = {"cache_salt": False, "flush": False, "seed": 20_26}
    first = measured(deployment, tmp_path / "first", points, **open_door)
    again = measured(deployment, tmp_path / "again", points, **open_door)
    assert first.points[0].cache_state == "COLD"
    assert again.verdict is Verdict.INVALID
    point = again.points[0]
    assert "cached_prompt" in {r.code for r in point.reasons}
    # vLLM's CPU build keeps whole blocks of 128 tokens and always computes the last token.
    assert point.cached_share == pytest.approx(1920 / 2000, abs=0.001)


def test_a_hundred_short_prompts_give_no_false_invalid(deployment: Deployment, tmp_path: Path) -> None:
    run = measured(deployment, tmp_path / "short", (Point(60, 4, 10),), repeats=10)
    assert run.points[0].completed == 100
    assert not [r for r in run.reasons if r.verdict is Verdict.INVALID]
    assert run.points[0].token_error_max == 0


def test_engine_that_dies_in_mid_request_fails_the_point_and_loses_nothing(deployment: Deployment) -> None:
    ladder = {"context_test_ladder_tokens": [500, 7900], "context_test_points": [], "context_test_output_tokens": 100}
    box: list[Any] = []
    thread = threading.Thread(target=lambda: box.append(deployment.run("playbooks/validate.yml", **ladder)))
    supervisor = Supervisor(deployment.layout)
    pid = supervisor.state().pid
    assert pid
    runs = set(deployment.layout.results.glob("*/requests.jsonl"))
    thread.start()
    killed = False
    for _ in range(600):
        fresh = set(deployment.layout.results.glob("*/requests.jsonl")) - runs
        # The short point is measured, so the long one is under way.
        if fresh and any('"in500-' in line and '"warmup": false' in line.replace('":f', '": f') for line in lines(fresh.pop())):
            time.sleep(0.5)
            os.killpg(os.getpgid(pid), signal.SIGKILL)
            killed = True
            break
        time.sleep(0.1)
    thread.join(timeout=300)
    assert killed, "the first point never ended"
    assert box
    assert box[0].rc != 0
    run = load_run(deployment.results / "latest" / "localhost.json")
    short, long = run.points
    assert short.verdict is Verdict.PASS
    assert long.verdict is Verdict.FAIL
    assert long.reasons
    assert run.verdict is Verdict.FAIL
    # It comes back by itself, and start.yml waits for it.
    assert deployment.run("playbooks/start.yml").rc == 0


def lines(path: Path) -> list[str]:
    """Lines of a file that is being written."""
    return path.read_text(encoding="utf-8", errors="replace").splitlines()


def test_a_start_that_fails_says_why_within_seconds_and_what_worked_comes_back(deployment: Deployment) -> None:
    before = json.loads(deployment.layout.current_spec.read_text(encoding="utf-8"))
    done = deployment.run("playbooks/launch.yml", engine_extra_args=["--no-such-flag", "1"])
    assert done.rc != 0
    said = " ".join(done.messages)
    assert "unknown" in said, said
    assert "--no-such-flag" in said, "the evidence line is the engine's own"
    assert "advice:" in said
    died = re.search(r"died after (\d+) s", said)
    assert died, said
    assert int(died[1]) < 90, "it must not wait for the time-out"
    assert json.loads(deployment.layout.current_spec.read_text(encoding="utf-8"))["spec_id"] == before["spec_id"]
    assert Supervisor(deployment.layout).state().alive, "the host returned to what it ran before"


def test_a_start_that_cannot_hold_one_request_is_refused_before_anything_changes(deployment: Deployment) -> None:
    starts = deployment.starts()
    done = deployment.run("playbooks/launch.yml", engine_context_tokens=16384)
    assert done.rc != 0
    assert "8192" in " ".join(done.messages)
    assert deployment.starts() == starts


def test_day_two(deployment: Deployment) -> None:
    status = deployment.run("playbooks/status.yml")
    assert "healthy" in status.text
    assert "smollm2-135m-instruct" in status.text
    logs = deployment.run("playbooks/logs.yml", logs_lines=2000, logs_grep="KV cache size")
    assert "KV cache size" in logs.text
    refused = deployment.run("playbooks/remove.yml")
    assert refused.rc != 0
    assert "remove_confirm" in " ".join(refused.messages)
    assert Supervisor(deployment.layout).state().alive
    assert deployment.run("playbooks/stop.yml").changed == 1
    assert deployment.run("playbooks/stop.yml").changed == 0
    assert "down" in deployment.run("playbooks/status.yml").text


def test_remove_keeps_weights_and_results(deployment: Deployment) -> None:
    done = deployment.run("playbooks/remove.yml", remove_confirm="yes")
    assert done.rc == 0, done.text[-4000:]
    assert not deployment.layout.current_spec.exists()
    assert not deployment.layout.facts_file.exists()
    assert not Supervisor(deployment.layout).running()
    assert (deployment.home / "models/smollm2-135m-instruct/config.json").exists()
    assert list(deployment.layout.results.glob("*/run.json"))
