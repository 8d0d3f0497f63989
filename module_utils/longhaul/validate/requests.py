"""The requests of a run, serialised before any clock starts: prompts of their own, salted, with needles, aligned where text."""

from __future__ import annotations

import asyncio
import functools
import hashlib
import importlib.util
import json
import secrets
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from ..client.connection import Buffer
from ..client.load import Job
from ..engines.base import EngineAdapter
from ..prompts.facts import PromptFacts
from ..prompts.needles import NeedlePlan, answers, plan_needles
from ..results import RequestRecord
from .config import NeedleGroup, Point, ValidateConfig
from .progress import Reporter
from .server import Server
from .verdict import DISTINCT_NOTED

if TYPE_CHECKING:
    from ..prompts.factory import PromptFactory, TextPrompt

_ALIGN_LEAST_TOKENS = 64
_ALIGN_ATTEMPTS = 4


@dataclass(frozen=True)
class PromptSource:
    """Where a run's prompts come from. ``note``: that the corpus repeats itself, where it does."""

    factory: PromptFactory
    note: str | None

    def distinct_share(self, records: Sequence[RequestRecord]) -> float | None:
        """The share of distinct 16-token windows of the first prompt, where the corpus repeats itself at all.

        ``None`` elsewhere: a long prompt takes a second or so to check.
        """
        first = next((r for r in records if r.prompt_start is not None), None)
        if self.note is None or first is None or first.prompt_start is None:
            return None
        from ..prompts.ids import distinct_ngram_share

        corpus = self.factory.corpus
        return distinct_ngram_share(corpus.ids(first.prompt_start, min(corpus.n_tokens, first.prompt_start + first.input_tokens)))


def open_prompts(config: ValidateConfig, seed: int, reporter: Reporter) -> PromptSource:
    """Open (or build) a corpus that is long enough for every point. Needs numpy, and tokenizers where there is one."""
    from ..prompts.build import ensure_corpus, recommended_tokens
    from ..prompts.corpus import random_ids_corpus
    from ..prompts.factory import PromptFactory

    tokens = recommended_tokens(max(p.input_tokens for p in config.points))
    if config.tokenizer_dir is None:
        reporter.say("corpus", f"no tokenizer: prompts are random ids of a vocabulary of {config.vocab_size:,}")
        corpus = random_ids_corpus(config.vocab_size or 0, tokens, seed=seed)
    else:
        reporter.say("corpus", f"opening {tokens:,} tokens of corpus")
        corpus = ensure_corpus(
            tokens=tokens,
            cache_dir=config.corpus_dir,
            tokenizer=config.tokenizer_dir,
            source=config.corpus_source,
            extend=config.corpus_source is not None,
            progress=lambda p: reporter.say("corpus", f"{p.stage}: {p.tokens:,} tokens after {p.elapsed_s:.0f} s"),
        )
    chat: bool | None = None
    templated = config.needles.enabled and corpus.tokenizer is not None and corpus.tokenizer.chat_template
    if templated and importlib.util.find_spec("jinja2") is None:
        chat = False  # a host without Jinja: plain prompts, the needles stay askable
    share = corpus.meta.distinct_16gram_share
    note = None
    if share < DISTINCT_NOTED:
        note = (
            f"the corpus repeats itself: {100 * share:.1f}% of its 16-token windows are distinct, {100 * DISTINCT_NOTED:.1f}% "
            "expected; prefill times of a dense model do not depend on it, needles and the routing of experts do"
        )
        reporter.say("corpus", note)
    return PromptSource(PromptFactory(corpus, seed, chat=chat), note)


