"""What an engine will hold: weights, KV pool, tokens, concurrency, the largest request - before it starts.

The sums are the engines' own, rule by rule (:mod:`capacity_rules` says which release follows which). Given the memory
left for KV (``available_kv_gib``; on CPU the configured KV space) they are exact: the same integers that the engine
prints. Without it, that memory is estimated from the GPU, and the plan says so and by how much it may be off.

Terms. A *block* is the engine's KV page for one group of layers: ``block_size`` tokens. A *group* is a set of layers of
one attention kind that share a block table. ``bytes_per_block`` is what one block costs on one GPU.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import TYPE_CHECKING, Any, Literal

from ..dtypes import normal_dtype
from ..engines.block_size import block_faults
from ..engines.rules import SGLANG_SPLIT_ARCHITECTURES, outside_range, vllm_rules
from ..engines.sizing import (
    LONGEST_TOKENS,
    KvGroup,
    PlanSettings,
    Pool,
    SglangSizing,
    Sizing,
    VllmSizing,
    check_settings,
    kv_splits,
    sglang_batched_tokens,
    sizing_of,
    stages_of,
)
from ..models.architecture import AttentionKind, ModelArchitecture
from ..physics.hardware import GIB, Gpu
from ..results import CapacityFacts
from ..version import Version

if TYPE_CHECKING:
    from ..engines.base import EngineCapacity, EngineSettings

__all__ = [
    "Finding",
    "KvGroup",
    "Plan",
    "PlanSettings",
    "Step",
    "check_plan",
    "compare_with_engine",
    "max_context",
    "nearest_plans",
    "needed_kv_bytes",
    "plan_capacity",
    "requests_that_fit",
    "settings_from_engine",
]

DRIFT_TOLERANCE = 0.02


@dataclass(frozen=True)
class Finding:
    """One thing that a plan must not (``refuse``) or should not (``warn``) go ahead with. ``code`` is stable."""

    severity: Literal["refuse", "warn"]
    code: str
    found: str
    required: str
    fix: str


@dataclass(frozen=True)
class Step:
    """One line of the sum for ``--explain``: ``exact`` False marks an estimate."""

    label: str
    value: str
    how: str
    exact: bool = True


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
        return tuple(f"{f.severity}: {f.found}; required: {f.required}; fix: {f.fix}" for f in self.findings)


# ---------------------------------------------------------------------------------------------------------------- public


def plan_capacity(model: ModelArchitecture, gpu: Gpu, settings: PlanSettings, *, host_gpus: int | None = None) -> Plan:
    """Predict what the engine will hold. Raises UserError for nonsense; an impossible plan comes back with findings."""
    check_settings(settings)
    structural = _structural_findings(model, gpu, settings, host_gpus)
    if any(f.severity == "refuse" and f.code in _UNPLANNABLE for f in structural):
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

    ``ladder``: the points that validation will ask for, as (tokens a request, requests at once). Refuses: concurrency
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
                        "warn",
                        "ladder_over_capacity",
                        f"{at_once} requests of {tokens:,} tokens in the ladder, {fit} fit at once",
                        "the ladder's concurrency held at once, or the rest will queue",
                        f"lower the concurrency to {max(fit, 1)} or give the pool more memory",
                    )
                )
    return tuple(found)


def needed_kv_bytes(plan: Plan, tokens: int, concurrency: int = 1) -> int:
    """KV bytes a GPU that ``concurrency`` requests of ``tokens`` take at once under this plan."""
    return sizing_of(plan.model, plan.gpu, plan.settings).request_bytes(tokens) * concurrency


def requests_that_fit(plan: Plan, tokens: int) -> int:
    """How many requests of ``tokens`` (prompt and answer) the pool holds at once; the rest would queue."""
    sizing = sizing_of(plan.model, plan.gpu, plan.settings)
    return math.floor(sizing.at_once(plan.available_kv_bytes, tokens))


def max_context(
    model: ModelArchitecture, gpu: Gpu, settings: PlanSettings, *, host_gpus: int | None = None, concurrency: float = 1.0
) -> int:
    """The largest context at which ``concurrency`` requests hold at once, capped by the model's positions; 0 if none."""
    check_settings(settings)
    if any(f.code in _UNPLANNABLE for f in _structural_findings(model, gpu, settings, host_gpus) if f.severity == "refuse"):
        return 0
    return _max_context(model, gpu, settings, concurrency)


