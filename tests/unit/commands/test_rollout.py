"""scripts/rollout's state: what a person reads while a roll goes on, and what it ends with."""

from __future__ import annotations

import importlib.util
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from longhaul.commands.rollout import Board, exit_code, parse
from support.paths import ROOT


def event(kind: str, host: str = "gpu-01", play: str = "Launch", task: str = "Wait", **result: Any) -> dict[str, Any]:
    return {"event": kind, "event_data": {"play": play, "host": host, "task": task, "name": play, "res": result}}


def load_plugin(kind: str, name: str) -> ModuleType:
    """A plugin as Ansible loads it: from its file."""
    spec = importlib.util.spec_from_file_location(name, ROOT / "plugins" / kind / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_table_shows_hosts_by_stages() -> None:
    board = Board()
    for play in ("Fetch", "Launch"):
        board.take(event("playbook_on_play_start", "", play))
        for host in ("gpu-01", "gpu-02"):
            board.take(event("runner_on_start", host, play))
    board.take(event("runner_on_ok", "gpu-01", "Fetch", changed=True))
    board.take(event("runner_on_ok", "gpu-01", "Fetch", changed=False))
    line = board.take(event("runner_on_failed", "gpu-01", "Launch", msg="rolled back\nwhy: out of memory"))
    assert line is not None
    assert "out of memory" in line
    rows = board.table(200)
    assert rows[0].split() == ["HOST", "Fetch", "Launch", "NOW"]
    assert rows[1].split()[:3] == ["gpu-01", "changed", "FAILED"]
    assert rows[2].split()[:3] == ["gpu-02", "running", "running"]
    assert all(len(row) <= 40 for row in board.table(40))


def test_a_failure_is_not_painted_over_by_what_follows_it() -> None:
    board = Board()
    board.take(event("runner_on_failed", msg="bad"))
    board.take(event("runner_on_ok"))
    assert board.hosts["gpu-01"].stages["Launch"] == "FAILED"


def test_a_failed_loop_says_what_its_items_said() -> None:
    results = [
        {"failed": False, "msg": "fine"},
        {"failed": True, "msg": "found: 9\nrequired: 8"},
        {"failed": True, "msg": "found: 9\nrequired: 8"},
    ]
    result = {"msg": "One or more items failed", "results": results}
    board = Board()
    board.take(event("runner_on_failed", **result))
    assert board.hosts["gpu-01"].why == "found: 9 required: 8"

    callback = load_plugin("callback", "longhaul_summary").CallbackModule()
    lines: list[str] = []
    callback._display = SimpleNamespace(display=lambda text, **_: lines.append(text))
    named = {"host": SimpleNamespace(get_name=lambda: "gpu-01"), "task": SimpleNamespace(get_name=lambda: "Preflight")}
    callback.v2_runner_on_failed(SimpleNamespace(result=result, **named))
    callback.v2_playbook_on_stats(SimpleNamespace(failures={"gpu-01": 1}, dark={}, processed={"gpu-01": 1}))
    assert [line.strip() for line in lines[1:]] == ["gpu-01: failed at 'Preflight': found: 9 required: 8"]


def test_the_verdict_that_stopped_a_roll_outlives_the_way_back() -> None:
    board = Board()
    board.take(event("runner_on_ok", "gpu-02", verdict="INCONCLUSIVE"))  # accepted: that host went on
    board.take(event("runner_on_ok", verdict="INVALID"))
    board.take(event("runner_on_ok", verdict="PASS"))
    board.take(event("runner_on_failed", msg="rolled back"))
    assert board.hosts["gpu-01"].verdict == "PASS"
    assert exit_code(2, board.stopping_verdicts()) == 3
    assert exit_code(0, board.stopping_verdicts()) == 0
    died = Board()
    died.take(event("runner_on_ok", "gpu-02", verdict="INCONCLUSIVE"))
    died.take(event("runner_on_ok", verdict="PASS"))
    died.take(event("runner_on_failed", msg="rolled back: out of memory"))
    assert exit_code(2, died.stopping_verdicts()) == 1


@pytest.mark.parametrize(
    ("ansible", "verdicts", "stopped", "wanted"),
    [
        (0, ["PASS", "PASS"], False, 0),
        (2, ["PASS"], False, 1),
        (4, [], False, 1),
        (2, ["PASS", "INVALID"], False, 3),
        (2, ["INCONCLUSIVE"], False, 4),
        (2, ["INVALID", "FAIL"], False, 1),
        (0, ["INCONCLUSIVE"], False, 0),  # the operator accepts it
        (1, [], False, 2),
        (0, ["PASS"], True, 130),
    ],
)
def test_exit_codes(ansible: int, verdicts: list[str], stopped: bool, wanted: int) -> None:
    assert exit_code(ansible, verdicts, stopped=stopped) == wanted


def test_everything_else_is_ansibles() -> None:
    options, rest = parse(["-i", "inventory/h200", "--limit", "gpu-01", "-e", "@vars/sets/vllm-8m.yml"])
    assert options.inventory == "inventory/h200"
    assert rest == ["--limit", "gpu-01", "-e", "@vars/sets/vllm-8m.yml"]
