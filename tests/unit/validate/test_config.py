"""What a run refuses before anything is sent."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from longhaul.errors import UserError
from longhaul.validate.config import NeedleSettings, Point
from longhaul.validate.run import validate
from unit.validate.runs import config


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"points": ()}, "empty ladder"),
        ({"points": (Point(0, 5, 1),)}, "input 0"),
        ({"points": (Point(8000, 193, 1),), "context_tokens": 8192}, "8,000 + 193"),
        ({"points": (Point(5, 5), Point(5, 5))}, "same point twice"),
        ({"engine": "tgi"}, "tgi"),
        ({"engine_version": "latest"}, "latest"),
        ({"mode": "hot"}, "hot"),
        ({"vocab_size": None}, "tokenizer"),
        ({"url": "ftp://x"}, "ftp://x"),
        ({"needles": NeedleSettings(enabled=True)}, "needles"),
        ({"baseline": Path("/nonexistent/run.json")}, "no result file"),
    ],
)
def test_wrong_input_is_one_line_before_anything_is_sent(changes: dict[str, Any], words: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        validate(replace(config("http://127.0.0.1:1", tmp_path), **changes), lambda s: None)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
