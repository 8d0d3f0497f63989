"""What an engine adapter answers, and the data it answers with. An adapter knows one engine over all its supported releases."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, runtime_checkable

from ..errors import Finding
from ..models.architecture import ModelArchitecture
from ..physics.hardware import Gpu
from ..results import Counters
from ..version import Version
from .diagnosis import FailureMark, Note, PhaseMark, Throughput
from .settings import EngineSettings
from .sizing import Change, PlanSettings, Sizing, Stage, cut_stages


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
        absent = [f.name for f in fields(self) if getattr(self, f.name) is None]
        return replace(self, **{name: getattr(other, name) for name in absent})


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
    ``usage`` may come with any event. ``error`` is the server's message where the event is an error. ``token``: whether the event
    carries a token although it adds no text (a random-weights model emits tokens that decode to nothing, and half a character
    decodes to nothing too); ``None``: it does where ``usage`` counts more completion tokens than before.
    """

    text: str = ""
    usage: Usage | None = None
    finish_reason: str | None = None
    error: str | None = None
    token: bool | None = False


@dataclass(frozen=True)
class SharedMemory:
    """What an engine's processes need of /dev/shm. ``checked``: the engine looks at its start and dies where it is not there."""

    needed_bytes: int
    checked: bool = False


@runtime_checkable
class EngineAdapter(Protocol):
    """Everything that differs between engines. Methods are pure; ``version`` decides where behaviour changed.

    An adapter inherits from this (or from ``openai.OpenAiEngine``); what has a body here is an answer for engines that have
    nothing of the kind.
    """

    name: str
    # The oldest and the newest release whose rules were read.
    verified: tuple[str, str]
    # The shipped configuration whose attention this engine runs as it does that of the real Llama-4-Scout.
    scout_config: str = "llama-4-scout-text"

    # -- deployment

    # The settings that launch makes something of. It refuses any other that somebody set (rules.refuse_others).
    takes: Collection[str] = ()

    def launch(self, settings: EngineSettings, version: Version) -> Launch:
        """Settings -> argv and environment for that version. Raises UserError for a setting the version lacks."""

    def image(self, version: str) -> str:
        """The container image of that release, with its tag."""

    def shared_memory(self, version: Version, ranks: int, device: str) -> SharedMemory:
        """What the engine's own processes need of /dev/shm; NCCL's share is not counted. ``ranks``: tensor x pipeline parallel."""
        return SharedMemory(0)

    # -- log

    phases: Sequence[PhaseMark]
    failures: Sequence[FailureMark]
    # What stands in the line that opens a start, and what no other engine writes.
    log_opening: str
    log_signatures: Sequence[str]

    def capacity_from_log(self, lines: Iterable[str]) -> EngineCapacity:
        """Read the engine's own capacity figures from its start-up log."""

    def stamp_s(self, line: str) -> float | None:
        """Seconds of a line's time stamp on an arbitrary scale, or ``None``."""
        return None

    def explain_log(self, lines: Sequence[str], capacity: EngineCapacity) -> tuple[Throughput | None, list[Note]]:
        """What the statistics lines of one start say, and what they are not."""
        return None, []

    # -- HTTP: asking about the server

    health_path: str
    models_path: str
    metrics_path: str
    metrics: MetricNames
    # Where the server tells its version and settings, newest first.
    info_paths: Sequence[str]
    # Where it tells what runs now, for an engine that counts nothing unless told to, or whose gauges lag.
    load_paths: Sequence[str] = ()
    # What makes a server show its counters, where it shows none by itself.
    counters_advice: str = ""

    def parse_info(self, answer: Any) -> ServerInfo:
        """The JSON that the first of ``info_paths`` that the server has answers, of any shape."""

    def parse_load(self, answer: Any, pool_tokens: int | None = None) -> Counters | None:
        """The JSON of one of ``load_paths``: what runs and waits now, without counters; ``None`` where it does not say.

        ``pool_tokens``: the KV pool, for an answer that names only what is used of it.
        """
        return None

    def capacity_from_metrics(self, text: str) -> EngineCapacity:
        """The engine's own capacity figures from what /metrics answers, as far as that version tells."""
        return EngineCapacity()

    # -- HTTP: requests

    def generate_ids(self, model: str, output_tokens: int, *, cache_salt: str | None = None) -> BodyTemplate:
        """A streamed request of exactly ``output_tokens`` greedy tokens whose prompt is a list of token ids."""

    def chat(self, model: str, text: str, output_tokens: int, *, cache_salt: str | None = None) -> HttpRequest:
        """A streamed request of exactly ``output_tokens`` greedy tokens whose prompt is one message of a person."""

    def count_tokens(self, model: str, text: str) -> HttpRequest:
        """The request that counts the tokens of such a message, chat template included. A server may not have it."""

    def parse_count(self, answer: Any) -> int | None:
        """The JSON that it answers -> tokens; ``None`` where it does not say."""

    def parse_event(self, event: Mapping[str, Any], text_so_far: str) -> StreamEvent:
        """One decoded SSE payload -> StreamEvent."""

    def error_message(self, status: int, body: bytes) -> str:
        """The server's own words in an HTTP error body, whatever its shape; never empty."""

    def flush_cache(self) -> HttpRequest | None:
        """The request that empties the prefix cache, or ``None`` where the server offers none."""
        return None

    # -- capacity

    # How hybrid KV is turned on where this engine's default is off.
    hybrid_advice: str = "switch hybrid KV on"

    def planned(self, wanted: EngineSettings, settings: PlanSettings) -> PlanSettings:
        """``settings`` as the launch of ``wanted`` makes them: defaults of ours, and what its environment decides."""
        return settings

    def stage_layers(self, layers: int, stages: int) -> list[int]:
        """How many layers each pipeline stage has."""

    def stages(self, model: ModelArchitecture, s: PlanSettings) -> tuple[Stage, ...]:
        """The pipeline stages with their weights per GPU."""
        return cut_stages(model, s, self.stage_layers(len(model.layers), s.pipeline_parallel))

    def sizing(self, model: ModelArchitecture, gpu: Gpu, s: PlanSettings, stages: tuple[Stage, ...] | None = None) -> Sizing:
        """What the engine would do with its memory. ``stages``: weights counted before (they do not depend on the context)."""

    def findings(self, model: ModelArchitecture, gpu: Gpu, s: PlanSettings) -> list[Finding]:
        """What this engine refuses at its start, or does badly, whatever memory there is."""
        return []

    def changes(self, model: ModelArchitecture, gpu: Gpu, s: PlanSettings) -> list[Change]:
        """Single changes of this engine's own settings that could make a plan fit, cheapest first."""
        return []
