"""Which events of a stream carry a token: every timestamp of a measurement hangs on it."""

from __future__ import annotations

from typing import Any

import pytest
from longhaul.engines.openai import openai_event
from longhaul.engines.registry import get_engine

USAGE = {"prompt_tokens": 3, "completion_tokens": 1}


@pytest.mark.parametrize(
    ("choice", "usage", "token"),
    [
        ({"text": " Paris"}, None, True),
        ({"text": ""}, None, True),  # a token that decodes to nothing
        ({"text": "", "finish_reason": "length"}, None, True),  # the last token of random weights
        ({"text": "", "finish_reason": "length"}, USAGE, False),  # only the counts
        ({"text": None, "finish_reason": "stop"}, None, False),
        ({"delta": {"role": "assistant", "content": ""}}, None, False),  # a chat stream opens with a role
        ({"delta": {"role": "assistant", "content": "Hi"}}, None, True),
        ({"delta": {"content": ""}}, None, False),
        ({"delta": {"reasoning_content": "so"}}, None, True),
        ({"delta": {}, "finish_reason": "stop"}, None, False),
        (None, USAGE, False),
    ],
)
def test_an_event_carries_a_token(choice: dict[str, Any] | None, usage: dict[str, int] | None, token: bool) -> None:
    assert openai_event({"choices": [choice] if choice else [], "usage": usage}).token is token


def test_sglangs_own_events_count_tokens_up() -> None:
    event = {"text": "", "meta_info": {"completion_tokens": 1, "finish_reason": None}}
    assert get_engine("sglang").parse_event(event, "").token is None
