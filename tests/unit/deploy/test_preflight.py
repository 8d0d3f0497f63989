"""Every input that a person can get wrong: one finding, with what was found, what is required, and the fix."""

from __future__ import annotations

import importlib.util
import os
import socket
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hypothesis import given
from hypothesis import strategies as st
from longhaul.deploy import preflight
from longhaul.deploy.layout import Layout
from longhaul.deploy.model_store import check_model_dir, is_stored
from longhaul.deploy.preflight import Finding
from longhaul.errors import UserError
from support.paths import ROOT

SETTINGS = {
    "model_path": "/m",
    "served_model_name": "m",
    "context_tokens": "8192",
    "port": 8000,
    "tensor_parallel": 1,
    "pipeline_parallel": "1",
}


def engine(settings: dict[str, Any] | None = None, **changes: Any) -> list[Finding]:
    """Findings of an engine's variables, one thing changed."""
    return preflight.check_engine(
        {"name": "vllm", "version": "0.12.0", "runtime": "docker", "settings": {**SETTINGS, **(settings or {})}, **changes}
    )


def only(findings: list[Finding]) -> Finding:
    """One wrong input is one finding: the operator mends one thing."""
    assert len(findings) == 1, findings
    (finding,) = findings
    assert "\n" not in str(finding)
    assert str(finding).startswith(f"found: {finding.found} | required: {finding.required} | fix: {finding.fix}")
    assert finding.fix
    return finding


class TestEngine:
    def test_what_is_right_passes(self) -> None:
        assert engine() == []
        assert engine(name="sglang", version="0.5.6.post2", runtime="process") == []

    @pytest.mark.parametrize(
        ("changes", "word"),
        [
            ({"name": "llamacpp"}, "engine_name 'llamacpp'"),
            ({"runtime": "podman"}, "engine_runtime 'podman'"),
            ({"version": "latest"}, "engine version 'latest'"),
            ({"version": "0.1.0"}, "vLLM 0.1.0"),
        ],
    )
    def test_what_is_not_known(self, changes: dict[str, Any], word: str) -> None:
        assert word in only(engine(**changes)).found

    @pytest.mark.parametrize("name", ["context_tokens", "port", "tensor_parallel", "pipeline_parallel"])
    @pytest.mark.parametrize("value", ["2M", "8k", 0, -8192, 1.5, "1e6", True, None, "", "8_192", "\uff18", "9" * 30])
    def test_sizes_are_plain_positive_integers(self, name: str, value: Any) -> None:
        finding = only(engine({name: value}))
        assert f"engine_{name} {value!r}" in finding.found
        assert "positive integer" in finding.required

    def test_ports_end_at_65535(self) -> None:
        assert only(engine({"port": 65536})).required == "1 to 65535"
        assert engine({"port": 65535}) == []

    @pytest.mark.parametrize("share", [0, 1.01, "most", 92])
    def test_gpu_memory_is_a_fraction(self, share: Any) -> None:
        assert "fraction" in only(engine({"gpu_memory_utilization": share})).required

    def test_a_setting_of_the_other_engine_is_refused_by_name(self) -> None:
        assert "swa_full_tokens_ratio" in only(engine({"swa_full_tokens_ratio": 0.02})).found

    def test_several_wrong_inputs_are_all_said_at_once(self) -> None:
        assert len(engine({"context_tokens": "2M", "port": 0}, runtime="podman")) == 3

    @given(st.one_of(st.integers(), st.text(), st.floats(), st.booleans(), st.none()), st.integers(0, 5))
    def test_whole_number_takes_exactly_integers(self, value: Any, least: int) -> None:
        found = preflight.whole_number("x", value, least)
        if isinstance(found, Finding):
            # Nothing that is counted here has nineteen digits: such a figure is a slip of the hand.
            assert isinstance(value, bool) or not (isinstance(value, int) and least <= value < 10**18)
        else:
            assert found >= least
            assert int(value) == found


