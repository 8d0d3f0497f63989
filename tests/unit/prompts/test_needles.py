"""Needles: facts decided by the seed, answers judged without being fooled."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from longhaul.errors import UserError
from longhaul.prompts.needles import (
    KINDS,
    SHOWN_CHARS,
    Needle,
    aggregate,
    answers,
    judge,
    plan_needles,
    recall,
    shown,
)
from longhaul.results import NeedleAnswer, NeedleCell

ONE = Needle("single", 0.5, "Arvena", "48213")


@pytest.mark.parametrize(
    "answer",
    [
        "48213",
        "The code is 48213.",
        "The code is **48213**, I think",
        "48,213",
        "48 213",
        "48_213",
        "48\u00a0213",
        "Arvena:48213\nBelcorin: 11111",
        "first 11111, then 48213!",
        "(48213)",
        "code48213x",
    ],
)
def test_found(answer: str) -> None:
    assert judge(answer, ONE)


@pytest.mark.parametrize(
    "answer",
    [
        "",
        "148213",
        "482130",
        "48213.5",
        "1.48213",
        "1,48213",
        "4821",
        "4 8 2 1 3",
        "48.213",
        "31284",
        "The code of Arvena is in the text.",
        "48-213",
        "48,2130",
    ],
)
def test_not_found(answer: str) -> None:
    assert not judge(answer, ONE)


def test_a_decoy_given_first_is_a_wrong_answer() -> None:
    hop = Needle("multi_hop", 0.5, "Anna", "48213", ("77777",))
    assert judge("48213, not 77777", hop)
    assert not judge("77777. Or 48213", hop)
    assert judge("177777 no; 48213", hop)


@given(st.integers(10_000, 99_999), st.text(alphabet="0123456789", min_size=1, max_size=4))
def test_a_number_inside_a_longer_number_is_never_found(code: int, digits: str) -> None:
    needle = Needle("single", 0.0, "x", str(code))
    assert not judge(f"it is {digits}{code}", needle)
    assert not judge(f"it is {code}{digits}", needle)
    assert judge(f"it is {code} and {digits}a", needle)


@given(st.sampled_from(KINDS), st.lists(st.floats(0, 1), min_size=1, max_size=12), st.integers(0, 2**31), st.text(max_size=20))
def test_plans_follow_from_the_seed_and_are_consistent(kind: str, depths: list[float], seed: int, key: str) -> None:
    depths = depths[:1] if kind == "single" else [*depths, 0.5] if kind == "multi_hop" else depths
    plan = plan_needles(kind, depths, seed=seed, key=key)  # type: ignore[arg-type]
    assert plan == plan_needles(kind, depths, seed=seed, key=key)  # type: ignore[arg-type]
    assert [f.depth for f in plan.facts] == sorted(f.depth for f in plan.facts)
    text = " ".join(f.text for f in plan.facts)
    for needle in plan.needles:
        assert judge(text, Needle(needle.kind, needle.depth, needle.subject, needle.expected))
        assert needle.subject in plan.question
        # The question must not give the answer away.
        assert not judge(plan.question + plan.cue, needle)
    codes = [n.expected for n in plan.needles] + [d for n in plan.needles for d in n.decoys]
    assert len(set(codes)) == len(codes)


def test_other_seeds_and_keys_give_other_answers() -> None:
    expected = {plan_needles("single", [0.5], seed=s, key=k).needles[0].expected for s in range(5) for k in "abcde"}
    assert len(expected) > 20


def test_the_chain_is_needed_to_find_the_answer() -> None:
    plan = plan_needles("multi_hop", [0.1, 0.5, 0.9], seed=3, key="k")
    needle = plan.needles[0]
    place = ""
    facts = [f.text for f in plan.facts]
    for fact in facts:
        if fact.startswith(f"{needle.subject} lives in "):
            place = fact.removesuffix(".").split()[-1]
    for fact in facts:
        if fact.startswith(f"The people of {place} all moved to "):
            place = fact.removesuffix(".").split()[-1]
            break
    found = [f for f in facts if f"everyone in {place} is" in f]
    assert found == [f"The secret code of everyone in {place} is {needle.expected}."]
    assert any(needle.decoys[0] in f and place not in f for f in facts)
    assert needle.depth == 0.9


@pytest.mark.parametrize(
    ("kind", "depths", "words"),
    [
        ("single", [], "depths"),
        ("single", [0.1, 0.2], "one depth"),
        ("single", [1.5], "depths"),
        ("multi", [-0.1], "depths"),
        ("multi_hop", [0.3], "two depths"),
        ("triple", [0.3], "kind"),
        ("multi", [0.5] * 40, "at most"),
    ],
)
def test_bad_plans_are_refused(kind: str, depths: list[float], words: str) -> None:
    with pytest.raises(UserError, match=words):
        plan_needles(kind, depths, seed=0, key="k")  # type: ignore[arg-type]


def test_answers_are_kept_and_counted() -> None:
    plan = plan_needles("multi", [0.0, 1.0], seed=1, key="k")
    first, second = plan.needles
    judged = answers(plan, f"{first.expected} and nothing else")
    assert judged == (
        NeedleAnswer("multi", 0.0, first.expected, True, f"{first.expected} and nothing else", plan.question, first.subject),
        NeedleAnswer("multi", 1.0, second.expected, False, f"{first.expected} and nothing else", plan.question, second.subject),
    )
    cells = aggregate([(800, judged), (800, answers(plan, f"{first.expected} {second.expected}")), (2400, answers(plan, ""))])
    assert cells == (
        NeedleCell("multi", 800, 0.0, 2, 2),
        NeedleCell("multi", 800, 1.0, 2, 1),
        NeedleCell("multi", 2400, 0.0, 1, 0),
        NeedleCell("multi", 2400, 1.0, 1, 0),
    )
    assert recall(cells) == 0.5


def test_nothing_asked_is_not_full_recall() -> None:
    assert recall([]) is None
    assert aggregate([]) == ()


def test_a_long_answer_is_cut_for_the_report_only() -> None:
    plan = plan_needles("single", [0.5], seed=1, key="k")
    told = answers(plan, "x" * 5000)[0]
    cut = shown("p", 800, told)
    assert len(told.answer) == 5000
    assert len(cut.told.answer) == SHOWN_CHARS + 1
    assert (cut.point_id, cut.input_tokens, cut.told.question) == ("p", 800, plan.question)
