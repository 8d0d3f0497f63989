"""``longhaul validate``: prove what a running server holds, from the command line."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from ..engines.registry import ENGINES
from ..errors import UserError
from ..keys import read_key
from ..models.reader import load_architecture
from ..physics.hardware import get_gpu
from ..prompts.needles import DEFAULT_DEPTHS, KINDS
from ..results import EXIT_CODES, RunResult
from ..validate.config import NeedleSettings, Point, ValidateConfig, result_file
from ..validate.progress import Progress, progress_line
from ..validate.run import validate
from ..validate.verdict import Limits

_WHOLE = "whole numbers, comma separated (no 8M or 8m)"
Filled = TypeVar("Filled", ValidateConfig, Limits)
Number = TypeVar("Number", int, float)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Flags; the ladder is the product of --ladder and --concurrency. A ``dest`` names the field of the run's settings."""
    add = parser.add_argument
    add("--url", required=True, help="http://HOST:PORT of the server")
    add("--engine", required=True, help=" or ".join(ENGINES))
    add("--engine-version", help="where the server does not say it")
    add("--model", help="served name (default: the first of /v1/models)")
    add("--ladder", required=True, help="input lengths in tokens, comma separated: 1000,8000,100000")
    add("--output-length", type=int, default=200, help="tokens to generate per request (default 200)")
    add("--concurrency", default="1", help="requests in flight, comma separated (default 1)")
    add("--context", dest="context_tokens", type=int, help="served context; a point that exceeds it is refused")
    add("--tokenizer", dest="tokenizer_dir", type=Path, help="folder with the model's tokenizer.json")
    add("--vocab-size", type=int, help="without a tokenizer: random ids below this")
    add("--corpus-cache", dest="corpus_dir", type=Path, help="where tokenized corpora are kept")
    add("--corpus", dest="corpus_source", type=Path, help="text to cut prompts from (plain or .gz; default: generated)")
    add("--seed", type=int, help="the same seed gives the same prompts (default: drawn, and recorded)")
    add("--repeats", type=int, default=1, help="rounds per point, each with fresh prompts")
    spoilt = "how often a point is measured that circumstances spoilt (%(default)s)"
    add("--attempts", type=int, default=ValidateConfig.attempts, help=spoilt)
    add("--no-warmup", dest="warmup", action="store_false", help="no untimed request first")
    add(
        "--warm",
        dest="mode",
        action="store_const",
        const="warm",
        default="cold",
        help="measure the prefix cache on purpose: each prompt is sent once before it is timed",
    )
    add(
        "--text",
        dest="transport",
        action="store_const",
        const="text",
        default="ids",
        help="send chat messages instead of token ids (gateways)",
    )
    add("--api-key-file", type=Path, help="file that holds the key (or the environment's LONGHAUL_API_KEY)")
    add("--slo-ttft", dest="ttft_s", type=float, help="limit for the p90 of TTFT, seconds")
    add("--slo-tpot", dest="tpot_s", type=float, help="limit for the p90 of TPOT, seconds")
    add("--slo-itl", dest="itl_s", type=float, help="limit for the p90 of gaps between tokens, seconds")
    add("--slo-e2e", dest="e2e_s", type=float, help="limit for the p90 of the whole request, seconds")
    add("--tolerance", type=float, default=0.25, help="how far repeats may be apart: (max - min) / median (default 0.25)")
    add(
        "--budget", dest="budget_s", type=float, help="seconds for the whole ladder; points that do not fit are listed as not run"
    )
    add("--model-config", type=Path, help="the model's config.json or folder, for the physical floor")
    add("--gpu", help="GPU name, for the physical floor (h200, h100, ...), or 'cpu': calibrate this machine")
    add("--gpus", type=int, default=1, help="how many of them serve one copy of the model")
    add("--weights-dtype", help="dtype of the weights as served (bf16, fp8, ...)")
    add("--kv-dtype", default="auto", help="dtype of the KV cache")
    add("--kv-cache-tokens", type=int, help="size of the server's KV pool, for what will queue")
    add("--needles", action="store_true", help="plant facts in every prompt and ask for them")
    add("--needle-kinds", default="multi", help="single, multi, multi_hop; comma separated (default multi)")
    add("--needle-depths", default=",".join(f"{d:g}" for d in DEFAULT_DEPTHS), help="0 = start of the text, 1 = its end")
    add("--needle-recall", type=float, help="least share of needles to be found, 0..1")
    add("--dummy-weights", action="store_true", help="the weights are random: needles are not applicable")
    slower = "run.json (or its folder) of an earlier run: slower beyond noise is FAIL (give both --repeats)"
    add("--baseline", type=Path, help=slower)
    add(
        "--no-cache-salt",
        dest="cache_salt",
        action="store_false",
        help="do not isolate this run from earlier prompts with a cache salt",
    )
    add("--no-flush", dest="flush", action="store_false", help="do not empty the prefix cache before each point")
    add("--ca-file", type=Path, help="certificates (PEM) to trust beside the system's, for an https url")
    add("--proxy", help="http://HOST:PORT to go through; the environment's proxies are never used")
    add("--host-name", dest="host", help="name of the host in the results (default: from the url)")
    add("--run-id", help="name of the run (default: UTC time)")
    add("--out", dest="out_dir", type=Path, required=True, help="folder for requests.jsonl and run.json")
    add("--quiet", action="store_true", help="no progress lines")


