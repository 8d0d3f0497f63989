"""What a person sees of scripts/deploy: a line for each stage, no task noise, and nothing lost that went wrong."""

from __future__ import annotations

import importlib.util
import os
import pty
import re
import subprocess
import sys
import time
from pathlib import Path
from types import ModuleType

import pytest
from support.paths import ROOT


def load() -> ModuleType:
    """The plugin as Ansible loads it: from its file."""
    spec = importlib.util.spec_from_file_location("longhaul_stages", ROOT / "plugins" / "callback" / "longhaul_stages.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


stages = load()


class Run:
    """Stages with a clock of ours; ``said`` is what was printed."""

    def __init__(self) -> None:
        self.now = 0.0
        self.said: list[str] = []
        self.stages = stages.Stages(lambda text, _color: self.said.append(" ".join(text.split())), lambda: self.now)

    def step(self, name: str, took_s: float, *results: tuple[str, str]) -> None:
        self.stages.begin_step(name)
        self.now += took_s
        for host, state in results:
            self.stages.result(host, state)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.04, "0.0 s"),
        (9.94, "9.9 s"),
        (9.96, "10 s"),
        (59.4, "59 s"),
        (59.6, "1 min 00 s"),
        (125, "2 min 05 s"),
        (7500, "2 h 05 min"),
    ],
)
def test_durations(seconds: float, text: str) -> None:
    assert stages.span(seconds) == text


class TestStages:
    def test_quick_steps_without_a_change_are_one_line_together(self) -> None:
        run = Run()
        run.stages.begin_play("Preflight")
        run.step("Gathering Facts", 0.5, ("localhost", "ok"))
        run.step("Check the engine's input", 1.0, ("localhost", "ok"), ("localhost", "skipped"))
        run.stages.end()
        assert run.said == ["Preflight ok 1.5 s", "In all nothing changed 1.5 s"]

    def test_a_step_that_changed_something_or_took_long_has_its_own_line(self) -> None:
        run = Run()
        run.stages.begin_play("Provision")
        run.step("Gathering Facts", 0.5, ("localhost", "ok"))
        run.step("Install the engine", 30.0, ("localhost", "changed"), ("localhost", "ok"), ("localhost", "changed"))
        run.step("Bring the model", 0.5, ("localhost", "changed"))
        run.step("Look", 3.0, ("localhost", "ok"))
        run.step("Note", 0.1, ("localhost", "ok"))
        run.stages.end()
        assert run.said == [
            "Provision: Install the engine 2 changed 30 s",
            "Provision: Bring the model 1 changed 0.5 s",
            "Provision: Look ok 3.0 s",
            "In all 3 changed 34 s",
        ]

    def test_tasks_of_the_same_step_stay_together(self) -> None:
        run = Run()
        run.stages.begin_play("Provision")
        for _ in range(5):
            run.step("Install the engine", 1.0, ("localhost", "changed"))
        run.stages.end()
        assert run.said[0] == "Provision: Install the engine 5 changed 5.0 s"

    def test_what_is_skipped_everywhere_says_nothing(self) -> None:
        run = Run()
        run.stages.begin_play("Provision")
        run.step("Install the GPU driver", 9.0, ("a", "skipped"), ("b", "skipped"))
        run.stages.begin_play("Empty")
        run.stages.end()
        assert run.said == ["In all nothing changed 9.0 s"]

    def test_hosts_are_named_where_there_are_several(self) -> None:
        run = Run()
        run.stages.begin_play("Launch")
        run.step("Roll this host", 10.0, ("gpu-02", "changed"), ("gpu-01", "ok"))
        run.stages.begin_play("Launch")
        run.step("Roll this host", 10.0, *((f"gpu-{n:02d}", "changed") for n in range(3, 8)))
        run.stages.end()
        assert run.said[:2] == [
            "Launch: Roll this host [gpu-01, gpu-02] 1 changed 10 s",
            "Launch: Roll this host [5 hosts] 5 changed 10 s",
        ]

    def test_a_failure_and_a_lost_host_are_counted(self) -> None:
        run = Run()
        run.stages.begin_play("Provision")
        run.step("Install", 1.0, ("a", "changed"), ("b", "failed"), ("c", "unreachable"))
        run.stages.end()
        assert run.said[0] == "Provision: Install [a, b, c] 1 changed, 1 failed, 1 unreachable 1.0 s"

    def test_check_mode_says_that_it_would(self) -> None:
        run = Run()
        run.stages.begin_play("Provision")
        run.stages.begin_step("Install")
        run.stages.result("a", "planned")
        run.stages.result("a", "changed")
        run.stages.end()
        assert run.said == ["Provision: Install 1 changed, 1 would change 0.0 s", "In all 1 changed, 1 would change 0.0 s"]