def nearest_plans(
    model: ModelArchitecture, gpu: Gpu, settings: PlanSettings, *, host_gpus: int | None = None
) -> tuple[tuple[str, Plan], ...]:
    """Plans that fit, nearest first: one change before two, cheaper changes before dearer; a shorter context comes last."""
    changes = _possible_changes(model, gpu, settings, host_gpus)
    tried: list[tuple[tuple[str, ...], PlanSettings]] = [((name,), changed) for name, changed in changes]
    for i, (first, one) in enumerate(changes):
        for second, two in _possible_changes(model, gpu, one, host_gpus):
            if second not in {first, *(n for n, _ in changes[:i])}:
                tried.append(((first, second), two))
    found: list[tuple[str, Plan]] = []
    for names, candidate in tried:
        if len(names) > 1 and any(n in names for n, _ in found):
            continue
        plan = plan_capacity(model, gpu, candidate, host_gpus=host_gpus)
        if plan.fits:
            found.append((" and ".join(names), plan))
    shorter = max_context(model, gpu, settings, host_gpus=host_gpus)
    if 0 < shorter < settings.context_tokens:
        plan = plan_capacity(model, gpu, replace(settings, context_tokens=shorter), host_gpus=host_gpus)
        if plan.fits:
            found.append((f"context {shorter:,}", plan))
    return tuple(found)


def compare_with_engine(plan: Plan, engine: EngineCapacity, tolerance: float = DRIFT_TOLERANCE) -> CapacityFacts:
    """Set the engine's own figures beside the plan. Drift is engine / predicted - 1, the largest over the exact figures.

    The pool is recomputed from the engine's own "Available KV cache memory" (on CPU from the configured KV space) at the
    engine's own context, so that only the sums are compared, not the memory estimate. ``exact`` says that this was
    possible: a drift above ``tolerance`` then means that the plan and the engine disagree on the model or the rules, and
    ``predicted["agrees"]`` is False. ``predicted["sum"]`` and ``engine["sum"]`` state both sums in words.
    ``predicted["to_the_digit"]``: the printed token figure follows from a block count within the printed GiB's rounding.
    vLLM prints the memory of a pipeline's first stage only, and its last stage has less: the sum takes the difference off that two
    starts showed, and drift may be larger by as much again.
    """
    settings = plan.settings
    if engine.context_tokens:
        settings = replace(settings, context_tokens=engine.context_tokens)
    exact = plan.gpu.vendor == "cpu" and settings.available_kv_gib is not None
    sizing = sizing_of(plan.model, plan.gpu, settings)
    printed_gib = engine.available_kv_gib
    if printed_gib is not None and plan.gpu.vendor != "cpu":
        less_gib = sizing.last_stage_less_bytes / GIB if isinstance(sizing, VllmSizing) else 0.0
        settings, exact = replace(settings, available_kv_gib=max(printed_gib - less_gib, 0.0)), True
        tolerance += less_gib / printed_gib if less_gib and printed_gib else 0.0
        sizing = sizing_of(plan.model, plan.gpu, settings)
    low, available, high = sizing.available()
    pool, pool_low, pool_high = (sizing.pool(b) for b in (available, low, high))
    predicted: dict[str, Any] = {
        "kv_cache_tokens": pool.tokens,
        "kv_cache_tokens_low": pool_low.tokens,
        "kv_cache_tokens_high": pool_high.tokens,
        "max_concurrency": pool.concurrency,
        "context_tokens": settings.context_tokens,
        "available_kv_gib": available / GIB,
        "weights_gib": (plan.weights_bytes + plan.rope_bytes + plan.load_slack_bytes) / GIB,
        "hybrid_kv": sizing.hybrid,
        "sum": sizing.pool_sum(pool),
    }
    if pool.local_tokens is not None:
        predicted["local_kv_tokens"] = pool.local_tokens
    if settings.engine == "vllm":
        predicted["kv_blocks"] = pool.units
    theirs = {f.name: value for f in fields(engine) if (value := getattr(engine, f.name)) is not None}
    drifts: dict[str, float] = {}
    for name in ("kv_cache_tokens", "max_concurrency", "local_kv_tokens", "kv_blocks"):
        ours = predicted.get(name)
        if name in theirs and ours:
            shown = round(float(ours), 2) if name == "max_concurrency" else float(ours)
            drifts[name] = theirs[name] / shown - 1 if shown else float("inf")
    predicted["drift_by_figure"] = drifts
    if "weights_gib" in theirs and plan.weights_bytes:
        predicted["weights_drift"] = theirs["weights_gib"] / predicted["weights_gib"] - 1
    drift = max(drifts.values(), key=abs, default=None)
    predicted["tolerance"] = tolerance
    predicted["agrees"] = None if drift is None else abs(drift) <= tolerance
    if exact and "kv_cache_tokens" in theirs:
        predicted["to_the_digit"] = sizing.explains(int(theirs["kv_cache_tokens"]), low, high)
    words = [f"{theirs[n]:,} {t}" for n, t in (("kv_cache_tokens", "tokens"), ("local_kv_tokens", "local tokens")) if n in theirs]
    if "max_concurrency" in theirs:
        words.append(f"{theirs['max_concurrency']:.2f}x at {theirs.get('context_tokens', settings.context_tokens):,}")
    if "available_kv_gib" in theirs:
        words.append(f"from {theirs['available_kv_gib']:.2f} GiB")
    return CapacityFacts(predicted, {**theirs, "sum": ", ".join(words)}, drift, exact)


