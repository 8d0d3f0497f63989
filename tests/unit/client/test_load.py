"""Bursts and records: all requests leave together, each is on disk when it ends, and a late loop is noticed."""

from __future__ import annotations

import asyncio
import gc
import json
import time
from pathlib import Path
from typing import Any

import pytest
from longhaul.client.endpoint import Endpoint
from longhaul.client.exchange import Timeouts
from longhaul.client.load import Job, LagMonitor, RecordWriter, run_burst
from longhaul.client.stream import StreamClient
from longhaul.engines.registry import get_engine
from longhaul.errors import UserError
from longhaul.results import NeedleAnswer, RequestRecord, RequestStatus
from standin.fixture import StandIn
from support.records import read_records

VLLM = get_engine("vllm")


def job(index: int, **changes: Any) -> Job:
    template = VLLM.generate_ids("standin-model", 5)
    values: dict[str, Any] = {
        "point_id": "p", "index": index, "repeat": 0, "warmup": False, "input_tokens": 3, "output_tokens": 5,
        "path": template.path, "parts": (template.head, b"[%d,2,3]" % index, template.tail), "build_s": 0.001,
    }  # fmt: skip
    return Job(**(values | changes))


def burst(url: str, jobs: list[Job], **options: Any) -> list[RequestRecord]:
    kept: list[RequestRecord] = []

    async def act() -> list[RequestRecord]:
        async with StreamClient(Endpoint.parse(url)) as client:
            return await run_burst(
                client, jobs, VLLM, options.pop("timeouts", Timeouts(stall_s=5)), lag=LagMonitor(), on_record=kept.append
            )

    records = asyncio.run(act())
    assert sorted(r.index for r in kept) == [j.index for j in jobs], "every request is handed on exactly once"
    return records


def test_a_burst_is_really_in_flight_at_once() -> None:
    with StandIn("--ttft", "0.3", "--gap", "0.002") as server:
        began = time.perf_counter()
        records = burst(server.url, [job(i) for i in range(60)])
        wall = time.perf_counter() - began
    assert [r.index for r in records] == list(range(60))
    assert all(r.status is RequestStatus.OK for r in records)
    assert wall < 9, "60 requests of 0.3 s one after another would take 18 s"
    assert min(r.ttft_s or 0 for r in records) > 0.29


def test_requests_queue_on_the_server_not_in_the_client() -> None:
    with StandIn("--ttft", "0.1", "--gap", "0.001", "--max-num-seqs", "2") as server:
        records = burst(server.url, [job(i) for i in range(6)])
    waits = sorted(r.ttft_s or 0 for r in records)
    assert waits[0] == pytest.approx(0.1, abs=0.05)
    assert waits[-1] > 0.28, "the third pair waited for two others, and its TTFT says so"


def test_needles_are_judged_on_the_answer() -> None:
    def judge(text: str) -> tuple[NeedleAnswer, ...]:
        return (NeedleAnswer("single", 0.5, "1", "word" in text, text),)

    with StandIn("--ttft", "0.01", "--gap", "0.001") as server:
        record = burst(server.url, [job(0, judge=judge)])[0]
    assert record.needles[0].found


def test_the_collector_is_off_during_a_burst_and_on_afterwards() -> None:
    seen: list[bool] = []

    def judge(_: str) -> tuple[NeedleAnswer, ...]:
        seen.append(gc.isenabled())
        return ()

    with StandIn("--ttft", "0.01", "--gap", "0.001") as server:
        burst(server.url, [job(0, judge=judge)])
    assert seen == [False]
    assert gc.isenabled()


def record(index: int) -> RequestRecord:
    return RequestRecord("p", index, 0, False, 1.5, RequestStatus.OK, 3, 5, itl_s=(0.1, 0.2), text="ü\n")


def test_a_record_is_on_disk_before_the_writer_is_closed(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "requests.jsonl"
    writer = RecordWriter(path)
    writer.add(record(1))
    deadline = time.perf_counter() + 5
    while not path.read_text(encoding="utf-8").endswith("\n") and time.perf_counter() < deadline:
        time.sleep(0.01)
    assert read_records(path) == [record(1)]
    writer.add(record(2))
    writer.close()
    assert read_records(path) == [record(1), record(2)]


def test_a_line_cut_off_by_a_kill_does_not_spoil_the_rest(tmp_path: Path) -> None:
    path = tmp_path / "requests.jsonl"
    writer = RecordWriter(path)
    writer.add(record(1))
    writer.close()
    with path.open("a", encoding="utf-8") as out:
        out.write(json.dumps({"point_id": "p"})[:-4])
    assert read_records(path) == [record(1)]


def test_an_unwritable_folder_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        RecordWriter(tmp_path / "file" / "requests.jsonl")


def test_a_blocked_loop_is_seen_at_the_instant_it_blocked() -> None:
    async def act() -> tuple[float, float, float]:
        lag = LagMonitor()
        lag.start()
        await asyncio.sleep(0.05)
        calm = time.perf_counter()
        await asyncio.sleep(0.05)
        begin = time.perf_counter()
        time.sleep(0.6)  # what must never happen in a measurement
        during = time.perf_counter()
        await asyncio.sleep(0.05)
        lag.stop()
        return lag.at(calm), lag.at(during), lag.share(begin, time.perf_counter(), of_s=0.65)

    calm, during, share = asyncio.run(act())
    assert calm < 0.3
    assert during == pytest.approx(0.6, abs=0.25)
    assert share > 0.5