class TestLadder:
    BASE: ClassVar[dict[str, Any]] = {"ladder_tokens": [1000], "concurrency": [1], "output_tokens": 100, "context_tokens": 8192}

    @pytest.mark.parametrize(
        ("change", "word"),
        [
            ({"ladder_tokens": [8000, 8093]}, "8093 + 100 output = 8193"),
            ({"ladder_tokens": []}, "context_test_ladder_tokens []"),
            ({"points": [{"input_tokens": 8093}]}, "8093 + 100 output = 8193"),
            ({"points": [{"input_tokens": 8000, "output_tokens": 200}]}, "8000 + 200 output = 8200"),
            ({"points": [{"concurrency": 4}]}, "context_test_points entry {'concurrency': 4}"),
            ({"points": 8000}, "context_test_points entry 8000"),
            ({"points": "8000"}, "context_test_points entry '8000'"),
            ({"points": ["8000"]}, "context_test_points entry '8000'"),
            ({"points": [{"input_tokens": 100, "concurrency": 0}]}, "concurrency of a context_test_points entry 0"),
            ({"ladder_tokens": "1000"}, "context_test_ladder_tokens '1000'"),
            ({"ladder_tokens": ["1k"]}, "'1k'"),
            ({"concurrency": [0]}, "entry 0"),
            ({"concurrency": None}, "concurrency None"),
            ({"output_tokens": 0}, "context_test_output_tokens 0"),
        ],
    )
    def test_refused(self, change: dict[str, Any], word: str) -> None:
        assert word in only(preflight.check_ladder({**self.BASE, **change})).found

    @given(st.integers(1, 10_000), st.integers(1, 10_000), st.integers(1, 20_000))
    def test_exactly_what_fits_the_context_passes(self, point: int, output: int, context: int) -> None:
        findings = preflight.check_ladder(
            {"ladder_tokens": [point], "concurrency": [1], "output_tokens": str(output), "context_tokens": str(context)}
        )
        assert bool(findings) == (point + output > context)

    @pytest.mark.parametrize(("variable", "held"), [(4096, 8192), (16_384, 8192), (None, 8192), ("2M", "8192")])
    def test_what_is_deployed_counts_before_the_variable(self, variable: Any, held: Any) -> None:
        ladder = {**self.BASE, "context_tokens": variable, "deployed_context_tokens": held}
        assert preflight.check_ladder({**ladder, "ladder_tokens": [8092]}) == []
        found = only(preflight.check_ladder({**ladder, "ladder_tokens": [8093]}))
        assert found.required == "at most the context of 8192 that is deployed"
        assert "deploy with a larger engine_context_tokens" in found.fix

    def test_without_a_context_there_is_nothing_to_exceed(self) -> None:
        assert preflight.check_ladder({**self.BASE, "context_tokens": None, "ladder_tokens": [10**9]}) == []


class TestModel:
    @pytest.mark.parametrize(
        ("options", "word"),
        [
            ({"source": "ftp"}, "model_store_source 'ftp'"),
            ({"source": None}, "model_store_source None"),
            ({"source": "path", "path": ""}, "model_store_path empty"),
            ({"source": "path", "path": "models/x"}, "model_store_path 'models/x'"),
            ({"source": "hub"}, "model_store_hub_repo empty"),
            ({"source": "hub", "hub_repo": "https://huggingface.co/a/b"}, "model_store_hub_repo"),
            ({"source": "hub", "hub_repo": "only-a-name"}, "model_store_hub_repo"),
            ({"source": "dummy", "dummy": ""}, "model_store_dummy empty"),
        ],
    )
    def test_refused(self, options: dict[str, Any], word: str) -> None:
        assert word in only(preflight.check_model_store(options)).found

    @pytest.mark.parametrize(
        "options",
        [{"source": "bundled"}, {"source": "path", "path": "/m"}, {"source": "hub", "hub_repo": "meta-llama/Llama-4-Scout"}],
    )
    def test_accepted(self, options: dict[str, Any]) -> None:
        assert preflight.check_model_store(options) == []

    def test_positions_at_top_level_or_nested(self) -> None:
        for config in (
            {"max_position_embeddings": 8192},
            {"text_config": {"max_position_embeddings": 8192}, "max_position_embeddings": 1},
        ):
            assert preflight.check_positions(8192, config, "/m") == []
            finding = only(preflight.check_positions(8193, config, "/m"))
            assert finding.found == "engine_context_tokens 8193"
            assert "8192" in finding.required
            assert "/m" in finding.required
        assert preflight.check_positions(10**9, {}, "/m") == []

    def test_a_folder_without_config(self, tmp_path: Path) -> None:
        with pytest.raises(UserError, match=r"no config\.json in"):
            check_model_dir(tmp_path)
        with pytest.raises(UserError, match="no folder"):
            check_model_dir(tmp_path / "none")
        assert preflight.model_config(tmp_path) is None
        (tmp_path / "config.json").write_text("{", encoding="utf-8")
        assert preflight.model_config(tmp_path) is None
        with pytest.raises(UserError, match=r"config\.json is not readable JSON"):
            check_model_dir(tmp_path)

    def test_a_model_counts_once_its_stamp_says_so(self, tmp_path: Path) -> None:
        identity = {"source": "hub", "revision": "abc"}
        (tmp_path / "config.json").write_text("{}", encoding="utf-8")
        assert not is_stored(tmp_path, identity)
        (tmp_path / "longhaul-model.json").write_text('{"source": "hub", "revision": "abc"}', encoding="utf-8")
        assert is_stored(tmp_path, identity)
        assert not is_stored(tmp_path, {**identity, "revision": "def"}), "another revision is another model"
        (tmp_path / "config.json").unlink()
        assert not is_stored(tmp_path, identity)


