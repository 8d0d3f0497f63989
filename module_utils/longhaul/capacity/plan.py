"""What an engine will hold: weights, KV pool, tokens, concurrency, the largest request - before it starts.

The sums are the engines' own, rule by rule (``engines`` says which release follows which). Given the memory left for KV
(``available_kv_gib``; on CPU the configured KV space) they are exact: the same integers that the engine prints. Without it,
that memory is estimated from the GPU, and the plan says so and by how much it may be off.

Terms. A *block* is the engine's KV page for one group of layers: ``block_size`` tokens. A *group* is a set of layers of
one attention kind that share a block table. ``bytes_per_block`` is what one block costs on one GPU.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from ..dtypes import normal_dtype
from ..engines.registry import sizing_of
from ..engines.sizing import LONGEST_TOKENS, KvGroup, PlanSettings, Pool, Sizing, check_settings
from ..errors import Finding
from ..models.architecture import ModelArchitecture
from ..physics.hardware import GIB, Gpu
from .findings import UNPLANNABLE, capacity_findings, structural_findings


@dataclass(frozen=True)
class Step:
    """One line of the arithmetic that ``--explain`` shows. ``exact`` is False for an estimate."""

    label: str
    value: str
    how: str
    exact: bool = True


@dataclass(frozen=True)
class Plan:
    """The prediction. Memory per GPU (of the fullest pipeline stage). All zero where the plan cannot even be added up.

    ``kv_bytes_per_token``: what one more token of a long request costs under this plan's ``hybrid_kv``;
    ``kv_bytes_per_token_all_layers`` what it would cost if every layer kept it. ``max_request_tokens`` is capped by the
    context, ``pool_ceiling_tokens`` is not. ``exact``: the KV memory was given, nothing below it is estimated.
    ``kv_cache_tokens_low/high``: the same sum at the ends of the estimate, or of the rounding of a printed GiB figure.
    """

    settings: PlanSettings
    model: ModelArchitecture
    gpu: Gpu
    kv_dtype: str
    findings: tuple[Finding, ...]
    exact: bool = False
    weights_bytes: int = 0
    rope_bytes: int = 0
    available_kv_bytes: int = 0
    available_kv_margin_bytes: int = 0
    kv_bytes_per_token: int = 0
    kv_bytes_per_token_all_layers: int = 0
    kv_cache_tokens: int = 0
    kv_cache_tokens_low: int = 0
    kv_cache_tokens_high: int = 0
    local_kv_tokens: int | None = None
    max_concurrency: float = 0.0
    max_request_tokens: int = 0
    pool_ceiling_tokens: int = 0
    needed_kv_bytes_per_request: int = 0
    hybrid_kv: Literal["on", "off", "uniform"] = "off"
    groups: tuple[KvGroup, ...] = ()
    max_num_batched_tokens: int = 0
    fixed_costs_bytes: int = 0
    steps: tuple[Step, ...] = ()
    starts_anyway: bool = False
    load_slack_bytes: int = 0

    @property
    def fits(self) -> bool:
        """Whether no finding refuses the plan."""
        return not any(f.severity == "refuse" for f in self.findings)

    @property
    def warnings(self) -> tuple[str, ...]:
        """Every finding as one line."""
        return tuple(f"{f.severity}: {f}" for f in self.findings)


def plan_capacity(model: ModelArchitecture, gpu: Gpu, settings: PlanSettings, *, host_gpus: int | None = None) -> Plan:
    """Predict what the engine will hold. Raises UserError for nonsense; an impossible plan comes back with findings."""
    check_settings(settings)
    structural = tuple(structural_findings(model, gpu, settings, host_gpus))
    if any(f.code in UNPLANNABLE for f in structural):
        return Plan(settings, model, gpu, normal_dtype(settings.kv_cache_dtype), structural)
    sizing = sizing_of(model, gpu, settings)
    low, available, high = sizing.available()
    pool, pool_low, pool_high = (sizing.pool(b) for b in (available, low, high))
    ceiling = most(lambda tokens: sizing.at_once(available, tokens) >= 1.0, LONGEST_TOKENS) if available > 0 else 0
    starts = sizing.engine_starts(available)
    exact = settings.available_kv_gib is not None
    return Plan(
        settings=settings,
        model=model,
        gpu=gpu,
        exact=exact,
        weights_bytes=max(x.weights_bytes for x in sizing.stages),
        rope_bytes=sizing.rope,
        available_kv_bytes=max(available, 0),
        available_kv_margin_bytes=high - available,
        kv_dtype=sizing.kv_dtype,
        kv_bytes_per_token=sizing.marginal_token_bytes(),
        kv_bytes_per_token_all_layers=max(x.end - x.first for x in sizing.stages) * sizing.layer_token_bytes,
        kv_cache_tokens=pool.tokens,
        kv_cache_tokens_low=pool_low.tokens,
        kv_cache_tokens_high=pool_high.tokens,
        local_kv_tokens=pool.local_tokens,
        max_concurrency=pool.concurrency,
        max_request_tokens=min(ceiling, settings.context_tokens),
        pool_ceiling_tokens=ceiling,
        needed_kv_bytes_per_request=sizing.request_bytes(settings.context_tokens),
        hybrid_kv=sizing.hybrid,
        groups=sizing.groups,
        max_num_batched_tokens=sizing.batched,
        fixed_costs_bytes=sum(b for _, b in sizing.fixed_costs(pool)),
        findings=(*structural, *capacity_findings(sizing, pool, starts)),
        steps=tuple(_explain(sizing, pool, high - available, exact)),
        starts_anyway=starts and pool.concurrency < 1.0,
        load_slack_bytes=sizing.load_slack_bytes,
    )


def check_plan(
    model: ModelArchitecture,
    gpu: Gpu,
    settings: PlanSettings,
    *,
    host_gpus: int | None = None,
    ladder: Sequence[tuple[int, int]] = (),
) -> tuple[Finding, ...]:
    """Every reason to refuse or to warn, before anything is changed.

    ``ladder``: the points that validation will ask for, as (tokens per request, requests at once). Refuses: concurrency
    below 1.0 at the context, TP that does not divide the heads, more GPUs than ``host_gpus``, SGLang's request table over
    memory, a KV dtype that the GPU lacks, a context above the model's positions. Warns: fewer requests at once than the
    ladder or ``settings.concurrency`` asks, and hybrid KV off by default where it would gain at least 1.5 times.
    """
    plan = plan_capacity(model, gpu, settings, host_gpus=host_gpus)
    queued = []
    for tokens, at_once in ladder if plan.kv_cache_tokens else ():
        fit = requests_that_fit(plan, tokens)
        if fit < at_once:
            found = f"{at_once} requests of {tokens:,} tokens in the ladder, {fit} fit at once"
            required = "the ladder's concurrency held at once, or the rest will queue"
            fix = f"lower the concurrency to {max(fit, 1)} or give the pool more memory"
            queued.append(Finding(found, required, fix, "warn", "ladder_over_capacity"))
    return (*plan.findings, *queued)


def needed_kv_bytes(plan: Plan, tokens: int, concurrency: int = 1) -> int:
    """KV bytes per GPU that ``concurrency`` requests of ``tokens`` take at once under this plan."""
    return sizing_of(plan.model, plan.gpu, plan.settings).request_bytes(tokens) * concurrency


def requests_that_fit(plan: Plan, tokens: int) -> int:
    """How many requests of ``tokens`` (prompt and answer) the pool holds at once; the rest would queue."""
    sizing = sizing_of(plan.model, plan.gpu, plan.settings)
    return math.floor(sizing.at_once(plan.available_kv_bytes, tokens))


def most(holds: Callable[[int], bool], limit: int) -> int:
    """The most tokens, up to ``limit``, for which ``holds``, which must not hold again once it has failed; 0 if none."""
    return bisect_left(range(1, limit + 1), True, key=lambda tokens: not holds(tokens))


def _explain(sizing: Sizing, pool: Pool, margin: int, exact: bool) -> Iterator[Step]:
    """The plan's arithmetic, line by line, for people."""
    s, model = sizing.settings, sizing.model
    weights = max(x.weights_bytes for x in sizing.stages)
    what = f"{(model.parameters if s.text_only else model.total_parameters) / 1e9:.2f}e9 parameters"
    yield Step("weights per GPU", f"{weights / GIB:.2f} GiB", f"{what}, TP{s.tensor_parallel} x PP{s.pipeline_parallel}")
    how = f"{model.rope_positions:,} positions x {model.rope_dim} x {sizing.rope_element_bytes} B"
    yield Step("rotary table", f"{sizing.rope / GIB:.2f} GiB", how)
    if sizing.load_slack_bytes:
        how = "blocks of bf16 originals that no fp8 tensor fills (PyTorch's allocator, max_split_size 20 MiB)"
        yield Step("slack of the load", f"{sizing.load_slack_bytes / GIB:.2f} GiB", how)
    available = f"{pool.available_bytes / GIB:.2f} GiB"
    if exact:
        yield Step("KV memory per GPU", available, f"given: {s.available_kv_gib} GiB")
    else:
        slack = " - slack" if sizing.load_slack_bytes else ""
        usable = f"{sizing.gpu.usable_bytes / GIB:.2f} GiB usable"
        how = f"{usable} x share - weights - rotary table{slack} - run-time overhead (estimated)"
        yield Step("KV memory per GPU", f"{available} +- {margin / GIB:.1f}", how, exact=False)
    if model.mla:
        how = f"MLA latent {model.mla.cache_width} elements, {sizing.kv_dtype}, whole on every GPU"
    else:
        heads = max(1, model.kv_heads // s.tensor_parallel)
        how = f"2 x {heads} KV heads x {model.head_dim} x {sizing.kv_dtype_bytes:g} B"
    yield Step("KV per token and layer", f"{sizing.layer_token_bytes:,} B", how)
    for number, group in enumerate(sizing.groups, 1):
        width = "every token" if group.window_tokens is None else f"{group.window_tokens:,} tokens"
        yield Step(f"group {number}", f"{len(group.layers)} layers", f"{group.kind.value}, keeps {width}")
    yield from (Step(*row) for row in sizing.own_steps())
    yield Step("pool", f"{pool.tokens:,} tokens", sizing.pool_sum(pool), exact=exact)
    for label, cost_bytes in sizing.fixed_costs(pool):
        yield Step(label, f"{cost_bytes / GIB:.2f} GiB", "outside the pool, grows with the context")
