"""Build a corpus on disk once: under a lock, in a folder that gets its name when the corpus is whole."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from ..errors import UserError
from .cache import default_cache_dir
from .corpus import FORMAT, Corpus, CorpusMeta, Kind, open_corpus, read_meta
from .ids import Ids, block_offsets, distinct_ngram_share, render_ids
from .text import file_chunks, file_fingerprint, generated_chunks, random_block, random_id_range
from .tokenizer import Tokenizer, load_tokenizer

MIN_GENERATED_TOKENS = 131_072


@dataclass(frozen=True)
class BuildProgress:
    """Progress of a build. ``stage``: ``waiting`` (another run builds the same), ``tokenizing``, ``checking``, ``done``."""

    stage: str
    tokens: int
    of_tokens: int | None
    elapsed_s: float


Progress = Callable[[BuildProgress], None]


def recommended_tokens(longest_prompt_tokens: int) -> int:
    """Corpus length for prompts up to this length. An eighth more, at least 65,536 tokens, leaves room for many random starts."""
    return longest_prompt_tokens + max(65_536, longest_prompt_tokens // 8)


def ensure_corpus(
    *,
    tokens: int | None,
    cache_dir: Path | None = None,
    tokenizer: Path | None = None,
    source: Path | None = None,
    vocab_size: int | None = None,
    seed: int = 0,
    extend: bool = False,
    rebuild: bool = False,
    progress: Progress | None = None,
) -> Corpus:
    """Open the corpus for this tokenizer and source, building it first where it is missing or too short.

    ``tokens``: how many are needed; the corpus returned has exactly that many (so that starts drawn from it are the same
    whether or not a longer one lies on disk). ``None``: the whole ``source`` file. With a ``tokenizer`` (folder or
    tokenizer.json) the text is ``source`` or, without it, generated; with ``vocab_size`` alone, random ids.
    ``extend``: continue a too short file with generated text.

    Two runs never build the same corpus at once (a lock file), and a corpus is seen whole or not at all.
    Raises UserError: no tokenizer and no vocabulary size; file unreadable or too short; disk full or not writable.
    """
    if tokens is not None and tokens < 1:
        raise UserError(f"{tokens} corpus tokens", "at least 1", "give the number of tokens the longest prompt needs")
    if tokens is None and (source is None or extend):
        raise UserError("no number of tokens", "a number of tokens (generated text has no end)", "pass --tokens")
    opened = load_tokenizer(tokenizer, cache_dir) if tokenizer is not None else None
    plan = _plan(opened, source, vocab_size, seed, extend)
    folder = (cache_dir or default_cache_dir()) / "corpus" / _key(plan)
    report = progress or (lambda _: None)
    if not rebuild and (found := _usable(folder, tokens)) is not None:
        return open_corpus(found, tokenizer=opened, limit_tokens=tokens)
    with _writing(folder), _locked(folder, report):
        # Another run may have built it while this one waited.
        if rebuild or (found := _usable(folder, tokens)) is None:
            found = _build(plan, folder, tokens, report)
        return open_corpus(found, tokenizer=opened, limit_tokens=tokens)


@dataclass(frozen=True)
class _Plan:
    kind: Kind
    tokenizer_fingerprint: str
    source_fingerprint: str
    source: str
    seed: int
    blocks: Callable[[], Iterator[tuple[Ids, bool]]]
    """Yields (ids, from the operator's file?)."""


def _plan(tokenizer: Tokenizer | None, source: Path | None, vocab_size: int | None, seed: int, extend: bool) -> _Plan:
    if tokenizer is None:
        if source is not None:
            raise UserError("a corpus file without a tokenizer", "the tokenizer of the model", "pass --tokenizer DIR")
        if vocab_size is None:
            raise UserError(
                "neither a tokenizer nor a vocabulary size",
                "one of them",
                "pass --tokenizer DIR, or --vocab-size N for random ids",
            )
        low, high = random_id_range(vocab_size)

        def blocks() -> Iterator[tuple[Ids, bool]]:
            index = 0
            while True:
                yield random_block(low, high, seed, index), False
                index += 1

        name = f"random ids {low}..{high - 1}"
        return _Plan("random_ids", f"vocab{vocab_size}", _digest(f"ids/{FORMAT}/{seed}"), name, seed, blocks)
    dense = _is_dense(tokenizer)
    recipe = f"words/{FORMAT}/{seed}/{dense}"
    if source is None:
        name = "generated text" + (" (dense)" if dense else "")

        def words() -> Iterator[tuple[Ids, bool]]:
            return ((a, False) for a in _encoded(tokenizer, generated_chunks(seed, dense=dense)))

        return _Plan("words", tokenizer.fingerprint, _digest(recipe), name, seed, words)
    fingerprint = file_fingerprint(source)

    def text() -> Iterator[tuple[Ids, bool]]:
        yield from ((a, True) for a in _encoded(tokenizer, file_chunks(source)))
        if extend:
            yield from ((a, False) for a in _encoded(tokenizer, generated_chunks(seed, dense=dense)))

    if extend:
        fingerprint = _digest(fingerprint + recipe)
    return _Plan("file", tokenizer.fingerprint, fingerprint, str(source), seed, text)


def _is_dense(tokenizer: Tokenizer) -> bool:
    """Whether a token holds so little text that words would repeat within 16 tokens by chance."""
    sample = next(generated_chunks(0))[:8192]
    return len(sample) < 2.2 * len(tokenizer.encode_chunks([sample])[0])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _key(plan: _Plan) -> str:
    return f"{plan.kind}-{plan.tokenizer_fingerprint[:16]}-{plan.source_fingerprint[:16]}"


def _encoded(tokenizer: Tokenizer, chunks: Iterator[str]) -> Iterator[Ids]:
    """Tokenize on all cores while the next batch is read or generated. Batches grow, so that a short corpus is quick."""
    most = max(32, 8 * (os.cpu_count() or 1))

    def take(count: int) -> list[str]:
        return list(islice(chunks, count))

    with ThreadPoolExecutor(1) as reader:
        size = 2
        pending = reader.submit(take, size)
        while batch := pending.result():
            size = min(most, size * 2)
            pending = reader.submit(take, size)
            yield from tokenizer.encode_chunks(batch)


def _build(plan: _Plan, folder: Path, tokens: int | None, report: Progress) -> Path:
    began = time.monotonic()
    goal = tokens
    if tokens is not None and plan.kind != "file":
        goal = max(tokens, MIN_GENERATED_TOKENS)
    for stale in folder.glob(".building-*"):
        shutil.rmtree(stale, ignore_errors=True)
    if goal is not None:
        _check_space(folder, goal)
    work = folder / f".building-{os.getpid()}"
    work.mkdir()
    try:
        done = from_file = 0
        exhausted = True
        parts: list[Ids] = []
        digest = hashlib.sha256()
        json_bytes = 0
        with (work / "ids.u32").open("wb") as ids_file, (work / "ids.json").open("wb") as json_file:
            for block, is_file in plan.blocks():
                if goal is not None and done + len(block) >= goal:
                    block = block[: goal - done]  # noqa: PLW2901 - the last block is cut to length
                raw = block.astype("<u4").tobytes()
                rendered = render_ids(block)
                ids_file.write(raw)
                json_file.write(rendered)
                digest.update(raw)
                json_bytes += len(rendered)
                parts.append(block)
                done += len(block)
                from_file += len(block) if is_file else 0
                report(BuildProgress("tokenizing", done, goal, time.monotonic() - began))
                if done == goal:
                    exhausted = False
                    break
        if done == 0 or (goal is not None and done < goal):
            raise UserError(
                f"corpus {plan.source} has {done} tokens",
                f"{goal or 1} tokens, so that nothing repeats inside a prompt",
                "use a longer file, shorter prompts, or --extend to continue it with generated text",
            )
        report(BuildProgress("checking", done, goal, time.monotonic() - began))
        ids = np.concatenate(parts)
        block_offsets(ids).astype("<u8").tofile(work / "blocks.u64")
        meta = CorpusMeta(
            kind=plan.kind,
            tokenizer_fingerprint=plan.tokenizer_fingerprint,
            source_fingerprint=plan.source_fingerprint,
            source=plan.source,
            seed=plan.seed,
            tokens=done,
            json_bytes=json_bytes,
            ids_sha256=digest.hexdigest(),
            distinct_16gram_share=distinct_ngram_share(ids),
            source_tokens=from_file,
            exhausted=exhausted,
            built_s=time.monotonic() - began,
            built_unix_s=time.time(),
        )
        (work / "meta.json").write_text(json.dumps(asdict(meta), indent=1) + "\n", encoding="utf-8")
        target = folder / str(done)
        if target.exists():
            shutil.rmtree(target)
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    for other in folder.iterdir():
        # A longer corpus begins with the shorter one; maps that are open stay valid.
        if other.is_dir() and other.name.isdigit() and int(other.name) < done:
            shutil.rmtree(other, ignore_errors=True)
    report(BuildProgress("done", done, goal, time.monotonic() - began))
    return target


def _usable(folder: Path, tokens: int | None) -> Path | None:
    if not folder.is_dir():
        return None
    for candidate in sorted((f for f in folder.iterdir() if f.name.isdigit()), key=lambda f: int(f.name)):
        if tokens is not None and int(candidate.name) < tokens:
            continue
        meta = read_meta(candidate)
        if meta is not None and (tokens is not None or meta.exhausted):
            return candidate
    return None


def _check_space(folder: Path, tokens: int) -> None:
    needed = tokens * 12
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise _disk_full(folder, needed, free)


def _disk_full(folder: Path, needed: int | None, free: int) -> UserError:
    return UserError(
        f"{free / 2**20:.0f} MiB free for the corpus in {folder}",
        f"{needed / 2**20:.0f} MiB" if needed else "room for it (about 12 bytes per token)",
        "free space, or point LONGHAUL_CACHE or --cache-dir elsewhere",
    )


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn errors of the file system into a UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(folder).free if folder.exists() else 0
            raise _disk_full(folder, None, free) from exc
        raise UserError(
            f"the corpus cannot be written to {folder} ({exc.strerror or exc})",
            "a writable folder",
            "point LONGHAUL_CACHE or --cache-dir to one",
        ) from exc


@contextlib.contextmanager
def _locked(folder: Path, report: Progress) -> Iterator[None]:
    began = time.monotonic()
    with (folder / ".lock").open("w") as lock:
        while True:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                report(BuildProgress("waiting", 0, None, time.monotonic() - began))
                time.sleep(0.2)
        yield