def run(args: argparse.Namespace) -> int:
    """Run and return the verdict's exit code: 0 PASS, 1 FAIL, 3 INVALID, 4 INCONCLUSIVE."""
    config = config_from(args)
    result = validate(config, (lambda _: None) if args.quiet else _Lines())
    print(summary(result))
    return EXIT_CODES[result.verdict]


def config_from(args: argparse.Namespace) -> ValidateConfig:
    """Flags -> ValidateConfig; UserError for what cannot be right."""
    lengths = _numbers(int, args.ladder, "--ladder", _WHOLE)
    points = tuple(
        Point(n, args.output_length, c) for c in _numbers(int, args.concurrency, "--concurrency", _WHOLE) for n in lengths
    )
    architecture = load_architecture(args.model_config) if args.model_config else None
    if args.gpu and architecture is None:
        raise UserError("--gpu without --model-config", "both, for the physical floor", "pass the model's config.json")
    kinds = tuple(k.strip() for k in args.needle_kinds.split(",") if k.strip())
    unknown = [k for k in kinds if k not in KINDS]
    if unknown:
        raise UserError(f"needle kind {unknown[0]!r}", "one of " + ", ".join(KINDS), "correct --needle-kinds")
    return _filled(
        ValidateConfig,
        args,
        host=args.host or args.url.split("://")[-1].split("/")[0],
        run_id=args.run_id or time.strftime("%Y%m%dT%H%M%SZ", time.gmtime()),
        points=points,
        api_key=_api_key(args.api_key_file),
        limits=_filled(Limits, args),
        architecture=architecture,
        hardware=(get_gpu(args.gpu), args.gpus) if args.gpu and args.gpu != "cpu" else None,
        calibrate=args.gpu == "cpu",
        needles=NeedleSettings(
            enabled=args.needles or args.needle_recall is not None,
            kinds=kinds,
            depths=_numbers(float, args.needle_depths, "--needle-depths", "numbers, comma separated"),
            dummy_weights=args.dummy_weights,
        ),
        baseline=result_file(args.baseline) if args.baseline else None,
    )


def _filled(kind: type[Filled], args: argparse.Namespace, **worked_out: Any) -> Filled:
    """A dataclass from the options that carry the names of its fields, and from what was worked out."""
    given = {f.name: getattr(args, f.name) for f in fields(kind) if hasattr(args, f.name)}
    return kind(**{**given, **worked_out})


def _numbers(kind: Callable[[str], Number], text: str, flag: str, required: str) -> tuple[Number, ...]:
    try:
        return tuple(kind(part) for part in text.split(",") if part.strip())
    except ValueError:
        raise UserError(f"{flag} {text!r}", required, f"correct {flag}") from None


def _api_key(path: Path | None) -> str | None:
    if path is None:
        return os.environ.get("LONGHAUL_API_KEY") or None
    key = read_key(path, "--api-key-file")
    if not key:
        raise UserError(f"key file {path} is empty", "a file with the key", "correct --api-key-file")
    return key


class _Lines:
    """Progress for a person: a line per event on a pipe; on a terminal, running events overwrite one another."""

    def __init__(self) -> None:
        self._terminal = sys.stderr.isatty()
        self._open = False

    def __call__(self, step: Progress) -> None:
        line = progress_line(step)
        if self._terminal and step.stage == "running":
            width = 24
            filled = width * step.done // max(1, step.total)
            sys.stderr.write(f"\r\x1b[2K[{'#' * filled}{'.' * (width - filled)}] {line[:110]}")
            self._open = True
        else:
            sys.stderr.write(("\r\x1b[2K" if self._open else "") + line + "\n")
            self._open = False
        sys.stderr.flush()


def summary(result: RunResult) -> str:
    """A few plain lines: each point, then the verdict and its reasons."""
    lines = [f"{'point':<28}{'verdict':<14}{'cache':<9}{'TTFT p50':>10}{'TPOT p50':>10}{'floor x':>9}{'tok/s':>11}"]
    for point in result.points:
        ttft = f"{point.ttft_s.p50:.3f} s" if point.ttft_s else "-"
        tpot = f"{1000 * point.tpot_s.p50:.1f} ms" if point.tpot_s else "-"
        ratio = f"{point.physics.ratio:.1f}" if point.physics else "-"
        rate = f"{point.prefill_tokens_per_s.p50:,.0f}" if point.prefill_tokens_per_s else "-"
        lines.append(
            f"{point.point_id:<28}{point.verdict.value:<14}{point.cache_state:<9}{ttft:>10}{tpot:>10}{ratio:>9}{rate:>11}"
        )
    if result.mode == "warm":
        lines.append("warm mode: these figures measure the prefix cache, not the prefill")
    if result.needle_recall is not None:
        lines.append(f"needles: {100 * result.needle_recall:.0f}% found")
    if result.needle_note:
        lines.append(f"needles: {result.needle_note}")
    lines.append(f"verdict: {result.verdict.value}")
    lines += [f"  {r.verdict.value} {r.code}: {r.text}" for r in result.reasons]
    return "\n".join(lines)