class TestScreen:
    def screen(self, run: Run, *, terminal: bool) -> tuple[object, list[str]]:
        written: list[str] = []
        return stages.Screen(written.append, run.stages.now, terminal=terminal), written

    def test_a_terminal_has_one_line_that_replaces_itself(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("COLUMNS", "50")
        run = Run()
        screen, written = self.screen(run, terminal=True)
        screen.tick()
        assert written == [], "nothing runs"
        run.stages.begin_play("Provision")
        run.stages.begin_step("Install the engine")
        run.now = 12.0
        screen.tick()
        run.stages.progress("localhost", "installing: fetched 10 of 22 large packages")
        assert not screen.progress(), "it is shown in the live line"
        screen.tick()
        screen.clear()
        screen.clear()
        assert written == [
            "\r\033[KProvision: Install the engine  12 s",
            "\r\033[KProvision: Install the engine  12 s  installing: "[: 4 + 49],
            "\r\033[K",
        ]

    def test_without_a_terminal_a_long_step_is_announced_and_gives_a_sign_of_life(self) -> None:
        run = Run()
        screen, written = self.screen(run, terminal=False)
        for _batch in range(2):
            run.stages.begin_play("Launch")
            run.stages.begin_step("Roll this host")
            for _second in range(70):
                run.now += 1.0
                screen.tick()
        once = ["Launch: Roll this host ...\n", "  Launch: Roll this host: 32 s\n", "  Launch: Roll this host: 1 min 02 s\n"]
        assert written == [*once, *once]

    def test_without_a_terminal_progress_is_printed_below_the_name_of_its_stage(self) -> None:
        run = Run()
        screen, written = self.screen(run, terminal=False)
        run.stages.begin_play("Launch")
        run.stages.begin_step("Roll this host")
        run.now = 0.5
        assert screen.progress()
        assert screen.progress()
        assert written == ["Launch: Roll this host ...\n"]
        run.now = 25.0
        screen.tick()
        assert len(written) == 1, "what speaks needs no sign of life"

    def test_a_prompt_is_not_written_over(self) -> None:
        run = Run()
        screen, written = self.screen(run, terminal=True)
        run.stages.begin_play("Launch")
        run.stages.begin_step("Ask")
        screen.paused = True
        screen.tick()
        assert written == []


PLAY = """
- name: Preflight
  hosts: all
  gather_facts: false
  tasks:
    - name: Look at things
      ansible.builtin.set_fact:
        lh_one: 1
    - name: Look in check mode
      ansible.builtin.command: "true"
      check_mode: "{{ inventory_hostname == 'a' }}"
      when: inventory_hostname in ('a', 'b')
      changed_when: false
    - name: Say
      ansible.builtin.debug:
        msg: a word from a task
      when: inventory_hostname == 'a'
- name: Provision
  hosts: all
  gather_facts: false
  tasks:
    - name: Install the engine
      ansible.builtin.include_tasks: inner.yml
    - name: Warn
      ansible.builtin.set_fact:
        lh_two: "{{ 2 | lh_warned }}"
- name: Launch
  hosts: all
  gather_facts: false
  tasks:
    - name: Lose one
      ansible.builtin.command: "sh -c 'echo first; echo {{ item }} is out of memory >&2; exit 3'"
      loop: [engine]
      when: inventory_hostname == 'b'
    - name: Rescue
      when: inventory_hostname == 'a'
      block:
        - name: Fall
          ansible.builtin.fail:
            msg: "found: x | required: y | fix: z"
      rescue:
        - name: Get up
          ansible.builtin.set_fact:
            lh_three: 3
"""
INNER = """
- name: Inner | Write a file
  ansible.builtin.copy:
    content: "{{ inventory_hostname }}\\n"
    dest: "{{ playbook_dir }}/written-{{ inventory_hostname }}"
    mode: "0644"
- name: Inner | Say how far it is
  longhaul_live_test:
"""
# Stands for a live action: says how far it is, in a worker process.
ACTION = """
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display
class ActionModule(ActionBase):
    def run(self, tmp=None, task_vars=None):
        Display().display(f"  [{task_vars['inventory_hostname']}] half of it")
        return {"changed": False}
"""
FILTER = """
from ansible.utils.display import Display
class FilterModule:
    def filters(self):
        return {"lh_warned": lambda value: (Display().warning("beware of the filter"), value)[1]}
"""


@pytest.fixture(scope="module")
def play(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("play")
    for name in ("action_plugins", "filter_plugins"):
        (folder / name).mkdir()
    (folder / "play.yml").write_text(PLAY, encoding="utf-8")
    (folder / "inner.yml").write_text(INNER, encoding="utf-8")
    (folder / "action_plugins" / "longhaul_live_test.py").write_text(ACTION, encoding="utf-8")
    (folder / "filter_plugins" / "lh.py").write_text(FILTER, encoding="utf-8")
    python = f"ansible_connection=local ansible_python_interpreter={sys.executable}"
    (folder / "hosts").write_text(f"a {python}\nb {python}\ngone ansible_host=127.0.0.1 ansible_port=9\n", encoding="utf-8")
    (folder / "ansible.cfg").write_text(
        f"[defaults]\ncallback_plugins = {ROOT / 'plugins' / 'callback'}\ncallbacks_enabled = longhaul_summary\n"
        "callback_result_format = yaml\n",
        encoding="utf-8",
    )
    return folder


def run_play(folder: Path, *words: str, terminal: bool = False) -> str:
    """Run the play with our display; what a pipe or a terminal received."""
    for left in folder.glob("written-*"):
        left.unlink()
    kept = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    environment = {**kept, "ANSIBLE_STDOUT_CALLBACK": "longhaul_stages", "TERM": "xterm", "COLUMNS": "120", "NO_COLOR": "1"}
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", "hosts", "play.yml", *words]
    if not terminal:
        done = subprocess.run(
            command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, check=False
        )
        assert done.returncode == 4, done.stdout
        return done.stdout
    main, side = pty.openpty()
    process = subprocess.Popen(command, cwd=folder, env=environment, stdin=side, stdout=side, stderr=side, close_fds=True)
    os.close(side)
    received = b""
    until = time.monotonic() + 120
    while time.monotonic() < until:
        try:
            part = os.read(main, 65536)
        except OSError:
            break
        if not part:
            break
        received += part
    os.close(main)
    assert process.wait() == 4
    return received.decode()


def test_a_run_in_a_pipe(play: Path) -> None:
    said = run_play(play)
    assert "\033" not in said
    assert "TASK [" not in said
    assert not re.search(r"^(ok|changed|skipping|included|fatal|failed):", said, re.MULTILINE)
    lines = [" ".join(line.split()) for line in said.splitlines()]
    assert "[a] a word from a task" in " ".join(lines)
    assert any(
        line.startswith("UNREACHABLE [gone] Inner | Write a file: Failed to connect to the host via ssh") for line in lines
    )
    assert any(
        re.fullmatch(r"Provision: Install the engine \[a, b, gone\] 2 changed, 1 unreachable [\d.]+ s", line) for line in lines
    )
    begun = lines.index("Provision: Install the engine ...")
    assert sorted(lines[begun + 1 : begun + 3]) == ["[a] half of it", "[b] half of it"]
    assert "FAILED [b] Lose one: non-zero return code: engine is out of memory" in lines
    assert "FAILED [a] Fall: found: x | required: y | fix: z" in lines
    assert any("beware of the filter" in line for line in lines)
    assert any(re.fullmatch(r"b : ok=\d+ changed=1 unreachable=0 failed=1 .*", line) for line in lines)
    end = lines[lines.index("HOSTS THAT DID NOT MAKE IT (2)") :]
    assert any(line.startswith("b: failed at 'Lose one': non-zero return code: engine is out of memory") for line in end)
    assert any(line.startswith("gone: unreachable at") for line in end)


def test_check_mode_names_what_would_change_and_shows_the_diff(play: Path) -> None:
    said = run_play(play, "--check", "--diff")
    assert "[a] would change: Inner | Write a file" in said
    assert re.search(r"^\+a$", said, re.MULTILINE)
    assert "2 would change" in said
    assert not list(play.glob("written-*"))


def test_verbose_is_ansibles_own_display(play: Path) -> None:
    said = run_play(play, "-v")
    assert "TASK [Inner | Write a file]" in said
    assert "changed: [a]" in said
    assert "skipping: [a]" in said
    assert "HOSTS THAT DID NOT MAKE IT (2)" in said


def test_a_terminal_keeps_the_stages_and_not_their_progress(play: Path) -> None:
    said = run_play(play, terminal=True)
    assert "\033[K" in said
    # What stays: a carriage return and "erase" take away what was written before them on the same line.
    kept = [re.split(r"\r\033\[K", line.rstrip("\r"))[-1] for line in said.split("\n")]
    assert not any("half of it" in line for line in kept)
    assert any(line.startswith("Provision: Install the engine [a, b, gone]") for line in kept)
    assert any("FAILED [b] Lose one" in line for line in kept)
