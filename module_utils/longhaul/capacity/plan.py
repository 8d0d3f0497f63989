"""What an engine will hold: weights, KV pool, tokens, concurrency, the largest request - before it starts.

The sums are the engines' own, rule by rule (``engines`` says which release follows which). Given the memory left for KV
(``available_kv_gib``; on CPU the configured KV space) they are exact: the same integers that the engine prints. Without it,
that memory is estimated from the GPU, and the plan says so and by how much it may be off.

Terms. A *block* is the engine's KV page for one group of layers: ``block_size`` tokens. A *group* is a set of layers of
one attention kind that share a block table. ``bytes_per_block`` is what one block costs on one GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ..dtypes import normal_dtype
from ..engines.registry import sizing_of
from ..engines.sizing import LONGEST_TOKENS, KvGroup, PlanSettings, Sizing, check_settings
from ..errors import Finding
from ..models.architecture import ModelArchitecture
from ..physics.hardware import Gpu
from .explain import Step, explain_steps
from .findings import UNPLANNABLE, capacity_findings, structural_findings


@dataclass(frozen=True)
class Plan:
    """The prediction. Memory per GPU (of the fullest pipeline stage). ``fits``: nothing in ``findings`` refuses it.

    ``kv_bytes_per_token``: what one more token of a long request costs under this plan's ``hybrid_kv``;
    ``kv_bytes_per_token_all_layers`` what it would cost if every layer kept it. ``max_request_tokens`` is capped by the
    context, ``pool_ceiling_tokens`` is not. ``exact``: the KV memory was given, nothing below it is estimated.
    ``kv_cache_tokens_low/high``: the same sum at the ends of the estimate, or of the rounding of a printed GiB figure.
    """

    settings: PlanSettings
    model: ModelArchitecture
    gpu: Gpu
    fits: bool
    exact: bool
    weights_bytes: int
    rope_bytes: int
    available_kv_bytes: int
    available_kv_margin_bytes: int
    kv_dtype: str
    kv_bytes_per_token: int
    kv_bytes_per_token_all_layers: int
    kv_cache_tokens: int
    kv_cache_tokens_low: int
    kv_cache_tokens_high: int
    local_kv_tokens: int | None
    max_concurrency: float
    max_request_tokens: int
    pool_ceiling_tokens: int
    needed_kv_bytes_per_request: int
    hybrid_kv: Literal["on", "off", "uniform"]
    groups: tuple[KvGroup, ...]
    max_num_batched_tokens: int
    fixed_costs_bytes: int
    findings: tuple[Finding, ...]
    steps: tuple[Step, ...]
    starts_anyway: bool = False
    load_slack_bytes: int = 0

    @property
    def warnings(self) -> tuple[str, ...]:
        """Every finding as one line."""
        return tuple(f"{f.severity}: {f}" for f in self.findings)


def plan_capacity(model: ModelArchitecture, gpu: Gpu, settings: PlanSettings, *, host_gpus: int | None = None) -> Plan:
    """Predict what the engine will hold. Raises UserError for nonsense; an impossible plan comes back with findings."""
    check_settings(settings)
    structural = structural_findings(model, gpu, settings, host_gpus)
    if any(f.severity == "refuse" and f.code in UNPLANNABLE for f in structural):
        return _empty_plan(model, gpu, settings, tuple(structural))
    sizing = sizing_of(model, gpu, settings)
    return _plan_from(sizing, structural)


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
    found = list(plan.findings)
    if plan.kv_cache_tokens:
        for tokens, at_once in ladder:
            fit = requests_that_fit(plan, tokens)
            if fit < at_once:
                found.append(
                    Finding(
                        f"{at_once} requests of {tokens:,} tokens in the ladder, {fit} fit at once",
                        "the ladder's concurrency held at once, or the rest will queue",
                        f"lower the concurrency to {max(fit, 1)} or give the pool more memory",
                        "warn",
                        "ladder_over_capacity",
                    )
                )
    return tuple(found)


def needed_kv_bytes(plan: Plan, tokens: int, concurrency: int = 1) -> int:
    """KV bytes per GPU that ``concurrency`` requests of ``tokens`` take at once under this plan."""
    return sizing_of(plan.model, plan.gpu, plan.settings).request_bytes(tokens) * concurrency


def requests_that_fit(plan: Plan, tokens: int) -> int:
    """How many requests of ``tokens`` (prompt and answer) the pool holds at once; the rest would queue."""
    sizing = sizing_of(plan.model, plan.gpu, plan.settings)
    return math.floor(sizing.at_once(plan.available_kv_bytes, tokens))


def _plan_from(sizing: Sizing, structural: list[Finding]) -> Plan:
    s, model = sizing.settings, sizing.model
    low, available, high = sizing.available()
    pool, pool_low, pool_high = (sizing.pool(b) for b in (available, low, high))
    ceiling = _longest_request(sizing, available)
    starts = sizing.engine_starts(available)
    exact = s.available_kv_gib is not None
    findings = [*structural, *capacity_findings(sizing, pool, starts)]
    fixed = sum(b for _, b in sizing.fixed_costs(pool))
    return Plan(
        settings=s,
        model=model,
        gpu=sizing.gpu,
        fits=not any(f.severity == "refuse" for f in findings),
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
        max_request_tokens=min(ceiling, s.context_tokens),
        pool_ceiling_tokens=ceiling,
        needed_kv_bytes_per_request=sizing.request_bytes(s.context_tokens),
        hybrid_kv=sizing.hybrid,
        groups=sizing.groups,
        max_num_batched_tokens=sizing.batched,
        fixed_costs_bytes=fixed,
        findings=tuple(findings),
        steps=tuple(explain_steps(sizing, pool, high - available, exact)),
        starts_anyway=starts and pool.concurrency < 1.0,
        load_slack_bytes=sizing.load_slack_bytes,
    )


def _empty_plan(model: ModelArchitecture, gpu: Gpu, s: PlanSettings, findings: tuple[Finding, ...]) -> Plan:
    """A plan that cannot even be added up: every figure is zero, ``findings`` say why."""
    return Plan(
        settings=s,
        model=model,
        gpu=gpu,
        fits=False,
        exact=False,
        weights_bytes=0,
        rope_bytes=0,
        available_kv_bytes=0,
        available_kv_margin_bytes=0,
        kv_dtype=normal_dtype(s.kv_cache_dtype),
        kv_bytes_per_token=0,
        kv_bytes_per_token_all_layers=0,
        kv_cache_tokens=0,
        kv_cache_tokens_low=0,
        kv_cache_tokens_high=0,
        local_kv_tokens=None,
        max_concurrency=0.0,
        max_request_tokens=0,
        pool_ceiling_tokens=0,
        needed_kv_bytes_per_request=0,
        hybrid_kv="off",
        groups=(),
        max_num_batched_tokens=0,
        fixed_costs_bytes=0,
        findings=findings,
        steps=(),
    )


def _longest_request(sizing: Sizing, available: int) -> int:
    """The longest single request that the pool holds, whatever the context: bisection over a rising cost."""
    low, high = 0, LONGEST_TOKENS
    if available <= 0:
        return 0
    while low < high:
        middle = (low + high + 1) // 2
        if sizing.at_once(available, middle) >= 1.0:
            low = middle
        else:
            high = middle - 1
    return low