def settings_from_engine(
    wanted: EngineSettings,
    engine: str,
    release: Version,
    *,
    max_running_requests: int | None = None,
    concurrency: int = 1,
    available_kv_gib: float | None = None,
) -> PlanSettings:
    """A deployment's settings -> what the plan needs of them. On CPU the KV space is the available memory."""
    on_cpu = wanted.device == "cpu"
    return PlanSettings(
        engine=engine,
        release=release,
        context_tokens=wanted.context_tokens,
        tensor_parallel=wanted.tensor_parallel,
        pipeline_parallel=wanted.pipeline_parallel,
        gpu_memory_utilization=wanted.gpu_memory_utilization,
        available_kv_gib=available_kv_gib if available_kv_gib is not None else (wanted.cpu_kv_cache_gib if on_cpu else None),
        kv_dtype=wanted.kv_cache_dtype,
        weights_dtype="fp8" if (wanted.quantization or "").startswith("fp8") else wanted.dtype,
        hybrid_kv=wanted.hybrid_kv,
        max_num_batched_tokens=wanted.max_num_batched_tokens,
        block_size=wanted.block_size_tokens,
        max_num_seqs=wanted.max_num_seqs if max_running_requests is None else max_running_requests,
        text_only=wanted.text_only,
        enforce_eager=wanted.enforce_eager,
        swa_full_tokens_ratio=wanted.swa_full_tokens_ratio,
        max_total_tokens=wanted.max_total_tokens,
        attention_backend=wanted.attention_backend,
        torch_sampler=wanted.extra_env.get("VLLM_USE_FLASHINFER_SAMPLER") == "0",
        concurrency=concurrency,
    )


# ------------------------------------------------------------------------------------------------------------- settings

_UNPLANNABLE = frozenset({"tp_heads", "tp_kv_heads", "pp_layers"})


