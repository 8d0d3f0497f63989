"""Time one long-context attention call of FlashAttention 3 by KV page size and dtype, as the engines make it.

    python attention_bench.py --package vllm.vllm_flash_attn --out DIR      # vLLM's build; also sgl_kernel
    python attention_bench.py --path FOLDER --package NAME --out DIR        # a carried copy of vllm_flash_attn, without vLLM

One call is one chunk of query tokens against a context that ends with it, causal, with grouped heads: what a global layer of
Llama-4-Scout costs in a late chunk of a long prompt. The tensor memory accelerator loads a page that is a multiple of the kernel's
tile (128 tokens in bf16, 224 in fp8, head dimension 128); threads load any other page. Page 0 is contiguous KV, the kernel's best case.

Writes attention-bench.json: median milliseconds of CUDA events, TFLOP/s (4 x head dimension x heads x pairs of tokens that attend), the
SM clock and power while it ran, and the error against bf16 with contiguous KV (||out - ref|| / ||ref||). The error is given for the half
of the head whose values have mean 0, and for the half whose values have mean 1: a sum that is cut short shows in the second.
"""

from __future__ import annotations

import argparse
import importlib
import itertools
import json
import os
import statistics
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

HEAD_DIM = 128


def gpu_now() -> tuple[int, float] | None:
    mine = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    words = ["nvidia-smi", "-i", mine, "--query-gpu=clocks.sm,power.draw", "--format=csv,noheader,nounits"]
    try:
        clock, power = subprocess.run(words, capture_output=True, text=True, timeout=5, check=True).stdout.split(",")
        return int(clock), float(power)
    except (OSError, ValueError, subprocess.SubprocessError):
        return None


