"""What a roll leaves on disk at every instant at which its controller may die."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from longhaul.deploy.layout import Layout
from longhaul.deploy.rolling import begin, is_unproven, proven, unproven
from longhaul.deploy.spec import Spec, give_back, load_spec, restore_previous, store_spec
from longhaul.errors import UserError
from support.specs import make_spec


def spec(name: str) -> Spec:
    return make_spec(spec_id=name)


def name_of(where: Layout, which: str = "current") -> str | None:
    found = load_spec(where, which)
    return found.spec_id if found else None


def test_a_spec_that_nobody_proved_is_never_the_previous_one(tmp_path: Path) -> None:
    where = Layout(tmp_path)
    store_spec(where, spec("good"))
    assert unproven(where) == "good"
    proven(where)
    store_spec(where, spec("killed in the middle"))
    store_spec(where, spec("next try"))
    assert (name_of(where), name_of(where, "previous"), unproven(where)) == ("next try", "good", "next try")


def test_going_back_keeps_what_failed_and_what_worked(tmp_path: Path) -> None:
    where = Layout(tmp_path)
    store_spec(where, spec("good"))
    proven(where)
    store_spec(where, spec("bad"))
    assert give_back(where).spec_id == "good"
    assert name_of(where) == "good"
    assert '"bad"' in where.failed_spec.read_text()
    # A second call, by a run that was started again, changes nothing.
    assert give_back(where).spec_id == "good"
    assert name_of(where, "previous") is None, "what is deployed is nothing to return to"
    # The files are two again: a later roll must not write through to the other.
    proven(where)
    store_spec(where, spec("better"))
    assert (name_of(where), name_of(where, "previous")) == ("better", "good")


def roll(where: Layout, name: str) -> None:
    store_spec(where, spec(name))
    proven(where)


@pytest.mark.parametrize("way", ["given back", "deployed again after a kill", "killed twice on the way back"])
def test_after_a_roll_that_came_to_nothing_the_previous_spec_is_the_one_before(tmp_path: Path, way: str) -> None:
    where = Layout(tmp_path)
    roll(where, "one")
    roll(where, "two")
    store_spec(where, spec("bad"))
    if way == "given back":
        give_back(where)
    else:
        store_spec(where, spec("two"))
        if way == "killed twice on the way back":
            store_spec(where, spec("two"))
    proven(where)
    assert (name_of(where), name_of(where, "previous")) == ("two", "one")
    restore_previous(where)
    assert (name_of(where), name_of(where, "previous")) == ("one", "two")


def test_after_the_first_deployment_s_only_roll_failed_there_is_nothing_to_return_to(tmp_path: Path) -> None:
    where = Layout(tmp_path)
    roll(where, "one")
    store_spec(where, spec("bad"))
    store_spec(where, spec("one"))
    proven(where)
    assert name_of(where, "previous") is None
    with pytest.raises(UserError, match="earlier deployment"):
        restore_previous(where)


def test_a_kill_between_the_marker_and_the_spec_proves_nothing(tmp_path: Path) -> None:
    where = Layout(tmp_path)
    roll(where, "good")
    store_spec(where, spec("killed in the middle"))
    begin(where, "next")  # and the controller dies here
    assert is_unproven(where, "killed in the middle")
    assert not is_unproven(where, "good")
    store_spec(where, spec("last"))
    assert (name_of(where), name_of(where, "previous")) == ("last", "good")


def test_a_rollback_by_hand_from_something_unproven_leaves_it_behind(tmp_path: Path) -> None:
    where = Layout(tmp_path)
    roll(where, "one")
    roll(where, "two")
    store_spec(where, spec("bad"))
    restore_previous(where)
    assert (name_of(where), name_of(where, "previous")) == ("two", "one")


def test_going_back_needs_no_free_block(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The disk filled up after the new spec was written: only links, renames and removals are left."""
    where = Layout(tmp_path)
    roll(where, "one")
    roll(where, "two")
    store_spec(where, spec("three"))

    def full(*_: object, **__: object) -> None:
        raise AssertionError("a file was written")

    monkeypatch.setattr("longhaul.deploy.rolling.write_atomic", full)
    monkeypatch.setattr(Path, "write_text", full)
    give_back(where)
    assert (name_of(where), name_of(where, "previous")) == ("two", "one")


def test_there_is_nothing_to_return_to_at_first(tmp_path: Path) -> None:
    where = Layout(tmp_path)
    store_spec(where, spec("first"))
    with pytest.raises(UserError):
        give_back(where)


def test_by_hand_twice_is_there_and_back(tmp_path: Path) -> None:
    where = Layout(tmp_path)
    for name in ("one", "two"):
        store_spec(where, spec(name))
        proven(where)
    restore_previous(where)
    assert (name_of(where), name_of(where, "previous")) == ("one", "two")
    restore_previous(where)
    assert name_of(where) == "two"


@given(st.lists(st.tuples(st.sampled_from("abc"), st.sampled_from(["proven", "failed", "killed"])), max_size=8))
def test_the_way_back_is_always_a_proven_one(steps: list[tuple[str, str]]) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        where = Layout(Path(folder))
        good: set[str] = set()
        for name, end in steps:
            store_spec(where, spec(name))
            if end == "proven":
                proven(where)
                good.add(name)
            elif end == "failed" and name_of(where, "previous") and unproven(where) == name:
                give_back(where)
                proven(where)
            previous = name_of(where, "previous")
            assert previous is None or previous in good
            assert previous is None or previous != name_of(where)
