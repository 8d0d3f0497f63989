"""Prompts of an exact number of tokens, cut from a corpus without copying it.

A prompt is ``head + nonce + intro + text with planted facts + question``. The nonce stands within the first block of 16
tokens, so that no prefix cache of any server can match anything after the head; the text is one run of the corpus from a
random, recorded start, so nothing repeats inside. All choices follow from (seed, seed_key): both engines get the same prompts.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import UserError
from .chat import Frame, chat_frame, plain_frame
from .corpus import Corpus
from .facts import PromptFacts
from .ids import render_ids
from .needles import NeedlePlan
from .tokenizer import Tokenizer

NONCE_TOKENS = 16
TEXT_SHARED_TOKENS = 64
"""Tokens allowed before a text prompt's nonce: a chat template's head stands there, and its size is not known from outside."""

_MOST_ROUNDS = 16
Piece = bytes | memoryview


@dataclass(frozen=True)
class Prompt(PromptFacts):
    """One prompt of token ids as it goes on the wire.

    ``ids_json``: pieces whose concatenation is the JSON array of exactly ``n_tokens`` ids (pieces of the memory map where
    possible: hand them to the transport one by one).
    """

    ids_json: tuple[Piece, ...]
    json_bytes: int

    def ids(self) -> list[int]:
        """All ids as a list (for tests and small prompts: copies and parses the whole prompt)."""
        return [int(i) for i in json.loads(b"".join(self.ids_json))]


@dataclass(frozen=True)
class TextPrompt(PromptFacts):
    """A prompt as text. ``counted_tokens`` is the counter's last word, ``residual_tokens`` = counted - asked (0: exact)."""

    text: str
    counted_tokens: int
    residual_tokens: int
    rounds: int