class TestHost:
    def test_a_home_below_a_file_is_not_writable_even_for_root(self) -> None:
        finding = only(preflight.check_home(Layout(Path("/dev/null/x")), 0))
        assert "/dev/null/x is not writable" in finding.found

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
    def test_a_home_of_somebody_else(self, tmp_path: Path) -> None:
        tmp_path.chmod(0o500)
        assert "not writable" in only(preflight.check_home(Layout(tmp_path / "x"), 0)).found

    def test_room(self, tmp_path: Path) -> None:
        assert preflight.check_home(Layout(tmp_path / "not" / "yet"), 1) == []
        assert not (tmp_path / "not").exists(), "a check makes nothing"
        finding = only(preflight.check_home(Layout(tmp_path), 2**60))
        assert finding.required == "1073741824.0 GiB"

    def test_a_port_in_use_names_the_holder(self, tmp_path: Path) -> None:
        with socket.socket() as server:
            server.bind(("127.0.0.1", 0))
            server.listen()
            port = server.getsockname()[1]
            finding = only(preflight.check_port(Layout(tmp_path), port, "127.0.0.1"))
            assert f"port {port} on 127.0.0.1 is held by pid {os.getpid()}" in finding.found
        assert preflight.check_port(Layout(tmp_path), port, "127.0.0.1") == []

    def test_two_names_for_one_endpoint(self) -> None:
        rows = [
            ("a", "10.0.0.1:", "", "default", "8000"),
            ("b", "10.0.0.1:", "", "two", "8001"),
            ("c", "10.0.0.2:", "", "default", "8000"),
        ]
        assert preflight.check_unique_endpoints(rows) == []
        finding = only(preflight.check_unique_endpoints([*rows, ("d", "10.0.0.1:", "", "two", "8001")]))
        assert "hosts b and d are one endpoint" in finding.found
        assert "longhaul_instance" in finding.fix

    def test_two_endpoints_of_one_machine_on_one_port(self) -> None:
        rows = [("a", "10.0.0.1:", "", "default", "8000"), ("b", "10.0.0.1:", "", "two", "8000")]
        finding = only(preflight.check_unique_endpoints(rows))
        assert finding.found == "hosts a and b are endpoints of one machine (10.0.0.1:) with engine_port 8000 both"
        assert finding.fix == "set another engine_port for b"

    @pytest.mark.parametrize(
        ("changes", "host_mib", "severity"),
        [
            ({}, 64, "refuse"),
            ({"version": "0.12.0"}, 64, "warn"),  # does not look; dies only once the ring is full
            ({}, 1024, None),
            ({"device": "cuda"}, 64, None),  # one process, nobody to talk to
            ({"device": "cuda", "ranks": 8}, 64, "refuse"),
            ({"device": "cuda", "ranks": 8}, 512, "warn"),
            ({"engine": "sglang", "version": "0.5.6.post2", "ranks": 8}, 64, "warn"),
            ({"ipc": "private"}, 65536, "refuse"),
            ({"ipc": "private", "shm_size": "1g"}, 64, None),
            ({"runtime": "process", "ipc": "private"}, 1024, None),
            ({}, None, None),
        ],
    )
    def test_shared_memory(self, changes: dict[str, Any], host_mib: int | None, severity: str | None) -> None:
        options = {"engine": "vllm", "version": "0.32.0", "runtime": "docker", "device": "cpu", "ranks": 1, "ipc": "host"}
        host = None if host_mib is None else host_mib * 2**20
        findings = preflight.check_shm({**options, "shm_size": "", **changes}, host)
        assert [f.severity for f in findings] == ([severity] if severity else [])
        for finding in findings:
            assert finding.found.startswith(("64 MiB of /dev/shm", "512 MiB of /dev/shm"))
            assert "engine_container_shm_size" in finding.fix

    def test_the_filter_names_what_makes_an_endpoint(self) -> None:
        place = ROOT / "plugins" / "filter" / "longhaul.py"
        spec = importlib.util.spec_from_file_location("longhaul_filters", place)
        assert spec is not None
        assert spec.loader is not None
        filters = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(filters)
        two = {"ansible_host": "gpu1", "longhaul_instance": "two", "engine_port": 8001}
        assert filters.longhaul_endpoint({"inventory_hostname": "b", **two}) == ["b", "gpu1:", "", "two", "8001"]
        # The role's own default: a name that says nothing of a port holds that one.
        defaults = ROOT / "roles" / "engine" / "defaults" / "main.yml"
        assert "\nengine_port: 8000\n" in defaults.read_text(encoding="utf-8")
        assert filters.longhaul_endpoint({"inventory_hostname": "a", "ansible_connection": "local"})[1:] == [
            "localhost", "", "default", "8000",
        ]  # fmt: skip


