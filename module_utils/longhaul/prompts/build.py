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
from itertools import chain, count, islice
from pathlib import Path

import numpy as np

from ..errors import UserError
from .convert import default_cache_dir
from .corpus import FORMAT, Corpus, CorpusMeta, Origin, open_corpus, read_meta
from .ids import Ids, block_offsets, distinct_ngram_share, render_ids
from .text import file_chunks, file_fingerprint, generated_chunks, random_block, random_id_range
from .tokenizer import Tokenizer, load_tokenizer

MIN_GENERATED_TOKENS = 131_072
_BYTES_PER_TOKEN = 12  # on disk: the id, and its digits with a comma


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
    origin, blocks = _plan(opened, source, vocab_size, seed, extend)
    folder = (cache_dir or default_cache_dir()) / "corpus" / origin.key
    report = progress or (lambda _: None)
    if not rebuild and (found := _usable(folder, tokens)) is not None:
        return open_corpus(found, tokenizer=opened, limit_tokens=tokens)
    with _writing(folder), _locked(folder, report):
        # Another run may have built it while this one waited.
        if rebuild or (found := _usable(folder, tokens)) is None:
            found = _build(origin, blocks, folder, tokens, report)
        return open_corpus(found, tokenizer=opened, limit_tokens=tokens)


# (ids, from the operator's file?)
_Blocks = Iterator[tuple[Ids, bool]]


def _plan(
    tokenizer: Tokenizer | None, source: Path | None, vocab_size: int | None, seed: int, extend: bool
) -> tuple[Origin, _Blocks]:
    """What the corpus is made from, and its blocks, which are made as they are asked for."""
    if tokenizer is None:
        if source is not None:
            raise UserError("a corpus file without a tokenizer", "the tokenizer of the model", "pass --tokenizer DIR")
        if vocab_size is None:
            fix = "pass --tokenizer DIR, or --vocab-size N for random ids"
            raise UserError("neither a tokenizer nor a vocabulary size", "one of them", fix)
        low, high = random_id_range(vocab_size)
        name = f"random ids {low}..{high - 1}"
        origin = Origin("random_ids", f"vocab{vocab_size}", _digest(f"ids/{FORMAT}/{seed}"), name, seed)
        return origin, ((random_block(low, high, seed, index), False) for index in count())
    dense = _is_dense(tokenizer)
    recipe = f"words/{FORMAT}/{seed}/{dense}"
    generated = ((ids, False) for ids in _encoded(tokenizer, generated_chunks(seed, dense=dense)))
    if source is None:
        name = "generated text" + (" (dense)" if dense else "")
        return Origin("words", tokenizer.fingerprint, _digest(recipe), name, seed), generated
    fingerprint = file_fingerprint(source)
    text = ((ids, True) for ids in _encoded(tokenizer, file_chunks(source)))
    if extend:
        fingerprint = _digest(fingerprint + recipe)
    origin = Origin("file", tokenizer.fingerprint, fingerprint, str(source), seed)
    return origin, chain(text, generated) if extend else text


def _is_dense(tokenizer: Tokenizer) -> bool:
    """Whether a token holds so little text that words would repeat within 16 tokens by chance."""
    sample = next(generated_chunks(0))[:8192]
    return len(sample) < 2.2 * len(tokenizer.encode_chunks([sample])[0])


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _encoded(tokenizer: Tokenizer, chunks: Iterator[str]) -> Iterator[Ids]:
    """Tokenize on all cores while the next batch is read or generated. Batches grow, so that a short corpus is quick."""
    most = max(32, 8 * (os.cpu_count() or 1))
    size = 2
    with ThreadPoolExecutor(1) as reader:
        pending = reader.submit(list, islice(chunks, size))
        while batch := pending.result():
            size = min(most, size * 2)
            pending = reader.submit(list, islice(chunks, size))
            yield from tokenizer.encode_chunks(batch)


def _build(origin: Origin, blocks: _Blocks, folder: Path, tokens: int | None, report: Progress) -> Path:
    began = time.monotonic()
    goal = tokens if tokens is None or origin.kind == "file" else max(tokens, MIN_GENERATED_TOKENS)

    def tell(stage: str) -> None:
        report(BuildProgress(stage, done, goal, time.monotonic() - began))

    done = from_file = 0
    for stale in folder.glob(".building-*"):
        shutil.rmtree(stale, ignore_errors=True)
    free = shutil.disk_usage(folder).free
    if goal is not None and free < goal * _BYTES_PER_TOKEN:
        raise _disk_full(folder, f"{goal * _BYTES_PER_TOKEN / 2**20:.0f} MiB", free)
    work = folder / f".building-{os.getpid()}"
    work.mkdir()
    try:
        exhausted = True
        parts: list[Ids] = []
        digest = hashlib.sha256()
        json_bytes = 0
        with (work / "ids.u32").open("wb") as ids_file, (work / "ids.json").open("wb") as json_file:
            for block, is_file in blocks:
                if goal is not None:
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
                tell("tokenizing")
                if done == goal:
                    exhausted = False
                    break
        if done == 0 or (goal is not None and done < goal):
            required = f"{goal or 1} tokens, so that nothing repeats inside a prompt"
            fix = "use a longer file, shorter prompts, or --extend to continue it with generated text"
            raise UserError(f"corpus {origin.source} has {done} tokens", required, fix)
        tell("checking")
        ids = np.concatenate(parts)
        block_offsets(ids).astype("<u8").tofile(work / "blocks.u64")
        meta = CorpusMeta(
            **asdict(origin),
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
    tell("done")
    return target


def _usable(folder: Path, tokens: int | None) -> Path | None:
    if not folder.is_dir():
        return None
    for candidate in sorted((f for f in folder.iterdir() if f.name.isdigit()), key=lambda f: int(f.name)):
        if tokens is None or int(candidate.name) >= tokens:
            meta = read_meta(candidate)
            if meta is not None and (tokens is not None or meta.exhausted):
                return candidate
    return None


def _disk_full(folder: Path, required: str, free: int) -> UserError:
    found = f"{free / 2**20:.0f} MiB free for the corpus in {folder}"
    return UserError(found, required, "free space, or point LONGHAUL_CACHE or --cache-dir elsewhere")


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn errors of the file system into a UserError."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        yield
    except OSError as exc:
        if exc.errno in (errno.ENOSPC, errno.EDQUOT):
            free = shutil.disk_usage(folder).free if folder.exists() else 0
            raise _disk_full(folder, f"room for it (about {_BYTES_PER_TOKEN} bytes per token)", free) from exc
        found = f"the corpus cannot be written to {folder} ({exc.strerror or exc})"
        raise UserError(found, "a writable folder", "point LONGHAUL_CACHE or --cache-dir to one") from exc


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
