"""``longhaul plan`` as a person runs it: the contract's JSON, exit codes, one line for nonsense."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from longhaul.cli import main
from support.paths import CONFIGS, ROOT

SCOUT = str(CONFIGS / "llama-4-scout.json")
REQUEST = ["--model", SCOUT, "--gpu", "h200", "--gpus", "8", "--engine", "vllm==0.12.0", "--context", "8388608"]
CONTRACT_KEYS = {
    "fits",
    "weights_gib_per_gpu",
    "kv_bytes_per_token_per_gpu",
    "available_kv_gib_per_gpu",
    "kv_cache_tokens",
    "max_concurrency",
    "max_request_tokens",
    "needed_kv_gib_per_request",
    "hybrid_kv",
    "warnings",
}


def run(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    try:
        code = main(["plan", *words])
    except SystemExit as stop:
        code = int(stop.code or 0)
    out, err = capsys.readouterr()
    return code, out, err


def as_json(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, dict[str, Any]]:
    code, out, _ = run(capsys, *words, "--json")
    found: dict[str, Any] = json.loads(out)
    return code, found


def test_the_contracts_keys_and_the_requests_figures(capsys: pytest.CaptureFixture[str]) -> None:
    code, plan = as_json(capsys, *REQUEST, "--available-kv-gib", "89.71", "--hybrid-kv", "on")
    assert code == 0
    assert set(plan) >= CONTRACT_KEYS
    assert plan["fits"] is True
    assert plan["exact"] is True
    assert plan["estimated"] == []
    assert round(plan["max_concurrency"], 2) == 1.86
    assert round(plan["weights_gib_per_gpu"], 1) == 25.3
    assert plan["hybrid_kv"] == "on"
    assert plan["warnings"] == []


def test_an_impossible_plan_exits_1_and_names_the_nearest_that_fits(capsys: pytest.CaptureFixture[str]) -> None:
    code, plan = as_json(capsys, *REQUEST, "--available-kv-gib", "89.71")
    assert code == 1
    assert round(plan["max_concurrency"], 2) == 0.47
    assert plan["nearest"][0]["change"] == "hybrid KV on"
    code, out, _ = run(capsys, *REQUEST, "--available-kv-gib", "89.71")
    assert code == 1
    assert "DOES NOT FIT" in out
    assert "hybrid KV on: 1.86x at 8,388,608 tokens" in out


def test_the_table_says_what_is_estimated(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, *REQUEST, "--hybrid-kv", "on")
    assert code == 0
    assert "estimated, +-" in out
    # The request's own 3,919,664 lies in the span that its rounded 89.71 GiB stand for.
    assert "3,919,264 to 3,919,696: the GiB figure is rounded" in run(capsys, *REQUEST, "--available-kv-gib", "89.71")[1]
    assert "estimated" not in run(capsys, *REQUEST, "--hybrid-kv", "on", "--available-kv-gib", "89.71")[1]


def test_explain_shows_the_sum(capsys: pytest.CaptureFixture[str]) -> None:
    _, out, _ = run(capsys, *REQUEST, "--hybrid-kv", "on", "--available-kv-gib", "89.714", "--explain")
    assert "16 tokens x 512 B x 12 layers" in out
    assert "979,916 // 4 groups x 16 = 3,919,664 tokens" in out


def test_the_block_size_is_in_the_answer(capsys: pytest.CaptureFixture[str]) -> None:
    words = [*REQUEST, "--hybrid-kv", "on", "--available-kv-gib", "89.71"]
    assert as_json(capsys, *words)[1]["block_size_tokens"] == 16
    code, plan = as_json(capsys, *words, "--block-size", "128")
    assert (code, plan["block_size_tokens"]) == (0, 128)
    code, out, _ = run(capsys, *words, "--block-size", "100")
    assert code == 1
    assert "REFUSE  found: block size of 100 tokens" in out
    assert "the engine's own block size: 1.86x" in out


def test_max_context(capsys: pytest.CaptureFixture[str]) -> None:
    words = [w for w in REQUEST if w not in {"--context", "8388608"}]
    code, found = as_json(capsys, *words, "--available-kv-gib", "89.71", "--max-context")
    assert (code, found["max_context_tokens"]) == (0, 3_919_472)
    code, found = as_json(capsys, *words, "--hybrid-kv", "on", "--max-context")
    assert (code, found["max_context_tokens"]) == (0, 10_485_760)


def test_sweep_of_a_short_model_shows_all_of_its_positions(capsys: pytest.CaptureFixture[str]) -> None:
    model = CONFIGS / "qwen3-30b-a3b.json"
    code, sweep = as_json(capsys, "--model", str(model), "--gpu", "h200", "--engine", "vllm==0.25.1", "--sweep")
    positions = json.loads(model.read_text(encoding="utf-8"))["max_position_embeddings"]
    assert code == 0
    assert sweep["contexts"] == [positions]


def test_sweep_covers_the_table_without_the_requests_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    code, sweep = as_json(capsys, "--model", SCOUT, "--gpus", "8", "--engine", "vllm==0.33.0", "--sweep")
    assert code == 0
    rows = {(r["gpu"], r["kv_dtype"]): r for r in sweep["rows"]}
    assert {"h100", "h200", "a100", "b200", "b300", "l40s", "mi300x"} <= {gpu for gpu, _ in rows}
    assert ("a100", "fp8") not in rows
    # Tensor parallelism shares one pool: eight GPUs do not hold eight times one GPU's tokens.
    assert rows[("h200", "bf16")]["max_context_tokens"] == 10_485_760
    assert rows[("h200", "bf16")]["concurrency"]["10485760"] < 2
    assert rows[("l40s", "bf16")]["max_context_tokens"] < 2_097_152
    assert rows[("h200", "fp8")]["concurrency"]["2097152"] == pytest.approx(
        2 * rows[("h200", "bf16")]["concurrency"]["2097152"], rel=0.01
    )
    code, out, _ = run(capsys, "--model", SCOUT, "--gpus", "8", "--engine", "vllm==0.33.0", "--sweep")
    assert code == 0
    assert "h200" in out


def test_sglang_and_uniform_models_have_plans_too(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--model", str(CONFIGS / "llama-3.1-8b.json"), "--gpu", "h100", "--engine", "sglang==0.5.23", "--max-num-seqs", "8"]
    code, plan = as_json(capsys, *words)
    assert code == 0
    assert plan["hybrid_kv"] == "uniform"
    assert plan["fixed_costs_gib_per_gpu"] > 0


@pytest.mark.parametrize(
    "words",
    [
        ["--context", "-5"],
        ["--context", "many"],
        ["--tp", "0"],
        ["--gpus", "-8"],
        ["--pp", "3"],
        ["--gpu", "quux9"],
        ["--gpu-memory-gib", "-80"],
        ["--available-kv-gib", "0"],
        ["--gpu-memory-utilization", "7"],
        ["--engine", "vllm"],
        ["--engine", "tgi==3.0.0"],
        ["--engine", "vllm==new"],
        ["--kv-dtype", "int3"],
        ["--hybrid-kv", "maybe"],
        ["--model", "/nonexistent/config.json"],
        ["--available-kv-gib", "80", "--gpu-memory-utilization", "0.9"],
    ],
    ids=" ".join,
)
def test_nonsense_exits_2_with_one_line(capsys: pytest.CaptureFixture[str], words: list[str]) -> None:
    code, out, err = run(capsys, *REQUEST, *words)
    assert code == 2
    assert out == ""
    assert err.count("\n") == 1


def test_a_file_that_is_no_config_exits_2(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    for text in ("{", '{"do_sample": true}', "[]"):
        (tmp_path / "config.json").write_text(text, encoding="utf-8")
        assert run(capsys, *REQUEST, "--model", str(tmp_path))[0] == 2


def test_an_unknown_gpu_with_figures_is_planned(capsys: pytest.CaptureFixture[str]) -> None:
    code, plan = as_json(capsys, *REQUEST, "--gpu", "quux9", "--gpu-memory-gib", "400", "--hybrid-kv", "on")
    assert code == 0
    assert plan["gpu"] == "quux9"


def test_planning_imports_nothing_heavy() -> None:
    code = (
        "import longhaul.commands.plan, sys; print([m for m in ('numpy', 'httpx', 'tokenizers', 'ansible') if m in sys.modules])"
    )
    paths = str(ROOT / "module_utils")
    done = subprocess.run([sys.executable, "-c", code], env={"PYTHONPATH": paths}, check=True, capture_output=True, text=True)
    assert done.stdout.strip() == "[]"
