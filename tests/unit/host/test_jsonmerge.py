"""A merge must never lose what others wrote, must settle in one step, and must be able to take itself back."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from longhaul.errors import UserError
from longhaul.host.jsonmerge import merge, read_object, render

SCALARS = st.one_of(st.booleans(), st.integers(-3, 3), st.sampled_from(["a", "b", "", "10m"]))
KEYS = st.sampled_from(["log-driver", "log-opts", "mirrors", "x", "y"])


def documents(depth: int = 2) -> st.SearchStrategy[dict[str, Any]]:
    """Objects whose shape is fixed by the key, as in a real file: no list meets an object."""
    inner: st.SearchStrategy[Any] = st.dictionaries(st.sampled_from(["m", "n", "o"]), SCALARS, max_size=3)
    return st.fixed_dictionaries(
        {},
        optional={
            "log-driver": SCALARS,
            "x": SCALARS,
            "log-opts": inner,
            "mirrors": st.lists(st.sampled_from(["u", "v", "w"]), unique=True, max_size=3),
        },
    )


def leaves(data: Any, path: tuple[str, ...] = ()) -> dict[tuple[str, ...], Any]:
    if isinstance(data, dict):
        return {k: v for key, part in data.items() for k, v in leaves(part, (*path, key)).items()}
    return {path: data}


@given(documents(), documents(), documents())
def test_a_second_merge_changes_nothing(current: dict[str, Any], values: dict[str, Any], defaults: dict[str, Any]) -> None:
    once = merge(current, values=values, defaults=defaults)
    twice = merge(once.data, values=values, defaults=defaults, owned=once.owned)
    assert twice.data == once.data
    assert twice.changed == ()
    assert twice.owned == once.owned


@given(documents(), documents())
def test_defaults_lose_nothing_that_was_there(current: dict[str, Any], defaults: dict[str, Any]) -> None:
    after = leaves(merge(current, defaults=defaults).data)
    for path, value in leaves(current).items():
        if isinstance(value, list):
            assert after[path][: len(value)] == value
        else:
            assert after[path] == value


@given(documents(), documents())
def test_what_was_only_added_is_taken_back_without_a_trace(current: dict[str, Any], defaults: dict[str, Any]) -> None:
    once = merge(current, defaults=defaults)
    back = merge(once.data, owned=once.owned)
    assert leaves(back.data) == {path: value for path, value in leaves(current).items() if path in leaves(back.data)}
    assert {path for path, value in leaves(current).items() if value != []} <= set(leaves(back.data))
    assert back.owned == {}


def test_the_operators_log_size_wins_over_our_default_and_is_named() -> None:
    merged = merge({"log-opts": {"max-size": "10m"}}, defaults={"log-opts": {"max-size": "100m", "max-file": "5"}})
    assert merged.data == {"log-opts": {"max-size": "10m", "max-file": "5"}}
    assert merged.kept == ("log-opts.max-size",)


def test_a_value_wins_over_the_file() -> None:
    merged = merge({"live-restore": False, "mtu": 1400}, values={"live-restore": True})
    assert merged.data == {"live-restore": True, "mtu": 1400}
    assert merged.changed == ("live-restore",)


def test_a_default_of_ours_can_change_later_but_not_after_the_operator_changed_it() -> None:
    first = merge({}, defaults={"log-opts": {"max-size": "100m"}})
    ours = merge(first.data, defaults={"log-opts": {"max-size": "50m"}}, owned=first.owned)
    assert ours.data == {"log-opts": {"max-size": "50m"}}
    theirs = merge({"log-opts": {"max-size": "1g"}}, defaults={"log-opts": {"max-size": "50m"}}, owned=first.owned)
    assert theirs.data == {"log-opts": {"max-size": "1g"}}


def test_a_mirror_that_we_added_goes_and_the_operators_stays() -> None:
    first = merge({"registry-mirrors": ["https://theirs"]}, values={"registry-mirrors": ["https://ours"]})
    assert first.data == {"registry-mirrors": ["https://theirs", "https://ours"]}
    second = merge(first.data, values={"registry-mirrors": ["https://new"]}, owned=first.owned)
    assert second.data == {"registry-mirrors": ["https://theirs", "https://new"]}
    last = merge(second.data, owned=second.owned)
    assert last.data == {"registry-mirrors": ["https://theirs"]}


def test_an_object_against_a_word_is_refused() -> None:
    with pytest.raises(UserError, match="log-opts is"):
        merge({"log-opts": "none"}, defaults={"log-opts": {"max-size": "1m"}})


def test_a_list_against_a_word_is_refused() -> None:
    with pytest.raises(UserError, match="registry-mirrors is"):
        merge({"registry-mirrors": "https://one"}, values={"registry-mirrors": ["https://two"]})


def test_reading(tmp_path: Any) -> None:
    assert read_object(tmp_path / "none.json") == {}
    (tmp_path / "blank.json").write_text(" \n")
    assert read_object(tmp_path / "blank.json") == {}
    (tmp_path / "good.json").write_text(render({"a": [1, "ü"]}))
    assert read_object(tmp_path / "good.json") == {"a": [1, "ü"]}
    (tmp_path / "bad.json").write_text('{"a": 1,}')
    with pytest.raises(UserError, match="not JSON"):
        read_object(tmp_path / "bad.json")
    (tmp_path / "list.json").write_text(json.dumps([1]))
    with pytest.raises(UserError, match="a JSON list"):
        read_object(tmp_path / "list.json")
