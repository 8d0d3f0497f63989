"""From measured points to the result of a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from longhaul.results import Counters, KvSample, NeedleAnswer, PointResult, Reason, RequestRecord, RequestStatus, Verdict
from longhaul.validate.config import NeedleSettings
from longhaul.validate.evidence import foreign_running
from longhaul.validate.result import RunFacts, run_result
from longhaul.validate.server import ServerFacts
from unit.validate.runs import config

FACTS = RunFacts(config("http://127.0.0.1:1", Path("unused")), 7, 0.0, ServerFacts(model="m"), None, None, "corpus", None)
PASSED = PointResult("a", 1000, 5, 1, Verdict.PASS)
END = Reason(Verdict.FAIL, "server_dead", "the server is gone, its log says: no memory")


def asked(found: bool) -> RequestRecord:
    needle = NeedleAnswer("single", 0.5, "12345", found, "12345" if found else "no", "Which?", "Arvena")
    return RequestRecord("a", 0, 0, False, 0.0, RequestStatus.OK, 1000, 5, needles=(needle,))


@pytest.mark.parametrize(
    ("before", "running", "foreign"),
    [(None, 2, 0.0), (Counters(0.0, running=1, waiting=1), 2, 2.0), (Counters(0.0, running=0), 5, 3.0), (None, None, 0.0)],
)
def test_other_clients_requests_are_those_before_the_point_and_those_above_ours(
    before: Counters | None, running: float | None, foreign: float
) -> None:
    assert foreign_running(2, before, [KvSample(1.0, None, running, None)]) == foreign


def test_the_end_of_the_server_comes_first_and_counts() -> None:
    result = run_result(FACTS, [PASSED], [], END, complete=False)
    assert (result.verdict, result.reasons, result.complete) == (Verdict.FAIL, (END,), False)
    assert run_result(FACTS, [PASSED], [], None, complete=True).verdict is Verdict.PASS


def test_recall_is_judged_when_the_run_is_complete_and_not_of_random_weights() -> None:
    limits = replace(FACTS.config.limits, needle_recall=0.9)
    needles = NeedleSettings(enabled=True, kinds=("single",), depths=(0.5,))
    facts = replace(FACTS, config=replace(FACTS.config, limits=limits, needles=needles))
    answers = [asked(True), asked(False)]
    assert run_result(facts, [PASSED], answers, None, complete=False).verdict is Verdict.PASS
    done = run_result(facts, [PASSED], answers, None, complete=True)
    assert (done.verdict, done.needle_recall, len(done.needle_answers)) == (Verdict.FAIL, 0.5, 2)
    dummy = replace(facts, config=replace(facts.config, needles=replace(needles, dummy_weights=True)))
    assert run_result(dummy, [PASSED], [], None, complete=True).verdict is Verdict.PASS
