"""What is known of a prompt apart from its bytes: what travels from the factory to the record of its request."""

from __future__ import annotations

from dataclasses import dataclass

from .needles import Needle


@dataclass(frozen=True)
class PromptFacts:
    """Where a prompt came from and what it holds.

    ``n_tokens``: the length that was asked for. ``start``: first corpus token of the text. ``nonce``: ids joined by commas, or
    the characters of a text prompt. ``sha256``: of what is sent (the JSON array of ids, or the text). ``shared_prefix_tokens``:
    tokens before the nonce (a chat template's head), the only ones that a prefix cache may rightly hold. ``corpus``: the
    corpus' fingerprint.
    """

    n_tokens: int
    start: int
    nonce: str
    sha256: str
    needles: tuple[Needle, ...]
    seed_key: str
    shared_prefix_tokens: int
    corpus: str
