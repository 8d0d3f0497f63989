"""The engines' real sources hold every option, variable, metric and log text that the adapters rely on.

Offline, for every supported release: nothing is ever emitted that the digest (``flags.json``) does not list for it.
Live, against the wheels themselves: the digest is true. By default the releases around which behaviour changed; all of
them with ``LONGHAUL_CONTRACT_ALL=1``. Wheels come through pip and are read once (``support.cache``).
"""

from __future__ import annotations

import os
from functools import cache
from typing import Any

import pytest
from contract.flag_sources import BOUNDARY, VERSIONS, Registry, SourceUnavailable, names_of, registry
from hypothesis import given
from hypothesis import strategies as st
from longhaul.engines.diagnosis import Phase
from longhaul.engines.registry import get_engine
from longhaul.engines.settings import SETTINGS as DECLARED
from longhaul.engines.settings import EngineSettings, Setting
from longhaul.engines.sglang.adapter import API_KEY_ENV
from longhaul.engines.sglang.log import ENGINE_FAILURES as SGLANG_FAILURES
from longhaul.engines.vllm.log import ENGINE_FAILURES as VLLM_FAILURES
from longhaul.errors import UserError
from longhaul.version import Version

CHOSEN = VERSIONS if os.environ.get("LONGHAUL_CONTRACT_ALL") == "1" else BOUNDARY
LIVE = [(engine, version) for engine, versions in CHOSEN.items() for version in versions]
ENTRY = {"vllm": "vllm.entrypoints.openai.api_server", "sglang": "sglang.launch_server"}


@cache
def flags_of(engine: str, version: str) -> frozenset[str]:
    return names_of(engine, version)


@cache
def env_of(engine: str, version: str) -> frozenset[str]:
    return names_of(engine, version, "env")


@cache
def real(engine: str, version: str) -> Registry:
    try:
        return registry(engine, version)
    except SourceUnavailable as exc:
        pytest.skip(f"the wheel cannot be fetched here: {exc}")


# Values that mean something to the engines, and combinations that they refuse; all else follows from a setting's type.
CHOSEN_VALUES: dict[str, st.SearchStrategy[Any]] = {
    "context_tokens": st.integers(1, 12_000_000),
    "tensor_parallel": st.sampled_from([1, 2, 8]),
    "pipeline_parallel": st.sampled_from([1, 2]),
    "gpu_memory_utilization": st.none() | st.floats(0.1, 0.99),
    "kv_cache_dtype": st.sampled_from(["auto", "fp8", "fp8_e4m3"]),
    "dtype": st.sampled_from(["auto", "bfloat16"]),
    "quantization": st.sampled_from([None, "fp8"]),
    "load_format": st.sampled_from(["auto", "dummy", "runai_streamer"]),
    "block_size_tokens": st.none() | st.sampled_from([1, 16, 64, 128, 144]),
    "attention_backend": st.sampled_from([None, "fa3", "FLASH_ATTN"]),
    "cpu_kv_cache_gib": st.sampled_from([None, 1, 4.0]),
    "swa_full_tokens_ratio": st.sampled_from([None, 0.02]),
    "max_total_tokens": st.sampled_from([None, 1_000_000]),
    "api_key_file": st.sampled_from([None, "", "/run/secrets/key"]),
}
# The rest of the settings say where the endpoint is, or are words of the operator.
WORDS = ("model_path", "served_model_name", "host", "port", "extra_args", "extra_env")


def values_of(setting: Setting) -> st.SearchStrategy[Any]:
    """Values of a setting; of one that was just declared, by its type."""
    if setting.name in CHOSEN_VALUES:
        return CHOSEN_VALUES[setting.name]
    if setting.choices:
        return st.sampled_from(setting.choices)
    by_kind = {"bool": st.booleans(), "int": st.integers(1, 65_536), "float": st.floats(0.1, 1.0)}
    found = by_kind.get(setting.kind.removesuffix(" | None"), st.just("other"))
    return st.none() | found if setting.kind.endswith("| None") else found


SETTINGS = st.fixed_dictionaries({setting.name: values_of(setting) for setting in DECLARED if setting.name not in WORDS})


def emitted(engine: str, version: str, changes: dict[str, Any]) -> tuple[set[str], set[str]]:
    """Flags and environment names of a launch; what the adapter refuses emits nothing."""
    try:
        launch = get_engine(engine).launch(
            EngineSettings(model_path="/models/m", served_model_name="m", **changes), Version.parse(version)
        )
    except UserError:
        return set(), set()
    assert "--api-key" not in launch.argv
    flags = {word.split("=", 1)[0] for word in launch.argv if word.startswith("--")}
    return flags, {*launch.env, *launch.secret_env}


