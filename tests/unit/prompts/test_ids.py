"""Token ids: their decimal text, and how much of a run repeats itself."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from longhaul.prompts.ids import distinct_ngram_share, render_ids
from longhaul.prompts.text import random_ids


@given(st.lists(st.integers(0, 2**32 - 1)))
def test_rendered_ids_are_their_decimal_text(ids: list[int]) -> None:
    assert render_ids(ids) == "".join(f"{i}," for i in ids).encode()


def test_distinct_share_counts_repeated_windows() -> None:
    once = random_ids(50_000, 1000, 3)
    assert distinct_ngram_share(once) == 1.0
    twice = np.concatenate([once, once])
    # 1985 windows; the second copy's 985 whole windows repeat the first's, the 15 across the seam are new.
    assert distinct_ngram_share(twice) == pytest.approx(1 - 985 / 1985)
