"""Loaded by every Python process of an engine that gpu-visit.sh measures (PYTHONPATH). Never part of a deployment.

vLLM: prints what its memory profile found, piece by piece, into the engine's log ("visit-memory {...}").
SGLang: its dummy weights all round to zero in fp8, and a GPU multiplies zeros faster than numbers. Fills them with values that fp8 can
show.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import json
import sys
from typing import Any


def _vllm_worker(module: Any) -> None:
    original = module.Worker.determine_available_memory

    def measured(self: Any) -> int:
        found: int = original(self)
        runner = self.model_runner
        shot = self.init_snapshot
        row = {
            "total_bytes": shot.total_memory,
            "free_at_start_bytes": shot.free_memory,
            "requested_bytes": self.requested_memory,
            "weights_bytes": int(runner.model_memory_usage),
            "non_torch_bytes": self.non_torch_memory,
            "activation_peak_bytes": self.peak_activation_memory,
            "graphs_bytes": self.cudagraph_memory_estimate,
            "available_bytes": self.available_kv_cache_memory_bytes,
        }
        print("visit-memory " + json.dumps(row), flush=True)
        return found

    module.Worker.determine_available_memory = measured


def _sglang_weights(module: Any) -> None:
    import torch

    original = module.initialize_dummy_weights

    def filled(model: Any, *args: Any, **words: Any) -> None:
        original(model, *args, **words)
        changed = 0
        for name, tensor in model.state_dict().items():
            if name.endswith(("weight_scale", "input_scale")):
                tensor.data.fill_(1e-3)
            elif tensor.dtype == torch.float8_e4m3fn:
                # Dense weights lie transposed: the same memory in the order it has.
                flat = tensor.data.view(torch.uint8).as_strided((tensor.numel(),), (1,))
                for at in range(0, flat.numel(), 1 << 28):
                    part = flat[at : at + (1 << 28)]
                    part.copy_(
                        torch.empty(part.numel(), device=part.device, dtype=torch.float16)
                        .uniform_(-1, 1)
                        .to(tensor.dtype)
                        .view(torch.uint8)
                    )
                changed += 1
        print(f"visit-weights {changed} fp8 tensors filled with values from -1 to 1", flush=True)

    module.initialize_dummy_weights = filled


_PATCHES = {
    "vllm.v1.worker.gpu_worker": _vllm_worker,
    "sglang.srt.model_loader.weight_utils": _sglang_weights,
}


class _Finder(importlib.abc.MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        patch = _PATCHES.get(name)
        if patch is None:
            return None
        spec = importlib.machinery.PathFinder.find_spec(name, path)
        if spec is None or spec.loader is None:
            return None
        run = spec.loader.exec_module

        def then(module: Any) -> None:
            run(module)
            try:
                patch(module)
            except Exception as error:  # a measurement less is no reason for an engine to fail
                print(f"visit: {name}: {error!r}", file=sys.stderr, flush=True)

        spec.loader.exec_module = then  # type: ignore[method-assign]
        return spec


sys.meta_path.insert(0, _Finder())
