"""What an engine adapter must answer. Everything here is pure data and pure functions.

An adapter knows one engine (vLLM, SGLang) over all supported versions: how settings become argv, which log lines mark
the phases of a start, which lines name a failure, what its HTTP looks like and what its counters are called.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from ..results import Counters
from ..version import Version
from .diagnosis import FailureMark, PhaseMark
from .settings import EngineSettings


@dataclass(frozen=True)
class Launch:
    """How to start the engine: ``argv`` follows the python executable (``("-m", "vllm...", ...)``).

    ``env`` holds no secret. ``secret_env`` maps a variable to the file it is read from at the moment of the start, so
    that no secret stands in argv, in the spec on disk, or in what ``docker inspect`` prints.
    """

    argv: tuple[str, ...]
    env: Mapping[str, str]
    secret_env: Mapping[str, str]


@dataclass(frozen=True)
class EngineCapacity:
    """What the engine itself says it holds, read from its log or metrics. Absent figures are ``None``.

    ``kv_cache_tokens`` is the printed token figure, ``max_concurrency`` the printed multiple at ``context_tokens``,
    ``available_kv_gib`` per GPU, ``weights_gib`` per GPU; ``local_kv_tokens`` SGLang's local-attention pool,
    ``kv_blocks`` vLLM's blocks (metrics only).
    """

    kv_cache_tokens: int | None = None
    max_concurrency: float | None = None
    context_tokens: int | None = None
    available_kv_gib: float | None = None
    weights_gib: float | None = None
    local_kv_tokens: int | None = None
    kv_blocks: int | None = None

    def filled_from(self, other: EngineCapacity) -> EngineCapacity:
        """These figures, with ``other``'s where these are absent."""
        return EngineCapacity(
            **{
                f.name: getattr(self, f.name) if getattr(self, f.name) is not None else getattr(other, f.name)
                for f in fields(self)
            }
        )


@dataclass(frozen=True)
class MetricNames:
    """Prometheus series of the engine; ``None`` where it has none. All are summed over label sets.

    ``queue_time``: a histogram of seconds that requests waited, without ``_sum`` and ``_count``. ``gauges_lag``: ``running`` and
    ``waiting`` may still show requests that ended a while ago, so that they prove nothing about now. ``born_at_first_use``: counters
    that the page lacks until they first count something, so that their absence means zero.
    """

    prompt_tokens: str
    generation_tokens: str
    cache_queries_tokens: str | None
    cache_hits_tokens: str | None
    running: str
    waiting: str
    kv_usage: str
    preemptions: str | None
    requests_finished: str | None
    queue_time: str | None = None
    gauges_lag: bool = False
    born_at_first_use: frozenset[str] = frozenset()


@dataclass(frozen=True)
class ServerInfo:
    """What a server says of itself. ``details`` go into the result under the engine's own names."""

    version: str | None = None
    kv_cache_tokens: int | None = None
    prefix_cache_off: bool = False
    details: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class HttpRequest:
    """A request as data: ``body`` is the JSON object, or ``None``."""

    method: str
    path: str
    body: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class BodyTemplate:
    """A generate request with the prompt cut out: the bytes on the wire are ``head + prompt + tail``.

    ``prompt`` is the JSON array of token ids (``[1,2,3]``), so that a multi-megabyte prompt is never copied into a dict.
    """

    path: str
    head: bytes
    tail: bytes


@dataclass(frozen=True)
class Usage:
    """Token counts as the server reports them; ``cached_tokens`` is ``None`` where it says nothing."""

    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None


@dataclass(frozen=True)
class StreamEvent:
    """One server-sent event of a streamed answer.

    ``text`` is the piece added by this event (adapters turn cumulative texts into pieces with ``text_so_far``).
    ``usage`` may come with any event. ``error`` is the server's message where the event is an error.
    """

    text: str = ""
    usage: Usage | None = None
    finish_reason: str | None = None
    error: str | None = None


class EngineAdapter(Protocol):
    """One engine. All methods are pure; ``version`` decides where behaviour changed.

    ``info_paths``: where the server tells its version and settings, newest first. ``load_paths``: where it tells what runs now,
    for an engine that has no counters unless asked or whose gauges lag; may be empty. ``takes_cache_salt``: a request's
    ``cache_salt`` keeps its blocks apart in the prefix cache.
    """

    name: str
    default_port: int
    health_path: str
    models_path: str
    metrics_path: str
    phases: Sequence[PhaseMark]
    failures: Sequence[FailureMark]
    metrics: MetricNames
    info_paths: Sequence[str]
    load_paths: Sequence[str]
    takes_cache_salt: bool

    def launch(self, settings: EngineSettings, version: Version) -> Launch:
        """Settings -> argv and environment for that version. Raises UserError for a setting the version lacks."""
        ...

    def generate_ids(
        self,
        model: str,
        output_tokens: int,
        *,
        seed: int | None = None,
        cache_salt: str | None = None,
        ignore_eos: bool = True,
        version: Version | None = None,
    ) -> BodyTemplate:
        """A streamed request of exactly ``output_tokens`` greedy tokens whose prompt is a list of token ids."""
        ...

    def parse_event(self, event: Mapping[str, Any], text_so_far: str) -> StreamEvent:
        """One decoded SSE payload -> StreamEvent."""
        ...

    def error_message(self, status: int, body: bytes) -> str:
        """The server's own words in an HTTP error body, whatever its shape; never empty."""
        ...

    def flush_cache(self, version: Version) -> HttpRequest | None:
        """The request that empties the prefix cache, or ``None`` where the server offers none."""
        ...

    def parse_info(self, answer: Any) -> ServerInfo:
        """The JSON that the first of ``info_paths`` that the server has answers, of any shape."""
        ...

    def parse_load(self, answer: Any, pool_tokens: int | None = None) -> Counters | None:
        """The JSON of one of ``load_paths``: what runs and waits now, without counters; ``None`` where it does not say.

        ``pool_tokens``: the KV pool, for an answer that names only what is used of it.
        """
        ...

    def capacity_from_log(self, lines: Iterable[str]) -> EngineCapacity:
        """Read the engine's own capacity figures from its start-up log."""
        ...

    def capacity_from_metrics(self, text: str) -> EngineCapacity:
        """The same from what /metrics answers, as far as that version tells."""
        ...
