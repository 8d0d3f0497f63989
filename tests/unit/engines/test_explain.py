"""``longhaul explain-log``: what a log says, what its figures are not, and how it is told."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from longhaul import cli
from longhaul.engines.base import EngineAdapter
from longhaul.engines.diagnosis import Phase
from longhaul.engines.explain import adapter_for, detect_engine, explain, last_start, phase_spans
from longhaul.engines.registry import get_engine
from longhaul.engines.vllm.log import throughput
from unit.engines.samples import SGLANG, VLLM_OLD, log

VLLM, SGL = get_engine("vllm"), get_engine("sglang")


def stats(clock: str, prompt: float, running: int, *, waiting: int = 0, kv: float = 30.0, hits: float = 0.0) -> str:
    return (
        f"(APIServer pid=1) INFO 12-05 {clock} [loggers.py:248] Engine 000: Avg prompt throughput: {prompt} tokens/s, "
        f"Avg generation throughput: 0.0 tokens/s, Running: {running} reqs, Waiting: {waiting} reqs, "
        f"GPU KV cache usage: {kv}%, Prefix cache hit rate: {hits}%"
    )


# A cold prompt of 2,096,900 tokens that took 520.3 s on two H200, as the log tells it: 52 silent lines, then the booking.
LONG_PREFILL = [stats(f"11:{s // 60:02d}:{s % 60:02d}", 0.0, 1) for s in range(0, 520, 10)] + [
    stats("11:08:40", 209690.0, 1),
    stats("11:08:50", 0.0, 0),
]


def test_the_booked_throughput_is_unmasked_with_the_logs_own_lines() -> None:
    found = throughput(LONG_PREFILL)
    assert found is not None
    assert found.booked_tokens == 2_096_900, "the prompt's length, not a speed"
    assert found.prefill_at_least_s == 510.0
    assert found.rate_at_most == pytest.approx(4111.6, abs=0.1), "the truth was 4,030"
    note = next(n for n in explain(LONG_PREFILL, VLLM).notes if n.code == "avg_prompt_throughput")
    assert "NOT a speed" in note.text
    assert "2,096,900" in note.text
    assert "209690.0 tokens/s" in note.evidence


def test_a_prompt_shorter_than_the_interval_gets_no_invented_duration() -> None:
    found = throughput([stats("11:00:00", 0.0, 0), stats("11:00:10", 900.0, 0)])
    assert found is not None
    assert found.prefill_at_least_s is None
    assert found.rate_at_most is None


def test_warm_queued_and_full_are_said() -> None:
    lines = [stats("11:00:00", 5.0, 1, waiting=49, kv=99.8, hits=30.2)]
    codes = {n.code: n.text for n in explain(lines, VLLM).notes}
    assert "30.2%" in codes["warm_prompts"]
    assert "49" in codes["queueing"]
    assert "99.8%" in codes["kv_full"]


def test_a_concurrency_below_one_is_a_trap_and_named() -> None:
    line = "INFO 12-05 10:09:31 [kv_cache_utils.py:1291] Maximum concurrency for 8,388,608 tokens per request: 0.47x"
    assert "does not fit" in next(n.text for n in explain([line], VLLM).notes if n.code == "below_one")


def test_sglang_cache_hits_are_counted_from_the_chunks() -> None:
    report = explain(SGLANG, SGL)
    codes = {n.code: n.text for n in report.notes}
    assert "10,000 tokens computed, 2,000 from cache (17%)" in codes["warm_prompts"]
    assert "no prefill rate" in codes["input_throughput"]
    assert report.ready
    assert report.failure is None


def test_phases_have_the_seconds_of_the_log() -> None:
    spans = {s.phase: s for s in phase_spans(VLLM_OLD, VLLM)}
    assert spans[Phase.LOADING].begin_s == 20.0
    assert spans[Phase.LOADING].seconds == 461.0
    assert spans[Phase.COMPILING].seconds == 69.0
    assert spans[Phase.READY].begin_s == 595.0, "its line has no stamp: the last one before it counts"
    assert spans[Phase.READY].seconds is None


def test_phases_of_a_real_cpu_start() -> None:
    spans = phase_spans(log("vllm-0.32.0-cpu-ready"), VLLM)
    assert [s.phase for s in spans] == [
        Phase.STARTING,
        Phase.LOADING,
        Phase.COMPILING,
        Phase.SIZING_KV,
        Phase.CAPTURING,
        Phase.READY,
    ]
    assert sum(s.seconds or 0 for s in spans) == spans[-1].begin_s


@pytest.mark.parametrize(
    ("engine", "earlier", "later", "apart_s"),
    [
        (VLLM, "INFO 02-28 23:59:50 [a.py:1] x", "INFO 03-01 00:00:00 [a.py:1] x", 86_410.0),
        (SGL, "[2026-06-01 10:00:00 TP0] x", "[2026-06-01 10:00:01.500] x", 1.5),
        (VLLM, "2026-06-01T10:00:00.123456789Z INFO 01-01 00:00:00 x", "2026-06-01T10:00:01.123456789Z y", 1.0),
        (SGL, "2026-06-01T10:00:00.123456789Z [2025-06-01 10:00:00] x", "2026-06-01T10:00:01.123456789Z y", 1.0),
    ],
)
def test_stamps_of_both_engines_and_of_docker(engine: EngineAdapter, earlier: str, later: str, apart_s: float) -> None:
    first, second = engine.stamp_s(earlier), engine.stamp_s(later)
    assert first is not None
    assert second is not None
    assert second - first == pytest.approx(apart_s)


def test_only_the_last_start_of_an_appended_log_is_explained() -> None:
    failed = [VLLM_OLD[0], "torch.OutOfMemoryError: CUDA out of memory."]
    assert explain([*failed, *VLLM_OLD], VLLM).failure is None
    report = explain([*VLLM_OLD, *failed], VLLM)
    assert report.starts == 2
    assert not report.ready
    assert report.failure is not None
    assert report.failure.cause == "the GPU ran out of memory"
    assert last_start(["a", "b"], VLLM.log_opening) == (["a", "b"], 0)


def test_the_engine_is_told_by_its_lines() -> None:
    assert detect_engine(VLLM_OLD) == "vllm"
    assert detect_engine(SGLANG) == "sglang"
    assert detect_engine(log("vllm-0.32.0-unknown-flag")) == "vllm"
    assert detect_engine(["nothing to see"]) is None
    assert adapter_for(["nothing to see"]) is None
    assert adapter_for([], "sglang") is SGL


@given(lines=st.lists(st.one_of(st.text(max_size=60), st.sampled_from(VLLM_OLD + SGLANG + LONG_PREFILL[-3:])), max_size=30))
def test_any_text_is_read_without_an_exception(lines: list[str]) -> None:
    for adapter in (VLLM, SGL):
        report = explain(lines, adapter)
        assert report.lines == len(lines)
        assert all(s.seconds is None or s.phase is not Phase.READY for s in report.phases)


def test_the_command_explains_in_text_and_in_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "engine.log"
    path.write_text("\n".join([*VLLM_OLD, *LONG_PREFILL]), encoding="utf-8")
    assert cli.main(["explain-log", str(path)]) == 0
    text = capsys.readouterr().out
    assert "loading weights  took 461.0 s" in text
    assert "KV cache: 3,919,664 tokens" in text
    assert "NOT a speed" in text
    assert cli.main(["explain-log", str(path), "--json"]) == 0
    data = json.loads(capsys.readouterr().out)
    assert data["capacity"]["max_concurrency"] == 1.86
    assert data["throughput"]["booked_tokens"] == 2_096_900


def test_a_named_failure_is_exit_code_1(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "engine.log"
    path.write_text("\n".join(log("vllm-0.32.0-port-in-use")), encoding="utf-8")
    assert cli.main(["explain-log", str(path)]) == 1
    assert "Failure: the port is in use (while starting)" in capsys.readouterr().out


@pytest.mark.parametrize("content", [None, "hello\n"])
def test_what_cannot_be_explained_is_exit_code_2_in_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], content: str | None
) -> None:
    path = tmp_path / "engine.log"
    if content is not None:
        path.write_text(content, encoding="utf-8")
    assert cli.main(["explain-log", str(path)]) == 2
    assert len(capsys.readouterr().err.strip().splitlines()) == 1
