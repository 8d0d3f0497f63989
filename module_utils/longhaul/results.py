"""The result schema: what one validation run leaves behind. Versioned; JSON in and out; no logic beyond that.

Units are in the names. Times are seconds, instants are Unix seconds (UTC). Shares and ratios are 0..1 unless said.
"""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any, TypeVar, cast

from .errors import UserError

SCHEMA_NAME = "longhaul.results"
SCHEMA_VERSION = 1


class Verdict(str, Enum):
    """PASS, FAIL, INVALID (must not be published), INCONCLUSIVE (evidence is missing). Worse is later in ``SEVERITY``."""

    PASS = "PASS"  # noqa: S105 - a verdict, not a password
    INCONCLUSIVE = "INCONCLUSIVE"
    INVALID = "INVALID"
    FAIL = "FAIL"


SEVERITY: tuple[Verdict, ...] = (Verdict.PASS, Verdict.INCONCLUSIVE, Verdict.INVALID, Verdict.FAIL)
EXIT_CODES: Mapping[Verdict, int] = {Verdict.PASS: 0, Verdict.FAIL: 1, Verdict.INVALID: 3, Verdict.INCONCLUSIVE: 4}
EXIT_USAGE = 2
EXIT_INTERNAL = 70  # sysexits.h: EX_SOFTWARE


def worst(verdicts: typing.Iterable[Verdict]) -> Verdict:
    """The worst of several verdicts; INCONCLUSIVE when there is none (nothing was proven)."""
    found = sorted(verdicts, key=SEVERITY.index)
    return found[-1] if found else Verdict.INCONCLUSIVE


class RequestStatus(str, Enum):
    """How one request ended."""

    OK = "ok"
    HTTP_ERROR = "http_error"
    STREAM_ERROR = "stream_error"
    CONNECT_ERROR = "connect_error"
    TIMEOUT = "timeout"


@dataclass(frozen=True)
class NeedleAnswer:
    """One planted fact: where (``depth`` 0..1), what was expected, whether the answer held it.

    ``question`` as it was asked (one question may ask for several facts), ``subject``: whose code is ``expected``.
    """

    kind: str
    depth: float
    expected: str
    found: bool
    answer: str
    question: str | None = None
    subject: str | None = None


@dataclass(frozen=True)
class RequestRecord:
    """One request, as written to ``requests.jsonl`` the moment it ends.

    ``ttft_s`` = first token - ``sent`` (the first byte of the request leaving); ``build_s``, ``connect_s`` and
    ``upload_s`` are the client's own time. ``itl_s`` holds every gap between token events. ``shared_prefix_tokens``: tokens
    before the nonce (a chat template's head), the only ones a prefix cache may rightly hold.
    """

    point_id: str
    index: int
    repeat: int
    warmup: bool
    started_unix_s: float
    status: RequestStatus
    input_tokens: int
    output_tokens: int
    http_status: int | None = None
    error: str | None = None
    build_s: float | None = None
    connect_s: float | None = None
    upload_s: float | None = None
    ttft_s: float | None = None
    tpot_s: float | None = None
    e2e_s: float | None = None
    itl_s: tuple[float, ...] = ()
    body_bytes: int | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    finish_reason: str | None = None
    prompt_sha256: str | None = None
    prompt_start: int | None = None
    nonce: str | None = None
    text: str = ""
    needles: tuple[NeedleAnswer, ...] = ()
    client_lag_s: float | None = None
    shared_prefix_tokens: int = 0


@dataclass(frozen=True)
class Stats:
    """Order statistics of one quantity over the completed requests of a point (linear interpolation)."""

    n: int
    mean: float
    min: float
    p50: float
    p90: float
    p99: float
    max: float


@dataclass(frozen=True)
class Reason:
    """Why a verdict is what it is. ``code`` is stable (``token_error``, ``cached_prompt``...), ``text`` is for people."""

    verdict: Verdict
    code: str
    text: str


