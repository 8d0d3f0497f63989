"""Send many streamed requests at once, and write the record of each to disk the moment it ends."""

from __future__ import annotations

import asyncio
import collections
import contextlib
import gc
import json
import os
import queue
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from ..errors import UserError
from ..prompts.facts import PromptFacts
from ..results import NeedleAnswer, RequestRecord, RequestStatus, to_jsonable
from .connection import Buffer
from .exchange import EventParser, Exchange, Timeouts
from .stream import StreamClient

_TICK_S = 0.01
_SMALL_LAG_S = 0.002


@dataclass(frozen=True)
class Job:
    """One request, ready to be sent: its body is serialised before any clock starts. ``prompt``: for its record."""

    point_id: str
    index: int
    repeat: int
    warmup: bool
    input_tokens: int
    output_tokens: int
    path: str
    parts: tuple[Buffer, ...]
    build_s: float
    prompt: PromptFacts | None = None
    judge: Callable[[str], tuple[NeedleAnswer, ...]] | None = None


class LagMonitor:
    """Records how late the event loop runs its timers. While it is late, arrivals are stamped too late.

    Samples every 10 ms while a burst runs (preparing one may block: no clock is running then); keeps what exceeded 2 ms.
    """

    def __init__(self) -> None:
        self._samples: collections.deque[tuple[float, float]] = collections.deque(maxlen=100_000)
        self._handle: asyncio.TimerHandle | None = None
        self._due = 0.0

    def start(self) -> None:
        """Start sampling. Call inside a running loop."""
        self._due = time.perf_counter() + _TICK_S
        self._handle = asyncio.get_running_loop().call_later(_TICK_S, self._tick)

    def stop(self) -> None:
        """Stop sampling."""
        if self._handle is not None:
            self._handle.cancel()
            self._handle = None

    def _tick(self) -> None:
        now = time.perf_counter()
        late = now - self._due
        if late > _SMALL_LAG_S:
            self._samples.append((now, late))
        self.start()

    def at(self, instant: float) -> float:
        """The lag (seconds) that an event stamped ``instant`` may carry; 0 where the loop was on time."""
        return max((late for seen, late in self._samples if seen - late - _TICK_S <= instant <= seen + _TICK_S), default=0.0)

    def share(self, begin: float, end: float, *, of_s: float, over_s: float = 0.05) -> float:
        """Seconds between ``begin`` and ``end`` lost to lags longer than ``over_s``, as a share (0..1) of ``of_s``."""
        lost = sum(late for seen, late in self._samples if begin <= seen <= end and late > over_s)
        return min(1.0, lost / of_s) if of_s > 0 else 0.0


class RecordWriter:
    """``requests.jsonl``: one line per request, flushed and fsynced by a thread, so that the disk never delays the clock.

    ``close`` waits until every line is on disk. A write that fails is raised by ``close`` and by the next ``add``.
    """

    def __init__(self, path: Path) -> None:
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8")
        except OSError as exc:
            found = f"{path} cannot be written ({exc.strerror})"
            raise UserError(found, "a writable folder for results", "choose another --out") from exc
        self._path = path
        self._queue: queue.SimpleQueue[str | None] = queue.SimpleQueue()
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._run, name="longhaul-records", daemon=True)
        self._thread.start()

    def add(self, record: RequestRecord) -> None:
        """Queue one record."""
        self._check()
        self._queue.put(json.dumps(to_jsonable(record), separators=(",", ":")) + "\n")

    def close(self) -> None:
        """Write the queued records and stop."""
        self._queue.put(None)
        self._thread.join()
        self._file.close()
        self._check()

    def _check(self) -> None:
        if self._error is not None:
            raise UserError(f"{self._path} cannot be written ({self._error.strerror})", "free disk space", "choose another --out")

    def _run(self) -> None:
        while True:
            line = self._queue.get()
            lines: list[str] = []
            while line is not None:
                lines.append(line)
                if self._queue.empty():
                    break
                line = self._queue.get()
            try:
                if lines:
                    self._file.write("".join(lines))
                    self._file.flush()
                    os.fsync(self._file.fileno())
            except OSError as exc:
                self._error = exc
            if line is None:
                return


def to_record(job: Job, exchange: Exchange, started_unix_s: float, lag_s: float) -> RequestRecord:
    """Turn an exchange into a record of the results schema."""
    return RequestRecord(
        point_id=job.point_id,
        index=job.index,
        repeat=job.repeat,
        warmup=job.warmup,
        started_unix_s=started_unix_s,
        status=exchange.status,
        input_tokens=job.input_tokens,
        output_tokens=job.output_tokens,
        http_status=exchange.http_status,
        error=exchange.error,
        build_s=job.build_s,
        connect_s=exchange.connect_s,
        upload_s=exchange.upload_s,
        ttft_s=exchange.ttft_s,
        tpot_s=exchange.tpot_s,
        e2e_s=exchange.e2e_s,
        itl_s=exchange.itl_s,
        body_bytes=exchange.body_bytes,
        prompt_tokens=exchange.prompt_tokens,
        completion_tokens=exchange.completion_tokens,
        cached_tokens=exchange.cached_tokens,
        finish_reason=exchange.finish_reason,
        prompt_sha256=job.prompt.sha256 if job.prompt else None,
        prompt_start=job.prompt.start if job.prompt else None,
        nonce=job.prompt.nonce if job.prompt else None,
        text=exchange.text,
        needles=job.judge(exchange.text) if job.judge is not None and exchange.status is RequestStatus.OK else (),
        client_lag_s=lag_s,
        shared_prefix_tokens=job.prompt.shared_prefix_tokens if job.prompt else 0,
    )


@contextlib.contextmanager
def no_collections() -> Iterator[None]:
    """Keep the cycle collector out of a measurement: a full collection can stop the loop for tens of milliseconds."""
    was_enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


async def run_burst(
    client: StreamClient,
    jobs: Sequence[Job],
    parser: EventParser,
    timeouts: Timeouts,
    *,
    lag: LagMonitor,
    on_record: Callable[[RequestRecord], None],
) -> list[RequestRecord]:
    """Send all jobs at once and wait for all. Connections are opened first, so that no handshake is in a TTFT.

    Records are handed to ``on_record`` in the order in which requests end, and returned in the order of ``jobs``.
    """
    await client.open_connections(len(jobs), timeouts.connect_s)

    async def one(job: Job) -> RequestRecord:
        started = time.time()
        exchange = await client.stream(job.path, job.parts, parser, timeouts)
        lag_s = lag.at(exchange.token_times[0]) if exchange.token_times else 0.0
        record = to_record(job, exchange, started, lag_s)
        on_record(record)
        return record

    with no_collections():
        lag.start()
        try:
            return list(await asyncio.gather(*(one(job) for job in jobs)))
        finally:
            lag.stop()