class Bench:
    """One layer's heads. Makes queries and KV once per shape and times calls on them."""

    def __init__(self, package: str, heads: int, kv_heads: int, chunk_tokens: int, context_tokens: int) -> None:
        import torch

        self.torch, self.package = torch, package
        self.heads, self.kv_heads, self.chunk, self.context = heads, kv_heads, chunk_tokens, context_tokens
        torch.manual_seed(context_tokens)
        self.query = torch.randn(chunk_tokens, heads, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
        # (2, tokens, heads, dimension): keys and values.
        self.kv = torch.empty(2, context_tokens, kv_heads, HEAD_DIM, device="cuda", dtype=torch.bfloat16)
        for part in self.kv:
            part.normal_()
        self.kv[1, ..., HEAD_DIM // 2 :] += 1
        self.attend: Any
        if package == "sgl_kernel":
            self.attend = importlib.import_module("sgl_kernel.flash_attn").flash_attn_with_kvcache
        else:
            self.attend = importlib.import_module(package + ".flash_attn_interface").flash_attn_varlen_func

    @property
    def flop(self) -> float:
        """FLOP of one call: a query sees the context before its chunk and, on average, half of its chunk."""
        return 4.0 * HEAD_DIM * self.heads * self.chunk * (self.context - self.chunk + (self.chunk + 1) / 2)

    def call(self, page: int, fp8: bool) -> Any:
        torch = self.torch
        dtype = torch.float8_e4m3fn if fp8 else torch.bfloat16
        query = self.query.to(dtype)
        pages = -(-self.context // page) if page else 1
        if page:
            # As vLLM lays it out: (pages, 2, page, heads, dimension); SGLang keeps keys and values apart.
            if self.package == "sgl_kernel":
                pool = torch.zeros(2, pages, page, self.kv_heads, HEAD_DIM, device="cuda", dtype=dtype)
            else:
                pool = torch.zeros(pages, 2, page, self.kv_heads, HEAD_DIM, device="cuda", dtype=dtype).transpose(0, 1)
            for which in (0, 1):
                whole = self.context // page * page
                pool[which, : self.context // page].copy_(self.kv[which, :whole].view(-1, page, self.kv_heads, HEAD_DIM))
                if whole < self.context:
                    pool[which, -1, : self.context - whole].copy_(self.kv[which, whole:])
            key, value = pool[0], pool[1]
        else:
            key, value = self.kv[0].to(dtype), self.kv[1].to(dtype)
        scale = torch.ones(1, self.kv_heads, device="cuda") if fp8 else None
        starts = torch.tensor([0, self.chunk], device="cuda", dtype=torch.int32)
        lengths = torch.tensor([self.context], device="cuda", dtype=torch.int32)
        table = torch.arange(pages, device="cuda", dtype=torch.int32).view(1, -1) if page else None
        if self.package == "sgl_kernel":
            if not page:
                key, value = key.unsqueeze(0), value.unsqueeze(0)
            return lambda: self.attend(
                q=query, k_cache=key, v_cache=value, page_table=table, cache_seqlens=lengths, cu_seqlens_q=starts,
                max_seqlen_q=self.chunk, causal=True, k_descale=scale, v_descale=scale,
            )  # fmt: skip
        ends = (
            {"seqused_k": lengths}
            if page
            else {"cu_seqlens_k": torch.tensor([0, self.context], device="cuda", dtype=torch.int32)}
        )
        return lambda: self.attend(
            q=query, k=key, v=value, max_seqlen_q=self.chunk, cu_seqlens_q=starts, max_seqlen_k=self.context, causal=True,
            block_table=table, q_descale=scale, k_descale=scale, v_descale=scale, fa_version=3, **ends,
        )  # fmt: skip

    def time(self, page: int, fp8: bool, repeats: int) -> tuple[dict[str, Any], Any]:
        torch = self.torch
        call = self.call(page, fp8)
        call()
        torch.cuda.synchronize()
        seen: list[tuple[int, float] | None] = []
        watcher = threading.Timer(0.15, lambda: seen.append(gpu_now()))
        watcher.start()
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(repeats + 1)]
        marks[0].record()
        for mark in marks[1:]:
            out = call()
            mark.record()
        torch.cuda.synchronize()
        watcher.join()
        took = [a.elapsed_time(b) for a, b in itertools.pairwise(marks)]
        middle = statistics.median(took)
        out = out[0] if isinstance(out, tuple) else out
        row = {
            "heads": self.heads,
            "kv_heads": self.kv_heads,
            "chunk_tokens": self.chunk,
            "context_tokens": self.context,
            "dtype": "fp8" if fp8 else "bf16",
            "page_tokens": page,
            "median_ms": round(middle, 3),
            "least_ms": round(min(took), 3),
            "most_ms": round(max(took), 3),
            "tflop_per_s": round(self.flop / middle / 1e9, 1),
            "sm_clock_mhz": seen[0][0] if seen and seen[0] else None,
            "power_w": seen[0][1] if seen and seen[0] else None,
        }
        return row, out.float()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", default="vllm.vllm_flash_attn")
    parser.add_argument("--path", help="folder to import the package from")
    parser.add_argument("--heads", nargs="+", default=["40:8", "20:4"], help="query heads : KV heads of one GPU")
    parser.add_argument("--chunk", type=int, nargs="+", default=[8192])
    parser.add_argument("--context", type=int, nargs="+", default=[131072, 524288])
    parser.add_argument("--bf16-pages", type=int, nargs="+", default=[16, 128, 0])
    parser.add_argument("--fp8-pages", type=int, nargs="+", default=[16, 128, 224, 0])
    parser.add_argument("--repeats", type=int, default=6)
    parser.add_argument("--out", type=Path, required=True)
    words = parser.parse_args()
    if words.path:
        sys.path.insert(0, words.path)
    import torch

    if not torch.cuda.is_available():
        print("found: no GPU | required: a Hopper GPU | fix: run this on one", file=sys.stderr)
        return 2
    words.out.mkdir(parents=True, exist_ok=True)
    rows: list[dict[str, Any]] = []
    for heads in words.heads:
        of, kv = map(int, heads.split(":"))
        for context in words.context:
            for chunk in words.chunk:
                bench = Bench(words.package, of, kv, chunk, context)
                reference = None
                todo = [(page, False) for page in sorted(words.bf16_pages)] + [(page, True) for page in words.fp8_pages]
                for page, fp8 in todo:
                    try:
                        row, out = bench.time(page, fp8, words.repeats)
                    except Exception as error:
                        row = {"heads": of, "context_tokens": context, "page_tokens": page, "dtype": "fp8" if fp8 else "bf16"}
                        row["error"] = repr(error)[:300]
                    else:
                        # bf16 and page 0 come first where they are asked for.
                        reference = out if reference is None else reference
                        for name, part in (("mean0", slice(None, HEAD_DIM // 2)), ("mean1", slice(HEAD_DIM // 2, None))):
                            left, right = out[..., part], reference[..., part]
                            row[f"error_{name}"] = round(float((left - right).norm() / right.norm()), 6)
                        del out
                    rows.append(row)
                    print(" ".join(f"{k}={v}" for k, v in row.items()), flush=True)
                    (words.out / "attention-bench.json").write_text(json.dumps(rows, indent=1) + "\n")
                del bench, reference
                torch.cuda.empty_cache()
    print(f"{torch.cuda.get_device_name()}, torch {torch.__version__}, {words.package}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
