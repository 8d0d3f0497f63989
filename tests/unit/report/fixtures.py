"""Made-up but plausible runs, to draw reports of: a cold H200 ladder, a mixed one, needles, several hosts, an empty one.

Times follow a simple model (linear plus quadratic prefill at a stated share of peak), not any measurement.
"""

from __future__ import annotations

import dataclasses
import random
from collections.abc import Sequence

from longhaul.results import (
    AskedNeedle,
    CapacityFacts,
    Counters,
    KvSample,
    NeedleAnswer,
    NeedleCell,
    Physics,
    PointResult,
    Reason,
    RunResult,
    Stats,
    Verdict,
    worst,
)

START = 1_790_000_000.0
PEAK = 8 * 989e12


def stats(values: Sequence[float]) -> Stats:
    """Order statistics with linear interpolation."""
    ordered = sorted(values)

    def at(q: float) -> float:
        place = q * (len(ordered) - 1)
        low = int(place)
        high = min(low + 1, len(ordered) - 1)
        return ordered[low] + (ordered[high] - ordered[low]) * (place - low)

    return Stats(len(ordered), sum(ordered) / len(ordered), ordered[0], at(0.5), at(0.9), at(0.99), ordered[-1])


def prefill_flop(n: int) -> float:
    """Scout-like: 17e9 active parameters, 12 global layers of width 5120, 36 local ones over 8192 tokens."""
    return 2 * 17e9 * n + 12 * 2 * n * n * 5120 + 36 * 4 * n * min(n, 8192) / 2 * 5120


