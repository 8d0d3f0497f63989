"""The made-up engine's server: the stand-in with a log and counters of its own."""

from __future__ import annotations

import sys

from standin import server, start
from standin.options import Options

_page = server.metrics_text


def play(options: Options) -> None:
    """A start that takes no time."""
    for line in ("starting", "loading", f"pool of {options.kv_tokens} tokens"):
        start.say(f"fake: {line}")


if __name__ == "__main__":
    server.metrics_text = lambda state: _page(state).replace("vllm:", "fake:")
    start.play = play
    start.ready = lambda options: start.say("fake: serving")
    sys.exit(server.main())