@dataclass(frozen=True)
class Counters:
    """Server counters at one instant (cumulative tokens since the server's start, gauges as they stood).

    ``queue_time_s``: seconds that ``queue_times`` requests waited in the server's queue, in all.
    """

    unix_s: float
    prompt_tokens: float | None = None
    generation_tokens: float | None = None
    cache_queries_tokens: float | None = None
    cache_hits_tokens: float | None = None
    running: float | None = None
    waiting: float | None = None
    kv_usage: float | None = None
    preemptions: float | None = None
    requests_finished: float | None = None
    queue_time_s: float | None = None
    queue_times: float | None = None


@dataclass(frozen=True)
class KvSample:
    """KV-cache use (0..1) and queue, sampled while a point runs; ``t_s`` counts from the point's start."""

    t_s: float
    kv_usage: float | None
    running: float | None
    waiting: float | None


@dataclass(frozen=True)
class Physics:
    """The least time a cold prompt can cost on this hardware, and how the measurement stands to it."""

    floor_s: float
    ratio: float
    mfu: float
    flop: float
    peak_flop_per_s: float
    peak_source: str
    decode_floor_s: float | None = None
    explaining_cached_share: float | None = None


@dataclass(frozen=True)
class PointResult:
    """One point of the ladder: (input, output, concurrency). ``ran`` False: listed, with the reason, but not run.

    ``attempts``: how often it was measured because circumstances (a lagging client, strangers) spoilt it; the last counts.
    """

    point_id: str
    input_tokens: int
    output_tokens: int
    concurrency: int
    verdict: Verdict
    reasons: tuple[Reason, ...] = ()
    ran: bool = True
    repeats: int = 1
    completed: int = 0
    failed: int = 0
    timed_out: int = 0
    cache_state: str = "UNKNOWN"
    cached_share: float | None = None
    token_error_max: int | None = None
    ttft_s: Stats | None = None
    tpot_s: Stats | None = None
    itl_s: Stats | None = None
    e2e_s: Stats | None = None
    build_s: Stats | None = None
    upload_s: Stats | None = None
    prefill_tokens_per_s: Stats | None = None
    output_tokens_per_s: float | None = None
    goodput_per_s: float | None = None
    requests_per_s: float | None = None
    before: Counters | None = None
    after: Counters | None = None
    kv_series: tuple[KvSample, ...] = ()
    physics: Physics | None = None
    fits_at_once: int | None = None
    will_queue: int | None = None
    client_lag_s: float | None = None
    expected_s: float | None = None
    wall_s: float | None = None
    attempts: int = 1
    server_queue_s: float | None = None


@dataclass(frozen=True)
class NeedleCell:
    """Needle recall at one (length, depth): ``found`` of ``asked``."""

    kind: str
    input_tokens: int
    depth: float
    asked: int
    found: int


@dataclass(frozen=True)
class AskedNeedle:
    """One needle as asked and answered, for the report; long answers are cut here and whole in ``requests.jsonl``."""

    point_id: str
    input_tokens: int
    told: NeedleAnswer


@dataclass(frozen=True)
class CapacityFacts:
    """Prediction beside the engine's own figure. ``drift`` = engine / predicted - 1; ``exact``: no estimated part."""

    predicted: Mapping[str, Any] = field(default_factory=dict)
    engine: Mapping[str, Any] = field(default_factory=dict)
    drift: float | None = None
    exact: bool = False


@dataclass(frozen=True)
class BurninCheck:
    """One finding of a burn-in: ``verdict`` is ``None`` where the check does not apply here or is recorded only."""

    name: str
    found: str
    required: str
    verdict: Verdict | None

    def __str__(self) -> str:
        word = self.verdict.value if self.verdict else "not judged"
        return f"{word} {self.name}: found: {self.found} | required: {self.required}"


