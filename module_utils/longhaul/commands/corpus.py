"""``longhaul corpus build | info | tokenizer``: make or inspect the token corpus that prompts are cut from."""

from __future__ import annotations

import argparse
import shutil
import sys
import time
from pathlib import Path

from ..errors import UserError
from ..prompts.build import BuildProgress, ensure_corpus, recommended_tokens
from ..prompts.convert import converted, default_cache_dir
from ..prompts.corpus import CorpusMeta, find_corpora, read_meta


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """``build`` with its source, tokenizer and length; ``info`` with an optional folder; ``tokenizer`` with a model's folder."""
    actions = parser.add_subparsers(dest="action", metavar="ACTION", required=True)
    build = actions.add_parser("build", help="tokenize once, keep on disk")
    build.add_argument("--tokenizer", type=Path, metavar="DIR", help="model folder or tokenizer.json; without it: --vocab-size")
    build.add_argument("--vocab-size", type=int, metavar="N", help="random ids for a model without a tokenizer (dummy weights)")
    build.add_argument("--text", type=Path, metavar="FILE", help="your own text, plain or gzip; default: generated text")
    build.add_argument("--extend", action="store_true", help="continue a too short FILE with generated text")
    build.add_argument("--tokens", type=int, metavar="N", help="tokens to hold; default: all of FILE")
    build.add_argument(
        "--longest-prompt", type=int, metavar="N", help="instead of --tokens: the longest prompt, with room for random starts"
    )
    build.add_argument("--seed", type=int, default=0, help="of the generator (default 0)")
    build.add_argument("--rebuild", action="store_true", help="build again even if it is there")
    info = actions.add_parser("info", help="what is on disk")
    info.add_argument("folder", type=Path, nargs="?", help="one corpus; default: every one in the cache")
    tokenizer = actions.add_parser("tokenizer", help="make tokenizer.json for a model that comes without one")
    tokenizer.add_argument("folder", type=Path, metavar="DIR", help="model folder with tokenizer.model, vocab.json ...")
    tokenizer.add_argument(
        "--out", type=Path, metavar="DIR", help="put it there, into the model folder say; default: the cache only"
    )
    for sub in (build, info, tokenizer):
        sub.add_argument("--cache-dir", type=Path, metavar="DIR", help=f"default {default_cache_dir()} ($LONGHAUL_CACHE)")


def run(args: argparse.Namespace) -> int:
    """Exit code 0; 2 for wrong input."""
    return {"build": _build, "info": _info, "tokenizer": _tokenizer}[args.action](args)


def _build(args: argparse.Namespace) -> int:
    if args.tokens is not None and args.longest_prompt is not None:
        raise UserError("--tokens and --longest-prompt", "one of them", "drop one")
    tokens = args.tokens if args.longest_prompt is None else recommended_tokens(args.longest_prompt)
    began = time.monotonic()
    show = _Bar()
    corpus = ensure_corpus(
        tokens=tokens,
        cache_dir=args.cache_dir,
        tokenizer=args.tokenizer,
        source=args.text,
        vocab_size=args.vocab_size,
        seed=args.seed,
        extend=args.extend,
        rebuild=args.rebuild,
        progress=show,
    )
    show.end()
    print(f"{corpus.n_tokens:,} tokens ready in {time.monotonic() - began:.1f} s{'' if show.built else ' (already built)'}")
    print(_describe(corpus.meta))
    print(f"folder: {(args.cache_dir or default_cache_dir()) / 'corpus' / corpus.meta.key / str(corpus.meta.tokens)}")
    return 0


def _info(args: argparse.Namespace) -> int:
    if args.folder is not None:
        meta = read_meta(args.folder)
        if meta is None:
            found = f"{args.folder} holds no whole corpus"
            raise UserError(found, "a folder made by 'longhaul corpus build'", "name such a folder")
        print(_describe(meta))
        return 0
    corpora = find_corpora(args.cache_dir)
    if not corpora:
        print(f"no corpus in {(args.cache_dir or default_cache_dir()) / 'corpus'}; make one with 'longhaul corpus build'")
    for number, (folder, meta) in enumerate(corpora):
        print(("\n" if number else "") + f"{folder}\n{_describe(meta)}")
    return 0


def _tokenizer(args: argparse.Namespace) -> int:
    if (args.folder / "tokenizer.json").exists():
        print(f"{args.folder} has a tokenizer.json")
        return 0
    made = converted(args.folder, args.cache_dir)
    if args.out is not None:
        try:
            shutil.copytree(made, args.out, dirs_exist_ok=True)
        except (OSError, shutil.Error) as exc:
            raise UserError(f"{args.out} cannot be written ({exc})", "a writable folder", "choose another --out") from exc
    print((args.out or made) / "tokenizer.json")
    return 0


def _describe(meta: CorpusMeta) -> str:
    generated = meta.tokens - meta.source_tokens
    lines = [
        f"source: {meta.source}, seed {meta.seed}"
        + (f" ({generated:,} tokens generated to extend it)" if meta.kind == "file" and generated else ""),
        f"tokenizer: {meta.tokenizer_fingerprint[:16]}",
        f"tokens: {meta.tokens:,}; as JSON {meta.json_bytes / 1e6:.1f} MB; sha256 of ids {meta.ids_sha256[:16]}",
        f"distinct 16-grams: {100 * meta.distinct_16gram_share:.4f}%",
        f"built in {meta.built_s:.1f} s, {time.strftime('%Y-%m-%d %H:%M:%S UTC', time.gmtime(meta.built_unix_s))}",
    ]
    if meta.distinct_16gram_share < 0.999:
        lines.append("warning: this text repeats itself; a prompt cut from it is easier to cache and to compress than fresh text")
    return "\n".join(lines)


class _Bar:
    """Progress: one rewritten line on a terminal, a line every 5 s elsewhere."""

    def __init__(self) -> None:
        self.built = False
        self._last_s = 0.0
        self._terminal = sys.stderr.isatty()

    def __call__(self, at: BuildProgress) -> None:
        self.built = self.built or at.stage != "waiting"
        now = time.monotonic()
        if now - self._last_s < (0.1 if self._terminal else 5.0):
            return
        self._last_s = now
        text = "waiting for another run that builds this corpus" if at.stage == "waiting" else f"{at.stage}: {at.tokens:,} tokens"
        if at.of_tokens and at.stage == "tokenizing":
            text += f" of {at.of_tokens:,} ({100 * at.tokens / at.of_tokens:.0f}%)"
        print(f"\r\x1b[K{text}" if self._terminal else text, end="" if self._terminal else "\n", file=sys.stderr, flush=True)

    def end(self) -> None:
        """Clear the line."""
        if self._terminal and self.built:
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)
