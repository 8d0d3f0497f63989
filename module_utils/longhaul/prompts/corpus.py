"""Token ids on disk, made once, memory-mapped, ready to be cut into prompts of any length.

A corpus is a long run of token ids kept twice: as little-endian ``uint32`` and as the decimal text that goes on the wire
(``123,456,``), with the byte offset of every 1,024th token. Any slice of it is therefore a slice of a memory map: the
body of a prompt of two million tokens is built without rendering, tokenizing or copying anything.

Three sources: the operator's file (plain or gzip), a deterministic generator of word-like text that does not repeat, and,
where there is no tokenizer (``--skip-tokenizer-init``, dummy weights), random ids below the vocabulary size.
Ids are sent as ids, so it does not matter where the text was cut for tokenizing; ids of special and added tokens never
occur inside a corpus. Generated corpora are a pure function of (tokenizer, seed): a longer one begins with the shorter one.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import gzip
import hashlib
import json
import mmap
import os
import shutil
import sys
import time
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, fields
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import numpy.typing as npt

from ..errors import UserError

if TYPE_CHECKING:
    import tokenizers

FORMAT = 1
BLOCK_TOKENS = 1024
CHUNK_CHARS = 65_536
ALPHABET_TOKENS = 65_536
MIN_GENERATED_TOKENS = 131_072
NGRAM = 16
MAX_PROMPT_TOKENS = 10_485_760

Kind = Literal["words", "file", "random_ids"]
Ids = npt.NDArray[np.uint32]
Json = Mapping[str, Any]


@dataclass(frozen=True)
class BuildProgress:
    """Where a build stands. ``stage``: ``waiting`` (another run builds the same), ``tokenizing``, ``checking``, ``done``."""

    stage: str
    tokens: int
    of_tokens: int | None
    elapsed_s: float


Progress = Callable[[BuildProgress], None]


@dataclass(frozen=True)
class CorpusMeta:
    """What a corpus on disk is. ``distinct_16gram_share``: distinct 16-token windows over all windows (1.0: no repeat).

    ``source_tokens``: how many of the tokens come from the operator's file (the rest was generated to extend it).
    ``exhausted``: the file was read to its end.
    """

    kind: Kind
    tokenizer_fingerprint: str
    source_fingerprint: str
    source: str
    seed: int
    tokens: int
    json_bytes: int
    ids_sha256: str
    distinct_16gram_share: float
    source_tokens: int
    exhausted: bool
    built_s: float
    built_unix_s: float
    format: int = FORMAT

    @property
    def key(self) -> str:
        """The folder name: source kind, tokenizer, source."""
        return f"{self.kind}-{self.tokenizer_fingerprint[:16]}-{self.source_fingerprint[:16]}"


class Tokenizer:
    """A ``tokenizer.json`` with what prompts need of it. ``encode`` adds no special tokens, ``decode`` hides none."""

    def __init__(self, raw: tokenizers.Tokenizer, fingerprint: str, config: Json, chat_template: str | None) -> None:
        raw.no_truncation()
        raw.no_padding()
        self._raw = raw
        self.fingerprint = fingerprint
        self.config = config
        self.chat_template = chat_template
        self.added_ids: frozenset[int] = frozenset(raw.get_added_tokens_decoder())
        self.vocab_size: int = raw.get_vocab_size(with_added_tokens=True)

    @property
    def bos_id(self) -> int | None:
        """The id of the token that begins every text, where the tokenizer names one."""
        named = self.config.get("bos_token")
        spelled = named.get("content") if isinstance(named, dict) else named
        return self.token_id(spelled) if isinstance(spelled, str) else None

    @property
    def adds_bos(self) -> bool:
        """Whether the model is used to a BOS before plain text: the config says so, or encoding adds it by itself."""
        if self.config.get("add_bos_token") is not None:
            return bool(self.config["add_bos_token"]) and self.bos_id is not None
        added = self._raw.encode("", add_special_tokens=True).ids
        return bool(added) and added[0] == self.bos_id

    def encode(self, text: str) -> tuple[int, ...]:
        """Text -> ids, no special tokens added; special tokens spelled out in the text become their ids."""
        return tuple(self._raw.encode(text, add_special_tokens=False).ids)

    def encode_chunks(self, chunks: Sequence[str]) -> list[Ids]:
        """Each chunk -> ids, on all cores; ids of added tokens are dropped."""
        encoded = self._raw.encode_batch_fast(list(chunks), add_special_tokens=False)
        arrays = [np.asarray(e.ids, dtype=np.uint32) for e in encoded]
        if self.added_ids:
            added = np.fromiter(self.added_ids, dtype=np.uint32)
            arrays = [a[~np.isin(a, added)] for a in arrays]
        return arrays

    def decode(self, ids: Sequence[int]) -> str:
        """Ids -> text, special tokens included."""
        return str(self._raw.decode(list(ids), skip_special_tokens=False))

    def token_id(self, token: str) -> int | None:
        """The id of one token by its spelling, or ``None``."""
        found = self._raw.token_to_id(token)
        return None if found is None else int(found)


def load_tokenizer(path: Path) -> Tokenizer:
    """Read ``tokenizer.json`` from a file or a model folder (with its chat template, if there is one).

    Raises UserError where there is none, or where it cannot be parsed.
    """
    try:
        import tokenizers
    except ImportError as exc:
        raise UserError(
            f"Python {sys.executable} without the package tokenizers",
            "it, to read the model's tokenizer",
            "run scripts/bootstrap, or give the vocabulary size instead (random ids)",
        ) from exc
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        content = file.read_bytes()
    except OSError as exc:
        raise UserError(
            f"no tokenizer at {path} ({exc.strerror})",
            "a folder with tokenizer.json, or that file",
            "name the model folder; without a tokenizer, give the vocabulary size instead (random ids)",
        ) from exc
    try:
        raw = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    except Exception as exc:  # the Rust side raises bare Exception
        raise UserError(
            f"{file} is not a tokenizer ({exc})", "a tokenizer.json of Hugging Face tokenizers", "fetch it again"
        ) from exc
    config: dict[str, Any] = {}
    template: str | None = None
    with contextlib.suppress(OSError, ValueError):
        config = json.loads((file.parent / "tokenizer_config.json").read_text(encoding="utf-8"))
        if isinstance(config.get("chat_template"), str):
            template = config["chat_template"]
    with contextlib.suppress(OSError):
        template = (file.parent / "chat_template.jinja").read_text(encoding="utf-8")
    return Tokenizer(raw, hashlib.sha256(content).hexdigest(), config, template)


class Corpus:
    """Token ids and their JSON text, by token position; what :class:`~.prompts.PromptFactory` cuts prompts from.

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


