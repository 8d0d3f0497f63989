"""One validation run: plan the ladder, send it, gather the evidence, judge, and leave everything on disk.

``validate`` is the one entry; the command line and the Ansible module both call it. It needs the standard library, and
``tokenizers`` and ``numpy`` for prompts. What is measured is on disk at once: ``requests.jsonl`` (one line per request,
fsynced) and ``run.json`` after each point (``complete`` false until the end).
"""

from __future__ import annotations

import asyncio
import contextlib
import secrets
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from ..client.control import ControlClient
from ..client.endpoint import Endpoint, tls_context
from ..client.load import RecordWriter
from ..client.stream import StreamClient
from ..engines.registry import get_engine
from ..files import write_atomic
from ..results import PointResult, Reason, RequestRecord, RunResult, Verdict, dump_run
from .config import Point, ValidateConfig, check_config
from .forecast import Forecaster, Schedule, show_plan
from .measure import PointMeter, Sender
from .physics import FloorSource
from .progress import Progress, Reporter
from .requests import PromptSource, RequestMaker, align_text, open_prompts
from .result import RunFacts, judge_run, run_result, skipped_point
from .server import Server

# Reasons that say nothing about the server: such a point may be measured again.
CIRCUMSTANCES = frozenset({"client_lag", "foreign_traffic"})


def validate(
    config: ValidateConfig, on_progress: Callable[[Progress], None], server_log: Callable[[], Sequence[str]] | None = None
) -> RunResult:
    """Run the whole ladder and judge it. Raises UserError before anything is sent where the input is wrong.

    Server errors never raise: they become FAIL with a reason, and the rest of the ladder is still tried. ``server_log``: what the
    server logged from now on and since the last call, where that can be read; asked when the server died.
    """
    check_config(config)
    return asyncio.run(_run(config, Reporter(on_progress), server_log))


async def _run(config: ValidateConfig, reporter: Reporter, server_log: Callable[[], Sequence[str]] | None) -> RunResult:
    started_unix_s = time.time()
    seed = config.seed if config.seed is not None else secrets.randbits(31)
    adapter = get_engine(config.engine)
    endpoint = Endpoint.parse(config.url)
    tls = tls_context(config.ca_file) if endpoint.scheme == "https" else None
    async with (
        StreamClient(endpoint, api_key=config.api_key, headers=config.headers, tls=tls, proxy=config.proxy) as client,
        ControlClient(endpoint, api_key=config.api_key, headers=config.headers, tls=tls, proxy=config.proxy) as control,
    ):
        with contextlib.closing(RecordWriter(config.out_dir / "requests.jsonl")) as writer:
            server = Server(control, adapter, config, reporter, server_log)
            await server.meet()
            floors = FloorSource(config)
            floors.prepare(reporter)
            prompts = open_prompts(config, seed, reporter)
            longest_tokens = max(p.input_tokens for p in config.points)
            forecaster = floors.floors.forecaster(longest_tokens) if floors.floors is not None else Forecaster()
            schedule = Schedule(config, forecaster, server.facts.kv_cache_tokens)
            show_plan(config, schedule, reporter, floors.note)
            sender = Sender(client, adapter, writer)
            maker = RequestMaker(config, adapter, server, prompts.factory, seed)
            meter = PointMeter(config, server, maker, sender, schedule, reporter)
            await align_text(maker, meter.send_one, reporter)
            await meter.warm_up()
            corpus = prompts.factory.corpus.fingerprint
            facts = RunFacts(config, seed, started_unix_s, server.facts, floors.hardware, floors.note, corpus, prompts.note)
            ladder = Ladder(config, facts, server, schedule, meter, floors, prompts, reporter)
            await ladder.climb()
            if sender.unfinished:
                # A server whose engine died may answer for seconds more.
                await server.read_end("request_failed", "the server's log says", named=True)
        return ladder.finish()


@dataclass
class Ladder:
    """The points of one run: measured in order, measured again where circumstances spoilt them, kept on disk after each."""

    config: ValidateConfig
    facts: RunFacts
    server: Server
    schedule: Schedule
    meter: PointMeter
    floors: FloorSource
    prompts: PromptSource
    reporter: Reporter
    points: list[PointResult] = field(default_factory=list)
    asked: list[RequestRecord] = field(default_factory=list)

    async def climb(self) -> None:
        """Take every point in order: measure it, or list it with the reason why it was not run."""
        ladder, schedule = self.config.points, self.schedule
        for number, point in enumerate(ladder):
            if (why := schedule.over_budget(point, self.reporter.elapsed_s)) is not None:
                result = self._skipped(point, Verdict.INCONCLUSIVE, "not_run", why)
            elif (why := await self.server.why_gone()) is not None:
                result = self._skipped(point, Verdict.FAIL, "server_dead", why)
            else:
                result = await self._measured(point, schedule.total_s(ladder[number:]))
            self.points.append(result)
            self._write(complete=False)
            why = f": {result.reasons[0].text}" if result.reasons else ""
            ttft = f", TTFT p50 {result.ttft_s.p50:.3f} s" if result.ttft_s else ""
            words, left_s = f"{result.verdict.value}{ttft}{why}", schedule.total_s(ladder[number + 1 :])
            self.reporter.say("point", words, point_id=point.id, left_s=left_s, done=number + 1, total=len(ladder))

    def finish(self) -> RunResult:
        """Write and return the complete result."""
        result = self._write(complete=True)
        self.reporter.say("done", result.verdict.value, left_s=0.0, done=len(self.points), total=len(self.points))
        return result

    def _skipped(self, point: Point, verdict: Verdict, code: str, why: str) -> PointResult:
        return skipped_point(self.config, self.schedule, point, Reason(verdict, code, f"not run: {why}"))

    async def _measured(self, point: Point, left_s: float | None) -> PointResult:
        """The point, measured again where nothing but the circumstances speaks against it."""
        result = await self._attempt(point, left_s, 0)
        while (
            result.attempts < self.config.attempts
            and result.reasons
            and all(r.code in CIRCUMSTANCES for r in result.reasons)
            and (await self.server.why_gone()) is None
        ):
            words = f"measured again with fresh prompts: {result.reasons[0].text}"
            self.reporter.say("point", words, point_id=point.id, left_s=left_s)
            result = await self._attempt(point, left_s, result.attempts)
        return result

    async def _attempt(self, point: Point, left_s: float | None, attempt: int) -> PointResult:
        run = await self.meter.measure(point, left_s, attempt)
        result = judge_run(
            self.config,
            run,
            server=self.server,
            schedule=self.schedule,
            physics=self.floors.physics(point, run.ok, self.config.limits.floor_ratio),
            distinct_share=self.prompts.distinct_share(run.records),
        )
        self.schedule.learn(point, run.records)
        self.asked += [r for r in run.records if r.needles]
        return result

    def _write(self, *, complete: bool) -> RunResult:
        # A calibrated peak may have risen since the run began.
        facts = replace(self.facts, hardware=self.floors.hardware)
        result = run_result(facts, self.points, self.asked, self.server.end, complete=complete)
        write_atomic(self.config.out_dir / "run.json", dump_run(result), fix="choose another --out")
        return result
