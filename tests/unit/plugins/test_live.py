"""The action plugin that follows a job on a host: what was said comes out, and the end is not missed."""

from __future__ import annotations

import importlib.util
import json
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
from longhaul import progress
from support.paths import ROOT

PLUGINS = ROOT / "plugins" / "action"


def load(name: str) -> ModuleType:
    """A plugin as Ansible loads it: from its file."""
    spec = importlib.util.spec_from_file_location(name, PLUGINS / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Clock:
    """Time that only sleeping moves."""

    def __init__(self) -> None:
        self.now = 0.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


@pytest.mark.parametrize("line_end", ["\n", "\r\n"])
@pytest.mark.parametrize("answers_until_finished", [0, 1, 5])
def test_a_result_that_comes_after_the_word_is_taken_at_once(
    answers_until_finished: int, line_end: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The module says that it is done a moment before its result is there; nobody may wait for the next sign of life."""
    live, clock = load("longhaul_live"), Clock()
    monkeypatch.setattr(live, "time", clock)
    said: list[str] = []
    monkeypatch.setattr(live, "Display", lambda: SimpleNamespace(display=said.append))
    lines = [json.dumps({"text": f"layer {number}"}) + "\n" for number in range(5)] + [json.dumps({"done": True}) + "\n"]
    asked = reads = 0

    def read(command: str, **_: Any) -> dict[str, str]:
        """``tail -c +N`` of a file that grows by two lines a second, through a terminal."""
        nonlocal reads
        reads += 1
        offset = int(command.split("+")[1].split(maxsplit=1)[0]) - 1
        return {"stdout": "".join(lines[: 2 * reads])[offset:].replace("\n", line_end)}

    def status(**_: Any) -> dict[str, Any]:
        nonlocal asked
        asked += 1
        return {"started": True, "finished": asked > answers_until_finished, "ready": True}

    action = live.LiveAction.__new__(live.LiveAction)
    action._connection = SimpleNamespace(transport="ssh")
    action._low_level_execute_command = read
    action._execute_module = status
    action.get_shell_option = lambda *_, **__: "~/.ansible_async"
    result = action._follow({"ansible_job_id": "1"}, "/tmp/file", {"inventory_hostname": "gpu-01"}, progress)
    assert result == {"ready": True}
    assert said == [f"  [gpu-01] layer {number}" for number in range(5)]
    assert clock.now < 2.0 + 1.5 * answers_until_finished


@pytest.mark.parametrize(
    ("source", "check", "wanted"), [("hub", False, True), ("hub", True, False), ("path", False, False), ("dummy", False, False)]
)
def test_a_look_at_a_folder_is_no_job_in_the_background(source: str, check: bool, wanted: bool) -> None:
    model = load("longhaul_model")
    action = model.ActionModule.__new__(model.ActionModule)
    action._task = SimpleNamespace(check_mode=check, args={"source": source})
    assert action._is_long() is wanted


@pytest.mark.parametrize("name", ["longhaul_wait", "longhaul_venv", "longhaul_model", "longhaul_validate"])
def test_only_a_validation_prepares_its_host(name: str) -> None:
    """The others pass their arguments on: two of these files are one, and what is written into it holds for both."""
    assert ("_arguments" in vars(load(name).ActionModule)) == (name == "longhaul_validate")
