"""What every command has in common: help, one line for a mistake, exit codes that mean the same everywhere."""

from __future__ import annotations

import argparse
import importlib

import pytest
from longhaul import cli
from longhaul.errors import UserError


@pytest.mark.parametrize("command", sorted(cli.COMMANDS))
def test_every_command_has_help(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main([command, "--help"])
    assert ended.value.code == 0
    shown = capsys.readouterr().out
    assert cli.COMMANDS[command] in " ".join(shown.split())
    assert "%%" not in shown, "argparse escapes percent signs in some texts only"


@pytest.mark.parametrize(
    "words", [["pland"], [], ["report"], ["report", "--nothing"]], ids=["unknown", "none", "short", "option"]
)
def test_a_mistake_is_one_line_and_exit_code_2(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(words)
    assert ended.value.code == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("error", "code", "says"),
    [
        (UserError("a", "b", "c"), 2, "found: a | required: b | fix: c"),
        (KeyboardInterrupt(), 130, "what was measured so far is kept"),
        (ZeroDivisionError("oops"), 70, "internal error"),
    ],
    ids=["input", "ctrl-c", "bug"],
)
def test_what_ends_a_command_decides_the_exit_code(
    error: BaseException, code: int, says: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(args: argparse.Namespace) -> int:
        raise error

    monkeypatch.setattr(importlib.import_module("longhaul.commands.report"), "run", fail)
    assert cli.main(["report", "somewhere"]) == code
    assert says in capsys.readouterr().err.splitlines()[-1]
