"""Two runs, or two engines, side by side: which differences exceed noise.

A is the baseline, B is judged against it. What exceeds noise is decided in :mod:`..stats`, by the rule that ``--baseline`` of a
validation uses too.

A point whose figures are INVALID on either side is not compared, nor is a cold run with a warm one. INCONCLUSIVE figures are
shown but not judged.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..errors import UserError
from ..results import PointResult, RunResult, Stats, Verdict
from ..stats import difference, share_noise
from .figures import engine_name, flatten, p50, point_name, stands
from .wording import DASH, TIMES, finite, one_line, percent


@dataclass(frozen=True)
class Change:
    """One figure on both sides. ``ratio`` >= 1 says how many times; ``direction``: ``faster``, ``slower`` or ``same`` (of B).

    ``noise`` is relative to A's median (0.03 = 3 %); ``beyond`` None: not judged, ``note`` says why.
    """

    metric: str
    a: float | None
    b: float | None
    ratio: float | None
    direction: str
    noise: float | None
    beyond: bool | None
    note: str = ""
    is_rate: bool = False

    @property
    def regression(self) -> bool:
        """B is slower beyond noise."""
        return self.beyond is True and self.direction == "slower"


@dataclass(frozen=True)
class PointComparison:
    """A point of either run. ``refused`` says why its figures are not compared (None: they are)."""

    input_tokens: int
    output_tokens: int
    concurrency: int
    a: PointResult | None
    b: PointResult | None
    changes: tuple[Change, ...] = ()
    refused: str | None = None

    @property
    def sizes(self) -> tuple[int, int, int]:
        """Input tokens, output tokens, requests at once."""
        return self.input_tokens, self.output_tokens, self.concurrency

    @property
    def told(self) -> tuple[Change, ...]:
        """The changes to count and to name: at one request at a time the prefill rate is TTFT said again."""
        return tuple(c for c in self.changes if not c.is_rate)

    @property
    def lost(self) -> bool:
        """The point PASSed in A, was run in B and did not PASS there."""
        if self.a is None or self.b is None or not (self.a.ran and self.b.ran):
            return False
        return self.a.verdict is Verdict.PASS and self.b.verdict is not Verdict.PASS


@dataclass(frozen=True)
class Comparison:
    """Run B against run A. ``differences``: (name, A's value, B's value) of everything else that is not the same."""

    a: RunResult
    b: RunResult
    points: tuple[PointComparison, ...]
    differences: tuple[tuple[str, str, str], ...] = ()
    recall: Change | None = None

    @property
    def compared(self) -> int:
        """How many points had figures to compare."""
        return sum(1 for p in self.points if p.refused is None)

    @property
    def regressions(self) -> tuple[str, ...]:
        """Every regression beyond noise, and every PASS that was lost, as a sentence."""
        out = []
        for point in self.points:
            name = point_name(point.b) if point.b else ""
            if point.lost and point.b is not None:
                out.append(f"{name}: PASS became {point.b.verdict.value}")
            out += [f"{name}: {c.metric} {change_text(c)}" for c in point.told if c.regression]
        if self.recall is not None and self.recall.regression:
            out.append(f"needle recall fell from {percent(self.recall.a)} to {percent(self.recall.b)}")
        return tuple(out)

    @property
    def improvements(self) -> tuple[str, ...]:
        """Every figure that is faster beyond noise, as a sentence."""
        better = [(p, c) for p in self.points for c in p.told if c.beyond and c.direction == "faster"]
        return tuple(f"{point_name(p.b)}: {c.metric} {change_text(c)}" for p, c in better if p.b is not None)


def _change(metric: str, a: Stats | None, b: Stats | None, concurrency: int, *, is_rate: bool, unproven: bool) -> Change | None:
    first, second = p50(a), p50(b)
    if a is None or b is None or first is None or second is None:
        return None
    ratio, direction = _direction(first, second, is_rate)
    apart = difference(a, b, concurrency)
    noise, beyond, note = (apart.noise, apart.beyond, apart.note) if apart else (None, None, "not judged: no noise known")
    if unproven:
        beyond, note = None, "INCONCLUSIVE: not judged"
    return Change(metric, first, second, ratio, direction, noise, beyond, note, is_rate)


def _direction(a: float, b: float, is_rate: bool) -> tuple[float | None, str]:
    if a == b:
        return 1.0, "same"
    ratio = max(a, b) / min(a, b) if a > 0 and b > 0 else None
    return ratio, "faster" if (b > a) == is_rate else "slower"


def compare_runs(a: RunResult, b: RunResult) -> Comparison:
    """Compare two runs by point (input tokens, output tokens, concurrency). B is judged against A."""
    rest = list(b.points)
    points = []
    for left in a.points:
        right = next((p for p in rest if _key(p) == _key(left)), None)
        if right is not None:
            rest.remove(right)
        points.append(PointComparison(*_key(left), left, right, *_changes(a, b, left, right)))
    points += [PointComparison(*_key(right), None, right, *_changes(a, b, None, right)) for right in rest]
    return Comparison(a, b, tuple(points), _differences(a, b), _recall(a, b))


def _key(point: PointResult) -> tuple[int, int, int]:
    return point.input_tokens, point.output_tokens, point.concurrency


def _changes(
    a: RunResult, b: RunResult, left: PointResult | None, right: PointResult | None
) -> tuple[tuple[Change, ...], str | None]:
    """The figures of a point on both sides, and why they are not compared, where they are not."""
    refused = _refusal(a, b, left, right)
    if refused is not None or left is None or right is None:
        return (), refused
    unproven = Verdict.INCONCLUSIVE in (left.verdict, right.verdict)
    wanted: list[tuple[str, Stats | None, Stats | None, bool]] = [("TTFT p50", left.ttft_s, right.ttft_s, False)]
    if left.concurrency == 1 and a.mode == "cold":
        wanted.append(("Prefill rate", left.prefill_tokens_per_s, right.prefill_tokens_per_s, True))
    wanted += [("TPOT p50", left.tpot_s, right.tpot_s, False), ("E2E p50", left.e2e_s, right.e2e_s, False)]
    made = [_change(name, x, y, left.concurrency, is_rate=r, unproven=unproven) for name, x, y, r in wanted]
    changes = tuple(c for c in made if c is not None)
    return changes, None if changes else "no figures on both sides"


def _refusal(a: RunResult, b: RunResult, left: PointResult | None, right: PointResult | None) -> str | None:
    if left is None or right is None:
        return f"only in {'B' if left is None else 'A'}"
    if a.mode != b.mode:
        return f"A is {one_line(a.mode)}, B is {one_line(b.mode)}: not the same measurement"
    for name, run, point in (("A", a, left), ("B", b, right)):
        if not point.ran:
            return f"not run in {name}"
        if not stands(run, point):
            texts = [one_line(r.text) for r in point.reasons if r.verdict is Verdict.INVALID]
            return f"INVALID in {name}" + (f": {texts[0]}" if texts else "")
    return None


def _recall(a: RunResult, b: RunResult) -> Change | None:
    """Needle recall of both, held against the noise of two shares."""
    first, second = finite(a.needle_recall), finite(b.needle_recall)
    if first is None or second is None or Verdict.INVALID in (a.verdict, b.verdict):
        return None
    asked = [sum(c.asked for c in run.needles) for run in (a, b)]
    direction = "same" if first == second else "faster" if second > first else "slower"
    if min(asked) < 1:
        return Change("Needle recall", first, second, None, direction, None, None, "number of needles not known", True)
    noise = share_noise(first, asked[0], second, asked[1])
    return Change("Needle recall", first, second, None, direction, noise, abs(first - second) > noise, "", True)


def _differences(a: RunResult, b: RunResult) -> tuple[tuple[str, str, str], ...]:
    pairs: list[tuple[str, Any, Any]] = [("host", a.host, b.host), ("engine", engine_name(a), engine_name(b))]
    pairs += [("model", a.model, b.model), ("mode", a.mode, b.mode)]
    for left, right in ((a.settings, b.settings), (a.environment, b.environment)):
        first, second = dict(flatten(left)), dict(flatten(right))
        pairs += [(k, first.get(k), second.get(k)) for k in dict.fromkeys([*first, *second])]
    if a.capacity and b.capacity:
        left, right = a.capacity.engine, b.capacity.engine
        pairs += [(f"engine's {k}", left.get(k), right.get(k)) for k in dict.fromkeys([*left, *right])]
    return tuple((one_line(k), _value(x), _value(y)) for k, x, y in pairs if x != y)


def _value(value: object) -> str:
    if isinstance(value, float) and finite(value) is None:
        return DASH
    return one_line(value)


def pair_runs(a: Sequence[RunResult], b: Sequence[RunResult]) -> tuple[list[tuple[RunResult, RunResult]], list[str]]:
    """Runs to compare, by host name (one run on each side: those two), and the hosts that have no partner.

    Raises UserError when there is no pair.
    """
    if len(a) == 1 and len(b) == 1:
        return [(a[0], b[0])], []
    other = {run.host: run for run in b}
    pairs = [(run, other[run.host]) for run in a if run.host in other]
    paired = {run.host for run, _ in pairs}
    if not pairs:
        left, right = (", ".join(one_line(run.host) for run in side) for side in (a, b))
        fix = "name the two <host>.json files instead of the directories"
        raise UserError(f"hosts {left} on one side, {right} on the other", "a host with the same name in both", fix)
    return pairs, sorted({run.host for run in [*a, *b]} - paired)


def change_text(change: Change) -> str:
    """``1.16x slower``, ``same``."""
    if change.direction == "same":
        return "same"
    if change.ratio is None:
        return change.direction
    ratio = f"{change.ratio:.3f}" if change.ratio < 1.1 else f"{change.ratio:.2f}" if change.ratio < 10 else f"{change.ratio:.1f}"
    return f"{ratio}{TIMES} {change.direction}"


def judgement(change: Change) -> str:
    """``beyond noise``, ``within noise``, or why it is not judged."""
    if change.beyond is None:
        return change.note
    return "beyond noise" if change.beyond else "within noise"