def decimal_digits(ids: Ids) -> npt.NDArray[np.int64]:
    """How many decimal digits each id has."""
    powers = np.array([10**k for k in range(1, 10)], dtype=np.uint32)
    return np.searchsorted(powers, ids, side="right").astype(np.int64) + 1


def render_ids(ids: Iterable[int] | Ids) -> bytes:
    """Ids as decimal text, a comma after each: ``b"12,7,"``. Vectorised: 2 million ids in about 0.1 s."""
    array = ids if isinstance(ids, np.ndarray) else np.fromiter(ids, dtype=np.uint32)
    return b"".join(_render(array[i : i + 262_144]) for i in range(0, len(array), 262_144))


def _render(ids: Ids) -> bytes:
    if not len(ids):
        return b""
    digits = decimal_digits(ids)
    width = int(digits.max())
    cells = np.empty((len(ids), width + 1), dtype=np.uint8)
    cells[:, width] = ord(",")
    rest = ids.copy()
    for column in range(width - 1, -1, -1):
        rest, digit = np.divmod(rest, 10)
        cells[:, column] = digit + ord("0")
    keep = np.arange(width + 1) >= (width - digits)[:, None]
    return cells[keep].tobytes()


def distinct_ngram_share(ids: Ids, n: int = NGRAM) -> float:
    """Distinct windows of ``n`` tokens over all windows, by 64-bit hash (1.0 for fewer than two windows)."""
    windows = len(ids) - n + 1
    if windows < 2:
        return 1.0
    # Spread small ids over 64 bits before the rolling sum, so that the hash is not linear in them.
    mixed = ids.astype(np.uint64)
    mixed *= np.uint64(0x9E3779B97F4A7C15)
    mixed ^= mixed >> np.uint64(29)
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(32)
    total = np.zeros(windows, dtype=np.uint64)
    factor = np.uint64(0xD6E8FEB86659FD93)
    for k in range(n):
        total *= factor
        total += mixed[k : k + windows]
    total.sort()
    return 1.0 - int(np.count_nonzero(total[1:] == total[:-1])) / windows


# --- sources ---------------------------------------------------------------------------------------------------------------


def _raw64(label: str, seed: int, index: int, count: int) -> npt.NDArray[np.uint64]:
    """``count`` random 64-bit words that depend on nothing but the arguments.

    The raw output of a bit generator is the part of numpy's random API that is promised to stay the same (NEP 19).
    """
    key = hashlib.sha256(f"longhaul/{label}/{seed}/{index}".encode()).digest()[:16]
    return np.random.Philox(key=int.from_bytes(key, "little")).random_raw(count)