class TestANewCheck:
    def test_it_is_one_function(self) -> None:
        before = len(preflight.CHECKS)
        try:

            @preflight.preflight_check("engine", "where")
            def check_no_root_home(engine: dict[str, Any], where: Layout) -> list[Finding]:
                if engine.get("version") == "broken":
                    raise UserError("a broken engine", "one that works", "wait")
                return [Finding(f"{where.home}", "another home", "set longhaul_home", "warn")]

            engine = {"name": "vllm", "version": "0.12.0", "runtime": "process", "settings": SETTINGS}
            findings = preflight.run_checks({"engine": engine, "home": "/srv/x"})
            assert [f.found for f in findings] == ["/srv/x"]
            assert preflight.as_result(findings)[1] == ["found: /srv/x | required: another home | fix: set longhaul_home"]
            assert preflight.run_checks({"home": "/srv/x"}) == [], "it runs where all that it needs is given"
            broken = preflight.run_checks({"engine": {**engine, "version": "broken"}, "home": "/srv/x"})
            assert "a broken engine" in [f.found for f in broken]
        finally:
            del preflight.CHECKS[before:]


class TestTogether:
    def test_all_that_is_wrong_is_said_at_once(self, tmp_path: Path) -> None:
        findings = preflight.run_checks(
            {
                "engine": {"name": "vllm", "version": "0.12.0", "runtime": "podman", "settings": SETTINGS},
                "model_store": {"source": "nowhere"},
                "ladder": {"ladder_tokens": [9000], "concurrency": [1], "output_tokens": 1, "context_tokens": 8192},
                "shm": {
                    "engine": "vllm",
                    "version": "0.32.0",
                    "runtime": "docker",
                    "device": "cpu",
                    "ipc": "private",
                    "shm_size": "x",
                },
                "home": "relative",
                "endpoints": None,
            }
        )
        words = (
            "engine_runtime",
            "model_store_source",
            "ladder point",
            "engine_container_shm_size",
            "longhaul_home",
        )
        assert all(any(word in f.found for f in findings) for word in words), findings
        assert len(findings) == len(words)

    def test_a_warning_alone_does_not_fail(self) -> None:
        doubt, refusal = Finding("a", "b", "c", "warn"), Finding("d", "e", "f")
        result, warnings = preflight.as_result([doubt])
        assert not result.get("failed")
        assert warnings == ["found: a | required: b | fix: c"]
        result, _ = preflight.as_result([doubt, refusal, refusal])
        assert (result["failed"], result["msg"]) == (True, "found: d | required: e | fix: f")
        assert [f["severity"] for f in result["findings"]] == ["warn", "refuse", "refuse"]