def _structural_findings(model: ModelArchitecture, gpu: Gpu, s: PlanSettings, host_gpus: int | None) -> list[Finding]:
    """What is wrong before any memory is counted."""
    found: list[Finding] = []
    tp = s.tensor_parallel
    if model.heads % tp:
        best = max(d for d in range(1, tp + 1) if model.heads % d == 0 and kv_splits(model, d))
        pairs = f"TP{best} x PP{tp // best}" if tp % best == 0 and tp > best else f"TP{best}"
        found.append(
            Finding(
                "refuse",
                "tp_heads",
                f"tensor parallel {tp} over {model.heads} attention heads",
                f"a size that divides {model.heads}",
                f"use {pairs}",
            )
        )
    elif not kv_splits(model, tp):
        found.append(
            Finding(
                "refuse",
                "tp_kv_heads",
                f"tensor parallel {tp} over {model.kv_heads} KV heads",
                "a size that divides the KV heads, or a multiple of them (heads are then replicated)",
                f"use TP{max(d for d in range(1, tp + 1) if model.heads % d == 0 and kv_splits(model, d))}",
            )
        )
    if s.pipeline_parallel > len(model.layers):
        found.append(
            Finding(
                "refuse",
                "pp_layers",
                f"{s.pipeline_parallel} pipeline stages for {len(model.layers)} layers",
                "at least one layer a stage",
                "use fewer pipeline stages",
            )
        )
    if host_gpus is not None and s.gpus > host_gpus:
        found.append(
            Finding(
                "refuse",
                "host_gpus",
                f"TP{tp} x PP{s.pipeline_parallel} takes {s.gpus} GPUs",
                f"at most the {host_gpus} that the host has",
                "lower the parallel sizes or use a larger host",
            )
        )
    if model.max_positions is not None and s.context_tokens > model.max_positions:
        found.append(
            Finding(
                "refuse",
                "positions",
                f"context {s.context_tokens:,}",
                f"at most the model's {model.max_positions:,} positions",
                f"ask for a context of {model.max_positions:,} or less",
            )
        )
    if normal_dtype(s.kv_dtype) == "fp8" and gpu.vendor == "nvidia" and gpu.peak_flop_per_s.get("bf16") and not gpu.has_fp8:
        found.append(
            Finding("refuse", "kv_dtype", f"fp8 KV on {gpu.name}", "a GPU with fp8 units", "use bf16 KV, or H100, L40S or newer")
        )
    found += _block_findings(model, gpu, s)
    found += _short_sum_findings(model, gpu, s)
    found += _pipeline_room_findings(gpu, s)
    outside = outside_range(s.engine, s.release)
    if outside:
        found.append(
            Finding(
                "warn",
                "unverified_release",
                f"{s.engine} {s.release}",
                f"{outside[0]} to {outside[1]}, whose sums were verified",
                "the nearest verified release's rules are used; compare with the engine after the start",
            )
        )
    return found


def _block_findings(model: ModelArchitecture, gpu: Gpu, s: PlanSettings) -> list[Finding]:
    """Block sizes (SGLang: page sizes) that the engine refuses at its start, or with which it answers wrongly."""
    chunks = {x.window_tokens for x in model.layers if x.kind is AttentionKind.CHUNKED and x.window_tokens}
    faults = block_faults(
        s.engine,
        s.release,
        s.block_size,
        on_cpu=gpu.vendor == "cpu",
        prefill_chunk=sglang_batched_tokens(s, gpu),
        fa3=_sglang_fa3(gpu, s),
        architecture=model.architecture,
        attention_chunks=chunks,
    )
    return [Finding("refuse", "block_size", f.found, f.required, f.fix) for f in faults]


def _hopper(gpu: Gpu) -> bool:
    return gpu.compute_capability is not None and (9, 0) <= gpu.compute_capability < (10, 0)


def _sglang_fa3(gpu: Gpu, s: PlanSettings) -> bool:
    return s.attention_backend == "fa3" or (s.attention_backend is None and _hopper(gpu))


def _short_sum_findings(model: ModelArchitecture, gpu: Gpu, s: PlanSettings) -> list[Finding]:
    """fp8 attention that sums in the tensor cores' own accumulator, which keeps too few bits for a long context.

    Measured on an H200 (docs/results/2026-11-25-2x-h200-tuned, attention): SGLang 0.5.12.post1's FlashAttention 3 is off by 0.57 of
    the output at 131,072 tokens and 0.85 at 1,048,576 where the values share a sign; vLLM 0.25.1's, which moves its sums to real
    fp32 as it goes (vLLM since pull request 27889, October 2025), by 0.003.
    """
    if s.engine != "sglang" or normal_dtype(s.kv_dtype) != "fp8" or model.mla is not None:
        return []
    if not (_hopper(gpu) and _sglang_fa3(gpu, s)):
        return []
    return [
        Finding(
            "warn",
            "short_fp8_sums",
            "fp8 KV with FlashAttention 3 in SGLang on Hopper, whose attention sums lose small terms (errors of 0.57 at 131,072 tokens)",
            "answers that are right at the whole context",
            "use bf16 KV, or prove it with the real weights: context_test_needles: true at the longest context (docs/tuning.md)",
        )
    ]


# Before vLLM looks at the free memory, the driver's CUDA context has taken this (H100 and H200, driver 580).
_CONTEXT_GIB = 1.43
# Left beside share and context, 1.74 GiB was too little on two H100, 9.7 GiB enough on two H200; nothing between was tried.
_PIPELINE_ROOM_GIB = 2.0


