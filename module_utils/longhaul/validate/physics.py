"""How a point's times stand to the least times of the hardware. A peak that was only timed is timed again before it condemns."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from statistics import median

from ..errors import UserError
from ..models.architecture import ModelArchitecture
from ..physics import roofline
from ..physics.hardware import Gpu
from ..results import Physics, RequestRecord
from .config import Point, ValidateConfig
from .evidence import ttft_by_repeat
from .forecast import Forecaster
from .progress import Reporter

_MOST_RECALIBRATIONS = 2
_TYPICAL_PROMPT_TOKENS = 8192  # to ask for the hardware's peak, which does not depend on the length


@dataclass(frozen=True)
class Floors:
    """The least times of one model on known hardware."""

    architecture: ModelArchitecture
    gpu: Gpu
    gpu_count: int
    weights_dtype: str | None
    kv_dtype: str

    def prefill(self, input_tokens: int, concurrency: int = 1) -> roofline.Floor:
        """The least time from nothing to the first output token of ``concurrency`` prompts."""
        return roofline.prefill_floor(
            self.architecture, self.gpu, self.gpu_count, input_tokens,
            dtype=self.weights_dtype, kv_dtype=self.kv_dtype, concurrency=concurrency,
        )  # fmt: skip

    def decode(self, context_tokens: int, output_tokens: int = 1) -> roofline.Floor:
        """The least time of one output token at this context."""
        return roofline.decode_floor(
            self.architecture, self.gpu, self.gpu_count, context_tokens,
            dtype=self.weights_dtype, kv_dtype=self.kv_dtype, output_tokens=output_tokens,
        )  # fmt: skip

    def cached_share(self, input_tokens: int, measured_s: float, concurrency: int) -> float:
        """The least share of the prompt (0..1) that must have come from a cache for this time to be possible."""
        return roofline.explaining_cached_share(
            self.architecture, self.gpu, self.gpu_count, input_tokens, measured_s,
            dtype=self.weights_dtype, kv_dtype=self.kv_dtype, concurrency=concurrency,
        )  # fmt: skip

    def forecaster(self, longest_tokens: int) -> Forecaster:
        """Forecasts from these floors, for prompts of up to ``longest_tokens``."""
        return Forecaster(
            lambda tokens: self.prefill(tokens).flop,
            self.prefill(_TYPICAL_PROMPT_TOKENS).peak_flop_per_s,
            decode_floor_s=self.decode(longest_tokens).floor_s,
        )


def measured_physics(floors: Floors, point: Point, ok: Sequence[RequestRecord]) -> Physics | None:
    """How the completed requests of a point stand to its floors; ``None`` where none has a first token.

    The quickest request is bounded by one prompt, the last one of each full burst by all prompts of the burst. The tighter of the
    two bounds counts.
    """
    times = [r.ttft_s for r in ok if r.ttft_s is not None]
    if not times:
        return None
    lone = floors.prefill(point.input_tokens)
    bound, measured_s, together = lone, min(times), 1
    lasts = _last_first_tokens(point, ok)
    if lasts:
        all_of_them = floors.prefill(point.input_tokens, point.concurrency)
        if min(lasts) / all_of_them.floor_s < measured_s / lone.floor_s:
            bound, measured_s, together = all_of_them, min(lasts), point.concurrency
    ratio = roofline.floor_ratio(bound, measured_s)
    typical_s = median(times) if together == 1 else measured_s
    return Physics(
        floor_s=bound.floor_s,
        ratio=ratio,
        mfu=roofline.mfu(bound.flop, typical_s, bound.peak_flop_per_s),
        flop=bound.flop,
        peak_flop_per_s=bound.peak_flop_per_s,
        peak_source=bound.peak_source,
        decode_floor_s=floors.decode(point.input_tokens, point.output_tokens).floor_s,
        explaining_cached_share=floors.cached_share(point.input_tokens, measured_s, together) if ratio < 1 else None,
    )


def _last_first_tokens(point: Point, ok: Sequence[RequestRecord]) -> list[float]:
    """Seconds to the last first token of each round in which every request was answered; none for lone requests."""
    if point.concurrency == 1:
        return []
    return [max(times) for times in ttft_by_repeat(ok) if len(times) == point.concurrency]


@dataclass
class FloorSource:
    """The floors of this run's hardware, published or timed here: none before :meth:`prepare`, and ``note`` says why there are none."""

    config: ValidateConfig
    hardware: tuple[Gpu, int] | None = None
    note: str | None = None
    floors: Floors | None = None
    recalibrations_left: int = 0

    def prepare(self, reporter: Reporter) -> None:
        """Set the floors. Times a matrix product (seconds) where the run asks for that and the hardware has no published peak."""
        config, self.hardware = self.config, self.config.hardware
        if config.architecture is None:
            return
        if self.hardware is None and config.calibrate:
            reporter.say("calibrate", "timing a matrix product: this hardware has no published peak")
            try:
                self.hardware = (roofline.calibrate_cpu(config.calibrate_python), 1)
                self.recalibrations_left = _MOST_RECALIBRATIONS
            except UserError as exc:
                self.note = f"no physical floor: {exc.found}"
        if self.hardware is None:
            self.note = self.note or "no physical floor: the hardware is not known"
            return
        self.floors = Floors(config.architecture, *self.hardware, config.weights_dtype, config.kv_dtype)

    def physics(self, point: Point, ok: Sequence[RequestRecord], floor_ratio: float) -> Physics | None:
        """How a point stands to the floors. A timed peak is timed again before a ratio below ``floor_ratio`` is returned."""
        found = measured_physics(self.floors, point, ok) if self.floors is not None else None
        if self.floors is not None and found is not None and found.ratio < floor_ratio and self._recalibrate(self.floors):
            found = measured_physics(self.floors, point, ok)
        return found

    def _recalibrate(self, floors: Floors) -> bool:
        """Time the peak once more, for the host may have been busy the first time. True where it rose."""
        if not self.recalibrations_left:
            return False
        self.recalibrations_left -= 1
        try:
            again = roofline.calibrate_cpu(self.config.calibrate_python)
        except UserError:
            return False
        if again.peak("bf16") <= floors.gpu.peak("bf16"):
            return False
        self.hardware = (again, 1)
        self.floors = replace(floors, gpu=again, gpu_count=1)
        return True
