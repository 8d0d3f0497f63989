"""Token ids as arrays, as the decimal text that goes on the wire, and how much they repeat themselves."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np
import numpy.typing as npt

Ids = npt.NDArray[np.uint32]
BLOCK_TOKENS = 1024
NGRAM = 16


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


def block_offsets(ids: Ids) -> npt.NDArray[np.uint64]:
    """Byte offset of token 0, 1024, 2048, …, and of the end if it falls on a block."""
    ends = np.cumsum(decimal_digits(ids) + 1)
    starts = np.concatenate([np.zeros(1, dtype=np.int64), ends[BLOCK_TOKENS - 1 :: BLOCK_TOKENS]])
    return starts.astype(np.uint64)


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
