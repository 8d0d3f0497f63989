"""``longhaul plan``: what an engine will hold on given GPUs, before it starts. Exit code 0: it fits; 1: it does not; 2: wrong input."""

from __future__ import annotations

import argparse
import functools
import json
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from typing import Any, NoReturn

from ..capacity.plan import Plan, check_plan, needed_kv_bytes, plan_capacity, requests_that_fit
from ..capacity.search import max_context, nearest_plans
from ..engines.registry import ENGINES, takers_note
from ..engines.settings import SIZE_SETTINGS, Setting
from ..engines.sizing import PlanSettings
from ..errors import UserError
from ..models.architecture import ModelArchitecture
from ..models.reader import load_architecture
from ..physics.hardware import GIB, GPUS, Gpu, get_gpu
from ..version import Version

# Settings whose default follows from the model or from the other options.
_FROM_THE_REST = {"context_tokens": "all of the model's positions", "tensor_parallel": "GPUs / PP"}
# The columns of --sweep: the request's range, 128K to the 10M that Llama-4-Scout was made for.
SWEEP_CONTEXTS = (131_072, 1_048_576, 2_097_152, 5_242_880, 8_388_608, 10_485_760)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The options of the plan, and those that settle what a release would otherwise decide by itself."""
    # argparse's own complaints take the same one-line form as every other mistake, without the usage block.
    parser.error = functools.partial(_one_line, parser)  # type: ignore[method-assign]
    parser.add_argument("--model", required=True, metavar="CONFIG_OR_DIR", help="config.json, or the folder that holds it")
    parser.add_argument("--gpu", metavar="NAME", help="GPU model (" + ", ".join(GPUS) + ") or any name with its figures")
    parser.add_argument("--gpu-memory-gib", type=float, metavar="G", help="memory of a GPU that the table lacks")
    parser.add_argument("--gpu-bandwidth-gb-s", type=float, metavar="B", help="its memory bandwidth, 1e9 bytes/s")
    parser.add_argument("--gpus", type=int, metavar="N", help="GPUs in the host (default: TP x PP)")
    parser.add_argument("--engine", required=True, metavar="NAME==VERSION", help=", ".join(_oldest().values()) + " ...")
    memory = parser.add_mutually_exclusive_group()
    memory.add_argument(
        "--available-kv-gib", type=float, metavar="G", help="KV memory per GPU, from the engine's log: exact sums"
    )
    for setting in SIZE_SETTINGS:
        _add_setting(memory if setting.name == "gpu_memory_utilization" else parser, setting)
    parser.add_argument("--weights-dtype", default="auto", metavar="D", help="bf16, fp16 or fp8 (default: as the checkpoint)")
    parser.add_argument("--cuda-graph-max-batch", type=int, metavar="N", help="SGLang: largest graph batch; 0 is off")
    parser.add_argument(
        "--pytorch-sampler", action="store_true", help="vLLM started with VLLM_USE_FLASHINFER_SAMPLER=0: a full batch costs more"
    )
    parser.add_argument("--concurrency", type=int, default=1, metavar="N", help="requests of the whole context wanted at once")
    parser.add_argument("--json", action="store_true", help="print the plan as JSON")
    parser.add_argument("--explain", action="store_true", help="show the sum line by line")
    parser.add_argument("--max-context", action="store_true", help="find the largest context that holds")
    parser.add_argument("--sweep", action="store_true", help="table of GPU model x context x KV dtype")


def _add_setting(parser: argparse._ActionsContainer, setting: Setting) -> None:
    """The option of one engine setting that decides what fits. Its default is the plan's."""
    default = None if setting.name in _FROM_THE_REST else PlanSettings.__dataclass_fields__[setting.name].default
    unset = _FROM_THE_REST.get(setting.name) or setting.about.empty or (default if default is not False else "")
    text = f"{setting.about.help} {takers_note(setting.name)}".rstrip(" .") + (f" (default: {unset})" if unset else "")
    found: dict[str, Any] = {"dest": setting.name, "default": default, "help": text.replace("%", "%%")}
    if setting.kind == "bool":
        found["action"] = argparse.BooleanOptionalAction if default else "store_true"
    elif setting.choices:
        found["choices"] = setting.choices
    else:
        kind = setting.kind.removesuffix(" | None")
        found |= {"type": {"int": int, "float": float}.get(kind, str), "metavar": {"int": "N", "float": "F"}.get(kind, "NAME")}
    parser.add_argument(setting.option, **found)


