"""Random ids: ordinary tokens only, and the same on every machine."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from longhaul.prompts.text import random_id_range, random_ids


@given(st.integers(32, 300_000), st.integers(0, 5))
def test_random_ids_stay_inside_the_vocabulary(vocab: int, seed: int) -> None:
    low, high = random_id_range(vocab)
    ids = random_ids(vocab, 500, seed)
    assert 0 < low <= int(ids.min())
    assert int(ids.max()) < high < vocab


@pytest.mark.parametrize(
    ("vocab", "first_special"), [(202_048, 200_000), (128_256, 128_000), (151_936, 151_643), (129_280, 128_000)]
)
def test_random_ids_avoid_the_special_ids_of_known_vocabularies(vocab: int, first_special: int) -> None:
    """Llama 4, Llama 3, Qwen 2.5 and DeepSeek V3 keep them at the end (their tokenizer configs)."""
    assert random_id_range(vocab)[1] <= first_special


def test_random_ids_are_the_same_everywhere() -> None:
    """Pinned: both engines, and every host, must get the same prompt from the same seed."""
    assert random_ids(202_048, 5, 42).tolist() == random_ids(202_048, 70_000, 42)[:5].tolist()
    assert random_ids(202_048, 3, 42).tolist() == [162733, 159166, 44226]
