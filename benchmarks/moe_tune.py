"""Find Triton tiles for vLLM's fused MoE kernel (fp8 weights, one scale per tensor) on this GPU, for large batches.

    python moe_tune.py --experts 16 --hidden 5120 --intermediate 8192 --tokens 4096 8192 16384 --out DIR

Writes the file that vLLM reads from VLLM_TUNED_CONFIG_FOLDER, and moe-tune.json with every time measured (milliseconds,
median of CUDA events, random routing, top-1). Batches that were not tuned keep the engine's own defaults.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

SMALL_TOKENS = (1, 2, 4, 8, 16, 24, 32, 48, 64, 96, 128, 256, 512, 1024)


def candidates() -> list[dict[str, int]]:
    rows: list[tuple[int, int, int, int, int, int]] = [(128, 128, 128, 16, 8, 3)]
    rows += [(128, 256, 128, g, 8, s) for g, s in itertools.product((1, 8, 16, 32), (3, 4))]
    rows += [(256, 128, 128, g, 8, s) for g, s in itertools.product((8, 16), (3, 4))]
    rows += [(128, 256, 64, 16, 8, s) for s in (4, 5)]
    rows += [(128, 128, 128, 16, 4, s) for s in (3, 4)]
    rows += [(128, 128, 128, g, 8, 4) for g in (1, 8, 32)]
    rows += [(64, 256, 128, 16, 8, 4), (64, 256, 128, 16, 4, 4), (256, 256, 64, 16, 8, 3), (128, 128, 256, 16, 8, 3)]
    names = ("BLOCK_SIZE_M", "BLOCK_SIZE_N", "BLOCK_SIZE_K", "GROUP_SIZE_M", "num_warps", "num_stages")
    return [{**dict(zip(names, row, strict=True)), "SPLIT_K": 1} for row in rows]


class Bench:
    """One layer's experts on the GPU: hidden H, intermediate N, E experts; times a batch of M tokens under a tile choice."""

    def __init__(self, experts: int, hidden: int, intermediate: int) -> None:
        import torch
        from vllm.model_executor.layers.fused_moe.config import fp8_w8a8_moe_quant_config

        self.torch, self.experts, self.hidden = torch, experts, hidden
        one = torch.full((experts,), 1e-3, device="cuda")
        self.w1 = self._fp8(experts, 2 * intermediate, hidden)
        self.w2 = self._fp8(experts, hidden, intermediate)
        self.quant = fp8_w8a8_moe_quant_config(w1_scale=one, w2_scale=one.clone())

    def _fp8(self, *shape: int) -> Any:
        torch = self.torch
        out = torch.empty(shape, device="cuda", dtype=torch.float8_e4m3fn)
        for part in out:
            part.copy_(torch.empty(part.shape, device="cuda", dtype=torch.float16).uniform_(-1, 1).to(out.dtype))
        return out

    def run(self, tokens: int, config: dict[str, int], repeats: int) -> float:
        from vllm.model_executor.layers.fused_moe import override_config
        from vllm.model_executor.layers.fused_moe.fused_moe import fused_experts

        torch = self.torch
        torch.manual_seed(tokens)
        x = torch.randn(tokens, self.hidden, device="cuda", dtype=torch.bfloat16)
        ids = torch.randint(0, self.experts, (tokens, 1), device="cuda", dtype=torch.int32)
        weights = torch.rand(tokens, 1, device="cuda", dtype=torch.float32)
        times = []
        with override_config(config):
            for turn in range(repeats + 2):
                start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
                start.record()
                fused_experts(x, self.w1, self.w2, weights, ids, apply_router_weight_on_input=True, quant_config=self.quant)
                end.record()
                torch.cuda.synchronize()
                if turn >= 2:
                    times.append(start.elapsed_time(end))
        return statistics.median(times)


def compile_only(rows: list[dict[str, int]]) -> None:
    bench = Bench(16, 1024, 1024)
    for row in rows:
        try:
            bench.run(4096, row, 0)
        except Exception as error:
            print(row, repr(error)[:200], flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--experts", type=int, default=16)
    parser.add_argument("--hidden", type=int, default=5120)
    parser.add_argument("--intermediate", type=int, default=8192)
    parser.add_argument("--tokens", type=int, nargs="+", default=[4096, 8192, 16384])
    parser.add_argument("--jobs", type=int, default=12)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--compile", help=argparse.SUPPRESS)
    words = parser.parse_args()
    rows = candidates()
    if words.compile:
        at, of = map(int, words.compile.split("/"))
        compile_only(rows[at::of])
        return 0
    words.out.mkdir(parents=True, exist_ok=True)
    # Triton keeps what it compiled on the disk: many processes compile at once, then one alone measures.
    helpers = [
        subprocess.Popen([sys.executable, __file__, "--out", str(words.out), "--compile", f"{at}/{words.jobs}"])
        for at in range(min(words.jobs, len(rows)))
    ]
    for helper in helpers:
        helper.wait()
    from vllm.model_executor.layers.fused_moe.fused_moe import get_config_file_name, get_default_config

    bench = Bench(words.experts, words.hidden, words.intermediate)
    shape = (words.experts, words.intermediate, words.hidden, 1, "fp8_w8a8")
    table: dict[str, dict[str, int]] = {}
    for tokens in SMALL_TOKENS:
        table[str(tokens)] = get_default_config(tokens, *shape)
    evidence = []
    for tokens in words.tokens:
        default = get_default_config(tokens, *shape)
        best: tuple[float, dict[str, int]] | None = None
        for row in rows:
            try:
                took = bench.run(tokens, row, 7)
            except Exception as error:
                evidence.append({"tokens": tokens, "config": row, "error": repr(error)[:300]})
                continue
            evidence.append({"tokens": tokens, "config": row, "median_ms": took, "default": row == default})
            if best is None or took < best[0]:
                best = (took, row)
        base = bench.run(tokens, default, 7)
        evidence.append({"tokens": tokens, "config": default, "median_ms": base, "default": True, "again": True})
        if best:
            again = bench.run(tokens, best[1], 7)
            table[str(tokens)] = best[1] if again < base else default
            print(
                f"{tokens} tokens: engine's default {base:.3f} ms, best {again:.3f} ms ({base / again:.2f}x): {best[1]}",
                flush=True,
            )
    name = get_config_file_name(words.experts, words.intermediate, "fp8_w8a8")
    (words.out / name).write_text(json.dumps(table, indent=1) + "\n")
    (words.out / "moe-tune.json").write_text(json.dumps(evidence, indent=1) + "\n")
    print(words.out / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