def _pipeline_room_findings(gpu: Gpu, s: PlanSettings) -> list[Finding]:
    """vLLM's share of the memory, where a pipeline needs some beside it.

    NCCL makes the communicators between two stages at the first request, after the profile that sizes the KV cache: vLLM 0.25.1 in
    two stages at share 0.96 of two H100 became healthy and died of its first request (docs/results/2026-11-25-2x-h100, vllm-pp2).
    """
    if s.engine != "vllm" or s.pipeline_parallel < 2 or gpu.vendor != "nvidia" or s.gpu_memory_utilization is None:
        return []
    share, default = s.gpu_memory_utilization, vllm_rules(s.release).memory_utilization
    left_gib = gpu.usable_bytes / GIB * (1 - share) - _CONTEXT_GIB
    if share <= default or left_gib >= _PIPELINE_ROOM_GIB:
        return []
    return [
        Finding(
            "warn",
            "pipeline_room",
            f"{max(left_gib, 0):.1f} GiB of a GPU left beside a share of {share:g} in {s.pipeline_parallel} pipeline stages",
            f"at least {_PIPELINE_ROOM_GIB:.0f} GiB: NCCL takes memory at a pipeline's first request, which no profile counts; without it "
            "a healthy server dies then",
            f"lower gpu memory utilization to the engine's own {default:g}",
        )
    ]


# ----------------------------------------------------------------------------------------------------------------- plan


def _plan_from(sizing: Sizing, structural: list[Finding]) -> Plan:
    s, model = sizing.settings, sizing.model
    low, available, high = sizing.available()
    pool, pool_low, pool_high = (sizing.pool(b) for b in (available, low, high))
    ceiling = _longest_request(sizing, available)
    starts = isinstance(sizing, VllmSizing) and sizing.engine_starts(available)
    exact = s.available_kv_gib is not None
    findings = [*structural, *_capacity_findings(sizing, pool, starts)]
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
        steps=tuple(_steps(sizing, pool, high - available, exact)),
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
        kv_dtype=normal_dtype(s.kv_dtype),
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


def _capacity_findings(sizing: Sizing, pool: Pool, starts: bool) -> list[Finding]:
    s, model = sizing.settings, sizing.model
    found = []
    if pool.available_bytes <= 0:
        short = f"{-pool.available_bytes / GIB:.1f} GiB a GPU are missing"
        fix = "use more GPUs, fp8 weights or a larger share of the memory"
        found.append(Finding("refuse", "no_kv_memory", f"no memory left for KV: {short}", "weights that leave room", fix))
    elif pool.concurrency < 1.0:
        after = "; the engine would start all the same and preempt that request for ever" if starts else ""
        found.append(
            Finding(
                "refuse",
                "concurrency",
                f"concurrency {pool.concurrency:.2f}x at {s.context_tokens:,} tokens (KV for {pool.tokens:,}){after}",
                "at least 1.0: one request of the whole context",
                "see the nearest plans that fit",
            )
        )
    elif pool.concurrency < s.concurrency:
        found.append(
            Finding(
                "warn",
                "concurrency_wanted",
                f"{s.concurrency} requests of {s.context_tokens:,} tokens wanted at once, {pool.concurrency:.2f} fit",
                f"concurrency of at least {s.concurrency}",
                "the rest will queue; give the pool more memory or lower the concurrency",
            )
        )
    fixed, room = sizing.fixed_costs(pool), sizing.fixed_room()
    total = sum(b for _, b in fixed)
    if fixed and room is not None and total > room:
        parts = " and ".join(f"{label} {b / GIB:.2f} GiB" for label, b in fixed if b)
        found.append(
            Finding(
                "refuse",
                "request_table",
                f"{parts} a GPU",
                f"at most the {room / GIB:.2f} GiB that the static memory fraction leaves",
                "set max running requests to 8 and keep CUDA graphs off or their batch small",
            )
        )
    gain = _hybrid_gain(sizing, pool)
    if gain is not None and gain >= 1.5:
        how = (
            "set VLLM_ALLOW_CHUNKED_LOCAL_ATTN_WITH_HYBRID_KV_CACHE=1 (hybrid KV on)"
            if s.engine == "vllm"
            else "switch hybrid KV on"
        )
        found.append(
            Finding(
                "warn",
                "hybrid_off",
                f"hybrid KV off by default in {s.engine} {s.release}: {model.name} would hold {gain:.1f} times as much with it",
                "hybrid KV on for models with local attention",
                how,
            )
        )
    return found


