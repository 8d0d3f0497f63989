"""Measuring one point: its rounds of requests, the server's counters around them, its KV pool while they run."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import median

from ..client.exchange import Timeouts
from ..client.load import Job, LagMonitor, RecordWriter, run_burst
from ..client.stream import StreamClient
from ..engines.base import EngineAdapter
from ..results import Counters, KvSample, RequestRecord, RequestStatus
from .config import Point, ValidateConfig
from .forecast import Expectation, Measured, Schedule
from .progress import Reporter
from .requests import RequestMaker
from .server import Server

_SAMPLE_LEAST_S = 0.5
_SAMPLE_MOST_S = 10.0
_LAG_LEAST_S = 0.05
_LAG_SHARE_OF_TTFT = 0.02
_WARM_UP_TOKENS = 10_000  # more than one prefill chunk of either engine (8,192): every kernel has run once
_WARM_UP_OUTPUT_TOKENS = 16


@dataclass(frozen=True)
class PointRun:
    """One attempt at a point: what was expected, sent and answered, and what the server showed meanwhile.

    ``records``: the timed requests only. ``burst_s``: seconds in which requests were in flight; ``wall_s`` counts everything.
    ``lag_share``: of ``burst_s``, lost while the client's event loop stood still. ``gone``: why the server is proven dead.
    """

    point: Point
    attempt: int
    rounds: int
    expected: Expectation
    records: tuple[RequestRecord, ...]
    before: Counters | None
    after: Counters | None
    series: tuple[KvSample, ...]
    burst_s: float
    wall_s: float
    lag_share: float
    gone: str | None

    @property
    def ok(self) -> tuple[RequestRecord, ...]:
        """The completed requests."""
        return tuple(r for r in self.records if r.status is RequestStatus.OK)


@dataclass
class Sender:
    """Sends requests and keeps every record. ``unfinished``: a request failed that the server may still work on."""

    client: StreamClient
    adapter: EngineAdapter
    writer: RecordWriter
    lag: LagMonitor = field(default_factory=LagMonitor)
    unfinished: bool = False

    async def burst(
        self, jobs: Sequence[Job], timeouts: Timeouts, on_record: Callable[[RequestRecord], None] | None = None
    ) -> list[RequestRecord]:
        """Send all jobs at once and wait for all."""

        def keep(record: RequestRecord) -> None:
            self.writer.add(record)
            self.unfinished = self.unfinished or record.status is not RequestStatus.OK
            if on_record is not None:
                on_record(record)

        return await run_burst(self.client, jobs, self.adapter, timeouts, lag=self.lag, on_record=keep)


@dataclass
class PointMeter:
    """Measures the points of one run."""

    config: ValidateConfig
    server: Server
    maker: RequestMaker
    sender: Sender
    schedule: Schedule
    reporter: Reporter

    async def send_one(self, job: Job, point: Point) -> RequestRecord:
        """Send one untimed request of ``point``."""
        return (await self.sender.burst([job], self.schedule.timeouts(point)))[0]

    async def warm_up(self) -> None:
        """Send one small untimed request with a prompt of its own: first use of kernels is not the model's speed."""
        if not self.config.warmup:
            return
        smallest = min(self.config.points, key=lambda p: (p.input_tokens, p.output_tokens))
        point = Point(min(smallest.input_tokens, _WARM_UP_TOKENS), min(smallest.output_tokens, _WARM_UP_OUTPUT_TOKENS), 1)
        self.reporter.say("warm-up", f"one untimed prompt of {point.input_tokens:,} tokens", point_id=smallest.id)
        record = await self.send_one(replace(await self.maker.job(point, "warm-up"), point_id=smallest.id), point)
        if record.status is RequestStatus.OK and record.ttft_s is not None:
            self.schedule.add(Measured(record.input_tokens, record.ttft_s, record.tpot_s))
        else:
            self.reporter.say("warm-up", f"failed: {record.error}", point_id=smallest.id)

    async def measure(self, point: Point, left_s: float | None, attempt: int = 0) -> PointRun:
        """Send all rounds of a point. ``left_s``: seconds forecast for the rest of the run; ``attempt`` counts from 0."""
        rounds, expected = self.config.rounds(point), self.schedule.expect(point)
        total = rounds * point.concurrency
        sizes = f"{point.input_tokens:,} tokens in, {point.output_tokens:,} out, {point.concurrency} in flight"
        words = f"{sizes}, {rounds}x: {self.schedule.about(point)}"
        self.reporter.say("point", words, point_id=point.id, left_s=left_s, total=total)
        if self.sender.unfinished:
            self.sender.unfinished = False
            await self.server.await_idle(point)
        await self.server.flush()
        # The number of a round is part of its prompts' seed: no attempt repeats a prompt of another.
        repeats = range(attempt * rounds, (attempt + 1) * rounds)
        if self.config.mode == "warm":
            for repeat in repeats:
                primers = await self.maker.round_jobs(point, repeat, warmup=True)
                await self.sender.burst(primers, self.schedule.timeouts(point))
        before = await self.server.counters()
        began = time.perf_counter()
        async with Sampler(self.server, self.reporter, point, total, left_s, expected.total_s) as sampler:
            records, burst_s, gone = await self._send_rounds(point, repeats, sampler.count)
        ended = time.perf_counter()
        lag_share = self.sender.lag.share(began, ended, of_s=burst_s, over_s=_matters_s(records))
        return PointRun(
            point=point,
            attempt=attempt,
            rounds=rounds,
            expected=expected,
            records=tuple(records),
            before=before,
            after=None if gone else await self.server.settled_counters(before, records),
            series=tuple(sampler.series),
            burst_s=burst_s,
            wall_s=ended - began,
            lag_share=lag_share,
            gone=gone,
        )

    async def _send_rounds(
        self, point: Point, repeats: range, on_record: Callable[[RequestRecord], None]
    ) -> tuple[list[RequestRecord], float, str | None]:
        """Records of all timed rounds, seconds in flight, and why the server is proven dead, where it is."""
        timed: list[RequestRecord] = []
        burst_s = 0.0
        for repeat in repeats:
            jobs = await self.maker.round_jobs(point, repeat, warmup=False)
            begun = time.perf_counter()
            records = await self.sender.burst(jobs, self.schedule.timeouts(point), on_record)
            burst_s += time.perf_counter() - begun
            timed += records
            if any(r.status is not RequestStatus.OK for r in records):
                gone = await self.server.why_gone()
                if gone is not None:
                    return timed, burst_s, gone
                if all(r.status is RequestStatus.TIMEOUT for r in records):
                    break  # more rounds would only wait for the same time-out again
        return timed, burst_s, None


