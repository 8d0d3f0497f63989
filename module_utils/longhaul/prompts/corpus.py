"""Token ids, made once and memory-mapped, ready to be cut into prompts of any length.

A corpus is a long run of token ids kept twice: as little-endian ``uint32`` and as the decimal text that goes on the wire
(``123,456,``), with the byte offset of every 1,024th token. Any slice of it is therefore a slice of a memory map: the
body of a prompt of two million tokens is built without rendering, tokenizing or copying anything.

:mod:`.build` makes corpora on disk; :mod:`.text` says from what. Ids are sent as ids, so it does not matter where the text
was cut for tokenizing. Ids of special and added tokens never occur in a corpus. A generated corpus follows from tokenizer and
seed alone: a longer one begins with the shorter one.
"""

from __future__ import annotations

import hashlib
import json
import mmap
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt

from ..errors import UserError
from .convert import default_cache_dir
from .ids import BLOCK_TOKENS, Ids, block_offsets, decimal_digits, distinct_ngram_share, render_ids
from .text import random_ids
from .tokenizer import Tokenizer

FORMAT = 1
ALPHABET_TOKENS = 65_536

Kind = Literal["words", "file", "random_ids"]


@dataclass(frozen=True)
class Origin:
    """What the ids of a corpus follow from."""

    kind: Kind
    tokenizer_fingerprint: str
    source_fingerprint: str
    source: str
    seed: int

    @property
    def key(self) -> str:
        """The folder name: source kind, tokenizer, source."""
        return f"{self.kind}-{self.tokenizer_fingerprint[:16]}-{self.source_fingerprint[:16]}"


@dataclass(frozen=True)
class CorpusMeta(Origin):
    """What a corpus on disk is. ``distinct_16gram_share``: distinct 16-token windows over all windows (1.0: no repeat).

    ``source_tokens``: how many of the tokens come from the operator's file (the rest was generated to extend it).
    ``exhausted``: the file was read to its end.
    """

    tokens: int
    json_bytes: int
    ids_sha256: str
    distinct_16gram_share: float
    source_tokens: int
    exhausted: bool
    built_s: float
    built_unix_s: float
    format: int = FORMAT


class Corpus:
    """Token ids and their JSON text, by token position; what :class:`.factory.PromptFactory` cuts prompts from.

    ``ids(a, b)`` and ``json(a, b)`` are views of the memory map, valid as long as they are held. ``alphabet``: ids that a
    nonce may use, sorted (those of the first 65,536 tokens, so that it does not depend on how long the corpus is).
    """

    def __init__(
        self,
        ids: Ids,
        rendered: memoryview,
        block_offsets: npt.NDArray[np.uint64],
        *,
        meta: CorpusMeta,
        tokenizer: Tokenizer | None = None,
        limit_tokens: int | None = None,
    ) -> None:
        self._ids = ids
        self._rendered = rendered
        self._blocks = block_offsets
        self.meta = meta
        self.tokenizer = tokenizer
        self.n_tokens = len(ids) if limit_tokens is None else min(limit_tokens, len(ids))
        self.alphabet: Ids = np.unique(ids[:ALPHABET_TOKENS])

    @property
    def fingerprint(self) -> str:
        """Names the ids that a start position refers to: source, tokenizer and number of tokens used."""
        return f"{self.meta.key}-{self.n_tokens}"

    def ids(self, start: int, stop: int) -> Ids:
        """Ids of tokens ``start`` <= i < ``stop``; no copy."""
        self._check(start, stop)
        return self._ids[start:stop]

    def json(self, start: int, stop: int) -> memoryview:
        """The decimal text of tokens ``start`` <= i < ``stop``, each followed by a comma; no copy."""
        self._check(start, stop)
        return self._rendered[self._offset(start) : self._offset(stop)]

    def _offset(self, token: int) -> int:
        block, rest = divmod(token, BLOCK_TOKENS)
        if rest == 0:
            return int(self._blocks[block])
        return int(self._blocks[block]) + int(decimal_digits(self._ids[token - rest : token]).sum()) + rest

    def _check(self, start: int, stop: int) -> None:
        if not 0 <= start <= stop <= self.n_tokens:
            raise IndexError(f"tokens {start}..{stop} of a corpus of {self.n_tokens}")


def corpus_from_ids(ids: Ids, *, tokenizer: Tokenizer | None = None, source: str = "memory") -> Corpus:
    """Make a corpus in memory, for tests and for short random prompts."""
    array = np.ascontiguousarray(ids, dtype=np.uint32)
    digest = hashlib.sha256(array.tobytes()).hexdigest()
    rendered = render_ids(array)
    meta = CorpusMeta(
        kind="random_ids",
        tokenizer_fingerprint=tokenizer.fingerprint if tokenizer else "none",
        source_fingerprint=digest,
        source=source,
        seed=0,
        tokens=len(array),
        json_bytes=len(rendered),
        ids_sha256=digest,
        distinct_16gram_share=distinct_ngram_share(array),
        source_tokens=len(array),
        exhausted=True,
        built_s=0.0,
        built_unix_s=0.0,
    )
    return Corpus(array, memoryview(rendered), block_offsets(array), meta=meta, tokenizer=tokenizer)


def random_ids_corpus(vocab_size: int, tokens: int, *, seed: int = 0) -> Corpus:
    """Make a corpus of random ids in memory, for a model without a tokenizer; see :func:`.text.random_ids`."""
    return corpus_from_ids(random_ids(vocab_size, tokens, seed), source=f"random ids below {vocab_size}, seed {seed}")


def open_corpus(folder: Path, *, tokenizer: Tokenizer | None = None, limit_tokens: int | None = None) -> Corpus:
    """Map a built corpus. Raises UserError where it is damaged."""
    meta = read_meta(folder)
    if meta is None:
        raise UserError(f"{folder} holds no whole corpus", "a folder made by 'longhaul corpus build'", "build it again")
    maps = {name: _map(folder / name) for name in ("ids.u32", "ids.json", "blocks.u64")}
    return Corpus(
        np.frombuffer(maps["ids.u32"], dtype="<u4"),
        memoryview(maps["ids.json"]),
        np.frombuffer(maps["blocks.u64"], dtype="<u8"),
        meta=meta,
        tokenizer=tokenizer,
        limit_tokens=limit_tokens,
    )


def read_meta(folder: Path) -> CorpusMeta | None:
    """Read the description of the corpus in ``folder``; ``None`` where it holds no whole corpus of this format."""
    try:
        raw = json.loads((folder / "meta.json").read_text(encoding="utf-8"))
        if raw.get("format") != FORMAT:
            return None
        meta = CorpusMeta(**{f.name: raw[f.name] for f in fields(CorpusMeta)})
        sizes = [(folder / name).stat().st_size for name in ("ids.u32", "ids.json", "blocks.u64")]
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    expected = [meta.tokens * 4, meta.json_bytes, (meta.tokens // BLOCK_TOKENS + 1) * 8]
    return meta if sizes == expected else None


def find_corpora(cache_dir: Path | None = None) -> list[tuple[Path, CorpusMeta]]:
    """List every whole corpus in the cache, with its folder."""
    root = (cache_dir or default_cache_dir()) / "corpus"
    found = [(f, read_meta(f)) for f in sorted(root.glob("*/*")) if f.is_dir()]
    return [(f, m) for f, m in found if m is not None]


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
