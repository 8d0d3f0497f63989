"""Watching a start: ready, dead, hung; what the log says; a clock of our own and a real HTTP server."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from longhaul.deploy.startup import (
    HEARTBEAT_S,
    POLL_S,
    LogFollower,
    StartOutcome,
    http_status,
    served_models,
    watch_start,
)
from longhaul.engines.registry import get_engine
from support.paths import LOGS

VLLM = get_engine("vllm")


class Engine:
    """A server that answers /health and /v1/models as told, or nothing at all."""

    def __init__(self) -> None:
        self.health = 503
        self.models: Any = {"data": [{"id": "m", "max_model_len": 8192}]}
        self.models_status = 200
        self.keys: list[str | None] = []
        engine = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                status, body = engine.health, b""
                if self.path == "/v1/models":
                    engine.keys.append(self.headers.get("Authorization"))
                    status, body = engine.models_status, json.dumps(engine.models).encode()
                self.send_response(status)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_address[1]}"
        self.thread = threading.Thread(target=self.server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
        self.thread.start()


@pytest.fixture
def engine() -> Iterator[Engine]:
    made = Engine()
    yield made
    made.server.shutdown()
    made.server.server_close()
    made.thread.join()


class Watch:
    """A start in fast motion: at each poll one scripted thing happens. ``script``: lines, or a callable."""

    def __init__(self, url: str, script: list[Any], dies_after: int | None = None) -> None:
        self.url, self.script, self.dies_after = url, script, dies_after
        self.now, self.polls, self.said = 0.0, 0, list[str]()

    def new_lines(self) -> list[str]:
        step = self.script.pop(0) if self.script else []
        if callable(step):
            step()
            return []
        return list(step)

    def alive(self) -> bool:
        return self.dies_after is None or self.polls < self.dies_after

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.polls += 1

    def run(self, timeout_s: float = 100, **more: Any) -> StartOutcome:
        return watch_start(
            VLLM,
            self.url,
            self.new_lines,
            self.alive,
            self.said.append,
            timeout_s,
            clock=lambda: self.now,
            sleep=self.sleep,
            **more,
        )


NOBODY = "http://127.0.0.1:9"


def log(name: str) -> list[str]:
    return (LOGS / f"vllm-0.32.0-{name}.log").read_text(encoding="utf-8").splitlines()


def test_ready_names_every_phase_once_and_reads_the_engines_figures(engine: Engine) -> None:
    lines = log("cpu-ready")
    watch = Watch(engine.url, [lines[:30], lines[30:60], [], lines[60:], lambda: setattr(engine, "health", 200)])
    outcome = watch.run()
    assert outcome.ready
    assert not outcome.died
    assert [m.name for m in outcome.served] == ["m"]
    names = [p for p, _ in outcome.phases]
    assert names[0] == "starting"
    assert names[-1] == "ready"
    assert len(set(names)) == len(names)
    assert [t for _, t in outcome.phases] == sorted(t for _, t in outcome.phases)
    assert outcome.capacity is not None
    assert outcome.capacity == VLLM.capacity_from_log(lines)
    assert outcome.capacity.kv_cache_tokens
    # Said when the server answers, not when the log promises it.
    assert watch.said[-1].startswith("ready (")
    assert sum(s.startswith("ready") for s in watch.said) == 1


def test_a_health_answer_without_a_model_is_not_readiness(engine: Engine) -> None:
    engine.health = 200
    engine.models = {"data": []}
    watch = Watch(engine.url, [[], [], lambda: setattr(engine, "models", {"data": [{"id": "late"}]})])
    outcome = watch.run()
    assert outcome.ready
    assert watch.polls >= 2
    assert outcome.served[0].name == "late"


def test_a_server_that_is_nobody_of_ours_does_not_count_once_our_process_is_dead(engine: Engine) -> None:
    """The port was taken at the last moment: somebody answers 200, and our own process is gone."""
    engine.health = 200
    outcome = Watch(engine.url, [log("port-in-use")], dies_after=0).run()
    assert not outcome.ready
    assert outcome.died
    assert outcome.diagnosis is not None
    assert "port" in outcome.diagnosis.cause.lower()


def test_which_model_answers_is_reported(engine: Engine) -> None:
    engine.health, engine.models = 200, {"data": [{"id": "somebody-elses", "max_model_len": 4}]}
    assert [(m.name, m.max_model_len) for m in Watch(engine.url, []).run().served] == [("somebody-elses", 4)]


def test_the_key_is_sent_and_its_absence_is_no_failure(engine: Engine) -> None:
    engine.health = 200
    assert Watch(engine.url, []).run(api_key="sesame").ready
    assert engine.keys[-1] == "Bearer sesame"
    engine.models_status = 401
    outcome = Watch(engine.url, []).run()
    assert outcome.ready, "it guards its models: it is up"
    assert outcome.served == ()


@pytest.mark.parametrize(
    ("name", "word"),
    [("kv-too-small", "KV cache"), ("context-above-positions", "positions"), ("unknown-flag", "flag"), ("port-in-use", "port")],
)
def test_a_death_is_seen_within_one_poll_and_named_by_its_cause_not_its_wrapper(name: str, word: str) -> None:
    lines = log(name)
    watch = Watch(NOBODY, [[], [], [], lines], dies_after=3)
    outcome = watch.run(timeout_s=3600)
    assert outcome.died
    assert not outcome.ready
    assert outcome.elapsed_s <= 4 * POLL_S
    assert outcome.diagnosis is not None
    assert word.lower() in outcome.diagnosis.cause.lower()
    assert "initialization failed" not in outcome.diagnosis.evidence
    assert outcome.diagnosis.advice
    assert 0 < len(outcome.last_lines) <= 15


def test_lines_written_while_dying_are_read() -> None:
    """The cause is often flushed after the last poll that saw the process."""
    watch = Watch(
        NOBODY, [["INFO starting"], ["torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB"]], dies_after=0
    )
    outcome = watch.run()
    assert outcome.diagnosis is not None
    assert "out of memory" in outcome.diagnosis.cause


def test_a_wrapper_is_better_than_nothing() -> None:
    outcome = Watch(NOBODY, [["RuntimeError: Engine core initialization failed. See root cause above."]], dies_after=0).run()
    assert outcome.diagnosis is not None
    assert "engine process failed to start" in outcome.diagnosis.cause


@pytest.mark.parametrize(
    ("lines", "evidence"), [([], "the log is empty"), (["one", "Killed by a signal", "bye"], "Killed by a signal")]
)
def test_a_death_without_a_known_cause_shows_the_most_telling_line(lines: list[str], evidence: str) -> None:
    outcome = Watch(NOBODY, [lines], dies_after=0).run()
    assert outcome.diagnosis is not None
    assert outcome.diagnosis.evidence == evidence
    assert "without naming a cause" in outcome.diagnosis.cause
    assert "logs.yml" in outcome.diagnosis.advice


def test_a_hang_ends_at_the_time_out_and_is_not_called_a_death() -> None:
    watch = Watch(NOBODY, [["Starting to load model /m"], ["Loading weights: 10%"]])
    outcome = watch.run(timeout_s=60)
    assert not outcome.ready
    assert not outcome.died
    assert 60 < outcome.elapsed_s <= 60 + POLL_S
    assert outcome.diagnosis is not None
    assert "not ready after 60 s" in outcome.diagnosis.cause
    assert outcome.diagnosis.phase is not None
    assert outcome.diagnosis.phase.value == "loading weights"


def test_silence_is_broken_by_a_heartbeat_with_the_last_line() -> None:
    watch = Watch(NOBODY, [["(EngineCore pid=12) INFO 09-01 10:00:00 [loader.py:3] Loading shard 3 of 50"]])
    watch.run(timeout_s=4 * HEARTBEAT_S)
    beats = [s for s in watch.said if "Loading shard" in s]
    assert 3 <= len(beats) <= 4
    assert "pid=12" not in beats[0], "who wrote it is noise"


class TestLogFollower:
    @given(
        st.text(alphabet=st.characters(blacklist_characters="\n", blacklist_categories=["Cs"]), max_size=30), st.integers(0, 40)
    )
    def test_a_cut_anywhere_loses_and_doubles_nothing(
        self, tmp_path_factory: pytest.TempPathFactory, text: str, cut: int
    ) -> None:
        path = tmp_path_factory.mktemp("log") / "engine.log"
        data = f"first\n{text}\nlast\n".encode()
        cut = min(cut, len(data))
        path.write_bytes(data[:cut])
        follow = LogFollower(path)
        found = follow()
        with path.open("ab") as out:
            out.write(data[cut:])
        assert found + follow() == ["first", text, "last"]
        assert follow() == []

    def test_begins_where_this_start_begins(self, tmp_path: Path) -> None:
        path = tmp_path / "engine.log"
        path.write_text("torch.OutOfMemoryError of last week\n", encoding="utf-8")
        follow = LogFollower(path, path.stat().st_size)
        assert follow() == []
        with path.open("a", encoding="utf-8") as out:
            out.write("new\nhalf")
        assert follow() == ["new"]

    def test_a_rotated_log_is_read_from_its_start(self, tmp_path: Path) -> None:
        path = tmp_path / "engine.log"
        path.write_text("a long line of the old file\nhalf a li", encoding="utf-8")
        follow = LogFollower(path)
        follow()
        path.rename(tmp_path / "engine.log.1")
        assert follow() == []
        path.write_text("new\n", encoding="utf-8")
        assert follow() == ["new"], "no rest of the old file sticks to it"

    def test_no_log_yet(self, tmp_path: Path) -> None:
        assert LogFollower(tmp_path / "none")() == []


def test_questions_to_nobody_have_an_answer(engine: Engine) -> None:
    assert http_status(NOBODY) is None
    assert http_status("nonsense") is None
    assert http_status(engine.url + "/health") == 503
    assert served_models(NOBODY, "/v1/models") == ()
    engine.models = ["not", "what", "was", "meant"]
    assert served_models(engine.url, "/v1/models") == ()
