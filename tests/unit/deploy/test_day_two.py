"""The capacity gate, the status of endpoints, and how a test run is set up from a spec."""

from __future__ import annotations

import dataclasses
import json
import threading
import urllib.request
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from longhaul.capacity.gate import advice, choose_gpu, drift, drift_facts, gate, planned_facts
from longhaul.deploy.layout import Layout
from longhaul.deploy.spec import Spec, read_api_key, render_spec, store_spec
from longhaul.deploy.status import EndpointStatus, age, endpoint_status, log_tail, status_table
from longhaul.deploy.validation import config_from_options, cpu_name, points_from
from longhaul.engines.settings import EngineSettings, settings_from
from longhaul.errors import UserError
from longhaul.files import to_json, write_atomic
from longhaul.physics.hardware import DetectedGpu, get_gpu
from longhaul.prompts import convert
from longhaul.validate.progress import Progress, QuietProgress, progress_line
from standin.fixture import StandIn
from support.paths import CONFIGS
from support.specs import make_spec

SMOL = json.loads((CONFIGS / "smollm2-135m.json").read_text(encoding="utf-8"))
SCOUT = json.loads((CONFIGS / "llama-4-scout.json").read_text(encoding="utf-8"))


def cpu(gib: float | None, context: int = 8192) -> EngineSettings:
    return EngineSettings(
        model_path="/m", served_model_name="m", context_tokens=context, device="cpu", cpu_kv_cache_gib=gib, dtype="bfloat16"
    )


class TestGate:
    def test_a_cache_too_small_for_one_request_is_refused_with_the_nearest_plan(self) -> None:
        big = {**SMOL, "max_position_embeddings": 1_000_000}
        result = gate("vllm", "0.32.0", cpu(1, 500_000), big, gpu=get_gpu("cpu"), host_gpus=None)
        assert result.refusals
        assert result.plan is not None
        assert not result.plan.fits
        assert result.plan.max_concurrency < 1
        near = advice(result, None)
        assert "context" in near
        # What is advised does fit.
        fits = gate("vllm", "0.32.0", cpu(1, result.plan.max_request_tokens), big, gpu=get_gpu("cpu"), host_gpus=None)
        assert fits.plan is not None
        assert fits.plan.fits
        assert advice(fits, None) == ""

    def test_the_embedded_default_fits(self) -> None:
        result = gate("vllm", "0.32.0", cpu(1), SMOL, gpu=get_gpu("cpu"), host_gpus=None, ladder=[(7932, 4)])
        assert result.refusals == ()
        assert result.plan is not None
        facts = planned_facts(result.plan)
        assert facts["fits"] is True
        assert facts["context_tokens"] == 8192
        assert facts["max_concurrency"] == pytest.approx(facts["kv_cache_tokens"] / 8192, rel=0.01)
        json.dumps(facts)

    def test_scout_on_eight_h200(self) -> None:
        settings = EngineSettings(
            model_path="/m", served_model_name="m", context_tokens=2_097_152, tensor_parallel=8, gpu_memory_utilization=0.9
        )
        result = gate("vllm", "0.12.0", settings, SCOUT, gpu=get_gpu("h200"), host_gpus=8)
        assert result.plan is not None
        # One GPU holds an eighth of 107.77e9 bf16 parameters: 25 GiB, not the 4 of the request.
        assert planned_facts(result.plan)["weights_gib_per_gpu"] == pytest.approx(25.3, abs=0.4)
        too_few = gate("vllm", "0.12.0", settings, SCOUT, gpu=get_gpu("h200"), host_gpus=4)
        assert too_few.refusals

    @pytest.mark.parametrize(
        ("config", "gpu", "settings", "word"),
        [
            (None, "h200", cpu(1), "not on the host yet"),
            (SMOL, None, cpu(1), "engine_gpu"),
            ({"model_type": "mystery"}, "h200", cpu(1), "cannot be planned"),
            (SMOL, "cpu", cpu(None), "engine_cpu_kv_cache_gib"),
        ],
    )
    def test_what_cannot_be_planned_says_why_and_refuses_nothing(
        self, config: Any, gpu: str | None, settings: EngineSettings, word: str
    ) -> None:
        result = gate("vllm", "0.32.0", settings, config, gpu=get_gpu(gpu) if gpu else None, host_gpus=None)
        assert result.plan is None
        assert result.refusals == ()
        assert word in (result.skipped or "")
        assert advice(result, None) == ""

    def test_the_card_that_is_there_counts_not_its_row(self) -> None:
        row = get_gpu("h200")
        card = DetectedGpu(0, "NVIDIA H200", 100 * 2**30, 0, dataclasses.replace(row, memory_bytes=100 * 2**30))
        found, count = choose_gpu("cuda", "", [card, card])
        assert found is not None
        assert found.memory_bytes == 100 * 2**30
        assert count == 2
        assert choose_gpu("cuda", "", []) == (None, None)
        assert choose_gpu("cuda", "", [dataclasses.replace(card, gpu=None)]) == (None, 1)
        assert choose_gpu("cuda", "h100", [card]) == (get_gpu("h100"), 1)
        assert choose_gpu("cpu", "", [card])[1] is None

    def test_drift_is_nought_where_the_engine_says_what_was_planned(self) -> None:
        plan = gate("vllm", "0.32.0", cpu(1), SMOL, gpu=get_gpu("cpu"), host_gpus=None).plan
        assert plan is not None
        said = {"kv_cache_tokens": plan.kv_cache_tokens, "max_concurrency": plan.max_concurrency, "context_tokens": 8192}
        same = drift("vllm", "0.32.0", cpu(1), SMOL, get_gpu("cpu"), said)
        assert same is not None
        assert same.predicted["agrees"] is True
        off = drift(
            "vllm", "0.32.0", cpu(1), SMOL, get_gpu("cpu"), {k: v * 0.9 if k != "context_tokens" else v for k, v in said.items()}
        )
        assert off is not None
        assert off.predicted["agrees"] is False
        assert off.drift == pytest.approx(-0.1, abs=0.01)
        assert drift("vllm", "0.32.0", cpu(1), SMOL, get_gpu("cpu"), {"kv_cache_tokens": None}) is None
        json.dumps(drift_facts(off))


