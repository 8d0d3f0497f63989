"""The plan against the real engine: vLLM on CPU, toy models with random weights, every printed digit must match."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from longhaul.capacity.drift import compare_with_engine
from longhaul.capacity.plan import Plan, plan_capacity
from longhaul.engines.base import EngineCapacity
from longhaul.engines.registry import get_engine
from longhaul.engines.sizing import PlanSettings
from longhaul.models.reader import load_architecture
from longhaul.physics.hardware import get_gpu
from longhaul.version import Version

pytestmark = pytest.mark.engine

KV_GIB = 1
_COMMON = {
    "torch_dtype": "bfloat16",
    "vocab_size": 1024,
    "hidden_size": 256,
    "intermediate_size": 256,
    "num_attention_heads": 8,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
MODELS: dict[str, dict[str, Any]] = {
    # Llama-4-Scout's shape: three chunked-local layers to a global one.
    "llama4": {
        "model_type": "llama4_text",
        "architectures": ["Llama4ForCausalLM"],
        "num_hidden_layers": 4,
        "intermediate_size_mlp": 512,
        "num_local_experts": 4,
        "num_experts_per_tok": 1,
        "interleave_moe_layer_step": 1,
        "attention_chunk_size": 8192,
        "max_position_embeddings": 1_048_576,
        "rope_theta": 500000.0,
        "pad_token_id": 0,
    },
    "llama": {
        "model_type": "llama",
        "architectures": ["LlamaForCausalLM"],
        "num_hidden_layers": 3,
        "max_position_embeddings": 131_072,
    },
    # 7 layers at 5:1 make six groups of one; 5 at 1:1 make two groups of three, one layer of padding.
    "gemma3": {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "num_hidden_layers": 7,
        "sliding_window": 1000,
        "sliding_window_pattern": 6,
        "query_pre_attn_scalar": 32,
        "max_position_embeddings": 131_072,
    },
    "gemma3-padded": {
        "model_type": "gemma3_text",
        "architectures": ["Gemma3ForCausalLM"],
        "num_hidden_layers": 5,
        "sliding_window": 1000,
        "sliding_window_pattern": 2,
        "query_pre_attn_scalar": 32,
        "max_position_embeddings": 131_072,
    },
}


@dataclass(frozen=True)
class Setting:
    """One engine start: context, mnbt (``None``: the release's default), hybrid KV, KV dtype."""

    model: str
    context: int
    batched: int | None
    hybrid: bool = True
    kv_dtype: str = "auto"
    block: int | None = None

    @property
    def args(self) -> dict[str, Any]:
        """Keyword arguments of ``vllm.LLM``."""
        found: dict[str, Any] = {"max_model_len": self.context, "max_num_batched_tokens": self.batched}
        if not self.hybrid:
            found["disable_hybrid_kv_cache_manager"] = True
        if self.kv_dtype != "auto":
            found["kv_cache_dtype"] = self.kv_dtype
        if self.block is not None:
            found["block_size"] = self.block
        return found


SETTINGS = (
    Setting("llama4", 100_001, 4000),
    Setting("llama4", 100_001, 4000, hybrid=False),
    Setting("llama4", 100_001, 4000, block=64),
    Setting("llama", 50_001, 4096),
    Setting("llama", 50_001, 4096, block=64),
    Setting("gemma3", 77_777, 3000),
    Setting("gemma3", 77_777, 3000, kv_dtype="fp8"),
    Setting("gemma3-padded", 131_072, 2048),
)


@dataclass(frozen=True)
class Engine:
    """The engine's Python, its release, and the folders of the toy models."""

    python: Path
    release: Version
    models: dict[str, Path] = field(default_factory=dict)

    def environment(self) -> dict[str, str]:
        """One process (the log must come from it), a fixed KV space, nothing sent anywhere."""
        return {
            **os.environ,
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": str(KV_GIB),
            "VLLM_NO_USAGE_STATS": "1",
            "HF_HUB_OFFLINE": "1",
        }


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> Engine:
    override = os.environ.get("LONGHAUL_ENGINE_PYTHON")
    if override:
        python = Path(override)
    else:
        from support.engine import engine_python

        python = engine_python()
    ask = "import importlib.metadata as m; print(next(v for n in ('vllm', 'vllm-cpu') for v in [_v(n)] if v))"
    code = (
        f"import importlib.metadata as m\ndef _v(n):\n try: return m.version(n)\n except m.PackageNotFoundError: return ''\n{ask}"
    )
    version = subprocess.run([python, "-c", code], check=True, capture_output=True, text=True).stdout.strip()
    folders = {}
    for name, config in MODELS.items():
        folders[name] = tmp_path_factory.mktemp(name)
        (folders[name] / "config.json").write_text(json.dumps({**_COMMON, **config}), encoding="utf-8")
    return Engine(python, Version.parse(version), folders)


@pytest.fixture(scope="module")
def printed(engine: Engine, tmp_path_factory: pytest.TempPathFactory) -> list[EngineCapacity]:
    """What the engine logs for each of SETTINGS."""
    jobs = tmp_path_factory.mktemp("jobs") / "jobs.json"
    jobs.write_text(json.dumps([{"model": str(engine.models[s.model]), "args": s.args} for s in SETTINGS]), encoding="utf-8")
    probe = Path(__file__).with_name("capacity_probe.py")
    done = subprocess.run(
        [engine.python, probe, jobs],
        env=engine.environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=900,  # a hang; on a busy machine with a cold disk the imports alone take minutes
        check=False,
    )
    assert done.returncode == 0, done.stdout[-3000:]
    logs = done.stdout.split("=== job ")[1:]
    assert len(logs) == len(SETTINGS)
    return [get_engine("vllm").capacity_from_log(log.splitlines()) for log in logs]


def plan_of(engine: Engine, setting: Setting) -> Plan:
    settings = PlanSettings(
        engine="vllm",
        release=engine.release,
        context_tokens=setting.context,
        available_kv_gib=KV_GIB,
        kv_cache_dtype=setting.kv_dtype,
        hybrid_kv="default" if setting.hybrid else "off",
        max_num_batched_tokens=setting.batched,
        block_size_tokens=setting.block,
    )
    return plan_capacity(load_architecture(engine.models[setting.model]), get_gpu("cpu"), settings)


@pytest.mark.parametrize("number", range(len(SETTINGS)), ids=lambda n: "-".join(map(str, vars(SETTINGS[n]).values())))
def test_every_printed_digit_matches(engine: Engine, printed: list[EngineCapacity], number: int) -> None:
    plan, theirs = plan_of(engine, SETTINGS[number]), printed[number]
    assert plan.exact
    assert theirs.context_tokens == SETTINGS[number].context
    assert theirs.kv_cache_tokens == plan.kv_cache_tokens
    assert f"{theirs.max_concurrency:.2f}" == f"{plan.max_concurrency:.2f}"


def test_the_comparison_calls_an_agreeing_engine_exact(engine: Engine, printed: list[EngineCapacity]) -> None:
    facts = compare_with_engine(plan_of(engine, SETTINGS[0]), printed[0])
    assert facts.exact
    assert facts.drift == 0.0
    assert facts.predicted["agrees"] is True
    assert facts.predicted["to_the_digit"] is True


def test_the_server_with_its_own_defaults(engine: Engine) -> None:
    """The API server has other defaults than the library: batch size and hybrid mode are left to it here."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = [engine.python, "-m", "vllm.entrypoints.openai.api_server", "--model", engine.models["llama4"]]
    command += ["--load-format", "dummy", "--enforce-eager", "--skip-tokenizer-init", "--max-model-len", "65536"]
    command += ["--host", "127.0.0.1", "--port", str(port)]
    environment = {**engine.environment(), "VLLM_ENABLE_V1_MULTIPROCESSING": "1"}
    lines: list[str] = []
    with subprocess.Popen(
        command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True
    ) as server:
        try:
            assert server.stdout is not None
            for line in server.stdout:
                lines.append(line)
                # 0.12 to 0.31 print two lines, later releases one.
                if "Maximum concurrency" in line:
                    break
        finally:
            # Its own session: nothing but this server and its workers.
            os.killpg(server.pid, signal.SIGKILL)
    theirs = get_engine("vllm").capacity_from_log(lines)
    assert theirs.kv_cache_tokens, "".join(lines[-20:])
    plan = plan_of(engine, Setting("llama4", 65_536, None))
    assert theirs.kv_cache_tokens == plan.kv_cache_tokens
    assert f"{theirs.max_concurrency:.2f}" == f"{plan.max_concurrency:.2f}"
