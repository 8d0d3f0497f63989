"""Where corpus ids come from: generated text, the operator's file, or random ids where there is no tokenizer."""

from __future__ import annotations

import gzip
import hashlib
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ..errors import UserError
from .ids import Ids

CHUNK_CHARS = 65_536


def _raw64(label: str, seed: int, index: int, count: int) -> npt.NDArray[np.uint64]:
    """Return ``count`` random 64-bit words that depend on the arguments alone.

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
    """Return 65,536 pieces of text. Random 16-bit numbers pick among them, so a run of pieces does not come twice.

    ``dense``: for tokenizers with little text per token (characters, bytes), where 16 tokens of words would repeat by
    chance: three random characters per piece, 15.5 bits.
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
            for sounds in (onsets, vowels, codas):
                rest, pick = divmod(rest, len(sounds))
                word += sounds[pick]
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
    """Yield endless word-like text in chunks of about 64 KiB. The same seed gives the same text on every machine."""
    table = _word_table(dense)
    pieces = CHUNK_CHARS // (4 if dense else 8)
    index = 0
    while True:
        raw = _raw64("dense" if dense else "text", seed, index, pieces // 4)
        yield "".join([table[i] for i in raw.view("<u2").tolist()])
        index += 1


def file_chunks(path: Path) -> Iterator[str]:
    """Yield the text of a file (plain or gzip, told by content) in chunks of 64 Ki characters. UserError if unreadable."""
    try:
        with path.open("rb") as probe:
            packed = probe.read(2) == b"\x1f\x8b"
        with gzip.open(path, "rt", encoding="utf-8") if packed else path.open("rt", encoding="utf-8") as text:
            while chunk := text.read(CHUNK_CHARS):
                yield chunk
    except UnicodeDecodeError as exc:
        required = "a UTF-8 text file, plain or gzip"
        raise UserError(f"{path} is not UTF-8 ({exc.reason})", required, "convert it with iconv") from exc
    except (EOFError, gzip.BadGzipFile, zlib.error) as exc:
        raise UserError(f"{path} is a damaged gzip file ({exc})", "a whole gzip file", "copy it again") from exc
    except OSError as exc:
        raise _unreadable(path, exc) from exc


def file_fingerprint(path: Path) -> str:
    """SHA-256 of the file's bytes. Raises UserError where it cannot be read."""
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    except OSError as exc:
        raise _unreadable(path, exc) from exc
    return digest.hexdigest()


def _unreadable(path: Path, exc: OSError) -> UserError:
    found = f"corpus file {path} cannot be read ({exc.strerror})"
    return UserError(found, "a readable text file, plain or gzip", "check the path")


def random_id_range(vocab_size: int) -> tuple[int, int]:
    """Range [low, high) of ids that are ordinary tokens in the usual vocabularies.

    Special ids sit in the first thousand (Mistral, Gemma) or in the last thirtieth (Llama 3 and 4, Qwen, DeepSeek) of the
    vocabulary; without the tokenizer both ends are left out.
    """
    low = min(1000, vocab_size // 16)
    high = vocab_size - max(1, vocab_size // 32)
    if high - low < 16:
        raise UserError(f"vocabulary of {vocab_size} ids", "at least 32", "give the model's vocab_size (config.json)")
    return low, high


def random_ids(vocab_size: int, tokens: int, seed: int) -> Ids:
    """Return ``tokens`` seeded random ids within :func:`random_id_range`. A longer run begins with the shorter one."""
    low, high = random_id_range(vocab_size)
    parts = [random_block(low, high, seed, i) for i in range(-(-tokens // CHUNK_CHARS))]
    return np.concatenate(parts)[:tokens] if parts else np.empty(0, dtype=np.uint32)


def random_block(low: int, high: int, seed: int, index: int) -> Ids:
    """Return block ``index`` (65,536 ids) of the endless run of seeded random ids in [low, high)."""
    raw = _raw64("ids", seed, index, CHUNK_CHARS) >> np.uint64(32)
    return ((raw * np.uint64(high - low)) >> np.uint64(32)).astype(np.uint32) + np.uint32(low)
