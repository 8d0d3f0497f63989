"""Why a task failed, in one line: what a person reads first must name the cause."""

from __future__ import annotations

from typing import Any

import pytest
from longhaul.progress import failure_text

TRACEBACK = "Traceback (most recent call last):\n  File \"x.py\", line 1\nModuleNotFoundError: No module named 'yaml'\n\n"
SHIM = "pyenv: python3.13: command not found\n\nNote: See 'pyenv help global' for tips.\n"


@pytest.mark.parametrize(
    ("result", "said"),
    [
        ({"msg": "found: x |\n required: y | fix: z"}, "found: x | required: y | fix: z"),
        ({"msg": "Task failed: Failed to connect to the host via ssh"}, "Failed to connect to the host via ssh"),
        ({"msg": "non-zero return code", "rc": 3, "stderr": "warning\nout of memory\n"}, "non-zero return code: out of memory"),
        ({"msg": "non-zero return code", "rc": 3, "stderr": "", "stdout": "the end"}, "non-zero return code: the end"),
        ({"msg": "non-zero return code", "rc": 3, "stderr": " \n"}, "non-zero return code"),
        (
            {"msg": "MODULE FAILURE", "rc": 1, "module_stderr": TRACEBACK},
            "MODULE FAILURE: ModuleNotFoundError: No module named 'yaml'",
        ),
        ({"msg": "broken", "rc": 0, "stdout": "a command that went well says nothing of it"}, "broken"),
        ({"censored": "the output has been hidden", "changed": False}, "the output has been hidden"),
        ({}, "no message"),
    ],
)
def test_one_line_with_the_cause(result: dict[str, Any], said: str) -> None:
    assert failure_text(result) == said


def test_items_of_a_loop_and_modules_of_the_facts_speak_for_themselves() -> None:
    items = [
        {"msg": "a is bad", "failed": True},
        {"msg": "fine"},
        {"msg": "b is bad", "failed": True},
        {"msg": "a is bad", "failed": True},
    ]
    assert failure_text({"msg": "One or more items failed", "results": items}) == "a is bad; b is bad"
    modules = {"ansible.legacy.setup": {"failed": True, "msg": "no JSON", "rc": 127, "module_stderr": SHIM}}
    said = failure_text({"msg": "The following modules failed to execute", "failed_modules": modules})
    assert said == "no JSON: pyenv: python3.13: command not found"
