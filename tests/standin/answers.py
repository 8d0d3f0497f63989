"""What the stand-in says: filler tokens, or the needles it finds by decoding a prompt of ids with a tokenizer.json."""

from __future__ import annotations

import json
import re
from pathlib import Path

FILLER = " word"


def _byte_of_char() -> dict[str, int]:
    """GPT-2's printable alphabet for bytes, inverted (the scheme of byte-level BPE tokenizers)."""
    kept = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(b): b for b in kept}
    extra = 0
    for byte in range(256):
        if byte not in kept:
            table[chr(256 + extra)] = byte
            extra += 1
    return table


class Decoder:
    """Token ids -> text, from the vocabulary of a byte-level BPE tokenizer.json."""

    def __init__(self, path: str) -> None:
        data = json.loads(Path(path).read_text(encoding="utf-8"))
        table = _byte_of_char()
        self._bytes: dict[int, bytes] = {}
        for token, number in data["model"]["vocab"].items():
            self._bytes[number] = bytes(table[c] for c in token) if all(c in table for c in token) else token.encode()
        for added in data.get("added_tokens", ()):
            self._bytes[added["id"]] = added["content"].encode()

    def text(self, ids: tuple[int, ...]) -> str:
        """The decoded prompt."""
        return b"".join(self._bytes.get(i, b"?") for i in ids).decode("utf-8", "replace")


def answer_numbers(text: str, how: str) -> str:
    """Every long number planted in a text, right or with its last digit changed."""
    found = list(dict.fromkeys(re.findall(r"\b\d{5,}\b", text)))
    if how == "wrong":
        found = [n[:-1] + str((int(n[-1]) + 1) % 10) for n in found]
    return " " + ", ".join(found) if found and how != "none" else ""