@dataclass(frozen=True)
class GpuLoad:
    """One GPU over a whole burn-in. Clocks in MHz are medians over the samples under load (utilization of 50% or more).

    ``throttled_samples``: loaded samples in which heat, a power brake or the board slowed the clocks down; ``throttle_reasons``:
    every reason seen under load, the harmless power cap too.
    """

    index: int
    samples: int
    loaded_samples: int
    sm_clock_mhz: float | None
    max_sm_clock_mhz: float | None
    power_w_max: float | None
    temperature_c_max: float | None
    throttled_samples: int | None = None
    throttle_reasons: tuple[str, ...] = ()


@dataclass(frozen=True)
class BurninFacts:
    """What a burn-in adds to a run: its checks, the GPUs under load, the all-reduce, how long the start took."""

    checks: tuple[BurninCheck, ...]
    gpus: tuple[GpuLoad, ...] = ()
    allreduce: Mapping[str, Any] | None = None
    start_s: float | None = None


@dataclass(frozen=True)
class RunResult:
    """One validation run against one endpoint."""

    run_id: str
    host: str
    url: str
    engine: str
    engine_version: str
    model: str
    started_unix_s: float
    finished_unix_s: float
    verdict: Verdict
    reasons: tuple[Reason, ...]
    points: tuple[PointResult, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    capacity: CapacityFacts | None = None
    needles: tuple[NeedleCell, ...] = ()
    needle_recall: float | None = None
    needle_note: str | None = None
    mode: str = "cold"
    complete: bool = True
    schema: str = SCHEMA_NAME
    schema_version: int = SCHEMA_VERSION
    burnin: BurninFacts | None = None
    needle_answers: tuple[AskedNeedle, ...] = ()


T = TypeVar("T")


def to_jsonable(value: Any) -> Any:
    """Dataclasses, enums and tuples -> plain JSON types."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_jsonable(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Enum):
        return value.value
    if isinstance(value, Mapping):
        return {str(k): to_jsonable(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [to_jsonable(v) for v in value]
    return value


def from_jsonable(kind: type[T], value: Any) -> T:
    """The inverse of :func:`to_jsonable` for the dataclasses of this module; unknown keys are ignored."""
    return cast(T, _build(kind, value))


def _build(kind: Any, value: Any) -> Any:
    origin = typing.get_origin(kind)
    if origin in (typing.Union, types.UnionType):
        return None if value is None else _build(next(a for a in typing.get_args(kind) if a is not type(None)), value)
    if origin is tuple:
        return tuple(_build(typing.get_args(kind)[0], v) for v in value)
    if isinstance(kind, type) and dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind)
        known = {f.name for f in dataclasses.fields(kind)}
        return kind(**{k: _build(hints[k], v) for k, v in value.items() if k in known})
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(value)
    if kind is float and isinstance(value, int):
        return float(value)
    return value


def load_run(path: Path) -> RunResult:
    """Read a run written by this schema version; anything else is refused in one line (UserError)."""
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as exc:
        raise UserError(f"no result file {path}", "a run directory with <host>.json", "name a folder under results/") from exc
    except (OSError, ValueError) as exc:
        raise UserError(f"{path} cannot be read as JSON ({exc})", "a result file", "restore it from the host") from exc
    if not isinstance(raw, dict) or raw.get("schema") != SCHEMA_NAME:
        raise UserError(f"{path} is not a Longhaul result", f'"schema": "{SCHEMA_NAME}"', "name a <host>.json of a run")
    if raw.get("schema_version") != SCHEMA_VERSION:
        found = f"{path} has schema version {raw.get('schema_version')}"
        raise UserError(found, f"version {SCHEMA_VERSION}", "read it with the Longhaul release that wrote it")
    try:
        return from_jsonable(RunResult, raw)
    except (KeyError, TypeError, ValueError, AttributeError, StopIteration) as exc:
        found = f"{path} does not follow the result schema ({type(exc).__name__}: {exc})"
        raise UserError(found, "a result file as Longhaul wrote it", "fetch it from the host again") from exc


def dump_run(run: RunResult) -> str:
    """A run as indented JSON text, newline at the end."""
    return json.dumps(to_jsonable(run), indent=1, sort_keys=False) + "\n"