_COMMON = (
    "the of and to in a is that for it as was with be by on not he his but at are this have from or had an they which one you "
    "were all her she there would their we him been has when who will no more if out so up said what its about than into them "
    "can only other time new some could these two may first then do any like my now over such our man me even most made after "
    "also did many off before must well back through years where much your way down should because long each just state those "
    "people too how little good world make very year still see own work men day get here old between both life being under "
    "three never know same last another while us might great go come since against right came take used himself few house use "
    "place during high without again home around small however found part school thought went say general once upon war "
    "left every does got united number hand course water until always away public something fact less though far put head "
    "think called set almost enough end took government night yet system better four nothing told eyes city going president "
    "why days present point look find asked second group later next room social business knew program give half side face "
    "toward white five let young form given per order large early often important white river stone light window garden bridge "
    "market harbour valley winter summer letter paper story teacher farmer engine road forest mountain island village kitchen "
    "bread copper silver silent narrow gentle heavy quiet open broken distant simple plain bright careful slow quick cold warm "
    "carry follow build measure answer remember begin return listen wonder travel gather repair plant record watch write read "
    "speak hold keep turn move wait stand bring reach leave cross climb season signal ladder barrel basket candle mirror needle"
)

_ONSETS = "b c d f g h j k l m n p r s t v w z bl br cl cr dr fl gr pl pr sh sl st th tr"
_VOWELS = "a e i o u ai ea ee ia oa ou"
_CODAS = "l m n r s t d k nd nt rn st ll ck"


def _word_table(dense: bool) -> list[str]:
    """65,536 pieces of text; a random 16-bit number picks each, so that a run of them does not come twice.

    ``dense``: for tokenizers with little text per token (characters, bytes), where 16 tokens of words would repeat by
    chance: three random characters a piece, 15.5 bits.
    """
    if dense:
        letters = "abcdefghijklmnopqrstuvwxyz0123456789"
        triples = [a + b + c for a in letters for b in letters for c in letters]
        return (triples + [t + " " for t in triples])[:65_536]
    onsets, vowels, codas = _ONSETS.split(), _VOWELS.split(), ["", "", "", *_CODAS.split()]
    raw = _raw64("words", 0, 0, 32_768 * 2)
    made: dict[str, None] = {}
    for value in raw.tolist():
        word, rest = "", value
        for _ in range(2 + (rest & 1)):
            rest >>= 4
            word += onsets[rest % len(onsets)]
            rest //= len(onsets)
            word += vowels[rest % len(vowels)]
            rest //= len(vowels)
            word += codas[rest % len(codas)]
            rest //= len(codas)
        made.setdefault(word)
        if len(made) == 24_576:
            break
    common = list(dict.fromkeys(_COMMON.split()))
    endings = [f"{a}. {b.capitalize()} " for a in common[::9] for b in common[1:190:3]][:2_560]
    endings += [f"{a}.\n\n{b.capitalize()} " for a in common[::37] for b in common[2:140:5]][:128]
    commas = [f"{w}, " for w in common]
    table = [w + " " for w in made] + endings + commas
    while len(table) < 65_536:
        table += [w + " " for w in common[: 65_536 - len(table)]]
    return table


