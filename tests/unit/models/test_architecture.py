"""Configs of real models -> layers by kind, parameter counts, KV shapes; nonsense -> one line."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from longhaul.errors import UserError
from longhaul.models.architecture import AttentionKind
from longhaul.models.reader import load_architecture
from support.paths import CONFIGS

NAMES = sorted(p.stem for p in CONFIGS.glob("*.json"))


def config(name: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((CONFIGS / f"{name}.json").read_text(encoding="utf-8"))
    return found


def test_the_request_and_its_neighbours_are_all_here() -> None:
    assert len(NAMES) >= 14


@pytest.mark.parametrize("name", NAMES)
def test_parameter_counts_match_the_published_ones(name: str) -> None:
    published = config(name)["_published"]
    model = load_architecture(CONFIGS / f"{name}.json")
    assert model.total_parameters == pytest.approx(published["total"], rel=0.005)
    if "text_total" in published:
        assert model.parameters == pytest.approx(published["text_total"], rel=0.005)


@pytest.mark.parametrize(
    ("name", "parameters"),
    # Counted from transformers' own model classes (release 5.19) built on the meta device from the same configs;
    # DeepSeek-V3 is left out: its routing biases are buffers there (14,848 of 671e9).
    [
        ("gemma-3-27b", 27_432_406_640),
        ("gemma-3-4b", 4_300_079_472),
        ("gpt-oss-120b", 116_829_156_672),
        ("gpt-oss-20b", 20_914_757_184),
        ("llama-3.1-70b", 70_553_706_496),
        ("llama-3.1-8b", 8_030_261_248),
        ("llama-4-maverick", 401_583_781_376),
        ("llama-4-scout", 108_641_793_536),
        ("mistral-7b-v0.1", 7_241_732_096),
        ("mixtral-8x7b", 46_702_792_704),
        ("qwen3-30b-a3b", 30_532_122_624),
        ("qwen3-32b", 32_762_123_264),
        ("smollm2-135m", 134_515_008),
    ],
)
def test_parameter_counts_are_exact(name: str, parameters: int) -> None:
    assert load_architecture(CONFIGS / f"{name}.json").total_parameters == parameters


@pytest.mark.parametrize(
    ("name", "active"), [("llama-4-scout", 17e9), ("llama-4-maverick", 17e9), ("mixtral-8x7b", 12.9e9), ("qwen3-30b-a3b", 3.3e9)]
)
def test_active_parameters_match_the_published_ones(name: str, active: float) -> None:
    assert load_architecture(CONFIGS / f"{name}.json").active_parameters == pytest.approx(active, rel=0.02)


@pytest.mark.parametrize("name", ["gpt-oss-20b", "gpt-oss-120b"])
def test_gpt_oss_counts_active_parameters_without_the_embedding(name: str) -> None:
    model = load_architecture(CONFIGS / f"{name}.json")
    active = model.active_parameters - model.embedding_parameters
    assert active == pytest.approx(config(name)["_published"]["active"], rel=0.005)


@pytest.mark.parametrize(
    ("name", "counts"),
    [
        ("llama-4-scout", (12, 36, 0)),
        ("llama-4-maverick", (12, 36, 0)),
        ("gemma-3-27b", (10, 0, 52)),
        ("gemma-3-4b", (5, 0, 29)),
        ("gpt-oss-20b", (12, 0, 12)),
        ("gpt-oss-120b", (18, 0, 18)),
        ("mistral-7b-v0.1", (0, 0, 32)),
        ("qwen3-32b", (64, 0, 0)),
        ("deepseek-v3", (61, 0, 0)),
    ],
)
def test_layers_by_attention_kind(name: str, counts: tuple[int, int, int]) -> None:
    model = load_architecture(CONFIGS / f"{name}.json")
    assert tuple(model.count(k) for k in (AttentionKind.GLOBAL, AttentionKind.CHUNKED, AttentionKind.SLIDING)) == counts


def test_scout_is_global_at_every_fourth_layer() -> None:
    model = load_architecture(CONFIGS / "llama-4-scout.json")
    assert [x.index for x in model.layers if x.kind is AttentionKind.GLOBAL] == list(range(3, 48, 4))
    assert set(model.windows(AttentionKind.CHUNKED)) == {8192}
    assert (model.max_positions, model.kv_heads, model.head_dim) == (10_485_760, 8, 128)


@pytest.mark.parametrize("no_rope", [None, [], 4, [1, 1, 1, 0] * 12], ids=["missing", "empty", "interval", "list"])
def test_no_rope_layers_in_every_spelling_means_the_same(no_rope: Any) -> None:
    raw = config("llama-4-scout")
    raw["text_config"]["no_rope_layers"] = no_rope
    assert load_architecture(raw).layers == load_architecture(CONFIGS / "llama-4-scout.json").layers


def test_a_text_only_config_is_the_same_decoder() -> None:
    whole = load_architecture(CONFIGS / "llama-4-scout.json")
    text = load_architecture({**config("llama-4-scout")["text_config"], "architectures": ["Llama4ForCausalLM"]})
    assert text.layers == whole.layers
    assert (text.parameters, text.vision_parameters) == (whole.parameters, 0)


def test_without_a_chunk_size_llama_4_is_all_global() -> None:
    raw = config("llama-4-scout")["text_config"]
    # transformers' default is 8192, so only an explicit layer pattern can say "none".
    model = load_architecture({**raw, "layer_types": ["full_attention"] * 48})
    assert model.count(AttentionKind.GLOBAL) == 48


def test_layer_types_win_over_the_pattern() -> None:
    raw = {**config("gpt-oss-20b"), "layer_types": ["full_attention"] * 23 + ["sliding_attention"]}
    model = load_architecture(raw)
    assert (model.count(AttentionKind.GLOBAL), model.layers[-1].window_tokens) == (23, 128)


def test_qwen_windows_need_the_switch() -> None:
    raw = {**config("qwen3-32b"), "sliding_window": 4096, "max_window_layers": 60}
    assert load_architecture(raw).count(AttentionKind.SLIDING) == 0
    assert load_architecture({**raw, "use_sliding_window": True}).count(AttentionKind.SLIDING) == 4


def test_mla_caches_one_latent_for_all_heads() -> None:
    model = load_architecture(CONFIGS / "deepseek-v3.json")
    assert model.kv_elements_per_token_per_layer == 576
    assert sum(x.moe for x in model.layers) == 58


def test_quantization_is_read() -> None:
    fp8 = load_architecture(CONFIGS / "deepseek-v3.json").quantization
    mxfp4 = load_architecture(CONFIGS / "gpt-oss-20b.json").quantization
    assert fp8 is not None
    assert (fp8.method, round(fp8.bits_per_weight, 3)) == ("fp8", 8.002)
    assert mxfp4 is not None
    assert (mxfp4.bits_per_weight, mxfp4.scope) == (4.25, "experts")


@pytest.mark.parametrize(
    ("rope", "positions"),
    [
        (None, 32768),
        ({"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 8192}, 32768),
        ({"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768}, 131072),
        ({"rope_type": "linear", "factor": 2.0}, 65536),
        ({"full_attention": {"rope_type": "default"}}, 32768),
    ],
)
def test_positions_follow_the_engines_reading_of_rope(rope: dict[str, Any] | None, positions: int) -> None:
    raw = {**config("qwen3-32b"), "max_position_embeddings": 32768, "rope_scaling": rope}
    assert load_architecture(raw).max_positions == positions


@pytest.mark.parametrize(
    "raw",
    [
        {},
        {"model_type": "llama"},
        {"model_type": "llama", "hidden_size": 64, "num_hidden_layers": 0, "num_attention_heads": 4, "vocab_size": 8},
        {"model_type": "llama", "hidden_size": -64, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 8},
        {"model_type": "llama", "hidden_size": "64", "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 8},
        {"model_type": "mamba", "hidden_size": 64, "num_hidden_layers": 2, "state_size": 16, "vocab_size": 8},
        {"model_type": "qwen3_next", "hidden_size": 64, "num_hidden_layers": 2, "linear_num_key_heads": 2},
        {"do_sample": True, "temperature": 0.6},
    ],
)
def test_what_is_not_a_transformer_gets_one_line(raw: dict[str, Any]) -> None:
    with pytest.raises(UserError) as caught:
        load_architecture(raw)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text", ["", "{", "[1, 2]", "null", "3"])
def test_files_that_are_not_a_config_get_one_line(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.json").write_text(text, encoding="utf-8")
    with pytest.raises(UserError):
        load_architecture(tmp_path)
    with pytest.raises(UserError):
        load_architecture(tmp_path / "nowhere")


@given(layers=st.integers(1, 70), pattern=st.integers(1, 9))
def test_a_pattern_makes_every_nth_layer_global(layers: int, pattern: int) -> None:
    raw = config("gemma-3-27b")
    raw["text_config"] |= {"num_hidden_layers": layers, "sliding_window_pattern": pattern}
    assert load_architecture(raw).count(AttentionKind.GLOBAL) == layers // pattern


DAMAGE = st.sampled_from([None, "x", -1, 0, 1.5, [], {}, True, [1, "a"], {"a": 1}, 10**30, "", float("nan")])


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from(NAMES), inside=st.booleans(), pick=st.integers(0, 1000), value=DAMAGE)
def test_a_damaged_config_is_read_or_refused_but_never_crashes(name: str, inside: bool, pick: int, value: Any) -> None:
    raw = config(name)
    nested = [v for v in raw.values() if isinstance(v, dict)]
    target = nested[pick % len(nested)] if inside and nested else raw
    keys = sorted(k for k in target if not k.startswith("_"))
    target[keys[pick % len(keys)]] = value
    with contextlib.suppress(UserError):
        load_architecture(raw)
