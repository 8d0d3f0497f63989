"""What a validation run is asked to do, and the check that it can be done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ..client.endpoint import Endpoint
from ..engines.registry import get_engine
from ..errors import UserError
from ..models.architecture import ModelArchitecture
from ..physics.hardware import Gpu
from ..prompts.needles import KINDS, NeedleKind
from ..results import CapacityFacts, load_run
from ..version import Version
from .verdict import Limits

NeedleGroup = tuple[NeedleKind, tuple[float, ...]]


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

    ``single`` sends one prompt per depth, ``multi`` one prompt that holds all needles, ``multi_hop`` one per depth of the
    answer. ``dummy_weights``: the weights are random, so that no answer means anything. Needles are then not applicable, and the
    result says so.
    """

    enabled: bool = False
    kinds: tuple[NeedleKind, ...] = ("multi",)
    depths: tuple[float, ...] = (0.0, 0.25, 0.5, 0.75, 1.0)
    dummy_weights: bool = False

    @property
    def apply(self) -> bool:
        """Whether prompts carry needles and their answers are judged."""
        return self.enabled and not self.dummy_weights

    @property
    def groups(self) -> tuple[NeedleGroup, ...]:
        """The needles of each prompt that the grid needs: their kind and depths. Empty where needles do not apply."""
        groups: list[NeedleGroup] = []
        for kind in self.kinds if self.apply else ():
            if kind == "multi":
                groups.append((kind, self.depths))
            elif kind == "single":
                groups += [(kind, (depth,)) for depth in self.depths]
            else:
                groups += [(kind, (0.9 if depth < 0.5 else 0.1, depth)) for depth in self.depths]
        return tuple(groups)


@dataclass(frozen=True)
class ValidateConfig:
    """Everything a run depends on. ``None`` means unknown or not wanted, never a default in disguise.

    ``model``: served name; ``None`` asks ``/v1/models``. ``points`` run in this order. ``mode``: cold proves a computed
    prefill; warm sends each prompt once untimed and then measures the prefix cache. ``transport``: ids sends token ids,
    text a chat message (gateways). ``seed``: ``None`` draws one and records it. ``hardware``: (GPU, count). ``calibrate``:
    time a matrix product instead, for a CPU engine on this machine. ``weights_dtype`` and ``kv_dtype`` sharpen the floor.
    ``kv_cache_tokens``: the engine's own pool size. ``cache_salt`` and ``flush`` keep everybody's earlier prompts out of the
    way; switch them off to see what a repeated prompt looks like. ``proxy``: go through it (the environment's is never used).
    ``ca_file``: authorities (PEM) to trust beside the system's, for an https url.
    ``attempts``: how often a point is measured, each time with fresh prompts, when only circumstances spoilt it (a client
    that lagged, other clients on the server); every attempt stays in ``requests.jsonl``.
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
    ca_file: Path | None = None
    timeout_floor_s: float = 30.0
    headers: Mapping[str, str] = field(default_factory=dict)
    attempts: int = 3

    def rounds(self, point: Point) -> int:
        """Timed rounds of a point: as many as asked for, and enough for every prompt of the needle grid."""
        return max(self.repeats, -(-len(self.needles.groups) // point.concurrency))


def result_file(path: Path) -> Path:
    """The result of a run, given as the file or as its folder."""
    return path / "run.json" if path.is_dir() else path


def check_config(config: ValidateConfig) -> None:
    """Raise UserError for the first setting that cannot be right, before anything is sent."""
    get_engine(config.engine)
    Endpoint.parse(config.url)
    if not config.points:
        raise UserError("an empty ladder", "at least one point", "set context_test_ladder (or --ladder)")
    for point in config.points:
        for name, value in (("input", point.input_tokens), ("output", point.output_tokens), ("concurrency", point.concurrency)):
            if isinstance(value, bool) or value < 1:
                raise UserError(f"{name} {value} in the ladder", "a whole number of at least 1", "correct the ladder")
        check_context(point, config.context_tokens)
    blind = config.tokenizer_dir is None
    unknown = next((k for k in config.needles.kinds if k not in KINDS), None)
    for wrong, found, required, fix in (
        (len({p.id for p in config.points}) != len(config.points), "the same point twice in the ladder", "distinct points",
         "use repeats instead"),
        (config.repeats < 1, f"{config.repeats} repeats", "at least 1", "correct repeats"),
        (config.attempts < 1, f"{config.attempts} attempts", "at least 1", "set context_test_attempts (or --attempts)"),
        (config.mode not in ("cold", "warm"), f"mode {config.mode!r}", "cold or warm", "correct the mode"),
        (config.transport not in ("ids", "text"), f"transport {config.transport!r}", "ids or text", "correct the transport"),
        (blind and config.vocab_size is None, "neither a tokenizer nor a vocabulary size", "one of them, to make prompts",
         "pass --tokenizer DIR"),
        (blind and (config.needles.enabled or config.transport == "text"), "needles or text prompts without a tokenizer",
         "the model's tokenizer", "pass --tokenizer DIR"),
        (unknown is not None, f"needle kind {unknown!r}", "one of " + ", ".join(KINDS), "correct the kind"),
    ):  # fmt: skip
        if wrong:
            raise UserError(found, required, fix)
    if config.engine_version:
        Version.parse(config.engine_version)
    if config.baseline is not None:
        load_run(config.baseline)


def check_context(point: Point, context_tokens: int | None) -> None:
    """Raise UserError where the point is longer than the served context. ``None``: the context is not known."""
    if context_tokens is not None and point.input_tokens + point.output_tokens > context_tokens:
        found = f"a point of {point.input_tokens:,} + {point.output_tokens:,} tokens"
        raise UserError(found, f"at most {context_tokens:,}, the served context", "shorten the point or serve a longer context")