@pytest.mark.parametrize(("engine", "version"), [(e, v) for e, versions in VERSIONS.items() for v in versions])
def test_every_release_takes_a_plain_launch(engine: str, version: str) -> None:
    """Every release is really launched (not refused), with options of every kind."""
    changes = {"context_tokens": 2_097_152, "tensor_parallel": 8, "enforce_eager": True, "prefix_caching": False}
    flags, _ = emitted(engine, version, changes | {"hybrid_kv": "off", "attention_backend": "FLASH_ATTN", "text_only": False})
    assert len(flags) >= 9
    assert flags <= flags_of(engine, version)


@given(data=st.data(), engine=st.sampled_from(sorted(VERSIONS)), changes=SETTINGS)
def test_no_release_is_ever_given_an_option_it_lacks(data: st.DataObject, engine: str, changes: dict[str, Any]) -> None:
    version = data.draw(st.sampled_from(VERSIONS[engine]))
    flags, env = emitted(engine, version, changes)
    assert flags <= flags_of(engine, version), f"{engine} {version} lacks {sorted(flags - flags_of(engine, version))}"
    # The launcher of SGLang takes the key out of our own variable before the engine starts.
    assert env - {API_KEY_ENV} <= env_of(engine, version), f"{engine} {version} does not read {sorted(env)}"


def test_the_digest_knows_what_came_and_went() -> None:
    """Known changes between the request's release and today's, so that an empty or broken digest cannot pass."""
    assert "--swap-space" in flags_of("vllm", "0.12.0")
    assert "--swap-space" not in flags_of("vllm", "0.32.0")
    assert "--attention-backend" not in flags_of("vllm", "0.12.0")
    assert "VLLM_ATTENTION_BACKEND" not in env_of("vllm", "0.32.0")
    assert "--cuda-graph-max-bs" in flags_of("sglang", "0.5.6.post2")
    assert "--cuda-graph-max-bs" not in flags_of("sglang", "0.5.23")
    assert "--cuda-graph-max-bs-decode" in flags_of("sglang", "0.5.23")


@pytest.mark.parametrize(("engine", "version"), LIVE)
def test_the_digest_is_what_the_wheel_registers(engine: str, version: str) -> None:
    found = real(engine, version)
    assert found.flags == flags_of(engine, version)
    assert found.env == env_of(engine, version)
    assert ENTRY[engine] in found.modules, "the module that we start"


@pytest.mark.parametrize("version", CHOSEN["vllm"])
def test_the_hybrid_default_of_vllm_is_where_our_table_says(version: str) -> None:
    default = real("vllm", version).env_defaults["VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE"]
    _, env = emitted("vllm", version, {"context_tokens": 8_388_608, "hybrid_kv": "on"})
    assert ("VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE" in env) is (default == "0")


@pytest.mark.parametrize(("engine", "version"), LIVE)
def test_every_metric_exists_under_our_name(engine: str, version: str) -> None:
    metrics = get_engine(engine).metrics
    texts = set(real(engine, version).texts)
    for name in (n for n in vars(metrics).values() if isinstance(n, str)):
        # vLLM names its counters without the suffix that the Prometheus client adds.
        assert name in texts or name.removesuffix("_total") in texts, f"{engine} {version}: {name}"


@pytest.mark.parametrize(("engine", "version"), LIVE)
def test_every_phase_has_a_line_in_that_release(engine: str, version: str) -> None:
    marks = get_engine(engine).phases
    seen = {mark.phase for mark in marks if real(engine, version).prints(mark.needle)}
    seen |= {Phase.READY} if engine == "vllm" else set()  # "Application startup complete." is uvicorn's
    assert seen >= {Phase.STARTING, Phase.LOADING, Phase.SIZING_KV, Phase.CAPTURING, Phase.READY}


@pytest.mark.parametrize("engine", sorted(VERSIONS))
def test_every_failure_text_of_the_engine_is_really_its_own(engine: str) -> None:
    """A needle that no checked release prints would never match: a typing error, or a guess."""
    marks = VLLM_FAILURES if engine == "vllm" else SGLANG_FAILURES
    found = [real(engine, version) for version in CHOSEN[engine]]
    for mark in marks:
        needle = mark.needle.removeprefix("ValueError: ").removeprefix("RuntimeError: ")
        assert any(r.prints(needle) for r in found), mark.needle
