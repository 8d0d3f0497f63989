"""SGLang's KV pool: token slots of all layers, or two pools (full and local layers), and the table of requests beside it.

The sums are the engine's own, release by release.
"""

from __future__ import annotations

import functools
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import ClassVar

from ...errors import Finding
from ...models.architecture import AttentionKind, ModelArchitecture
from ...physics.hardware import GIB, Gpu
from ...version import Version
from ..sizing import KvGroup, PlanSettings, Pool, Sizing, Stage, cut_stages, hybrid_mode
from .rules import SPLIT_ARCHITECTURES, VERIFIED, SglangRules, batched_tokens, sglang_rules

# The table of requests is max_running_requests x (context + 4) x 4 bytes on every GPU (ReqToTokenPool: int32).
REQUEST_TABLE_BUDGET_BYTES = 512 * 1024**2
REQUEST_TABLE_MOST = 256


def default_max_running_requests(context_tokens: int) -> int:
    """The most requests whose table stays within 512 MiB per GPU: table = requests x (context + 4) x 4 bytes.

    The engine's own default (2,048 at least) makes that table 16 GiB at 2M tokens of context and 64 GiB at 8M: the
    out-of-memory that looks like a KV problem and is none. 256 at most; 63 at 2M, 15 at 8M, 12 at 10M.
    """
    return max(1, min(REQUEST_TABLE_MOST, REQUEST_TABLE_BUDGET_BYTES // ((context_tokens + 4) * 4)))


def stage_layers(layers: int, stages: int) -> list[int]:
    """Layers of each pipeline stage: the last stages take a remainder."""
    return [layers // stages + (number >= stages - layers % stages) for number in range(stages)]


@dataclass(frozen=True)
class SglangSizing(Sizing):
    """SGLang: token slots of all layers, or two pools (full and local layers) where the model and release split them."""

    rope_element_bytes: ClassVar[int] = 4

    rules: SglangRules = field(default_factory=lambda: sglang_rules(Version.parse(VERIFIED[1])))
    page: int = 1
    kvcache_ratio: float = 0.0

    @functools.cached_property
    def _layer_counts(self) -> tuple[int, int]:
        """(full, local) layers of the stage that holds most bytes."""
        counts = []
        for st in self.stages:
            inside = self.model.layers[st.first : st.end]
            full = sum(x.window_tokens is None for x in inside)
            counts.append((full, len(inside) - full))
        return max(counts, key=lambda c: c[0] + self._ratio * c[1])

    @property
    def _ratio(self) -> float:
        # Default of --swa-full-tokens-ratio in every release read (server_args.py).
        return self.settings.swa_full_tokens_ratio if self.settings.swa_full_tokens_ratio is not None else 0.8

    @property
    def mem_fraction(self) -> float:
        """--mem-fraction-static, or the release's own default (server_args.py: _handle_gpu_memory_settings)."""
        s = self.settings
        if s.gpu_memory_utilization is not None:
            return s.gpu_memory_utilization
        total = self.gpu.memory_bytes / (1 << 20)
        if total <= 0:
            return 0.9
        reserved = 512 + max(self.batched, 2048) * 1.5 + self.graph_batch * 2 + s.gpus / 8 * 1024
        if total > 60 * 1024:
            reserved = max(reserved, 10 * 1024)
        return round((total - reserved) / total, 3)

    @property
    def graph_batch(self) -> int:
        """--cuda-graph-max-bs, or its default by GPU memory and TP; 0 when graphs are off."""
        if self.settings.enforce_eager or self.gpu.vendor == "cpu":
            return 0
        if self.settings.cuda_graph_max_batch is not None:
            return self.settings.cuda_graph_max_batch
        total_mib, small = self.gpu.memory_bytes / (1 << 20), self.settings.tensor_parallel < 4
        for limit, few, many in ((20, 8, 8), (35, 24, 80), (60, 32, 160), (160, 256, 512)):
            if total_mib < limit * 1024:
                return few if small else many
        return 512

    def estimate(self) -> tuple[int, int, int]:
        weights = max(x.weights_bytes for x in self.stages)
        # The pool takes what the fraction leaves after weights; context and collectives count against it too.
        overhead, margin = GIB + GIB // 2, GIB + GIB // 2
        best = int(self.gpu.usable_bytes * self.mem_fraction) - weights - self.rope - overhead
        return best - margin, best, best + margin

    def _align(self, tokens: float) -> int:
        return int(tokens) // self.page * self.page

    def _split(self, available: int) -> tuple[int, int | None]:
        """(full, local) token slots. Integers and floats as the releases mix them."""
        cell, limit = self.layer_token_bytes, self.settings.max_total_tokens
        full_layers, local_layers = self._layer_counts

        def slots(bytes_each: float) -> int:
            fit = self._align(max(available, 0) // bytes_each)
            return min(fit, self._align(limit)) if limit else fit

        if self.hybrid == "on" and self.rules.split_sum == "direct":
            full = slots(cell * full_layers + self._ratio * cell * local_layers)
            return full, self._align(int(full * self._ratio))
        whole = slots(cell * (full_layers + local_layers))
        if self.hybrid != "on":
            return whole, None
        chunk = max((x.window_tokens or 0 for x in self.model.layers), default=0)
        if self.kvcache_ratio and chunk:
            share = 1 - self.kvcache_ratio + self.kvcache_ratio * chunk / self.settings.context_tokens
            local = 4 * whole * share // (3 * share + 1)
            return self._align(4 * whole - 12 * whole * share // (3 * share + 1)), self._align(local)
        if self.rules.split_sum == "layers":
            full = int(whole * (full_layers + local_layers) / (self._ratio * local_layers + full_layers))
        else:
            whole_bytes = whole * (cell * full_layers + cell * local_layers)
            full = int(whole_bytes / (cell * full_layers + self._ratio * cell * local_layers))
        return self._align(full), self._align(int(full * self._ratio))

    def pool(self, available: int) -> Pool:
        full, local = self._split(available)
        return Pool(available, full, full, self._holds(full, local, self.settings.context_tokens), local)

    def _local_need(self, tokens: int) -> int:
        """Local slots of one request: window and the chunk being prefilled. Before 0.5.8 Llama-4's whole prompt."""
        if self.kvcache_ratio:
            return self._whole_pages(tokens)
        window = max((x.window_tokens or 0 for x in self.model.layers), default=0)
        return self._whole_pages(min(tokens, window + self.batched))

    def _whole_pages(self, tokens: int) -> int:
        return -(-tokens // self.page) * self.page

    def _holds(self, full: int, local: int | None, tokens: int) -> float:
        held = full / self._whole_pages(tokens)
        return held if local is None else min(held, local / self._local_need(tokens))

    def pool_sum(self, pool: Pool) -> str:
        cell = self.layer_token_bytes
        full_layers, local_layers = self._layer_counts
        pages = f" in whole pages of {self.page}" if self.page > 1 else ""
        if pool.local_tokens is None:
            layers = full_layers + local_layers
            return f"{pool.available_bytes:,} B // ({layers} layers x {cell:,} B) = {pool.tokens:,} tokens{pages}"
        return (
            f"{pool.available_bytes:,} B over {full_layers} full and {local_layers} local layers x {cell:,} B"
            f" = {pool.tokens:,} full and {pool.local_tokens:,} local tokens{pages}"
        )

    def at_once(self, available: int, tokens: int) -> float:
        full, local = self._split(available)
        # A request is admitted only if a page is left beside it (managers/schedule_policy.py: add_one_req).
        return self._holds(max(full - self.page, 0), local, tokens)

    def request_bytes(self, tokens: int) -> int:
        full_layers, local_layers = self._layer_counts
        paged = self._whole_pages(tokens)
        local_tokens = self._local_need(tokens) if self.hybrid == "on" else paged
        return self.layer_token_bytes * (full_layers * paged + local_layers * local_tokens)

    def explains(self, printed: int, low: int, high: int) -> bool:
        return printed % self.page == 0 and self.pool(low).tokens <= printed <= self.pool(high).tokens

    def request_rows(self, pool: Pool) -> int:
        """Rows of the request table: --max-running-requests, or 2048 to 4096 by the pool's size."""
        context = self.settings.context_tokens
        rows = self.settings.max_num_seqs or max(min(int(pool.tokens / context * 512), 4096), 2048)
        return rows + self.rules.table_padding_rows

    def fixed_costs(self, pool: Pool) -> tuple[tuple[str, int], ...]:
        width = self.settings.context_tokens + 4
        table = self.request_rows(pool) * width * 4
        graphs = 2 * self.graph_batch * -(-self.settings.context_tokens // self.page) * 4
        return (("request table", table), ("CUDA graph page tables (fa3)", graphs))

    def fixed_room(self) -> int | None:
        return int(self.gpu.usable_bytes * (1 - self.mem_fraction)) if self.gpu.memory_bytes else None

    def findings(self, pool: Pool) -> list[Finding]:
        costs, room = self.fixed_costs(pool), self.fixed_room()
        if room is None or sum(b for _, b in costs) <= room:
            return []
        found = " and ".join(f"{label} {b / GIB:.2f} GiB" for label, b in costs if b) + " per GPU"
        required = f"at most the {room / GIB:.2f} GiB that the static memory fraction leaves"
        fix = "set max running requests to 8 and keep CUDA graphs off or their batch small"
        return [Finding(found, required, fix, "refuse", "request_table")]

    def own_figures(self, pool: Pool) -> Mapping[str, int]:
        return {} if pool.local_tokens is None else {"local_kv_tokens": pool.local_tokens}

    def own_steps(self) -> tuple[tuple[str, str, str], ...]:
        return (("one page", f"{self.page} tokens", "pools and requests are whole pages"),) if self.page > 1 else ()


def sglang_sizing(model: ModelArchitecture, gpu: Gpu, s: PlanSettings, stages: tuple[Stage, ...] | None = None) -> SglangSizing:
    """SGLang's sizing. ``stages``: weights counted before (they do not depend on the context)."""
    stages = stages or cut_stages(model, s, stage_layers(len(model.layers), s.pipeline_parallel))
    rules = sglang_rules(s.release)
    llama4 = model.architecture == "Llama4ForConditionalGeneration"
    if rules.split_by_list:
        splits, default = model.architecture in SPLIT_ARCHITECTURES, True
    else:
        splits, default = llama4 or any(x.kind is AttentionKind.SLIDING for x in model.layers), not llama4
    mode = hybrid_mode(model, s.hybrid_kv, default)
    ratio = 1.0 if llama4 and rules.llama4_split == "kvcache_ratio" and mode == "on" else 0.0
    if mode == "on" and (not splits or (ratio and s.context_tokens <= (model.windows(AttentionKind.CHUNKED) or (0,))[0])):
        mode = "off"
    full = tuple(x.index for x in model.layers if x.window_tokens is None)
    local = tuple(x.index for x in model.layers if x.window_tokens is not None)
    everything = tuple(range(len(model.layers)))
    page = s.block_size_tokens or 1
    groups: tuple[KvGroup, ...]
    if mode == "on" and full:
        window = model.layers[local[0]]
        groups = (KvGroup(AttentionKind.GLOBAL, None, page, full), KvGroup(window.kind, window.window_tokens, page, local))
    else:
        mode = "uniform" if mode == "uniform" else "off"
        groups = (KvGroup(AttentionKind.GLOBAL, None, page, everything),)
    batched = batched_tokens(s, gpu)
    return SglangSizing(model, gpu, s, stages, batched, mode, groups, rules, page, ratio)