def deploy(where: Layout, url_port: int, engine: str = "vllm", version: str = "0.32.0", **settings: Any) -> Spec:
    memory = {"device": "cpu", "cpu_kv_cache_gib": 1} if engine == "vllm" else {}
    spec = render_spec(
        engine,
        version,
        "process",
        settings_from(
            {
                "model_path": str(where.home / "m"),
                "served_model_name": "scout",
                "context_tokens": 2_097_152,
                "port": url_port,
                **memory,
                **settings,
            }
        ),
        instance="default",
        python="/p",
    )
    store_spec(where, spec)
    return spec


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    class Handler(BaseHTTPRequestHandler):
        status = 200

        def do_GET(self) -> None:
            body = b""
            if self.path == "/metrics":
                body = (
                    b'# HELP vllm:kv_cache_usage_perc x\nvllm:kv_cache_usage_perc{engine="0",model_name="m"} 0.25\n'
                    b'vllm:num_requests_running{engine="0"} 3.0\nvllm:num_requests_running{engine="1"} 4.0\n'
                    b"vllm:num_requests_running_other 99\n"
                )
            self.send_response(type(self).status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    made = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True)
    thread.start()
    yield made
    made.shutdown()
    made.server_close()
    thread.join()


class TestStatus:
    def test_up_with_verdict_and_load(self, tmp_path: Path, server: ThreadingHTTPServer) -> None:
        where = Layout(tmp_path)
        deploy(where, server.server_address[1])
        write_atomic(where.facts_file, to_json({"verdict": {"verdict": "PASS", "at_unix_s": 1000.0}}))
        found = endpoint_status(where, now_unix_s=1000.0 + 2 * 86400)
        assert found == EndpointStatus("up", "vllm 0.32.0 scout @ 2,097,152", "healthy", "PASS", 2 * 86400, 0.25, 7.0)

    def test_sick_and_dead_and_absent(self, tmp_path: Path, server: ThreadingHTTPServer) -> None:
        where = Layout(tmp_path)
        assert endpoint_status(where) == EndpointStatus("absent")
        deploy(where, server.server_address[1])
        server.RequestHandlerClass.status = 503  # type: ignore[attr-defined]
        sick = endpoint_status(where)
        assert (sick.state, sick.health) == ("down", "HTTP 503")
        deploy(where, 9)
        dead = endpoint_status(where)
        assert (dead.state, dead.health, dead.kv_usage, dead.verdict) == ("down", "no answer", None, None)

    @pytest.mark.parametrize("lacks", ["/none", "/v1/loads"], ids=["v1/loads", "get_load"])
    def test_sglang_is_asked_what_runs_because_its_gauge_lags(self, lacks: str, tmp_path: Path) -> None:
        key = tmp_path / "key"
        key.write_text("right\n")
        with StandIn("--engine", "sglang", "--ttft", "0", "--gap", "0", "--api-key", "right", "--without-path", lacks) as server:
            body = {"input_ids": [5, 6, 7], "sampling_params": {"max_new_tokens": 2}, "stream": True}
            request = urllib.request.Request(
                f"{server.url}/generate", json.dumps(body).encode(), {"Authorization": "Bearer right"}
            )
            with urllib.request.urlopen(request, timeout=10) as answer:
                answer.read()
            port = int(server.url.rsplit(":", 1)[1])
            deploy(Layout(tmp_path), port, "sglang", "0.5.23", api_key_file=str(key))
            idle = endpoint_status(Layout(tmp_path))
            key.unlink()
            without_key = endpoint_status(Layout(tmp_path))
        assert (idle.state, idle.running, idle.kv_usage) == ("up", 0.0, 0.0)
        assert without_key.running == 1.0, "nothing better than the gauge, which still shows the request that ended"

    def test_one_table_for_every_kind_of_host(self) -> None:
        table = status_table(
            [
                {
                    "host": "gpu-01",
                    "state": "up",
                    "deployed": "vllm",
                    "health": "healthy",
                    "verdict": "PASS",
                    "verdict_age_s": 7300,
                    "kv_usage": 0.126,
                    "running": 2.0,
                },
                {"host": "a-much-longer-name", "state": "unreachable"},
                {"host": "gpu-03", "state": "down", "kv_usage": 0.0, "running": 0.0, "verdict_age_s": 0},
            ]
        )
        assert len(table) == 4
        header = table[0]
        for line, at in ((table[1], "up"), (table[2], "unreachable"), (table[3], "down")):
            assert line[header.index("STATE") :].startswith(at), "columns line up"
        assert table[1].split()[-5:] == ["PASS", "2", "h", "13%", "2"]
        assert table[2].split() == ["a-much-longer-name", "unreachable", "-", "-", "-", "-", "-", "-"]
        assert table[3].split()[-2:] == ["0%", "0"], "zero is a figure, not nothing"

    @pytest.mark.parametrize(
        ("seconds", "text"), [(None, "-"), (-3, "0 s"), (59, "59 s"), (60, "1 min"), (3600, "1 h"), (86400 * 9, "9 d")]
    )
    def test_age(self, seconds: float | None, text: str) -> None:
        assert age(seconds) == text

    def test_log_tail(self, tmp_path: Path) -> None:
        where = Layout(tmp_path)
        assert log_tail(where, 5) == []
        where.log.parent.mkdir()
        where.log.write_bytes(b"one ERROR\ntwo\n\xff three ERROR\nfour\n")
        assert log_tail(where, 2) == ["\ufffd three ERROR", "four"]
        assert log_tail(where, 1, "ERROR$") == ["\ufffd three ERROR"]


