"""Validate a deployed endpoint: what the module longhaul_validate calls.

Gathers what only the host knows (GPUs, processor, the engine's own capacity figures) and turns the operator's options into a
``ValidateConfig``.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import read_json
from ..models.architecture import ModelArchitecture
from ..models.reader import load_architecture
from ..physics.hardware import GIB, DetectedGpu, Gpu, detect_gpus, get_gpu
from ..prompts.convert import has_tokenizer, vocabulary_files
from ..prompts.needles import KINDS
from ..results import CapacityFacts, RunResult, from_jsonable
from ..validate.config import NeedleSettings, Point, ValidateConfig, result_file
from ..validate.progress import Progress
from ..validate.run import validate
from ..validate.verdict import Limits
from ..values import number
from .hostfacts import capacity_of_start
from .layout import Layout
from .runtimes.registry import log_from_now, runtime_kind
from .spec import Spec, read_api_key


def validate_endpoint(
    spec: Spec, task: Mapping[str, Any], layout: Layout | None, on_progress: Callable[[Progress], None]
) -> RunResult:
    """Validate the endpoint that ``spec`` describes, as ``task`` says: the options of the module longhaul_validate."""
    facts = (read_json(layout.facts_file) if layout else None) or {}
    url, remote = task["url"] or None, task["remote"]
    # Another address may be another server: the log of the engine that is deployed here says nothing about it.
    ours = layout is not None and not remote and (url or spec.url).rstrip("/") == spec.url.rstrip("/")
    config = config_from_options(
        spec,
        task["options"],
        facts,
        name=task["name"],
        run_id=task["run_id"],
        out_dir=Path(task["out_dir"]),
        cache_dir=Path(task["cache_dir"]),
        url=url,
        api_key=read_api_key(spec, task["api_key_file"], remote),
        remote=remote,
    )
    return validate(config, on_progress, log_from_now(layout, spec) if layout is not None and ours else None)


def config_from_options(
    spec: Spec,
    options: Mapping[str, Any],
    facts: Mapping[str, Any],
    *,
    name: str,
    run_id: str,
    out_dir: Path,
    cache_dir: Path,
    url: str | None,
    api_key: str | None,
    remote: bool,
) -> ValidateConfig:
    """Options as the role passes them (strings allowed, ``None`` and "" mean: not set) -> ValidateConfig.

    ``remote``: this is not the server's machine.
    """
    settings = spec.settings
    model_dir = Path(settings.model_path)
    architecture = _architecture(model_dir)
    detected = () if remote else detect_gpus()
    on_cpu = settings.device == "cpu"
    gpus = spec.gpus
    gpu = _gpu(str(options.get("gpu") or ""), detected)
    tokenizer = Path(options["tokenizer_dir"]) if options.get("tokenizer_dir") else model_dir
    # A run that cannot do without one says what is missing; any other run sends random ids.
    needs_one = bool(options.get("needles")) or options.get("transport") == "text"
    usable = has_tokenizer(tokenizer) or (needs_one and bool(vocabulary_files(tokenizer)))
    capacity = facts.get("capacity")
    limits = {k: number(f"context_test limit {k}", v) for k, v in (options.get("limits") or {}).items() if v not in (None, "")}
    kinds = tuple(options.get("needle_kinds") or ("multi",))
    for kind in kinds:
        if kind not in KINDS:
            raise UserError(f"needle kind {kind!r}", "one of " + ", ".join(KINDS), "set context_test_needle_kinds")
    return ValidateConfig(
        url=url or spec.url,
        engine=spec.engine,
        engine_version=spec.version,
        model=settings.served_model_name,
        host=name,
        out_dir=out_dir,
        run_id=run_id,
        points=points_from(options),
        context_tokens=settings.context_tokens,
        tokenizer_dir=tokenizer if usable else None,
        vocab_size=architecture.vocab_size if architecture else None,
        corpus_dir=cache_dir,
        corpus_source=Path(options["corpus"]) if options.get("corpus") else None,
        seed=None if options.get("seed") in (None, "") else int(options["seed"]),
        repeats=int(options.get("repeats") or 1),
        attempts=ValidateConfig.attempts if options.get("attempts") is None else int(options["attempts"]),
        warmup=bool(options.get("warmup", True)),
        mode=str(options.get("mode") or "cold"),
        transport=str(options.get("transport") or "ids"),
        api_key=api_key,
        limits=Limits(**limits),
        budget_s=None if options.get("budget_s") in (None, "") else number("context_test_budget_s", options["budget_s"]),
        architecture=architecture,
        hardware=(gpu, gpus) if gpu else None,
        calibrate=on_cpu and not remote,
        calibrate_python=runtime_kind(spec.runtime).host_python(spec) if on_cpu and not remote else None,
        weights_dtype=settings.quantization or (None if settings.dtype == "auto" else settings.dtype),
        kv_dtype=settings.kv_cache_dtype,
        kv_cache_tokens=capacity_of_start(facts).get("kv_cache_tokens") or None,
        max_running=settings.max_num_seqs,
        needles=NeedleSettings(
            enabled=bool(options.get("needles")),
            kinds=kinds,
            depths=tuple(float(d) for d in options.get("needle_depths") or NeedleSettings().depths),
            dummy_weights=settings.load_format == "dummy",
        ),
        capacity=from_jsonable(CapacityFacts, capacity) if capacity else None,
        baseline=result_file(Path(str(options["baseline"]))) if options.get("baseline") else None,
        environment=environment(spec, detected, remote),
        cache_salt=bool(options.get("cache_salt", True)),
        flush=bool(options.get("flush", True)),
        proxy=options.get("proxy") or None,
        ca_file=Path(options["ca_file"]) if options.get("ca_file") else None,
    )


def points_from(options: Mapping[str, Any]) -> tuple[Point, ...]:
    """The points to measure: every length with every concurrency, shortest first, then ``points``. No point comes twice."""
    output = int(options.get("output_tokens") or 200)
    points = [
        Point(int(length), output, int(concurrency))
        for concurrency in options.get("concurrency") or [1]
        for length in sorted(int(n) for n in options.get("ladder_tokens") or [])
    ]
    for row in options.get("points") or []:
        try:
            points.append(Point(int(row["input_tokens"]), int(row.get("output_tokens", output)), int(row.get("concurrency", 1))))
        except (KeyError, TypeError, ValueError) as exc:
            raise UserError(
                f"context_test_points entry {row!r}", "input_tokens, output_tokens, concurrency", "correct it"
            ) from exc
    return tuple(dict.fromkeys(points))


def environment(spec: Spec, detected: Sequence[DetectedGpu], remote: bool) -> dict[str, Any]:
    """What a reader must know of spec and machine to judge the figures. Holds no secret and no path of a key."""
    settings = spec.document["settings"]
    return {
        "spec_id": spec.spec_id,
        "runtime": spec.runtime,
        "settings": {k: v for k, v in settings.items() if k not in ("api_key_file", "extra_env")},
        "argv": list(spec.argv),
        "gpus": [{"index": g.index, "name": g.name, "memory_gib": round(g.memory_bytes / GIB, 2)} for g in detected],
        "cpu": None if remote else cpu_name(),
        "cpus": None if remote else os.cpu_count(),
        "kernel": None if remote else platform.release(),
        "measured_from": "controller" if remote else "host",
    }


def cpu_name(cpuinfo: Path = Path("/proc/cpuinfo")) -> str | None:
    """The processor's model name."""
    try:
        for line in cpuinfo.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        return None
    return None


def _architecture(model_dir: Path) -> ModelArchitecture | None:
    if not (model_dir / "config.json").exists():
        return None
    try:
        return load_architecture(model_dir)
    except UserError:
        # A model we cannot read has no floor; the run says so (peaks unknown), it does not fail.
        return None


def _gpu(name: str, detected: Sequence[DetectedGpu]) -> Gpu | None:
    if name:
        return get_gpu(name)
    return next((g.gpu for g in detected if g.gpu is not None), None)
