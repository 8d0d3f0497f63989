"""The server under test, apart from its measured requests: who it is, what its counters show, whether it still lives."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from ..client.control import ControlClient, ServerUnreachable
from ..engines.base import EngineAdapter, ServerInfo
from ..engines.diagnosis import last_words
from ..engines.metrics import has_counters, parse_counters, parse_models
from ..errors import UserError
from ..results import Counters, Reason, RequestRecord, RequestStatus, Verdict
from .config import Point, ValidateConfig, check_context
from .evidence import delta
from .progress import Reporter

_TOKENIZE_TIMEOUT_S = 60.0
_DRAIN_S = 60.0  # how long a dropped request may linger in the server's gauges
_LAST_WORDS_S = 2.0  # how long a supervisor may take to write what a process said last
_SETTLE_S = 3.0  # how long counters may trail the last byte of an answer


@dataclass(frozen=True)
class ServerFacts:
    """What the server said of itself before the run. ``info``: version and settings, where it shows them."""

    model: str = ""
    version: str = ""
    context_tokens: int | None = None
    kv_cache_tokens: int | None = None
    info: ServerInfo = field(default_factory=ServerInfo)


@dataclass
class Server:
    """One server under test.

    ``server_log``: what the server logged from now on and since the last call, where that can be read. ``facts`` are those of
    :meth:`meet`. ``end``: why the server's log says that it died, once that was read. ``load_path``: the one of the adapter's
    load_paths that answered, "" where none did. ``tokenizes``: whether it counts tokens for us, ``None``: not asked yet.
    """

    control: ControlClient
    adapter: EngineAdapter
    config: ValidateConfig
    reporter: Reporter
    server_log: Callable[[], Sequence[str]] | None = None
    facts: ServerFacts = field(default_factory=ServerFacts)
    end: Reason | None = None
    load_path: str | None = None
    tokenizes: bool | None = None

    # -- who it is

    async def meet(self) -> None:
        """Ask for the served name and context. A server that is not there, or refuses us, is a usage error: nothing ran."""
        config = self.config
        self.reporter.say("connect", f"asking {self.control.endpoint.url} what it serves")
        try:
            reply = await self.control.call("GET", self.adapter.models_path)
        except ServerUnreachable as exc:
            raise UserError(f"no server at {config.url} ({exc})", "a running engine", "start it, or correct the url") from exc
        if reply.status in (401, 403):
            raise UserError(f"the server refused the key (HTTP {reply.status})", "its API key", "pass --api-key-file") from None
        cards = parse_models(reply.json()) if reply.status == 200 else []
        names = [name for name, _ in cards]
        if config.model is not None and names and config.model not in names:
            raise UserError(f"model {config.model!r}", "one of " + ", ".join(names), "use the served name")
        model = config.model if config.model is not None else next(iter(names), None)
        if model is None:
            words = f"{self.adapter.models_path} answered HTTP {reply.status} without a model"
            raise UserError(words, "the served name", "pass --model, or correct the url")
        info = await self._info()
        self.facts = ServerFacts(
            model=model,
            version=config.engine_version or info.version or "",
            context_tokens=next((length for name, length in cards if name == model), None),
            kv_cache_tokens=config.kv_cache_tokens or info.kv_cache_tokens,
            info=info,
        )
        for point in config.points:
            check_context(point, self.facts.context_tokens)

    async def _info(self) -> ServerInfo:
        """Version and settings, from the first of the adapter's paths that the server has."""
        for path in self.adapter.info_paths:
            with contextlib.suppress(ServerUnreachable):
                reply = await self.control.call("GET", path)
                if reply.status == 200:
                    return self.adapter.parse_info(reply.json())
        return ServerInfo()

    async def count_tokens(self, text: str) -> int | None:
        """Tokens of ``text`` as a chat message, by the server's own count; ``None`` where it offers none (``tokenizes`` says so)."""
        request = self.adapter.count_tokens(self.facts.model, text)
        try:
            reply = await self.control.call(request.method, request.path, request.body, timeout_s=_TOKENIZE_TIMEOUT_S)
        except ServerUnreachable:
            return None
        count = self.adapter.parse_count(reply.json()) if reply.status == 200 else None
        self.tokenizes = count is not None
        return count

    # -- what it shows of its work

    async def counters(self) -> Counters | None:
        """The server's counters; where it shows none, its gauges (``has_counters`` tells); ``None`` where it says nothing."""
        with contextlib.suppress(ServerUnreachable):
            reply = await self.control.call("GET", self.adapter.metrics_path)
            if reply.status == 200:
                found = parse_counters(reply.body, self.adapter.metrics)
                if has_counters(found):
                    if not self.adapter.metrics.gauges_lag:
                        return found
                    now = None  # what runs and waits now, where the server tells it
                    # A scheduler that is in the middle of a long chunk answers late: the counters stand all the same.
                    with contextlib.suppress(ServerUnreachable):
                        now = await self.gauges()
                    return replace(found, running=now.running if now else None, waiting=now.waiting if now else None)
            return await self.gauges()
        return None

    async def gauges(self) -> Counters | None:
        """What runs and waits now, where the engine tells it beside its metrics; ``None`` elsewhere."""
        if self.load_path == "":
            return None
        for path in self.adapter.load_paths if self.load_path is None else (self.load_path,):
            reply = await self.control.call("GET", path)
            found = self.adapter.parse_load(reply.json(), self.facts.kv_cache_tokens) if reply.status == 200 else None
            if found is not None:
                self.load_path = path
                return found
        self.load_path = self.load_path or ""
        return None

    async def settled_counters(self, before: Counters | None, records: Sequence[RequestRecord]) -> Counters | None:
        """The counters once they have caught up with what we know to have been served."""
        after = await self.counters()
        if not has_counters(before) or not has_counters(after):
            return after
        ok = [r for r in records if r.status is RequestStatus.OK]
        prompt_tokens = sum(r.input_tokens for r in ok)
        output_tokens = sum(min(r.completion_tokens or 0, r.output_tokens) for r in ok)
        deadline = time.perf_counter() + _SETTLE_S
        while time.perf_counter() < deadline and after is not None:
            moved = delta(before, after)
            counted = (moved.prompt_tokens or 0, moved.generation_tokens or 0) if moved is not None else (-1, -1)
            if counted[0] >= prompt_tokens and counted[1] >= output_tokens and not after.running and not after.waiting:
                break
            await asyncio.sleep(0.1)
            after = await self.counters()
        return after

    # -- what we ask of it between points

    async def await_idle(self, point: Point) -> None:
        """After a failed request, wait until the server dropped it: it would be taken for another client's."""
        deadline = time.perf_counter() + _DRAIN_S
        while time.perf_counter() < deadline:
            counters = await self.counters()
            if counters is None or not ((counters.running or 0) + (counters.waiting or 0)):
                return
            self.reporter.say("drain", "waiting for the server to drop a request that failed", point_id=point.id)
            await asyncio.sleep(1.0)

    async def flush(self) -> None:
        """Empty the prefix cache, where the run wants that and the server offers it."""
        if not self.config.flush or self.config.mode == "warm":
            return
        request = self.adapter.flush_cache()
        if request is not None:
            with contextlib.suppress(ServerUnreachable):
                await self.control.call(request.method, request.path, request.body)

    # -- whether it lives

    async def why_gone(self) -> str | None:
        """Why the server is proven dead, or ``None``. A refused connection twice in a row is proof, a slow answer is not."""
        for pause_s in (0.3, 0.0):
            try:
                await self.control.call("GET", self.adapter.models_path)
                return None
            except ServerUnreachable as exc:
                if exc.timed_out:
                    return None
                reason = exc.reason
            await asyncio.sleep(pause_s)
        await self.read_end("server_dead", "the server is gone, its log says", wait_s=_LAST_WORDS_S)
        return f"the server is gone ({reason})"

    async def read_end(self, code: str, intro: str, *, named: bool = False, wait_s: float = 0.0) -> None:
        """Set ``end`` to the cause of death that the server's log names. Does nothing when called again.

        ``named``: only a cause that we know by name. ``wait_s``: how long lines may trail the death.
        """
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
            self.end = Reason(Verdict.FAIL, code, f"{intro}: {words}")
            self.reporter.say("server", self.end.text)