@dataclass
class RequestMaker:
    """Makes the requests of one run. Prompts follow from ``seed`` and the request's key; the cache salt is the run's own.

    ``text_overhead_tokens``: what the server adds to a text prompt beyond our own count.
    """

    config: ValidateConfig
    adapter: EngineAdapter
    server: Server
    factory: PromptFactory
    seed: int
    salt: str = field(default_factory=lambda: secrets.token_hex(8))
    text_overhead_tokens: int = 0

    async def round_jobs(self, point: Point, repeat: int, *, warmup: bool) -> list[Job]:
        """The requests of one round of a point; the number of the round is part of its prompts' seed."""
        groups = self.config.needles.groups
        return [
            await self.job(point, f"{point.id}/r{repeat}/i{index}", index=index, repeat=repeat, warmup=warmup, needles=group)
            for index in range(point.concurrency)
            for group in [groups[(repeat * point.concurrency + index) % len(groups)] if groups else None]
        ]

    async def job(
        self, point: Point, key: str, *, index: int = 0, repeat: int = -1, warmup: bool = True, needles: NeedleGroup | None = None
    ) -> Job:
        """One request; by default an untimed one outside the rounds."""
        begun = time.perf_counter()
        plan = plan_needles(*needles, seed=self.seed, key=key) if needles is not None else None
        salt = self._cache_salt(key)
        path: str
        parts: tuple[Buffer, ...]
        facts: PromptFacts
        model = self.server.facts.model
        if self.config.transport == "text":
            facts = text = await self._text_prompt(point.input_tokens, key, plan)
            chat = self.adapter.chat(model, text.text, point.output_tokens, cache_salt=salt)
            path, parts = chat.path, (json.dumps(chat.body, separators=(",", ":")).encode(),)
        else:
            facts = prompt = self.factory.prompt(point.input_tokens, seed_key=key, needles=plan)
            template = self.adapter.generate_ids(model, point.output_tokens, cache_salt=salt)
            path, parts = template.path, (template.head, *prompt.ids_json, template.tail)
        return Job(
            point_id=point.id,
            index=index,
            repeat=repeat,
            warmup=warmup,
            input_tokens=point.input_tokens,
            output_tokens=point.output_tokens,
            path=path,
            parts=parts,
            build_s=time.perf_counter() - begun,
            prompt=facts,
            judge=functools.partial(answers, plan) if plan is not None else None,
        )

    def _cache_salt(self, key: str) -> str | None:
        if not self.config.cache_salt or self.config.mode != "cold":
            return None
        # Hashed: vLLM takes 128 characters at most, and neither '@' nor '/'.
        return hashlib.sha256(f"{self.config.run_id}-{self.salt}-{key}".encode()).hexdigest()[:32]

    async def _text_prompt(self, tokens: int, key: str, plan: NeedlePlan | None) -> TextPrompt:
        """A prompt as text, aligned to the server's own count: its /tokenize, else our tokenizer plus what usage taught us."""
        from ..prompts.chat import chat_counter

        server, tokenizer = self.server, self.factory.corpus.tokenizer
        assert tokenizer is not None  # noqa: S101 - check_config demands one for text
        own_count = chat_counter(tokenizer)
        loop = asyncio.get_running_loop()

        def count(text: str) -> int:
            if server.tokenizes is not False:
                told = asyncio.run_coroutine_threadsafe(server.count_tokens(text), loop).result()
                if told is not None:
                    return told
            return own_count(text) + self.text_overhead_tokens

        return await asyncio.to_thread(self.factory.text_prompt, tokens, seed_key=key, count=count, needles=plan)


async def align_text(maker: RequestMaker, send: Callable[[Job, Point], Awaitable[RequestRecord]], reporter: Reporter) -> None:
    """Learn from usage how many tokens a server without /tokenize adds to text, with small untimed prompts of their own."""
    config, server = maker.config, maker.server
    if config.transport != "text":
        return
    await server.count_tokens("probe")
    point = Point(max(_ALIGN_LEAST_TOKENS, min(p.input_tokens for p in config.points)), 1, 1)
    for attempt in range(_ALIGN_ATTEMPTS):
        if server.tokenizes:
            reporter.say("align", "text prompts are counted by the server's own /tokenize")
            return
        record = await send(await maker.job(point, f"align/{attempt}"), point)
        if record.prompt_tokens is None:
            why = record.error or "no usage"
            reporter.say("align", f"the server's count is not known ({why}): text lengths are our own count")
            return
        error = record.prompt_tokens - record.input_tokens
        if error == 0:
            added = maker.text_overhead_tokens
            words = f"text prompts are exact; the server counts {added} tokens more than the tokenizer and its chat template"
            reporter.say("align", words)
            return
        maker.text_overhead_tokens += error
    reporter.say("align", "text prompts cannot be aligned exactly to the server's count: see each point's token error")
