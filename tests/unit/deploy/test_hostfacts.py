"""The proof as facts: what goes when the spec changes, what stays when nothing does."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from longhaul.deploy.hostfacts import deployed_facts, update_facts, validated_facts
from longhaul.deploy.layout import Layout
from longhaul.deploy.spec import Spec, render_spec
from longhaul.engines.settings import settings_from
from longhaul.errors import UserError
from longhaul.results import RunResult, Verdict
from unit.report import fixtures

STARTED = {
    "ready": True,
    "elapsed_s": 41.23456,
    "phases": [["starting", 0.0], ["loading weights", 3.0], ["ready", 41.2]],
    "capacity": {"kv_cache_tokens": 1000},
}
# A watcher that found the engine up already.
FOUND_UP = {"ready": True, "elapsed_s": 0.1, "phases": [["starting", 0.0], ["ready", 0.1]], "capacity": {"kv_cache_tokens": None}}


def run_of(verdict: Verdict) -> RunResult:
    """A run with that verdict over all; a FAIL has one failed point only."""
    if verdict is Verdict.PASS:
        return fixtures.passing()
    return fixtures.run([fixtures.point(1000, verdict=verdict)])


def spec(seqs: int = 1) -> Spec:
    return render_spec(
        "vllm",
        "0.12.0",
        "process",
        settings_from({"model_path": "/m", "served_model_name": "m", "context_tokens": 8192, "max_num_seqs": seqs}),
        instance="default",
        python="/p",
    )


def proven() -> dict[str, Any]:
    """Facts of a spec that was started, planned, compared and validated."""
    return validated_facts(deployed_facts({}, spec(), STARTED, {"fits": True}, {"exact": True}), run_of(Verdict.PASS))


def test_a_new_spec_has_not_been_proven_by_the_old_verdict() -> None:
    after = deployed_facts(proven(), spec(2), {**STARTED, "elapsed_s": 9.0})
    assert set(after) == {"deployed"}
    assert after["deployed"]["spec_id"] == spec(2).spec_id
    assert after["deployed"]["start"]["elapsed_s"] == 9.0


@pytest.mark.parametrize("started", [FOUND_UP, None, {}, {"ready": False, "phases": []}])
def test_a_run_that_started_nothing_keeps_everything(started: dict[str, Any] | None) -> None:
    before = proven()
    assert deployed_facts(before, spec(), started) == before
    assert before["deployed"]["start"] == {
        "elapsed_s": 41.2,
        "phases": STARTED["phases"],
        "capacity": {"kv_cache_tokens": 1000},
    }


def test_a_restart_of_the_same_spec_has_new_figures_and_keeps_the_verdict() -> None:
    after = deployed_facts(proven(), spec(), {**STARTED, "elapsed_s": 12.0})
    assert after["deployed"]["start"]["elapsed_s"] == 12.0
    assert after["verdict"]["verdict"] == "PASS"


def test_a_new_spec_that_was_found_up_does_not_inherit_the_old_figures() -> None:
    after = deployed_facts(proven(), spec(2), None)
    assert "start" not in after["deployed"]


def test_the_verdict_names_its_evidence_and_the_measured_points() -> None:
    facts = validated_facts({}, run_of(Verdict.FAIL))
    run = run_of(Verdict.FAIL)
    assert facts["verdict"]["verdict"] == "FAIL"
    assert facts["verdict"]["run_id"] == run.run_id
    assert facts["verdict"]["at"].endswith("Z")
    assert len(facts["measured"]["points"]) == len(run.points)
    passed = [p.input_tokens for p in run.points if p.ran and p.verdict is Verdict.PASS]
    assert facts["measured"]["largest_passed_input_tokens"] == (max(passed) if passed else None)
    json.dumps(facts)


def test_a_failed_length_is_not_the_largest_passed() -> None:
    good, bad = run_of(Verdict.PASS), run_of(Verdict.FAIL)
    assert validated_facts({}, good)["measured"]["largest_passed_input_tokens"]
    assert validated_facts({}, bad)["measured"]["largest_passed_input_tokens"] is None


class TestFile:
    def test_written_once_and_readable_by_ansible(self, tmp_path: Path) -> None:
        where = Layout(tmp_path)
        changed, facts = update_facts(where, lambda before: deployed_facts(before, spec(), STARTED))
        assert changed
        assert update_facts(where, lambda before: deployed_facts(before, spec(), FOUND_UP)) == (False, facts)
        assert where.facts_file.stat().st_mode & 0o111 == 0, "an executable fact file would be run"
        words = [str(Path(sys.executable).parent / "ansible"), "localhost", "-m", "setup", "-c", "local"]
        words += [
            "-e",
            f"ansible_python_interpreter={sys.executable}",
            "-a",
            f"gather_subset=!all,!min,local filter=ansible_local fact_path={where.facts_dir}",
        ]
        done = subprocess.run(words, capture_output=True, text=True, check=True, cwd=tmp_path)
        local = json.loads(done.stdout.split("=>", 1)[1])["ansible_facts"]["ansible_local"]
        assert local["longhaul"] == facts

    def test_dry_run_and_damage(self, tmp_path: Path) -> None:
        where = Layout(tmp_path)
        assert update_facts(where, lambda _: {"a": 1}, dry_run=True) == (True, {"a": 1, "schema": 1})
        assert not where.facts_file.exists()
        where.facts_dir.mkdir()
        where.facts_file.write_text("{half", encoding="utf-8")
        with pytest.raises(UserError, match=r"longhaul\.fact"):
            update_facts(where, lambda before: before)