def run(args: argparse.Namespace) -> int:
    """Print one plan, the largest context, or the sweep."""
    model = load_architecture(args.model)
    engine, release = _engine(args.engine)
    tp, pp, gpus = _parallel(args)
    context = args.context_tokens if args.context_tokens is not None else model.max_positions
    if context is None:
        raise UserError(f"{model.name} does not name its positions", "--context", "give the context to serve")
    given = {setting.name: getattr(args, setting.name) for setting in SIZE_SETTINGS}
    settings = PlanSettings(
        engine,
        release,
        **{**given, "context_tokens": context, "tensor_parallel": tp, "pipeline_parallel": pp},
        available_kv_gib=args.available_kv_gib,
        weights_dtype=args.weights_dtype,
        torch_sampler=args.pytorch_sampler,
        cuda_graph_max_batch=args.cuda_graph_max_batch,
        concurrency=args.concurrency,
    )
    if args.sweep:
        return _sweep(model, settings, args, gpus)
    if args.gpu is None:
        raise UserError("no --gpu", "a GPU model: " + ", ".join(GPUS), "add --gpu, or --sweep for all of them")
    gpu = get_gpu(args.gpu, memory_gib=args.gpu_memory_gib, bandwidth_gb_per_s=args.gpu_bandwidth_gb_s)
    if args.max_context:
        return _longest(model, gpu, settings, args, gpus)
    plan = plan_capacity(model, gpu, settings, host_gpus=gpus)
    nearest = () if plan.fits else nearest_plans(model, gpu, settings, host_gpus=gpus)
    if args.json:
        print(json.dumps(plan_to_json(plan, nearest), indent=1))
    else:
        print("\n".join(_table(plan)))
        if args.explain:
            print("\n".join(_explanation(plan)))
        print("\n".join(_verdict(plan, nearest)))
    return 0 if plan.fits else 1


def plan_to_json(plan: Plan, nearest: Iterable[tuple[str, Plan]] = ()) -> dict[str, Any]:
    """The plan as JSON. GiB and tokens are per GPU where the name says so; ``warnings`` are one-line texts."""
    s = plan.settings
    return {
        "fits": plan.fits,
        "exact": plan.exact,
        "model": plan.model.name,
        "engine": s.engine,
        "engine_version": str(s.release),
        "gpu": plan.gpu.name,
        "tensor_parallel": s.tensor_parallel,
        "pipeline_parallel": s.pipeline_parallel,
        "context_tokens": s.context_tokens,
        "parameters": _parameters(plan),
        "active_parameters": plan.model.active_parameters,
        "weights_gib_per_gpu": plan.weights_bytes / GIB,
        "rope_gib_per_gpu": plan.rope_bytes / GIB,
        "kv_dtype": plan.kv_dtype,
        "kv_bytes_per_token_per_gpu": plan.kv_bytes_per_token,
        "kv_bytes_per_token_per_gpu_all_layers": plan.kv_bytes_per_token_all_layers,
        "available_kv_gib_per_gpu": plan.available_kv_bytes / GIB,
        "available_kv_gib_margin": 0.0 if plan.exact else plan.available_kv_margin_bytes / GIB,
        "estimated": [] if plan.exact else ["available_kv_gib_per_gpu"],
        "kv_cache_tokens": plan.kv_cache_tokens,
        "kv_cache_tokens_range": [plan.kv_cache_tokens_low, plan.kv_cache_tokens_high],
        "local_kv_tokens": plan.local_kv_tokens,
        "max_concurrency": plan.max_concurrency,
        "max_request_tokens": plan.max_request_tokens,
        "pool_ceiling_tokens": plan.pool_ceiling_tokens,
        "needed_kv_gib_per_request": plan.needed_kv_bytes_per_request / GIB,
        "hybrid_kv": plan.hybrid_kv,
        "max_num_batched_tokens": plan.max_num_batched_tokens,
        "block_size_tokens": plan.groups[0].block_size if plan.groups else s.block_size_tokens,
        "fixed_costs_gib_per_gpu": plan.fixed_costs_bytes / GIB,
        "starts_anyway": plan.starts_anyway,
        "findings": [
            {"severity": f.severity, "code": f.code, "found": f.found, "required": f.required, "fix": f.fix}
            for f in plan.findings
        ],
        "warnings": list(plan.warnings),
        "nearest": [
            {"change": change, "max_concurrency": p.max_concurrency, "context_tokens": p.settings.context_tokens}
            for change, p in nearest
        ],
        "steps": [asdict(step) for step in plan.steps],
    }


def _one_line(parser: argparse.ArgumentParser, message: str) -> NoReturn:
    error = UserError(message, "arguments as longhaul plan --help lists them", "correct the command line")
    parser.exit(2, f"longhaul plan: {error}\n")
    raise AssertionError  # exit does not return


