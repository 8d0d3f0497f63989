"""One validation run: plan the ladder, send it, gather the evidence, judge, and leave everything on disk.

``validate`` is the one entry; the command line and the Ansible module both call it. It needs the standard library, and
``tokenizers`` and ``numpy`` for prompts. What is measured is on disk at once: ``requests.jsonl`` (one line per request,
fsynced) and ``run.json`` after each point (``complete`` false until the end).
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import hashlib
import json
import platform
import re
import secrets
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..client.connection import Buffer
from ..client.control import ControlClient, Reply, ServerUnreachable
from ..client.endpoint import Endpoint
from ..client.exchange import Timeouts
from ..client.load import Job, LagMonitor, RecordWriter, run_burst
from ..client.stream import StreamClient
from ..engines.base import EngineAdapter, ServerInfo
from ..engines.diagnosis import last_words
from ..engines.metrics import has_counters, parse_counters, parse_models
from ..engines.registry import get_engine
from ..errors import UserError
from ..files import write_atomic
from ..models.architecture import ModelArchitecture
from ..physics import roofline
from ..physics.hardware import Gpu
from ..prompts.facts import PromptFacts
from ..prompts.needles import KINDS, NeedleKind, NeedlePlan, aggregate, answers, plan_needles
from ..prompts.needles import recall as needle_recall
from ..prompts.needles import shown as shown_needle
from ..results import (
    AskedNeedle,
    CapacityFacts,
    Counters,
    KvSample,
    NeedleCell,
    Physics,
    PointResult,
    Reason,
    RequestRecord,
    RequestStatus,
    RunResult,
    Verdict,
    dump_run,
    load_run,
    to_jsonable,
    worst,
)
from ..stats import median, summarize
from ..version import Version, __version__
from .evidence import (
    cache_finding,
    delta,
    queue_s,
    traffic,
)
from .forecast import Expectation, Forecaster, Measured, concurrency_note, within_budget
from .verdict import (
    DISTINCT_NOTED,
    Limits,
    PointEvidence,
    implausible_rates,
    judge_needles,
    judge_point,
    judge_regression,
    meets_slo,
)

if TYPE_CHECKING:
    from ..prompts.factory import PromptFactory, TextPrompt

_CONTROL_TIMEOUT_S = 10.0
# Reasons that say nothing about the server: such a point may be measured again.
CIRCUMSTANCES = frozenset({"client_lag", "foreign_traffic"})
_DRAIN_S = 60.0  # how long a dropped request may linger in the server's gauges
_LAST_WORDS_S = 2.0  # how long a supervisor may take to write what a process said last
_SETTLE_S = 3.0  # how long counters may trail the last byte of an answer
_SAMPLE_LEAST_S = 0.5
_WARM_UP_TOKENS = 10_000  # more than one prefill chunk of either engine (8,192): every kernel has run once


@dataclass(frozen=True)
class Point:
    """One rung of the ladder: tokens in, tokens out, requests in flight."""

    input_tokens: int
    output_tokens: int
    concurrency: int = 1

    @property
    def id(self) -> str:
        """Stable name, used in files and to match runs."""
        return f"in{self.input_tokens}-out{self.output_tokens}-c{self.concurrency}"


@dataclass(frozen=True)
class NeedleSettings:
    """Which needles to plant at which depths (0 = start of the text, 1 = just before the question).

    ``single`` sends a prompt for each depth, ``multi`` one prompt that holds all, ``multi_hop`` one for each depth of the
    answer. ``dummy_weights``: the model cannot answer anything; needles are then not applicable, and that is said.
    """

    enabled: bool = False
    kinds: tuple[NeedleKind, ...] = ("multi",)
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    dummy_weights: bool = False


@dataclass(frozen=True)
class Progress:
    """One step of a run, for people. ``left_s`` is a forecast, ``kv_usage`` 0..1, ``done`` of ``total`` requests or points."""

    stage: str
    point_id: str | None
    message: str
    elapsed_s: float
    left_s: float | None = None
    kv_usage: float | None = None
    done: int = 0
    total: int = 0


@dataclass(frozen=True)
class ValidateConfig:
    """Everything a run depends on. ``None`` means unknown or not wanted, never a default in disguise.

    ``model``: served name, ``None`` asks ``/v1/models``. ``points`` run in this order. ``mode`` cold proves a computed
    prefill; warm sends each prompt once untimed and then measures the prefix cache. ``transport`` ids sends token ids,
    text a chat message (gateways). ``seed`` ``None`` draws one and records it. ``hardware``: (GPU, count); ``calibrate``
    times a matrix product instead, for a CPU engine on this machine. ``weights_dtype``/``kv_dtype`` sharpen the floor.
    ``kv_cache_tokens`` is the engine's own pool size. ``cache_salt``/``flush``: keep earlier prompts of anybody out of the
    way; off to see what a repeated prompt looks like. ``proxy``: go through it (the environment's is never used).
    ``attempts``: how often a point is measured, each time with fresh prompts, when only the circumstances spoilt it (a client
    that lagged, strangers on the server); every attempt stays in ``requests.jsonl``.
    ``timeout_floor_s``: added to every time-out that the forecast gives (a busy host, first use of kernels).
    """

    url: str
    engine: str
    host: str
    out_dir: Path
    run_id: str
    points: tuple[Point, ...]
    engine_version: str | None = None
    model: str | None = None
    context_tokens: int | None = None
    tokenizer_dir: Path | None = None
    vocab_size: int | None = None
    corpus_dir: Path | None = None
    corpus_source: Path | None = None
    seed: int | None = None
    repeats: int = 1
    warmup: bool = True
    mode: str = "cold"
    transport: str = "ids"
    api_key: str | None = None
    limits: Limits = field(default_factory=Limits)
    budget_s: float | None = None
    architecture: ModelArchitecture | None = None
    hardware: tuple[Gpu, int] | None = None
    calibrate: bool = False
    calibrate_python: str | None = None
    weights_dtype: str | None = None
    kv_dtype: str = "auto"
    kv_cache_tokens: int | None = None
    max_running: int | None = None
    needles: NeedleSettings = field(default_factory=NeedleSettings)
    capacity: CapacityFacts | None = None
    baseline: Path | None = None
    environment: Mapping[str, Any] = field(default_factory=dict)
    cache_salt: bool = True
    flush: bool = True
    proxy: str | None = None
    timeout_floor_s: float = 30.0
    headers: Mapping[str, str] = field(default_factory=dict)
    attempts: int = 3


def validate(
    config: ValidateConfig,
    on_progress: Callable[[Progress], None],
    server_log: Callable[[], Sequence[str]] | None = None,
) -> RunResult:
    """Run the whole ladder and judge it. Raises UserError before anything is sent where the input is wrong.

    Server errors never raise: they become FAIL with a reason, and the rest of the ladder is still tried. ``server_log``: what the
    server logged from now on and since the last call, where that can be read; asked when the server died.
    """
    _check(config)
    return asyncio.run(_Run(config, on_progress, server_log).run())


def _check(config: ValidateConfig) -> None:
    get_engine(config.engine)
    Endpoint.parse(config.url)
    if not config.points:
        raise UserError("an empty ladder", "at least one point", "set context_test_ladder (or --ladder)")
    for point in config.points:
        for name, value in (("input", point.input_tokens), ("output", point.output_tokens), ("concurrency", point.concurrency)):
            if isinstance(value, bool) or value < 1:
                raise UserError(f"{name} {value} in the ladder", "a whole number of at least 1", "correct the ladder")
        _fits_context(point, config.context_tokens)
    if len({p.id for p in config.points}) != len(config.points):
        raise UserError("the same point twice in the ladder", "distinct points", "use repeats instead")
    if config.repeats < 1:
        raise UserError(f"{config.repeats} repeats", "at least 1", "correct repeats")
    if config.attempts < 1:
        raise UserError(f"{config.attempts} attempts", "at least 1", "set context_test_attempts (or --attempts)")
    if config.mode not in ("cold", "warm"):
        raise UserError(f"mode {config.mode!r}", "cold or warm", "correct the mode")
    if config.transport not in ("ids", "text"):
        raise UserError(f"transport {config.transport!r}", "ids or text", "correct the transport")
    if config.engine_version:
        Version.parse(config.engine_version)
    if config.tokenizer_dir is None and config.vocab_size is None:
        raise UserError("neither a tokenizer nor a vocabulary size", "one of them, to make prompts", "pass --tokenizer DIR")
    if config.tokenizer_dir is None and (config.needles.enabled or config.transport == "text"):
        raise UserError("needles or text prompts without a tokenizer", "the model's tokenizer", "pass --tokenizer DIR")
    unknown = [k for k in config.needles.kinds if k not in KINDS]
    if unknown:
        raise UserError(f"needle kind {unknown[0]!r}", "one of " + ", ".join(KINDS), "correct the kind")
    if config.baseline is not None:
        load_run(config.baseline)


def _fits_context(point: Point, context_tokens: int | None) -> None:
    if context_tokens is not None and point.input_tokens + point.output_tokens > context_tokens:
        raise UserError(
            f"a point of {point.input_tokens:,} + {point.output_tokens:,} tokens",
            f"at most {context_tokens:,}, the served context",
            "shorten the point or serve a longer context",
        )


@dataclass
class _Server:
    """What the server said of itself before the run."""

    model: str = ""
    version: str = ""
    context_tokens: int | None = None
    kv_cache_tokens: int | None = None
    info: ServerInfo = field(default_factory=ServerInfo)
    tokenizes: bool | None = None
    load_path: str | None = None  # the one of the adapter's load_paths that answered; "" where none did


class _Gone(Exception):
    """The server does not answer any more."""


class _Run:
    def __init__(
        self,
        config: ValidateConfig,
        on_progress: Callable[[Progress], None],
        server_log: Callable[[], Sequence[str]] | None = None,
    ) -> None:
        self.config = config
        self.server_log = server_log
        self.adapter: EngineAdapter = get_engine(config.engine)
        self.on_progress = on_progress
        self.began = time.perf_counter()
        self.started_unix_s = time.time()
        self.seed = config.seed if config.seed is not None else secrets.randbits(31)
        self.salt = f"{config.run_id}-{secrets.token_hex(8)}"
        endpoint = Endpoint.parse(config.url)
        self.client = StreamClient(endpoint, api_key=config.api_key, headers=config.headers, proxy=config.proxy)
        self.control = ControlClient(endpoint, api_key=config.api_key, headers=config.headers, proxy=config.proxy)
        self.server = _Server()
        self.hardware = config.hardware
        self.hardware_note: str | None = None
        self.calibrated = False
        self.forecaster = Forecaster()
        self.factory: PromptFactory | None = None
        self.points: list[PointResult] = []
        self.cells: list[tuple[int, tuple[Any, ...]]] = []
        self.asked: list[AskedNeedle] = []
        self.run_reasons: list[Reason] = []
        self.lag = LagMonitor()
        self.writer: RecordWriter | None = None
        self.dead: str | None = None
        self.text_overhead = 0
        self.leftovers = False
        self.recalibrations = 0
        self.corpus_note: str | None = None
        self.queue: list[Point] = list(config.points)

    # -- the run

    async def run(self) -> RunResult:
        async with self.client, self.control:
            self.writer = RecordWriter(self.config.out_dir / "requests.jsonl")
            try:
                await self._meet()
                self._prepare_physics()
                self._prepare_prompts()
                self._show_plan()
                await self._align_text()
                await self._warm_up()
                await self._ladder()
                if self.leftovers:
                    # A server whose engine died may answer for seconds more.
                    await self._hear("request_failed", "the server's log says", named=True)
            finally:
                self.writer.close()
            return self._finish()

    def say(self, stage: str, message: str, **more: Any) -> None:
        self.on_progress(Progress(stage, more.pop("point_id", None), message, time.perf_counter() - self.began, **more))

    # -- getting to know the server

    async def _call(
        self, method: str, path: str, body: Mapping[str, Any] | None = None, timeout_s: float = _CONTROL_TIMEOUT_S
    ) -> Reply:
        try:
            return await self.control.call(method, path, body, timeout_s=timeout_s)
        except ServerUnreachable as exc:
            raise _Gone(str(exc)) from exc

    async def _meet(self) -> None:
        """Ask for the served name and context. A server that is not there, or refuses us, is a usage error: nothing ran."""
        config = self.config
        self.say("connect", f"asking {self.client.endpoint.url} what it serves")
        try:
            reply = await self._call("GET", self.adapter.models_path)
        except _Gone as exc:
            raise UserError(f"no server at {config.url} ({exc})", "a running engine", "start it, or correct the url") from exc
        if reply.status in (401, 403):
            raise UserError(f"the server refused the key (HTTP {reply.status})", "its API key", "pass --api-key-file") from None
        cards = parse_models(reply.json()) if reply.status == 200 else []
        names = [name for name, _ in cards]
        if config.model is not None:
            self.server.model = config.model
            if names and config.model not in names:
                raise UserError(f"model {config.model!r}", "one of " + ", ".join(names), "use the served name")
        elif names:
            self.server.model = names[0]
        else:
            words = f"{self.adapter.models_path} answered HTTP {reply.status} without a model"
            raise UserError(words, "the served name", "pass --model, or correct the url")
        self.server.context_tokens = next((length for name, length in cards if name == self.server.model), None)
        await self._ask_details()
        for point in config.points:
            _fits_context(point, self.server.context_tokens)

    async def _ask_details(self) -> None:
        for path in self.adapter.info_paths:
            with contextlib.suppress(_Gone):
                reply = await self._call("GET", path)
                if reply.status == 200:
                    self.server.info = self.adapter.parse_info(reply.json())
                    break
        self.server.version = self.server.version or self.server.info.version or ""
        self.server.kv_cache_tokens = self.config.kv_cache_tokens or self.server.info.kv_cache_tokens
        if self.config.engine_version:
            self.server.version = self.config.engine_version

    # -- preparing

    def _prepare_physics(self) -> None:
        config = self.config
        if config.architecture is None:
            return
        if self.hardware is None and config.calibrate:
            self.say("calibrate", "timing a matrix product: this hardware has no published peak")
            try:
                self.hardware = (roofline.calibrate_cpu(config.calibrate_python), 1)
                self.calibrated = True
            except UserError as exc:
                self.hardware_note = f"no physical floor: {exc.found}"
        if self.hardware is None:
            self.hardware_note = self.hardware_note or "no physical floor: the hardware is not known"
            return
        arch, (gpu, count) = config.architecture, self.hardware

        def cost(tokens: int) -> float:
            return roofline.prefill_floor(arch, gpu, count, tokens, dtype=config.weights_dtype, kv_dtype=config.kv_dtype).flop

        peak = roofline.prefill_floor(arch, gpu, count, 8192, dtype=config.weights_dtype, kv_dtype=config.kv_dtype)
        longest = max(p.input_tokens for p in config.points)
        decode = roofline.decode_floor(arch, gpu, count, longest, dtype=config.weights_dtype, kv_dtype=config.kv_dtype)
        self.forecaster = Forecaster(cost, peak.peak_flop_per_s, decode_floor_s=decode.floor_s)

    def _prepare_prompts(self) -> None:
        from ..prompts.build import ensure_corpus, recommended_tokens
        from ..prompts.corpus import random_ids_corpus
        from ..prompts.factory import PromptFactory

        config = self.config
        tokens = recommended_tokens(max(p.input_tokens for p in config.points))
        if config.tokenizer_dir is None:
            corpus = random_ids_corpus(config.vocab_size or 0, tokens, seed=self.seed)
        else:
            self.say("corpus", f"opening {tokens:,} tokens of corpus")
            corpus = ensure_corpus(
                tokens=tokens,
                cache_dir=config.corpus_dir,
                tokenizer=config.tokenizer_dir,
                source=config.corpus_source,
                extend=config.corpus_source is not None,
                progress=lambda p: self.say("corpus", f"{p.stage}: {p.tokens:,} tokens after {p.elapsed_s:.0f} s"),
            )
        chat: bool | None = None
        if config.needles.enabled and corpus.tokenizer is not None and corpus.tokenizer.chat_template:
            try:
                import jinja2  # noqa: F401
            except ImportError:
                chat = False  # a host without Jinja: plain prompts, the needles stay askable
        self.factory = PromptFactory(corpus, self.seed, chat=chat)
        share = corpus.meta.distinct_16gram_share
        if share < DISTINCT_NOTED:
            self.corpus_note = (
                f"the corpus repeats itself: {100 * share:.1f}% of its 16-token windows are distinct, {100 * DISTINCT_NOTED:.1f}% "
                "expected; prefill times of a dense model do not depend on it, needles and the routing of experts do"
            )
            self.say("corpus", self.corpus_note)

    # -- planning

    def _needle_groups(self, point: Point) -> list[tuple[NeedleKind, tuple[float, ...]]]:
        needles = self.config.needles
        if not needles.enabled or needles.dummy_weights:
            return []
        groups: list[tuple[NeedleKind, tuple[float, ...]]] = []
        for kind in needles.kinds:
            if kind == "multi":
                groups.append((kind, needles.depths))
            elif kind == "single":
                groups += [(kind, (d,)) for d in needles.depths]
            else:
                groups += [(kind, (0.9 if d < 0.5 else 0.1, d)) for d in needles.depths]
        return groups

    def _repeats(self, point: Point) -> int:
        """Rounds of a point: enough for every cell of the needle grid."""
        return max(self.config.repeats, -(-len(self._needle_groups(point)) // point.concurrency))

    def _expect(self, point: Point) -> Expectation:
        repeats = self._repeats(point) * (2 if self.config.mode == "warm" else 1)
        return self.forecaster.expect(point.input_tokens, point.output_tokens, point.concurrency, repeats)

    def _fits(self, point: Point) -> tuple[int | None, int | None]:
        return concurrency_note(
            point.input_tokens, point.output_tokens, point.concurrency, self.server.kv_cache_tokens, self.config.max_running
        )

    def _forecast(self, points: Sequence[Point]) -> float | None:
        """Expected seconds of these points in all; ``None`` where any rests on assumptions alone."""
        found = [self._expect(p) for p in points]
        return None if any(e.basis == "assumed" for e in found) else sum(e.total_s for e in found)

    def _about(self, point: Point) -> str:
        expected = self._expect(point)
        if expected.basis == "assumed":
            return "time unknown until a first prompt is measured"
        return f"about {_seconds(expected.total_s)} ({expected.basis})"

    def _show_plan(self) -> None:
        for number, point in enumerate(self.config.points, 1):
            fits, queued = self._fits(point)
            note = ""
            if fits is not None and point.concurrency > 1:
                note = f"; {fits:,} fit at once, {queued:,} will queue"
            self.say(
                "plan",
                f"{point.input_tokens:,} in, {point.output_tokens:,} out, {point.concurrency} in flight, "
                f"{self._repeats(point)}x: {self._about(point)}{note}",
                point_id=point.id,
                left_s=self._forecast([point]),
                done=number,
                total=len(self.config.points),
            )
        total = self._forecast(self.config.points)
        about = f", about {_seconds(total)} in all" if total is not None else ""
        budget = f", budget {_seconds(self.config.budget_s)}" if self.config.budget_s is not None else ""
        self.say("plan", f"{len(self.config.points)} points{about}{budget}", left_s=total)
        if self.hardware_note:
            self.say("plan", self.hardware_note)

    # -- sending

    async def _jobs(self, point: Point, repeat: int, *, warmup: bool, groups: Sequence[Any] = ()) -> list[Job]:
        """The requests of one round, serialised before any clock starts."""
        key = f"{point.id}/r{repeat}"
        return [
            await self._job(point, i, repeat, warmup=warmup, key=f"{key}/i{i}", groups=groups) for i in range(point.concurrency)
        ]

    async def _job(self, point: Point, index: int, repeat: int, *, warmup: bool, key: str, groups: Sequence[Any] = ()) -> Job:
        assert self.factory is not None  # noqa: S101 - made by _prepare_prompts
        begun = time.perf_counter()
        plan: NeedlePlan | None = None
        if groups:
            kind, depths = groups[(repeat * point.concurrency + index) % len(groups)]
            plan = plan_needles(kind, depths, seed=self.seed, key=key)
        salt = None
        if self.config.cache_salt and self.config.mode == "cold":
            # Hashed: vLLM takes 128 characters at most, and neither '@' nor '/'.
            salt = hashlib.sha256(f"{self.salt}-{key}".encode()).hexdigest()[:32]
        parts: tuple[Buffer, ...]
        facts: PromptFacts
        if self.config.transport == "text":
            text = await self._text_prompt(point.input_tokens, key, plan)
            path, parts = "/v1/chat/completions", (self._chat_body(text.text, point.output_tokens, salt),)
            facts = text
        else:
            prompt = self.factory.prompt(point.input_tokens, seed_key=key, needles=plan)
            version = Version.parse(self.server.version) if _is_version(self.server.version) else None
            template = self.adapter.generate_ids(self.server.model, point.output_tokens, cache_salt=salt, version=version)
            path, parts = template.path, (template.head, *prompt.ids_json, template.tail)
            facts = prompt
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

    # -- text prompts, for gateways and chat endpoints that take no ids

    def _chat_body(self, text: str, output_tokens: int, salt: str | None) -> bytes:
        body: dict[str, Any] = {
            "model": self.server.model,
            "messages": [{"role": "user", "content": text}],
            "max_tokens": output_tokens,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
            "ignore_eos": True,
            "min_tokens": output_tokens,
        }
        if salt is not None and self.adapter.takes_cache_salt:
            body["cache_salt"] = salt
        return json.dumps(body, separators=(",", ":")).encode()

    async def _text_prompt(self, tokens: int, key: str, plan: NeedlePlan | None) -> TextPrompt:
        """A prompt as text, aligned to the server's own count: its /tokenize, else our tokenizer plus what usage taught us."""
        factory = self.factory
        assert factory is not None  # noqa: S101 - made by _prepare_prompts
        tokenizer = factory.corpus.tokenizer
        assert tokenizer is not None  # noqa: S101 - _check demands one for text
        loop = asyncio.get_running_loop()

        def count(text: str) -> int:
            if self.server.tokenizes is not False:
                told = asyncio.run_coroutine_threadsafe(self._server_count(text), loop).result()
                if told is not None:
                    return told
            return len(tokenizer.encode(text)) + self.text_overhead

        return await asyncio.to_thread(factory.text_prompt, tokens, seed_key=key, count=count, needles=plan)

    async def _server_count(self, text: str) -> int | None:
        """Tokens of a chat message by the server's /tokenize; ``None`` (and never asked again) where it has none."""
        body = {"model": self.server.model, "messages": [{"role": "user", "content": text}], "add_generation_prompt": True}
        try:
            reply = await self._call("POST", "/tokenize", body, timeout_s=60.0)
        except _Gone:
            return None
        answer = reply.json() if reply.status == 200 else None
        count = answer.get("count") if isinstance(answer, Mapping) else None
        self.server.tokenizes = isinstance(count, int)
        return count if isinstance(count, int) else None

    async def _align_text(self) -> None:
        """Without /tokenize: learn from usage how many tokens the server adds, with small untimed prompts of their own."""
        if self.config.transport != "text":
            return
        await self._server_count("probe")
        for attempt in range(4):
            if self.server.tokenizes:
                self.say("align", "text prompts are counted by the server's own /tokenize")
                return
            point = Point(max(64, min(p.input_tokens for p in self.config.points)), 1, 1)
            job = await self._job(point, 0, -1, warmup=True, key=f"align/{attempt}")
            record = (await self._burst([job], self._timeouts(point)))[0]
            if record.prompt_tokens is None:
                self.say(
                    "align", f"the server's count is not known ({record.error or 'no usage'}): text lengths are our own count"
                )
                return
            error = record.prompt_tokens - record.input_tokens
            if error == 0:
                self.say("align", f"text prompts are exact; the server adds {self.text_overhead} tokens (chat template)")
                return
            self.text_overhead += error
        self.say("align", "text prompts cannot be aligned exactly to the server's count: see each point's token error")

    def _timeouts(self, point: Point) -> Timeouts:
        floor_s = self.config.timeout_floor_s
        limits = self.forecaster.deadlines(point.input_tokens, point.output_tokens, point.concurrency, floor_s=floor_s)
        return Timeouts(first_token_s=limits.first_token_s, stall_s=limits.stall_s, total_s=limits.total_s)

    async def _warm_up(self) -> None:
        """One small untimed request with a prompt of its own: first use of kernels is not the model's speed."""
        if not self.config.warmup:
            return
        smallest = min(self.config.points, key=lambda p: (p.input_tokens, p.output_tokens))
        point = Point(min(smallest.input_tokens, _WARM_UP_TOKENS), min(smallest.output_tokens, 16), 1)
        self.say("warm-up", f"one untimed prompt of {point.input_tokens:,} tokens", point_id=smallest.id)
        job = replace(await self._job(point, 0, -1, warmup=True, key="warm-up"), point_id=smallest.id)
        records = await self._burst([job], self._timeouts(point))
        record = records[0]
        if record.status is RequestStatus.OK and record.ttft_s is not None:
            self.forecaster = self.forecaster.learn(Measured(point.input_tokens, record.ttft_s, record.tpot_s))
        else:
            self.say("warm-up", f"failed: {record.error}", point_id=smallest.id)

    async def _burst(
        self, jobs: Sequence[Job], timeouts: Timeouts, on_record: Callable[[RequestRecord], None] | None = None
    ) -> list[RequestRecord]:
        assert self.writer is not None  # noqa: S101 - opened by run
        writer = self.writer

        def keep(record: RequestRecord) -> None:
            writer.add(record)
            self.leftovers = self.leftovers or record.status is not RequestStatus.OK
            if on_record is not None:
                on_record(record)

        return await run_burst(self.client, jobs, self.adapter, timeouts, lag=self.lag, on_record=keep)

    async def _ladder(self) -> None:
        config = self.config
        for number, point in enumerate(config.points):
            expected = self._expect(point)
            spent = time.perf_counter() - self.began
            # Nothing is skipped on an assumption: the first prompt is what the rest is forecast from.
            known = expected.basis != "assumed"
            if known and not within_budget([expected.total_s], config.budget_s, spent)[0]:
                left = _seconds(max(0.0, (config.budget_s or 0) - spent))
                budget = f"{left} of the budget of {_seconds(config.budget_s)} are left"
                text = f"not run: needs about {_seconds(expected.total_s)}; {budget}"
                self._skip(point, Reason(Verdict.INCONCLUSIVE, "not_run", text), expected.total_s)
            elif (gone := await self._is_gone()) is not None:
                self._skip(point, Reason(Verdict.FAIL, "server_dead", f"not run: {gone}"), expected.total_s)
            else:
                self.points.append(await self._measured(point, self._forecast(config.points[number:])))
                self._write(self._result(complete=False))
            last = self.points[-1]
            why = f": {last.reasons[0].text}" if last.reasons else ""
            ttft = f", TTFT p50 {last.ttft_s.p50:.3f} s" if last.ttft_s else ""
            self.say(
                "point",
                f"{last.verdict.value}{ttft}{why}",
                point_id=point.id,
                left_s=self._forecast(config.points[number + 1 :]),
                done=number + 1,
                total=len(config.points),
            )

    async def _measured(self, point: Point, left_s: float | None) -> PointResult:
        """The point, measured again where nothing but the circumstances speaks against it."""
        result = await self._point(point, left_s)
        while (
            result.attempts < self.config.attempts
            and result.reasons
            and all(r.code in CIRCUMSTANCES for r in result.reasons)
            and (await self._is_gone()) is None
        ):
            self.say("point", f"measured again with fresh prompts: {result.reasons[0].text}", point_id=point.id, left_s=left_s)
            result = await self._point(point, left_s, attempt=result.attempts)
        return result

    def _skip(self, point: Point, reason: Reason, expected_s: float) -> None:
        fits, queued = self._fits(point)
        self.points.append(
            PointResult(
                point.id, point.input_tokens, point.output_tokens, point.concurrency, reason.verdict, (reason,),
                ran=False, repeats=self._repeats(point), fits_at_once=fits, will_queue=queued, expected_s=expected_s,
            )
        )  # fmt: skip
        self._write(self._result(complete=False))

    async def _is_gone(self) -> str | None:
        """Why the server is proven dead, or ``None``. A refused connection twice in a row is proof, a slow answer is not."""
        for attempt in (1, 2):
            try:
                await self.control.call("GET", self.adapter.models_path, timeout_s=_CONTROL_TIMEOUT_S)
            except ServerUnreachable as exc:
                if exc.timed_out:
                    return None
                if attempt == 2:
                    await self._hear("server_dead", "the server is gone, its log says", wait_s=_LAST_WORDS_S)
                    return f"the server is gone ({exc.reason})"
                await asyncio.sleep(0.3)
            else:
                return None
        return None

    async def _hear(self, code: str, how: str, *, named: bool = False, wait_s: float = 0.0) -> None:
        """Once: what the server's log says of its end, as the first reason of the run. Lines may trail the death by ``wait_s``."""
        if self.server_log is None:
            return
        read, self.server_log = self.server_log, None
        lines: list[str] = []
        until = time.perf_counter() + wait_s
        with contextlib.suppress(UserError):
            while True:
                fresh = await asyncio.to_thread(read)
                lines += fresh
                if time.perf_counter() >= until or (not fresh and last_words(lines, self.adapter, named=True)):
                    break
                await asyncio.sleep(0.2)
        words = last_words(lines, self.adapter, named=named)
        if words is not None:
            self.run_reasons.append(Reason(Verdict.FAIL, code, f"{how}: {words}"))
            self.say("server", self.run_reasons[-1].text)

    async def _counters(self) -> Counters | None:
        """The server's counters; where it shows none, its gauges (``has_counters`` tells); ``None`` where it says nothing."""
        with contextlib.suppress(_Gone):
            reply = await self._call("GET", self.adapter.metrics_path)
            if reply.status == 200:
                found = parse_counters(reply.body, self.adapter.metrics)
                if has_counters(found):
                    return await self._as_of_now(found) if self.adapter.metrics.gauges_lag else found
            return await self._gauges()
        return None

    async def _as_of_now(self, counters: Counters) -> Counters:
        """Counters of a server whose gauges lag, with what runs and waits now; unknown where it does not tell."""
        now = None
        # A scheduler that is in the middle of a long chunk answers late: the counters stand all the same.
        with contextlib.suppress(_Gone):
            now = await self._gauges()
        return replace(counters, running=now.running if now else None, waiting=now.waiting if now else None)

    async def _gauges(self) -> Counters | None:
        """What runs and waits, where the engine tells it beside its metrics."""
        if self.server.load_path == "":
            return None
        for path in self.adapter.load_paths if self.server.load_path is None else (self.server.load_path,):
            reply = await self._call("GET", path)
            found = self.adapter.parse_load(reply.json(), self.server.kv_cache_tokens) if reply.status == 200 else None
            if found is not None:
                self.server.load_path = path
                return found
        self.server.load_path = self.server.load_path or ""
        return None

    async def _settled_counters(self, before: Counters | None, records: Sequence[RequestRecord]) -> Counters | None:
        """The counters once they have caught up with what we know to have been served."""
        after = await self._counters()
        if not has_counters(before) or not has_counters(after):
            return after
        prompt = sum(r.input_tokens for r in records if r.status is RequestStatus.OK)
        output = sum(min(r.completion_tokens or 0, r.output_tokens) for r in records if r.status is RequestStatus.OK)
        deadline = time.perf_counter() + _SETTLE_S
        while time.perf_counter() < deadline and after is not None:
            moved = delta(before, after)
            busy = bool(after.running) or bool(after.waiting)
            if (
                moved is not None
                and (moved.prompt_tokens or 0) >= prompt
                and (moved.generation_tokens or 0) >= output
                and not busy
            ):
                break
            await asyncio.sleep(0.1)
            after = await self._counters()
        return after

    async def _await_idle(self, point: Point) -> None:
        """After a failed request: let the server drop it, or it would be taken for someone else's."""
        if not self.leftovers:
            return
        self.leftovers = False
        deadline = time.perf_counter() + _DRAIN_S
        while time.perf_counter() < deadline:
            counters = await self._counters()
            if counters is None or not ((counters.running or 0) + (counters.waiting or 0)):
                return
            self.say("drain", "waiting for the server to drop a request that failed", point_id=point.id)
            await asyncio.sleep(1.0)

    async def _flush(self) -> None:
        if not self.config.flush or self.config.mode == "warm":
            return
        version = Version.parse(self.server.version) if _is_version(self.server.version) else Version((0, 0, 0))
        request = self.adapter.flush_cache(version)
        if request is not None:
            with contextlib.suppress(_Gone):
                await self._call(request.method, request.path, request.body)

    async def _sample(
        self,
        point: Point,
        began: float,
        series: list[KvSample],
        *,
        state: dict[str, int],
        left_s: float | None,
        over: asyncio.Event,
    ) -> None:
        """KV use and queue while a point runs; also what the progress line shows."""
        pause = max(_SAMPLE_LEAST_S, min(10.0, self._expect(point).total_s / 100))
        # The flag, because cancelling alone can be lost: before Python 3.12 wait_for swallows a cancellation that meets the
        # end of what it waits for.
        while not over.is_set():
            await asyncio.sleep(pause)
            counters = await self._counters()
            if over.is_set():
                return
            elapsed = time.perf_counter() - began
            usage = counters.kv_usage if counters is not None else None
            if counters is not None:
                series.append(KvSample(elapsed, usage, counters.running, counters.waiting))
            self.say(
                "running",
                f"{state['done']} of {state['total']} requests done",
                point_id=point.id,
                left_s=None if left_s is None else max(0.0, left_s - elapsed),
                kv_usage=usage,
                done=state["done"],
                total=state["total"],
            )

    async def _point(self, point: Point, left_s: float | None, attempt: int = 0) -> PointResult:
        config = self.config
        repeats = self._repeats(point)
        # The number of a round is part of its prompts' seed: no attempt repeats a prompt of another.
        rounds = range(attempt * repeats, (attempt + 1) * repeats)
        expected = self._expect(point)
        groups = self._needle_groups(point)
        self.say(
            "point",
            f"{point.input_tokens:,} tokens in, {point.output_tokens:,} out, {point.concurrency} in flight, "
            f"{repeats}x: {self._about(point)}",
            point_id=point.id,
            left_s=left_s,
            total=repeats * point.concurrency,
        )
        await self._await_idle(point)
        await self._flush()
        timed: list[RequestRecord] = []
        state = {"done": 0, "total": repeats * point.concurrency}
        series: list[KvSample] = []

        def count(record: RequestRecord) -> None:
            state["done"] += 1

        if config.mode == "warm":
            for repeat in rounds:
                primers = await self._jobs(point, repeat, warmup=True, groups=groups)
                await self._burst(primers, self._timeouts(point))
        before = await self._counters()
        began = time.perf_counter()
        over = asyncio.Event()
        sampler = asyncio.ensure_future(self._sample(point, began, series, state=state, left_s=left_s, over=over))
        burst_s = 0.0
        server_dead: str | None = None
        try:
            for repeat in rounds:
                jobs = await self._jobs(point, repeat, warmup=False, groups=groups)
                begun = time.perf_counter()
                records = await self._burst(jobs, self._timeouts(point), count)
                burst_s += time.perf_counter() - begun
                timed += records
                if any(r.status is not RequestStatus.OK for r in records):
                    server_dead = await self._is_gone()
                    if server_dead is not None or all(r.status is RequestStatus.TIMEOUT for r in records):
                        break  # more rounds would only wait for the same time-out again
        finally:
            over.set()
            sampler.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await sampler
        ended = time.perf_counter()
        after = None if server_dead else await self._settled_counters(before, timed)
        result = self._judge(
            point, timed, before=before, after=after, series=series, began=began, ended=ended, burst_s=burst_s,
            repeats=repeats, expected=expected, server_dead=server_dead,
        )  # fmt: skip
        self._learn(point, timed)
        result = replace(result, attempts=attempt + 1)
        for record in timed:
            if record.needles:
                self.cells.append((record.input_tokens, record.needles))
                self.asked += [shown_needle(point.id, record.input_tokens, told) for told in record.needles]
        return result

    def _learn(self, point: Point, records: Sequence[RequestRecord]) -> None:
        ok = [r for r in records if r.status is RequestStatus.OK and r.ttft_s is not None]
        if not ok or self.config.mode == "warm" or any((r.cached_tokens or 0) > r.input_tokens // 10 for r in ok):
            return
        # The last first-token of a burst waited for all the prefills before it.
        ttft = (
            median([r.ttft_s or 0.0 for r in ok])
            if point.concurrency == 1
            else max(r.ttft_s or 0.0 for r in ok) / point.concurrency
        )
        tpots = [r.tpot_s for r in ok if r.tpot_s is not None]
        self.forecaster = self.forecaster.learn(Measured(point.input_tokens, ttft, median(tpots) if tpots else None))

    # -- judging

    def _physics(self, point: Point, ok: Sequence[RequestRecord]) -> Physics | None:
        config = self.config
        times = [r.ttft_s for r in ok if r.ttft_s is not None]
        if config.architecture is None or self.hardware is None or not times:
            return None
        arch, (gpu, count) = config.architecture, self.hardware

        def floor(concurrency: int) -> roofline.Floor:
            return roofline.prefill_floor(
                arch, gpu, count, point.input_tokens,
                dtype=config.weights_dtype, kv_dtype=config.kv_dtype, concurrency=concurrency,
            )  # fmt: skip

        # The quickest request is bounded by one prompt; the last of each burst by all prompts of the burst.
        lone = floor(1)
        bound, measured, together = lone, min(times), 1
        if point.concurrency > 1:
            full = [r for r in ok if r.ttft_s is not None]
            lasts = [
                max(group)
                for repeat in {r.repeat for r in full}
                if len(group := [r.ttft_s or 0.0 for r in full if r.repeat == repeat]) == point.concurrency
            ]
            if lasts:
                all_of_them = floor(point.concurrency)
                if min(lasts) / all_of_them.floor_s < measured / lone.floor_s:
                    bound, measured, together = all_of_them, min(lasts), point.concurrency
        ratio = roofline.floor_ratio(bound, measured)
        share = None
        if ratio < 1:
            share = roofline.explaining_cached_share(
                arch, gpu, count, point.input_tokens, measured,
                dtype=config.weights_dtype, kv_dtype=config.kv_dtype, concurrency=together,
            )  # fmt: skip
        typical = median(times) if together == 1 else measured
        decode = roofline.decode_floor(
            arch, gpu, count, point.input_tokens,
            dtype=config.weights_dtype, kv_dtype=config.kv_dtype, output_tokens=point.output_tokens,
        )  # fmt: skip
        return Physics(
            floor_s=bound.floor_s,
            ratio=ratio,
            mfu=roofline.mfu(bound.flop, typical, bound.peak_flop_per_s),
            flop=bound.flop,
            peak_flop_per_s=bound.peak_flop_per_s,
            peak_source=bound.peak_source,
            decode_floor_s=decode.floor_s,
            explaining_cached_share=share,
        )

    def _recalibrate(self) -> bool:
        """Before a calibrated ceiling condemns a point, time it once more: the first time, the host may have been busy."""
        if not self.calibrated or self.recalibrations >= 2 or self.hardware is None:
            return False
        self.recalibrations += 1
        try:
            again = roofline.calibrate_cpu(self.config.calibrate_python)
        except UserError:
            return False
        if again.peak("bf16") <= self.hardware[0].peak("bf16"):
            return False
        self.hardware = (again, 1)
        return True

    def _judge(
        self,
        point: Point,
        records: Sequence[RequestRecord],
        *,
        before: Counters | None,
        after: Counters | None,
        series: Sequence[KvSample],
        began: float,
        ended: float,
        burst_s: float,
        repeats: int,
        expected: Expectation,
        server_dead: str | None,
    ) -> PointResult:
        config = self.config
        ok = [r for r in records if r.status is RequestStatus.OK]
        moved = delta(before, after)
        others = traffic(moved, records) if moved is not None else None
        cache = cache_finding(records, moved, others, cache_off=self.server.info.prefix_cache_off)
        physics = self._physics(point, ok)
        if physics is not None and physics.ratio < config.limits.floor_ratio and self._recalibrate():
            physics = self._physics(point, ok)
        # Standing still for 2% of a TTFT is no matter: only longer stops are added up.
        matters_s = max(0.05, 0.02 * median([r.ttft_s or 0.0 for r in ok])) if ok else 0.05
        verdict, reasons = judge_point(
            PointEvidence(
                records=records,
                moved=moved,
                traffic=others,
                cache=cache,
                physics=physics,
                warm_mode=config.mode == "warm",
                exact_ids=config.transport == "ids",
                foreign_running=_strangers(point, before, series),
                watched=self._watched(before, series),
                distinct_share=self._distinct_share(records),
                repetition_matters=self._repetition_matters(point),
                lag_share=self.lag.share(began, ended, of_s=burst_s, over_s=matters_s),
                server_dead=server_dead,
                limits=config.limits,
            )
        )
        fits, queued = self._fits(point)
        tokens_out = sum(r.completion_tokens or 0 for r in ok)
        errors = [abs(r.prompt_tokens - r.input_tokens) for r in ok if r.prompt_tokens is not None]
        rates = [(r.prompt_tokens or r.input_tokens) / r.ttft_s for r in ok if r.ttft_s] if point.concurrency == 1 else []
        return PointResult(
            point_id=point.id,
            input_tokens=point.input_tokens,
            output_tokens=point.output_tokens,
            concurrency=point.concurrency,
            verdict=verdict,
            reasons=reasons,
            repeats=repeats,
            completed=len(ok),
            failed=sum(r.status not in (RequestStatus.OK, RequestStatus.TIMEOUT) for r in records),
            timed_out=sum(r.status is RequestStatus.TIMEOUT for r in records),
            cache_state=cache.state,
            cached_share=cache.share,
            token_error_max=max(errors) if errors else None,
            ttft_s=summarize(r.ttft_s for r in ok),
            tpot_s=summarize(r.tpot_s for r in ok),
            itl_s=summarize(gap for r in ok for gap in r.itl_s),
            e2e_s=summarize(r.e2e_s for r in ok),
            build_s=summarize(r.build_s for r in ok),
            upload_s=summarize(r.upload_s for r in ok),
            prefill_tokens_per_s=summarize(rates),
            output_tokens_per_s=tokens_out / burst_s if burst_s > 0 and tokens_out else None,
            goodput_per_s=sum(meets_slo(r, config.limits) for r in ok) / burst_s if burst_s > 0 else None,
            requests_per_s=len(ok) / burst_s if burst_s > 0 else None,
            before=before,
            after=after,
            kv_series=tuple(series),
            physics=physics,
            fits_at_once=fits,
            will_queue=queued,
            client_lag_s=max((r.client_lag_s or 0.0 for r in records), default=None),
            expected_s=expected.total_s,
            wall_s=ended - began,
            server_queue_s=queue_s(before, after),
        )

    def _watched(self, before: Counters | None, series: Sequence[KvSample]) -> str | None:
        """Where the gauges of a server without counters were read, and how often."""
        if before is None or not self.server.load_path:
            return None
        return f"{self.server.load_path}, {1 + len(series)}x"

    def _distinct_share(self, records: Sequence[RequestRecord]) -> float | None:
        """Of the point's first prompt, where the corpus repeats itself at all (a long prompt takes a second or so)."""
        first = next((r for r in records if r.prompt_start is not None), None)
        if self.corpus_note is None or self.factory is None or first is None or first.prompt_start is None:
            return None
        from ..prompts.ids import distinct_ngram_share

        corpus = self.factory.corpus
        return distinct_ngram_share(corpus.ids(first.prompt_start, min(corpus.n_tokens, first.prompt_start + first.input_tokens)))

    def _repetition_matters(self, point: Point) -> str | None:
        uses = ["needles"] if self._needle_groups(point) else []
        if self.config.architecture is not None and self.config.architecture.is_moe:
            uses.append("the routing of a mixture of experts")
        return " and ".join(uses) or None

    def _needle_cells(self) -> tuple[tuple[NeedleCell, ...], float | None, str | None]:
        needles = self.config.needles
        if not needles.enabled:
            return (), None, None
        if needles.dummy_weights:
            return (), None, "not applicable: the weights are random (load format dummy), no answer means anything"
        cells = aggregate(self.cells)
        return cells, needle_recall(cells), None

    def _result(self, *, complete: bool) -> RunResult:
        config = self.config
        odd = implausible_rates(self.points) if config.mode == "cold" else {}
        points = tuple(_with_reason(p, odd[p.point_id]) if p.point_id in odd else p for p in self.points)
        cells, recall, note = self._needle_cells()
        reasons = list(self.run_reasons)
        if complete:
            applicable = config.needles.enabled and not config.needles.dummy_weights
            reasons += judge_needles(recall, config.limits.needle_recall, applicable)
            if config.baseline is not None:
                reasons += judge_regression(points, load_run(config.baseline))
        for point in points:
            reasons += [Reason(r.verdict, r.code, f"{point.point_id}: {r.text}") for r in point.reasons]
        verdict = worst([*(p.verdict for p in points), *(r.verdict for r in reasons)])
        return RunResult(
            run_id=config.run_id,
            host=config.host,
            url=config.url,
            engine=config.engine,
            engine_version=self.server.version,
            model=self.server.model,
            started_unix_s=self.started_unix_s,
            finished_unix_s=time.time(),
            verdict=verdict,
            reasons=tuple(reasons),
            points=points,
            settings=self._settings(),
            environment={**_client_environment(), **config.environment, "server": dict(self.server.info.details)},
            capacity=config.capacity,
            needles=cells,
            needle_recall=recall,
            needle_note=note,
            mode=config.mode,
            complete=complete,
            needle_answers=tuple(self.asked),
        )

    def _settings(self) -> dict[str, Any]:
        config = self.config
        return {
            "seed": self.seed,
            "repeats": config.repeats,
            "warmup": config.warmup,
            "mode": config.mode,
            "transport": config.transport,
            "context_tokens": config.context_tokens or self.server.context_tokens,
            "kv_cache_tokens": self.server.kv_cache_tokens,
            "budget_s": config.budget_s,
            "limits": to_jsonable(config.limits),
            "needles": to_jsonable(config.needles),
            "cache_salt": config.cache_salt,
            "flush": config.flush,
            "corpus": self.factory.corpus.fingerprint if self.factory else None,
            "gpu": self.hardware[0].name if self.hardware else None,
            "gpu_count": self.hardware[1] if self.hardware else None,
            "physics_note": self.hardware_note,
            "corpus_note": self.corpus_note,
            "baseline": config.baseline.name if config.baseline else None,
        }

    def _finish(self) -> RunResult:
        result = self._result(complete=True)
        self._write(result)
        self.say("done", result.verdict.value, left_s=0.0, done=len(self.points), total=len(self.points))
        return result

    def _write(self, result: RunResult) -> None:
        write_run(self.config.out_dir / "run.json", result)


def write_run(path: Path, result: RunResult) -> None:
    """Replace ``path`` atomically, on disk when this returns. Raises UserError where it cannot be written."""
    try:
        write_atomic(path, dump_run(result))
    except UserError as exc:
        raise UserError(exc.found, exc.required, "choose another --out") from exc


def _with_reason(point: PointResult, reason: Reason) -> PointResult:
    return replace(point, verdict=worst((point.verdict, reason.verdict)), reasons=(*point.reasons, reason))


def _strangers(point: Point, before: Counters | None, series: Sequence[KvSample]) -> float:
    """Requests of others seen in the server's gauges: any before the point began, and more than ours while it ran."""
    seen = (before.running or 0.0) + (before.waiting or 0.0) if before is not None else 0.0
    return max([seen, *((s.running or 0.0) + (s.waiting or 0.0) - point.concurrency for s in series)])


def _is_version(text: str) -> bool:
    return re.match(r"v?\d+(\.\d+)*", text) is not None


def _seconds(value: float | None) -> str:
    """Seconds for people: 12 s, 3 min 20 s, 2 h 5 min."""
    if value is None:
        return "?"
    if value < 10:
        return f"{value:.1f} s"
    if value < 120:
        return f"{value:.0f} s"
    if value < 7200:
        return f"{int(value // 60)} min {int(value % 60)} s"
    return f"{int(value // 3600)} h {int(value % 3600 // 60)} min"


def _client_environment() -> dict[str, Any]:
    return {"longhaul": __version__, "client_python": platform.python_version(), "client_platform": sys.platform}