def _hybrid_gain(sizing: Sizing, pool: Pool) -> float | None:
    """How much more concurrency hybrid KV would give, where it is off only because nobody asked; else ``None``."""
    s = sizing.settings
    if sizing.hybrid != "off" or s.hybrid_kv != "default" or not pool.concurrency:
        return None
    other = sizing_of(sizing.model, sizing.gpu, replace(s, hybrid_kv="on"))
    return other.pool(pool.available_bytes).concurrency / pool.concurrency if other.hybrid == "on" else None


def _max_context(model: ModelArchitecture, gpu: Gpu, s: PlanSettings, concurrency: float) -> int:
    top = model.max_positions or LONGEST_TOKENS
    stages = stages_of(model, s)

    def holds(tokens: int) -> bool:
        sizing = sizing_of(model, gpu, replace(s, context_tokens=tokens), stages)
        available = sizing.available()[1]
        if available <= 0 or sizing.at_once(available, tokens) < concurrency:
            return False
        room = sizing.fixed_room()
        return room is None or sum(b for _, b in sizing.fixed_costs(sizing.pool(available))) <= room

    low, high = 0, top
    while low < high:
        middle = (low + high + 1) // 2
        if holds(middle):
            low = middle
        else:
            high = middle - 1
    return low


def _possible_changes(
    model: ModelArchitecture, gpu: Gpu, s: PlanSettings, host_gpus: int | None
) -> list[tuple[str, PlanSettings]]:
    """Single changes that could make a plan fit, cheapest first."""
    changes: list[tuple[str, PlanSettings]] = []
    if s.block_size is not None:
        changes.append(("the engine's own block size", replace(s, block_size=None)))
    if s.hybrid_kv != "on" and len({(x.kind, x.window_tokens) for x in model.layers}) > 1:
        changes.append(("hybrid KV on", replace(s, hybrid_kv="on")))
    if s.engine == "sglang":
        if s.max_num_seqs is None or s.max_num_seqs > 8:
            changes.append(("max running requests 8", replace(s, max_num_seqs=8)))
        if s.cuda_graph_max_batch is None and not s.enforce_eager:
            changes.append(("CUDA graphs off", replace(s, cuda_graph_max_batch=0)))
        if s.swa_full_tokens_ratio is None and model.architecture in SGLANG_SPLIT_ARCHITECTURES:
            changes.append(("swa-full-tokens-ratio 0.02", replace(s, swa_full_tokens_ratio=0.02)))
    if model.max_positions is not None and s.context_tokens > model.max_positions:
        changes.append((f"context {model.max_positions:,}", replace(s, context_tokens=model.max_positions)))
    if normal_dtype(s.kv_dtype) != "fp8" and (gpu.has_fp8 or gpu.vendor == "cpu"):
        changes.append(("fp8 KV", replace(s, kv_dtype="fp8")))
    elif normal_dtype(s.kv_dtype) == "fp8" and not gpu.has_fp8 and gpu.vendor == "nvidia":
        changes.append(("bf16 KV", replace(s, kv_dtype="bf16")))
    if s.engine == "vllm" and s.max_num_seqs is None and s.available_kv_gib is None and gpu.vendor != "cpu":
        changes.append(("max_num_seqs 16", replace(s, max_num_seqs=16)))
    if normal_dtype(s.weights_dtype) not in {"fp8"} and gpu.has_fp8 and model.quantization is None:
        changes.append(("fp8 weights", _moved(model, s, replace(s, weights_dtype="fp8"))))
    tp, pp = s.tensor_parallel, s.pipeline_parallel
    if gpu.vendor == "cpu":
        return changes
    limit = host_gpus if host_gpus is not None else max(16, 4 * s.gpus)
    sizes = [d for d in range(1, limit + 1) if model.heads % d == 0 and kv_splits(model, d)]
    splits: list[tuple[int, int]] = []
    if tp not in sizes or s.gpus > limit:
        splits += [(d, s.gpus // d) for d in reversed(sizes) if s.gpus % d == 0 and d <= s.gpus <= limit][:1]
        splits += [(d, 1) for d in reversed(sizes) if d <= min(tp, limit)][:1]
    splits += [(d, pp) for d in sizes if d > tp and d * pp <= limit and d & (d - 1) == 0][:2]
    splits += [(tp, 2 * pp)] if tp in sizes and 2 * tp * pp <= limit else []
    for new_tp, new_pp in splits:
        changed = replace(s, tensor_parallel=new_tp, pipeline_parallel=new_pp)
        changes.append((f"TP{new_tp} x PP{new_pp} ({new_tp * new_pp} GPUs)", _moved(model, s, changed)))
    return changes


def _moved(model: ModelArchitecture, old: PlanSettings, new: PlanSettings) -> PlanSettings:
    """Carry a given KV memory over to another split or dtype: what the weights no longer take is KV's."""
    if old.available_kv_gib is None:
        return new
    if model.heads % old.tensor_parallel or old.pipeline_parallel > len(model.layers):
        return replace(new, available_kv_gib=None)
    freed = max(x.weights_bytes for x in stages_of(model, old)) - max(x.weights_bytes for x in stages_of(model, new))
    gib = old.available_kv_gib + freed / GIB
    return replace(new, available_kv_gib=gib) if gib > 0 else replace(new, available_kv_gib=None)


def _steps(sizing: Sizing, pool: Pool, margin: int, exact: bool) -> list[Step]:
    s, model = sizing.settings, sizing.model
    weights = max(x.weights_bytes for x in sizing.stages)
    what = f"{(model.parameters if s.text_only else model.total_parameters) / 1e9:.2f}e9 parameters"
    steps = [
        Step("weights a GPU", f"{weights / GIB:.2f} GiB", f"{what}, TP{s.tensor_parallel} x PP{s.pipeline_parallel}"),
        Step(
            "rotary table",
            f"{sizing.rope / GIB:.2f} GiB",
            f"{model.rope_positions:,} positions x {model.rope_dim} x {4 if s.engine == 'sglang' else 2} B",
        ),
    ]
    if sizing.load_slack_bytes:
        how = "blocks of bf16 originals that no fp8 tensor fills (PyTorch's allocator, max_split_size 20 MiB)"
        steps.append(Step("slack of the load", f"{sizing.load_slack_bytes / GIB:.2f} GiB", how))
    if exact:
        how = f"given: {s.available_kv_gib} GiB"
        steps.append(Step("KV memory a GPU", f"{pool.available_bytes / GIB:.2f} GiB", how))
    else:
        slack = " - slack" if sizing.load_slack_bytes else ""
        usable = f"{sizing.gpu.usable_bytes / GIB:.2f} GiB usable"
        how = f"{usable} x share - weights - rotary table{slack} - run-time overhead (estimated)"
        steps.append(Step("KV memory a GPU", f"{pool.available_bytes / GIB:.2f} GiB +- {margin / GIB:.1f}", how, exact=False))
    cell = sizing.layer_token_bytes
    if model.mla:
        how = f"MLA latent {model.mla.cache_width} elements, {sizing.kv_dtype}, whole on every GPU"
    else:
        heads = max(1, model.kv_heads // s.tensor_parallel)
        how = f"2 x {heads} KV heads x {model.head_dim} x {sizing.kv_dtype_bytes:g} B"
    steps.append(Step("KV a token and layer", f"{cell:,} B", how))
    for number, group in enumerate(sizing.groups, 1):
        width = "every token" if group.window_tokens is None else f"{group.window_tokens:,} tokens"
        steps.append(Step(f"group {number}", f"{len(group.layers)} layers", f"{group.kind.value}, keeps {width}"))
    if isinstance(sizing, VllmSizing):
        widest = sizing.block_bytes // (sizing.block * cell)
        steps.append(Step("a block", f"{sizing.block_bytes:,} B", f"{sizing.block} tokens x {cell:,} B x {widest} layers"))
        local = [g for g in sizing.groups if g.window_tokens is not None]
        how = " + ".join(f"{sizing.group_blocks(g, s.context_tokens):,}" for g in sizing.groups)
        if local:
            how += f"; a local group holds its window and {sizing.in_flight:,} tokens in flight"
        steps.append(Step("blocks a request", f"{sizing.request_blocks(s.context_tokens):,}", how))
    elif isinstance(sizing, SglangSizing) and sizing.page > 1:
        steps.append(Step("a page", f"{sizing.page} tokens", "pools and requests are whole pages"))
    steps.append(Step("pool", f"{pool.tokens:,} tokens", sizing.pool_sum(pool), exact=exact))
    steps += [
        Step(label, f"{b / GIB:.2f} GiB", "outside the pool, grows with the context") for label, b in sizing.fixed_costs(pool)
    ]
    return steps