def options(**changes: Any) -> dict[str, Any]:
    return {"ladder_tokens": ["4000", 1000], "concurrency": [1, "4"], "output_tokens": "32", **changes}


class TestRunSetup:
    def make(self, tmp_path: Path, facts: dict[str, Any] | None = None, **changes: Any) -> Any:
        spec = deploy(Layout(tmp_path), 8123)
        return config_from_options(
            spec,
            options(**changes.pop("options", {})),
            facts or {},
            name="host-a",
            run_id="r",
            out_dir=tmp_path,
            cache_dir=tmp_path,
            url=changes.get("url"),
            api_key=None,
            remote=changes.get("remote", False),
        )

    @given(st.lists(st.integers(1, 99), min_size=1, max_size=4), st.lists(st.integers(1, 9), min_size=1, max_size=3))
    def test_every_length_with_every_concurrency_once_shortest_first(self, lengths: list[int], at_once: list[int]) -> None:
        points = points_from({"ladder_tokens": lengths, "concurrency": at_once, "output_tokens": 8})
        assert {(p.input_tokens, p.concurrency) for p in points} == {(n, c) for n in lengths for c in at_once}
        assert len(set(points)) == len(points)
        for c in set(at_once):
            mine = [p.input_tokens for p in points if p.concurrency == c]
            assert mine == sorted(mine)

    def test_attempts_are_as_given(self, tmp_path: Path) -> None:
        assert self.make(tmp_path).attempts == 3
        assert self.make(tmp_path, options={"attempts": "1"}).attempts == 1

    def test_points_of_their_own(self) -> None:
        points = points_from(options(points=[{"input_tokens": "9", "concurrency": 2}, {"input_tokens": 9, "output_tokens": 1}]))
        assert [(p.input_tokens, p.output_tokens, p.concurrency) for p in points[-2:]] == [(9, 32, 2), (9, 1, 1)]
        with pytest.raises(UserError, match="context_test_points entry"):
            points_from(options(points=[{"tokens": 9}]))

    def test_words_from_ansible_become_a_configuration(self, tmp_path: Path) -> None:
        config = self.make(
            tmp_path,
            {"deployed": {"start": {"capacity": {"kv_cache_tokens": 47_000}}}},
            options={"limits": {"ttft_s": "1.5", "tpot_s": None, "e2e_s": ""}, "seed": "7", "budget_s": "60"},
        )
        assert config.url == "http://127.0.0.1:8123"
        assert config.model == "scout"
        assert config.limits.ttft_s == 1.5
        assert config.limits.tpot_s is None
        assert (config.seed, config.budget_s, config.kv_cache_tokens) == (7, 60.0, 47_000)
        assert config.environment["measured_from"] == "host"
        assert config.calibrate, "a CPU has no data sheet: its peak is measured"

    def test_from_elsewhere_nothing_of_this_machine_is_booked_as_the_servers(self, tmp_path: Path) -> None:
        config = self.make(tmp_path, remote=True, url="http://proxy.example:80")
        assert config.url == "http://proxy.example:80"
        assert config.environment["measured_from"] == "controller"
        assert config.environment["cpu"] is None
        assert config.environment["gpus"] == []
        assert not config.calibrate

    def test_without_transformers_only_a_run_that_needs_a_tokenizer_stops_at_a_missing_tokenizer_json(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        model = tmp_path / "model"
        model.mkdir()
        (model / "tokenizer.model").touch()
        given = {"tokenizer_dir": str(model)}
        assert self.make(tmp_path, options=given).tokenizer_dir == model
        monkeypatch.setattr(convert, "can_convert", lambda: False)
        assert self.make(tmp_path, options=given).tokenizer_dir is None
        assert self.make(tmp_path, options={**given, "needles": True}).tokenizer_dir == model
        assert self.make(tmp_path, options={**given, "transport": "text"}).tokenizer_dir == model
        (model / "tokenizer.json").touch()
        assert self.make(tmp_path, options=given).tokenizer_dir == model

    @pytest.mark.parametrize(
        ("change", "word"),
        [
            ({"limits": {"ttft_s": "soon"}}, "ttft_s 'soon'"),
            ({"needle_kinds": ["haystack"]}, "'haystack'"),
            ({"budget_s": "x"}, "budget"),
        ],
    )
    def test_bad_words_are_one_line(self, tmp_path: Path, change: dict[str, Any], word: str) -> None:
        with pytest.raises(UserError, match=word):
            self.make(tmp_path, options=change)

    def test_the_key_comes_from_a_file_and_stays_out_of_the_evidence(self, tmp_path: Path) -> None:
        key = tmp_path / "key"
        key.write_text("sesame\n", encoding="utf-8")
        spec = make_spec(api_key_file=str(key))
        assert read_api_key(spec, None, remote=False) == "sesame"
        assert read_api_key(spec, None, remote=True) is None, "the server's file is not on this machine"
        assert read_api_key(spec, str(key), remote=True) == "sesame"
        with pytest.raises(UserError, match="context_test_api_key_file"):
            read_api_key(spec, str(tmp_path / "none"), remote=False)

    def test_cpu_name(self, tmp_path: Path) -> None:
        (tmp_path / "cpuinfo").write_text("processor\t: 0\nmodel name\t: Fast: 9000\n", encoding="utf-8")
        assert cpu_name(tmp_path / "cpuinfo") == "Fast: 9000"
        assert cpu_name(tmp_path / "none") is None


class TestProgress:
    def step(self, elapsed_s: float, done: int, stage: str = "running") -> Progress:
        return Progress(stage=stage, message=f"{done} done", elapsed_s=elapsed_s, point_id="in1000", done=done)

    def test_a_line_when_a_request_ends_else_every_ten_seconds(self) -> None:
        said: list[str] = []
        quiet = QuietProgress(said.append)
        for second in range(30):
            quiet(self.step(second, 0))
        assert len(said) == 3
        quiet(self.step(30, 1))
        assert len(said) == 4
        quiet(self.step(30.1, 1, "point"))
        assert len(said) == 5, "what is not a heartbeat is always said"

    def test_the_line_holds_place_and_time(self) -> None:
        line = progress_line(self.step(12.34, 2))
        assert "12.3 s" in line
        assert "in1000" in line
        assert "2 done" in line