def _engine(text: str) -> tuple[str, Version]:
    name, _, version = text.partition("==")
    if name not in ENGINES or not version:
        required, example = " or ".join(f"{known}==VERSION" for known in ENGINES), next(iter(_oldest().values()))
        raise UserError(f"engine {text!r}", required, f"give, for instance, {example}")
    return name, Version.parse(version)


def _oldest() -> dict[str, str]:
    """Each engine with the oldest release whose rules were read."""
    return {name: f"{name}=={adapter.verified[0]}" for name, adapter in ENGINES.items()}


def _parallel(args: argparse.Namespace) -> tuple[int, int, int]:
    """(TP, PP, GPUs): whatever is left out follows from the rest."""
    for label, value in (("--tp", args.tensor_parallel), ("--pp", args.pipeline_parallel), ("--gpus", args.gpus)):
        if value is not None and value < 1:
            raise UserError(f"{label} {value}", "a whole number of at least 1", f"give a positive {label}")
    if args.tensor_parallel is None:
        gpus = args.gpus if args.gpus is not None else args.pipeline_parallel
        if gpus % args.pipeline_parallel:
            raise UserError(f"{gpus} GPUs over {args.pipeline_parallel} stages", "GPUs divisible by --pp", "give --tp as well")
        return gpus // args.pipeline_parallel, args.pipeline_parallel, gpus
    gpus = args.gpus if args.gpus is not None else args.tensor_parallel * args.pipeline_parallel
    return args.tensor_parallel, args.pipeline_parallel, gpus


def _parameters(plan: Plan) -> int:
    return plan.model.parameters if plan.settings.text_only else plan.model.total_parameters


def _gib(value: float) -> str:
    return f"{value / GIB:,.2f} GiB"


def _table(plan: Plan) -> list[str]:
    s = plan.settings
    around = "" if plan.exact else f" (estimated, +- {plan.available_kv_margin_bytes / GIB:.1f} GiB)"
    more = plan.pool_ceiling_tokens > plan.max_request_tokens
    alone = f" (the pool alone would hold one of {plan.pool_ceiling_tokens:,})" if more else ""
    rows = [
        ("model", f"{plan.model.name}: {_parameters(plan) / 1e9:.2f}e9 parameters"),
        ("on", f"{s.gpus} x {plan.gpu.name}, TP{s.tensor_parallel} x PP{s.pipeline_parallel}, {s.engine} {s.release}"),
    ]
    if plan.steps:
        rows += [
            ("weights per GPU", f"{_gib(plan.weights_bytes)}, and {_gib(plan.rope_bytes)} of rotary table"),
            ("KV memory per GPU", _gib(plan.available_kv_bytes) + around),
            ("KV per token per GPU", f"{plan.kv_bytes_per_token:,} B ({plan.kv_dtype}, hybrid KV: {plan.hybrid_kv})"),
            ("KV pool", _pool(plan)),
            ("needed per request", f"{_gib(plan.needed_kv_bytes_per_request)} per GPU at {s.context_tokens:,} tokens"),
            ("concurrency", f"{plan.max_concurrency:.2f}x at {s.context_tokens:,} tokens"),
            ("longest request", f"{plan.max_request_tokens:,} tokens{alone}"),
        ]  # fmt: skip
        if s.concurrency > 1:
            need = needed_kv_bytes(plan, s.context_tokens, s.concurrency)
            rows.append(
                (f"{s.concurrency} at once", f"need {_gib(need)} per GPU; {requests_that_fit(plan, s.context_tokens)} fit")
            )
        if plan.fixed_costs_bytes:
            rows.append(("outside the pool", f"{_gib(plan.fixed_costs_bytes)} of request table and graph buffers per GPU"))
    width = max(len(label) for label, _ in rows)
    return [f"{label:<{width}}  {value}" for label, value in rows]


def _pool(plan: Plan) -> str:
    local = "" if plan.local_kv_tokens is None else f", {plan.local_kv_tokens:,} local"
    span = ""
    if plan.kv_cache_tokens_low != plan.kv_cache_tokens_high:
        # A GiB figure from a log is rounded, an estimate has a margin: the tokens are a range in both cases.
        why = ": the GiB figure is rounded" if plan.exact else ""
        span = f" ({plan.kv_cache_tokens_low:,} to {plan.kv_cache_tokens_high:,}{why})"
    return f"{plan.kv_cache_tokens:,} tokens{local}{span}"


def _explanation(plan: Plan) -> list[str]:
    width = max((len(x.label) for x in plan.steps), default=0)
    return ["", *(f"  {x.label:<{width}}  {x.value:>18}  {x.how}{'' if x.exact else '  [estimate]'}" for x in plan.steps)]