def point(
    tokens: int,
    *,
    output: int = 200,
    concurrency: int = 1,
    repeats: int = 3,
    share_of_peak: float = 0.5,
    seed: int = 1,
    **changes: object,
) -> PointResult:
    """A PASS point with every optional part filled in; ``changes`` replaces fields."""
    rng = random.Random(f"{tokens} {concurrency} {seed}")
    flop = prefill_flop(tokens)
    floor = flop / PEAK
    one = 0.05 + floor / share_of_peak
    n = repeats * concurrency
    ttft = [
        one * (1 + i % concurrency if tokens > 50_000 else 1 + 0.2 * (i % concurrency)) * rng.uniform(0.985, 1.015)
        for i in range(n)
    ]
    tpot = [(0.008 + 5.5e-9 * tokens) * (1 + 0.02 * concurrency) * rng.uniform(0.97, 1.03) for _ in range(n)]
    e2e = [a + b * (output - 1) for a, b in zip(ttft, tpot, strict=True)]
    wall = sum(e2e) / concurrency
    fits = max(1, int(3_919_664 // max(tokens, 1)))
    series = []
    for i in range(41):
        t = wall * i / 40
        done = min(1.0, t / max(ttft[0], 0.001)) if concurrency == 1 else 0.5 + 0.5 * min(1.0, i / 30)
        use = min(0.98, done * tokens * min(concurrency, fits) / 3_919_664)
        series.append(KvSample(t, use if i < 40 else 0.0, float(min(concurrency, fits)), float(max(0, concurrency - fits))))
    base = PointResult(
        point_id=f"in{tokens}-out{output}-c{concurrency}",
        input_tokens=tokens,
        output_tokens=output,
        concurrency=concurrency,
        verdict=Verdict.PASS,
        repeats=repeats,
        completed=n,
        cache_state="COLD",
        cached_share=0.0,
        token_error_max=0,
        ttft_s=stats(ttft),
        tpot_s=stats(tpot),
        itl_s=stats([t * rng.uniform(0.8, 1.6) for t in tpot for _ in range(20)]),
        e2e_s=stats(e2e),
        build_s=stats([1e-8 * tokens + 0.0002] * n),
        upload_s=stats([4e-9 * tokens + 0.0003] * n),
        prefill_tokens_per_s=stats([tokens / t for t in ttft]),
        output_tokens_per_s=n * output / wall / repeats,
        goodput_per_s=n / wall / repeats,
        requests_per_s=n / wall / repeats,
        before=Counters(START, prompt_tokens=0.0, cache_hits_tokens=0.0),
        after=Counters(START + wall, prompt_tokens=float(tokens * n), cache_hits_tokens=0.0),
        kv_series=tuple(series),
        physics=Physics(
            floor_s=floor,
            ratio=one / floor,
            mfu=floor / one,
            flop=flop,
            peak_flop_per_s=PEAK,
            peak_source="8 x H200, bf16 dense",
            decode_floor_s=0.004 + 2e-9 * tokens,
        ),
        fits_at_once=min(concurrency, fits),
        will_queue=max(0, concurrency - fits),
        client_lag_s=0.002,
        expected_s=wall * 1.1,
        wall_s=wall,
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def run(points: Sequence[PointResult], **changes: object) -> RunResult:
    """A run over ``points``; its verdict is the worst of them, its reasons are theirs."""
    base = RunResult(
        run_id="20260921-141320-7f3a",
        host="h200-a",
        url="http://10.0.0.11:8000",
        engine="vllm",
        engine_version="0.12.0",
        model="Llama-4-Scout-17B-16E-Instruct",
        started_unix_s=START,
        finished_unix_s=START + sum(p.wall_s or 0 for p in points) + 12,
        verdict=worst(p.verdict for p in points if p.ran),
        reasons=tuple(r for p in points for r in p.reasons),
        points=tuple(points),
        settings={"max_model_len": 2_097_152, "tensor_parallel_size": 8, "kv_cache_dtype": "auto", "seed": 7, "hybrid_kv": True},
        environment={"gpu": "NVIDIA H200", "gpus": 8, "driver": "570.86.15", "client": "longhaul 0.1.0"},
        capacity=CapacityFacts(
            predicted={
                "kv_cache_tokens": 3_919_664,
                "max_concurrency": 1.87,
                "available_kv_gib_per_gpu": 90.02,
                "weights_gib_per_gpu": 25.3,
            },
            engine={"kv_cache_tokens": 3_919_664, "max_concurrency": 1.86, "available_kv_gib_per_gpu": 89.71},
            drift=0.0,
            exact=True,
        ),
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def asked(cells: Sequence[NeedleCell], answer: str | None = None) -> tuple[AskedNeedle, ...]:
    """What was asked and answered, to fit these cells; ``answer`` for all, else the right or a wrong number."""
    out = []
    for cell in cells:
        for i in range(cell.asked):
            right = i < cell.found
            said = answer if answer is not None else f" {48213 if right else 48214}. The text says so."
            told = NeedleAnswer(cell.kind, cell.depth, "48213", right, said, "What is the secret code of Arvena?", "Arvena")
            out.append(AskedNeedle(f"in{cell.input_tokens}-out200-c1", cell.input_tokens, told))
    return tuple(out)


def needles(lengths: Sequence[int] = (10_000, 100_000, 500_000, 2_000_000), kind: str = "single") -> tuple[NeedleCell, ...]:
    """A grid that is perfect when short and loses the middle when long."""
    cells = []
    for row, length in enumerate(lengths):
        for depth in (0.0, 0.1, 0.25, 0.5, 0.75, 0.9, 1.0):
            middle = 1 - abs(depth - 0.45) * 2
            found = max(0, min(4, round(4 - row * middle * 1.4)))
            cells.append(NeedleCell(kind, length, depth, 4, found))
    return tuple(cells)


def passing() -> RunResult:
    """Everything PASSes, from 1K to 2M tokens, with 1, 10 and 50 requests at once."""
    ladder = [point(n) for n in (1_000, 10_000, 100_000, 500_000, 1_000_000, 2_096_900)]
    return run(
        [*ladder, point(10_000, concurrency=10), point(10_000, concurrency=50)],
        needles=needles(),
        needle_recall=0.84,
        needle_answers=asked(needles()),
    )


def mixed() -> RunResult:
    """One point of each sort: PASS, FAIL, INVALID (cache), INVALID (below the floor), INCONCLUSIVE, not run."""
    cached = point(
        500_000,
        seed=2,
        ttft_s=stats([0.491234, 0.502345, 0.487654]),
        prefill_tokens_per_s=stats([1_017_845.0, 995_331.0, 1_025_317.0]),
        verdict=Verdict.INVALID,
        cache_state="WARM",
        cached_share=0.987,
        reasons=(
            Reason(Verdict.INVALID, "cached_prompt", "98.7% of the prompt tokens came from the prefix cache"),
            Reason(
                Verdict.INVALID,
                "below_floor",
                "TTFT 491 ms is below the physical floor of 6.22 s; a cached share of 92% explains it",
            ),
        ),
    )
    cached = dataclasses.replace(
        cached, physics=dataclasses.replace(cached.physics, ratio=0.079, mfu=12.7, explaining_cached_share=0.92)
    )
    slow = point(
        1_000_000,
        share_of_peak=0.12,
        verdict=Verdict.FAIL,
        completed=2,
        timed_out=1,
        reasons=(
            Reason(Verdict.FAIL, "ttft_limit", "TTFT p50 167.7 s is above the limit of 120 s"),
            Reason(Verdict.FAIL, "timed_out", "1 of 3 requests had no first token after 240 s"),
        ),
    )
    unsure = point(
        100_000,
        concurrency=50,
        verdict=Verdict.INCONCLUSIVE,
        cache_state="UNKNOWN",
        cached_share=None,
        reasons=(
            Reason(Verdict.INCONCLUSIVE, "foreign_traffic", "the server finished 7 requests that were not ours <b>&amp;</b>"),
        ),
    )
    return run(
        [point(1_000), point(10_000), point(100_000), cached, slow, unsure, not_run(2_096_900)],
        host="h200-b",
        needles=(*needles(), *needles((10_000, 100_000), "multi-hop")),
        needle_recall=0.71,
    )


def not_run(tokens: int, concurrency: int = 1) -> PointResult:
    """A point the budget had no room for."""
    return PointResult(
        f"in{tokens}-out200-c{concurrency}",
        tokens,
        200,
        concurrency,
        Verdict.INCONCLUSIVE,
        reasons=(Reason(Verdict.INCONCLUSIVE, "budget", "would take 12 min, 4 min of the budget were left"),),
        ran=False,
        repeats=0,
        expected_s=720.0,
    )


def minimal() -> RunResult:
    """Every optional field is missing."""
    bare = PointResult("p", 1_000, 20, 1, Verdict.INCONCLUSIVE)
    return RunResult("r", "bare", "http://127.0.0.1:1", "vllm", "", "m", START, START, Verdict.INCONCLUSIVE, (), (bare,))


def sglang() -> RunResult:
    """The other engine on the same prompts, a little slower."""
    ladder = [point(n, share_of_peak=0.43, seed=5) for n in (1_000, 10_000, 100_000, 500_000, 1_000_000)]
    return run(
        ladder,
        host="h200-c",
        engine="sglang",
        engine_version="0.5.6.post2",
        needle_note="dummy weights: not applicable",
        capacity=None,
    )


def fleet() -> list[RunResult]:
    """Four hosts, one of each temper."""
    return [passing(), mixed(), sglang(), minimal()]