def _matters_s(records: Sequence[RequestRecord]) -> float:
    """The shortest stop of the client's event loop that counts: standing still for 2% of a TTFT is no matter."""
    times = [r.ttft_s or 0.0 for r in records if r.status is RequestStatus.OK]
    return max(_LAG_LEAST_S, _LAG_SHARE_OF_TTFT * median(times)) if times else _LAG_LEAST_S


@dataclass
class Sampler:
    """Samples KV use and queue while a point runs, and reports how far it is."""

    server: Server
    reporter: Reporter
    point: Point
    total: int
    left_s: float | None
    expected_s: float
    series: list[KvSample] = field(default_factory=list)
    done: int = 0
    over: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Future[None] | None = None

    def count(self, _: RequestRecord) -> None:
        """Count one more request that ended."""
        self.done += 1

    async def __aenter__(self) -> Sampler:
        self.task = asyncio.ensure_future(self._sample(time.perf_counter()))
        return self

    async def __aexit__(self, *exc: object) -> None:
        self.over.set()
        if self.task is not None:
            self.task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self.task

    async def _sample(self, began: float) -> None:
        # The flag, because cancelling alone can be lost: before Python 3.12 wait_for swallows a cancellation that meets the
        # end of what it waits for.
        pause_s = max(_SAMPLE_LEAST_S, min(_SAMPLE_MOST_S, self.expected_s / 100))
        while not self.over.is_set():
            await asyncio.sleep(pause_s)
            counters = await self.server.counters()
            if self.over.is_set():
                return
            elapsed_s = time.perf_counter() - began
            usage = counters.kv_usage if counters is not None else None
            if counters is not None:
                self.series.append(KvSample(elapsed_s, usage, counters.running, counters.waiting))
            left_s = None if self.left_s is None else max(0.0, self.left_s - elapsed_s)
            done, total = self.done, self.total
            words = f"{done} of {total} requests done"
            self.reporter.say("running", words, point_id=self.point.id, left_s=left_s, kv_usage=usage, done=done, total=total)
