"""What a roll leaves on disk at every instant at which its controller may die."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from longhaul.errors import UserError
from longhaul.layout import Layout
from longhaul.rolling import give_back, proven, unproven
from longhaul.spec import SPEC_SCHEMA, load_spec, restore_previous, store_spec


def spec(name: str) -> dict[str, Any]:
    return {"schema": SPEC_SCHEMA, "spec_id": name}


def name_of(where: Layout, which: str = "current") -> str | None:
    found = load_spec(where, which)
    return found["spec_id"] if found else None


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
    assert give_back(where)["spec_id"] == "good"
    assert name_of(where) == "good"
    assert '"bad"' in where.failed_spec.read_text()
    # A second call, by a run that was started again, changes nothing.
    assert give_back(where)["spec_id"] == "good"
    # The files are two again: a later roll must not write through to the other.
    proven(where)
    store_spec(where, spec("better"))
    assert (name_of(where), name_of(where, "previous")) == ("better", "good")


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
