"""The tests' cache: shared by clones, never half full, and two fills at once are one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support import cache

TESTS = Path(__file__).resolve().parents[1]
FILL = """
import sys, time
from pathlib import Path
from support import cache

def fill(target):
    target.mkdir()
    (target / "first").write_text("half")
    print("filling", flush=True)
    time.sleep(float(sys.argv[1]))
    (target / "second").write_text("whole")

print(cache.entry("kind/abc", fill), flush=True)
"""


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "longhaul-test"


def another(pause_s: float) -> subprocess.Popen[str]:
    """The same fill in a process of its own, as another clone would start it."""
    words = [sys.executable, "-c", FILL, str(pause_s)]
    environment = {**os.environ, "PYTHONPATH": str(TESTS)}
    return subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True)


def test_it_lies_in_the_users_cache_folder(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert cache.root() == home
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    monkeypatch.setenv("HOME", str(home.parent))
    assert cache.root() == home.parent / ".cache" / "longhaul-test"


def test_a_digest_tells_what_was_joined() -> None:
    assert cache.digest("ab", "c") != cache.digest("a", "bc")
    assert cache.digest("ab") == cache.digest(b"ab")


def test_an_entry_is_made_once(home: Path) -> None:
    calls: list[Path] = []

    def fill(target: Path) -> None:
        calls.append(target)
        target.write_text("made")

    for _ in range(2):
        assert cache.entry("kind/abc", fill).read_text() == "made"
    assert calls == [home / "kind" / "abc.partial"]


def test_a_fill_that_fails_leaves_no_entry(home: Path) -> None:
    def fill(target: Path) -> None:
        target.write_text("half")
        raise OSError("the network is gone")

    with pytest.raises(OSError, match="the network is gone"):
        cache.entry("kind/abc", fill)
    assert not (home / "kind" / "abc").exists()
    assert cache.entry("kind/abc", lambda target: target.write_text("whole")).read_text() == "whole"


def test_a_killed_fill_is_made_again(home: Path) -> None:
    with another(60) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == "filling\n"
        killed.send_signal(signal.SIGKILL)
    assert (home / "kind" / "abc.partial" / "first").exists()
    with another(0) as second:
        assert second.communicate(timeout=60)[0] == f"filling\n{home / 'kind' / 'abc'}\n"
    assert sorted(path.name for path in (home / "kind" / "abc").iterdir()) == ["first", "second"]


def test_two_that_come_at_once_fill_it_once(home: Path) -> None:
    with another(1) as first, another(1) as second:
        said = [one.communicate(timeout=60)[0] for one in (first, second)]
    entry = f"{home / 'kind' / 'abc'}\n"
    assert sorted(said) == [entry, f"filling\n{entry}"]


def test_what_nobody_asked_for_in_a_month_goes(home: Path) -> None:
    old, young = (cache.entry(f"kind/{name}", lambda target: target.mkdir()) for name in ("old", "young"))
    os.utime(old, (time.time(), time.time() - cache.UNUSED_S - 60))
    cache.entry("kind/new", lambda target: target.mkdir())
    assert not old.exists()
    assert young.exists()


def test_linked_files_are_the_same_and_a_folder_keeps_its_shape(tmp_path: Path) -> None:
    source = tmp_path / "source"
    (source / "deep").mkdir(parents=True)
    (source / "deep" / "file").write_text("text")
    cache.link(source, tmp_path / "target")
    assert (tmp_path / "target" / "deep" / "file").samefile(source / "deep" / "file")