def generated_chunks(seed: int, *, dense: bool = False) -> Iterator[str]:
    """Word-like text without end, 64 KiB a piece; the same for the same seed, everywhere. Chunk i needs no chunk before it."""
    table = _word_table(dense)
    pieces = CHUNK_CHARS // (4 if dense else 8)
    index = 0
    while True:
        raw = _raw64("dense" if dense else "text", seed, index, pieces // 4)
        yield "".join([table[i] for i in raw.view("<u2").tolist()])
        index += 1


def file_chunks(path: Path) -> Iterator[str]:
    """Text of the operator's file (plain or gzip, by content) in pieces of 64 Ki characters. Raises UserError if unreadable."""
    try:
        with path.open("rb") as probe:
            packed = probe.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rt", encoding="utf-8") if packed else path.open("rt", encoding="utf-8") as text:
            while chunk := text.read(CHUNK_CHARS):
                yield chunk
    except UnicodeDecodeError as exc:
        raise UserError(
            f"{path} is not UTF-8 ({exc.reason})", "a UTF-8 text file, plain or gzip", "convert it with iconv"
        ) from exc
    except (EOFError, gzip.BadGzipFile, zlib.error) as exc:
        raise UserError(f"{path} is a damaged gzip file ({exc})", "a whole gzip file", "copy it again") from exc
    except OSError as exc:
        raise UserError(
            f"corpus file {path} cannot be read ({exc.strerror})", "a readable text file, plain or gzip", "check the path"
        ) from exc


def _file_fingerprint(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as exc:
        raise UserError(
            f"corpus file {path} cannot be read ({exc.strerror})", "a readable text file, plain or gzip", "check the path"
        ) from exc
    return digest.hexdigest()


def random_id_range(vocab_size: int) -> tuple[int, int]:
    """Ids that are ordinary tokens in the usual vocabularies: [low, high).

    Special ids sit in the first thousand (Mistral, Gemma) or in the last thirtieth (Llama 3 and 4, Qwen, DeepSeek) of the
    vocabulary; without the tokenizer both ends are left out.
    """
    low = min(1000, vocab_size // 16)
    high = vocab_size - max(1, vocab_size // 32)
    if high - low < 16:
        raise UserError(f"vocabulary of {vocab_size} ids", "at least 32", "give the model's vocab_size (config.json)")
    return low, high


def random_ids(vocab_size: int, tokens: int, seed: int) -> Ids:
    """``tokens`` seeded random ids of :func:`random_id_range`; a longer run begins with the shorter."""
    low, high = random_id_range(vocab_size)
    parts = [_random_block(low, high, seed, i) for i in range(-(-tokens // CHUNK_CHARS))]
    return np.concatenate(parts)[:tokens] if parts else np.empty(0, dtype=np.uint32)


def _random_block(low: int, high: int, seed: int, index: int) -> Ids:
    raw = _raw64("ids", seed, index, CHUNK_CHARS) >> np.uint64(32)
    return ((raw * np.uint64(high - low)) >> np.uint64(32)).astype(np.uint32) + np.uint32(low)


# --- in memory -------------------------------------------------------------------------------------------------------------


def corpus_from_ids(ids: Ids, *, tokenizer: Tokenizer | None = None, source: str = "memory") -> Corpus:
    """A corpus that lives in memory; for tests and for short random prompts."""
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
    return Corpus(array, memoryview(rendered), _block_offsets(array), meta=meta, tokenizer=tokenizer)


def random_ids_corpus(vocab_size: int, tokens: int, *, seed: int = 0) -> Corpus:
    """A corpus of random ids in memory, for a model without a tokenizer; see :func:`random_ids`."""
    return corpus_from_ids(random_ids(vocab_size, tokens, seed), source=f"random ids below {vocab_size}, seed {seed}")


def _block_offsets(ids: Ids) -> npt.NDArray[np.uint64]:
    """Byte offset of token 0, 1024, 2048, …, and of the end if it falls on a block."""
    ends = np.cumsum(decimal_digits(ids) + 1)
    starts = np.concatenate([np.zeros(1, dtype=np.int64), ends[BLOCK_TOKENS - 1 :: BLOCK_TOKENS]])
    return starts.astype(np.uint64)


# --- on disk ---------------------------------------------------------------------------------------------------------------


def recommended_tokens(longest_prompt_tokens: int) -> int:
    """How long a corpus should be for prompts up to this length: room for many random starts (an eighth, at least 65,536)."""
    return longest_prompt_tokens + max(65_536, longest_prompt_tokens // 8)


def default_cache_dir() -> Path:
    """``$LONGHAUL_CACHE``, else ``$XDG_CACHE_HOME/longhaul``, else ``~/.cache/longhaul``."""
    own = os.environ.get("LONGHAUL_CACHE")
    if own:
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "longhaul"


@dataclass(frozen=True)
class _Plan:
    kind: Kind
    tokenizer_fingerprint: str
    source_fingerprint: str
    source: str
    seed: int
    blocks: Callable[[], Iterator[tuple[Ids, bool]]]
    """Yields (ids, from the operator's file?)."""


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
    opened = load_tokenizer(tokenizer) if tokenizer is not None else None
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
    """What lies in this folder, or ``None`` where it is not a whole corpus of this format."""
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
    """Every whole corpus in the cache, with its folder."""
    root = (cache_dir or default_cache_dir()) / "corpus"
    found = [(f, read_meta(f)) for f in sorted(root.glob("*/*")) if f.is_dir()]
    return [(f, m) for f, m in found if m is not None]


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
                yield _random_block(low, high, seed, index), False
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
    fingerprint = _file_fingerprint(source)

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
    """Tokenize on all cores, the next batch being read or generated meanwhile. Batches grow, so that a short corpus is quick."""
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
        _block_offsets(ids).astype("<u8").tofile(work / "blocks.u64")
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
        f"{needed / 2**20:.0f} MiB" if needed else "room for it (about 12 bytes a token)",
        "free space, or point LONGHAUL_CACHE or --cache-dir elsewhere",
    )


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    """Turn the file system's refusals into one clear line."""
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


def _map(path: Path) -> mmap.mmap:
    with path.open("rb") as file:
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