def _verdict(plan: Plan, nearest: Sequence[tuple[str, Plan]]) -> list[str]:
    lines = ["", *(f"{f.severity.upper()}  {f}" for f in plan.findings)]
    lines.append("FITS" if plan.fits else "DOES NOT FIT")
    if nearest:
        lines.append("nearest plans that fit:")
        lines += [f"  {change}: {p.max_concurrency:.2f}x at {p.settings.context_tokens:,} tokens" for change, p in nearest]
    elif not plan.fits:
        lines.append("no single or double change of this plan fits; use more or larger GPUs")
    return lines


def _longest(model: ModelArchitecture, gpu: Gpu, settings: PlanSettings, args: argparse.Namespace, gpus: int) -> int:
    longest = max_context(model, gpu, settings, host_gpus=gpus, concurrency=settings.concurrency)
    if not longest:
        refusals = [f for f in check_plan(model, gpu, settings, host_gpus=gpus) if f.severity == "refuse"]
        why = refusals[0].found if refusals else "no context holds"
        print(json.dumps({"max_context_tokens": 0, "reason": why}) if args.json else f"no context holds: {why}")
        return 1
    plan = plan_capacity(model, gpu, replace(settings, context_tokens=longest), host_gpus=gpus)
    if args.json:
        print(json.dumps({"max_context_tokens": longest, "plan": plan_to_json(plan)}, indent=1))
        return 0 if plan.fits else 1
    capped = " (all of the model's positions)" if longest == model.max_positions else ""
    print(f"largest context that holds {settings.concurrency} request(s): {longest:,} tokens{capped}")
    print("\n".join(_table(plan)))
    print("\n".join(_verdict(plan, ())))
    return 0 if plan.fits else 1


def _sweep(model: ModelArchitecture, settings: PlanSettings, args: argparse.Namespace, gpus: int) -> int:
    """One row per GPU and KV dtype: KV memory, the largest context, and the concurrency at each context."""
    names = [args.gpu] if args.gpu else [name for name, gpu in GPUS.items() if gpu.vendor != "cpu"]
    # A model below the shortest context of the table is shown at all of its positions.
    top = model.max_positions or SWEEP_CONTEXTS[-1]
    contexts = [c for c in SWEEP_CONTEXTS if c <= top] or [top]
    if args.context_tokens is not None and args.context_tokens not in contexts:
        contexts = sorted({*contexts, args.context_tokens})
    rows: list[dict[str, Any]] = []
    for name in names:
        gpu = get_gpu(name, memory_gib=args.gpu_memory_gib, bandwidth_gb_per_s=args.gpu_bandwidth_gb_s)
        for dtype in ("bf16", "fp8") if settings.kv_cache_dtype == "auto" else (settings.kv_cache_dtype,):
            if dtype == "fp8" and not gpu.has_fp8:
                continue
            wanted = replace(settings, kv_cache_dtype=dtype)
            plans = {c: plan_capacity(model, gpu, replace(wanted, context_tokens=c), host_gpus=gpus) for c in contexts}
            any_plan = plans[contexts[0]]
            row: dict[str, Any] = {
                "gpu": gpu.name,
                "gpu_memory_gib": gpu.memory_gib,
                "kv_dtype": dtype,
                "weights_gib_per_gpu": any_plan.weights_bytes / GIB,
                "available_kv_gib_per_gpu": any_plan.available_kv_bytes / GIB,
                "max_context_tokens": max_context(model, gpu, wanted, host_gpus=gpus),
                "concurrency": {c: p.max_concurrency if p.kv_cache_tokens else 0.0 for c, p in plans.items()},
            }
            rows.append(row)
    if args.json:
        print(json.dumps({"gpus": gpus, "contexts": contexts, "rows": rows}, indent=1))
        return 0
    s = settings
    print(f"{model.name} on {gpus} GPUs, TP{s.tensor_parallel} x PP{s.pipeline_parallel}, {s.engine} {s.release}, ", end="")
    print(f"hybrid KV: {s.hybrid_kv}")
    print("KV memory is estimated; concurrency counts requests of the whole context at once, for all GPUs together")
    head = f"{'GPU':<18} {'memory':>7} {'KV':>5} {'KV GiB':>7} {'max context':>12}"
    print(head + "".join(f" {_short(c):>8}" for c in contexts))
    for row in rows:
        line = f"{row['gpu']:<18} {row['gpu_memory_gib']:>7.0f} {row['kv_dtype']:>5} {row['available_kv_gib_per_gpu']:>7.1f}"
        line += f" {row['max_context_tokens']:>12,}"
        print(line + "".join(f" {row['concurrency'][c]:>7.2f}x" if row["concurrency"][c] else f" {'-':>8}" for c in contexts))
    return 0


def _short(tokens: int) -> str:
    return f"{tokens // 1_048_576}M" if tokens % 1_048_576 == 0 else f"{tokens // 1024}K"
