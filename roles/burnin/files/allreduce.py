#!/usr/bin/env python3
"""Bandwidth of one all-reduce over the GPUs of this machine, by the torch that the engine runs with. Prints one line of JSON.

Bus bandwidth is NCCL's own measure: algorithm bandwidth times 2 (n - 1) / n, comparable between numbers of GPUs.
With --device cpu the same runs over gloo, to try it where there is no GPU.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import time
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp

WARM_UP, ROUNDS = 5, 20


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def timed(tensor: torch.Tensor, on_gpu: bool) -> float:
    """Seconds of one all-reduce, the mean of ROUNDS."""
    for _ in range(WARM_UP):
        dist.all_reduce(tensor)
    if on_gpu:
        torch.cuda.synchronize()
    dist.barrier()
    began = time.perf_counter()
    for _ in range(ROUNDS):
        dist.all_reduce(tensor)
    if on_gpu:
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / ROUNDS


def rank_main(rank: int, ranks: int, mib: int, device: str, port: int) -> None:
    """One process of the group; the first prints."""
    on_gpu = device != "cpu"
    if on_gpu:
        torch.cuda.set_device(rank)
    place = torch.device("cuda", rank) if on_gpu else torch.device("cpu")
    backend = "nccl" if on_gpu else "gloo"
    dist.init_process_group(backend, init_method=f"tcp://127.0.0.1:{port}", rank=rank, world_size=ranks)
    try:
        # A sum of zeros stays exact however often it is done; correctness is asked for apart, before.
        ones = torch.ones(1024, device=place)
        dist.all_reduce(ones)
        right = bool((ones == ranks).all())
        kind = torch.bfloat16 if on_gpu else torch.float32
        tensor = torch.zeros(mib * 2**20 // kind.itemsize, dtype=kind, device=place)
        seconds = timed(tensor, on_gpu)
        size = tensor.numel() * kind.itemsize
        if rank == 0:
            found: dict[str, Any] = {
                "gpus": ranks,
                "bytes": size,
                "seconds": round(seconds, 6),
                "algorithm_gb_per_s": round(size / seconds / 1e9, 3),
                "bus_gb_per_s": round(size / seconds / 1e9 * 2 * (ranks - 1) / ranks, 3),
                "backend": backend,
                "torch": torch.__version__,
                "nccl": ".".join(map(str, torch.cuda.nccl.version())) if on_gpu else None,
                "environment": {k: v for k, v in sorted(os.environ.items()) if k.startswith(("NCCL_", "TORCH_SYMM_MEM_"))},
            }
            if not right:
                found["error"] = f"the sum of ones over {ranks} GPUs is wrong"
            print(json.dumps(found), flush=True)
        dist.barrier()
    finally:
        dist.destroy_process_group()


def main() -> int:
    """0, or an exception of the group."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--ranks", type=int, required=True)
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--device", default="cuda")
    options = parser.parse_args()
    if options.device != "cpu" and torch.cuda.device_count() < options.ranks:
        print(f"Error: torch sees {torch.cuda.device_count()} GPUs, {options.ranks} were asked for", file=sys.stderr)
        return 1
    mp.spawn(rank_main, args=(options.ranks, options.mib, options.device, free_port()), nprocs=options.ranks, join=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