class PromptFactory:
    """Cuts prompts from a corpus.

    ``chat``: wrap needle prompts in the tokenizer's chat template (``None``: when it has one). Prompts without needles are
    never wrapped: their ids are corpus text and nonce alone.
    """

    def __init__(self, corpus: Corpus, seed: int = 0, *, chat: bool | None = None) -> None:
        self.corpus = corpus
        self.seed = seed
        self._frame: Frame | None = None
        self._chat = chat

    def prompt(
        self, input_tokens: int, *, seed_key: str, needles: NeedlePlan | None = None, prefix_ids: Sequence[int] = ()
    ) -> Prompt:
        """Make a prompt of exactly ``input_tokens`` ids. ``prefix_ids`` come first (a BOS token, say), before everything else.

        Raises UserError: too short for its needles and frame; corpus too short; needles without a tokenizer.
        """
        if input_tokens < 1:
            raise UserError(f"a prompt of {input_tokens} tokens", "at least 1", "correct the input length")
        frame = Frame((), (), (), ())
        facts: list[tuple[float, tuple[int, ...]]] = []
        end: tuple[int, ...] = ()
        if needles is not None:
            tokenizer = self._tokenizer("needles")
            frame = self._needle_frame(tokenizer)
            facts = [(f.depth, tokenizer.encode(f"\n\n{f.text}\n\n")) for f in needles.facts]
            # The answer's first words are given, as RULER does: the model answers at once, and no template or habit of
            # thinking aloud uses up the few output tokens of a timed request.
            end = frame.before_question + tokenizer.encode(needles.question) + frame.tail + tokenizer.encode(needles.cue)
        head = (*prefix_ids, *frame.head)
        fixed = len(head) + len(frame.intro) + sum(len(ids) for _, ids in facts) + len(end)
        nonce = self._nonce(seed_key)[: input_tokens - fixed if needles is None else NONCE_TOKENS]
        text_tokens = input_tokens - fixed - len(nonce)
        if text_tokens < 0 or not nonce:
            required = f"at least {fixed + NONCE_TOKENS} for its needles and question"
            raise UserError(f"a prompt of {input_tokens} tokens", required, "ask for more")
        start = self._start(seed_key, text_tokens)
        pieces: list[Piece] = [b"[" + render_ids((*head, *nonce, *frame.intro))]
        at = 0
        for depth, ids in facts:
            cut = round(depth * text_tokens)
            if cut > at:
                pieces.append(self.corpus.json(start + at, start + cut))
                at = cut
            pieces.append(render_ids(ids))
        if text_tokens > at:
            pieces.append(self.corpus.json(start + at, start + text_tokens))
        pieces.append(render_ids(end))
        pieces = _closed(pieces)
        digest = hashlib.sha256()
        for piece in pieces:
            digest.update(piece)
        return Prompt(
            ids_json=tuple(pieces),
            n_tokens=input_tokens,
            start=start,
            nonce=",".join(map(str, nonce)),
            sha256=digest.hexdigest(),
            needles=needles.needles if needles else (),
            seed_key=seed_key,
            shared_prefix_tokens=len(head),
            json_bytes=sum(len(p) for p in pieces),
            corpus=self.corpus.fingerprint,
        )

    def text_prompt(
        self, input_tokens: int, *, seed_key: str, count: Callable[[str], int] | None = None, needles: NeedlePlan | None = None
    ) -> TextPrompt:
        """Make a text prompt that the server's own counter counts as ``input_tokens``; for gateways and chat endpoints.

        ``count(text)`` must count what the server will count, chat template included (its ``/tokenize``, or
        ``usage.prompt_tokens`` of a one-token request). Without it the tokenizer at hand counts the bare text. Text is
        decoded from the corpus and re-aligned until the error is 0; after 16 rounds the nearest is returned with its
        residual. Raises UserError: no tokenizer, corpus too short, or the frame alone is longer than asked.
        """
        tokenizer = self._tokenizer("text prompts")
        counter = count or (lambda text: len(tokenizer.encode(text)))
        # The corpus must hold a few tokens more than asked: text may re-tokenize into fewer.
        spare = min(input_tokens // 8 + 64, self.corpus.n_tokens - 1)
        start = self._start(seed_key, min(input_tokens + spare, self.corpus.n_tokens))
        nonce = hashlib.sha256(f"{self.seed}/{seed_key}/nonce".encode()).hexdigest()[:32]

        def assemble(tokens: int, fillers: int) -> str:
            return self._assemble(tokenizer, needles, nonce, start, tokens, fillers)

        room = self.corpus.n_tokens - start
        text = assemble(0, 0)
        overhead = counter(text)
        if overhead > input_tokens:
            required = f"at least {overhead} (nonce, needles, chat template)"
            raise UserError(f"a text prompt of {input_tokens} tokens", required, "ask for more")
        tokens, fillers = min(input_tokens - overhead, room), 0
        best = (overhead - input_tokens, text)
        seen: set[tuple[int, int]] = set()
        rounds = 0
        while rounds < _MOST_ROUNDS:
            rounds += 1
            if (tokens, fillers) in seen:
                # A cycle: the text is cut where neighbouring tokens merge. Cut it elsewhere and fill up with single words.
                tokens, fillers = max(0, tokens - 3), 0
            seen.add((tokens, fillers))
            text = assemble(tokens, fillers)
            residual = counter(text) - input_tokens
            if abs(residual) < abs(best[0]):
                best = (residual, text)
            if residual == 0:
                break
            if abs(residual) > 8:
                tokens, fillers = min(max(0, tokens - residual), room), 0
            elif residual < 0 or fillers >= residual:
                fillers -= residual
            else:
                tokens, fillers = max(0, tokens - residual - fillers), 0
        residual, text = best
        return TextPrompt(
            text=text,
            n_tokens=input_tokens,
            counted_tokens=input_tokens + residual,
            residual_tokens=residual,
            rounds=rounds,
            start=start,
            nonce=nonce,
            sha256=hashlib.sha256(text.encode("utf-8")).hexdigest(),
            needles=needles.needles if needles else (),
            seed_key=seed_key,
            shared_prefix_tokens=TEXT_SHARED_TOKENS,
            corpus=self.corpus.fingerprint,
        )

    def _assemble(
        self, tokenizer: Tokenizer, needles: NeedlePlan | None, nonce: str, start: int, tokens: int, fillers: int
    ) -> str:
        parts = [f"{nonce}\n\n"]
        at = 0
        for fact in needles.facts if needles else ():
            cut = round(fact.depth * tokens)
            parts += [self._text(tokenizer, start + at, start + cut), f"\n\n{fact.text}\n\n"]
            at = cut
        parts += [self._text(tokenizer, start + at, start + tokens), " and" * fillers]
        if needles is not None:
            parts.append(f"\n\n{needles.question}")
        return "".join(parts)

    def _text(self, tokenizer: Tokenizer, start: int, stop: int) -> str:
        # A slice may cut a character in two; the halves decode to U+FFFD.
        return tokenizer.decode(self.corpus.ids(start, stop).tolist()).strip("\ufffd") if stop > start else ""

    def _tokenizer(self, purpose: str) -> Tokenizer:
        if self.corpus.tokenizer is None:
            raise UserError(f"{purpose} with a corpus that has no tokenizer", "the model's tokenizer", "pass --tokenizer DIR")
        return self.corpus.tokenizer

    def _needle_frame(self, tokenizer: Tokenizer) -> Frame:
        if self._frame is None:
            uses_chat = bool(tokenizer.chat_template) if self._chat is None else self._chat
            self._frame = chat_frame(tokenizer) if uses_chat else plain_frame(tokenizer)
        return self._frame

    def _nonce(self, seed_key: str) -> tuple[int, ...]:
        """16 ids that no other seed key gets but for chance (one in alphabet**16)."""
        stream = hashlib.shake_256(f"{self.seed}/{seed_key}/nonce".encode()).digest(8 * NONCE_TOKENS)
        alphabet = self.corpus.alphabet
        picks = [int.from_bytes(stream[i : i + 8], "little") % len(alphabet) for i in range(0, len(stream), 8)]
        return tuple(int(alphabet[p]) for p in picks)

    def _start(self, seed_key: str, text_tokens: int) -> int:
        starts = self.corpus.n_tokens - text_tokens + 1
        if starts < 1:
            required = f"at least {text_tokens}, so that nothing repeats inside the prompt"
            fix = "longhaul corpus build --tokens N with a larger N, or a longer file"
            raise UserError(f"a corpus of {self.corpus.n_tokens} tokens", required, fix)
        digest = hashlib.sha256(f"{self.seed}/{seed_key}/start".encode()).digest()
        return int.from_bytes(digest[:8], "little") % starts


def _closed(pieces: list[Piece]) -> list[Piece]:
    """Turn the comma after the last id into the closing bracket."""
    kept = [p for p in pieces if len(p)]
    last = kept.pop()
    return [*kept, last[:-1] + b"]"] if isinstance(last, bytes) else [*kept, last[:-1], b"]"]
