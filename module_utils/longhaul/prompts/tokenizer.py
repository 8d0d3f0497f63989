"""The model's tokenizer: ``tokenizer.json`` with what prompts need of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import UserError
from .convert import converted
from .ids import Ids

if TYPE_CHECKING:
    import tokenizers


class Tokenizer:
    """A ``tokenizer.json`` with what prompts need of it. ``encode`` adds no special tokens, ``decode`` hides none."""

    def __init__(self, raw: tokenizers.Tokenizer, fingerprint: str, config: Mapping[str, Any], chat_template: str | None) -> None:
        raw.no_truncation()
        raw.no_padding()
        self._raw = raw
        self.fingerprint = fingerprint
        self.config = config
        self.chat_template = chat_template
        self.added_ids: frozenset[int] = frozenset(raw.get_added_tokens_decoder())

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


def load_tokenizer(path: Path, cache_dir: Path | None = None) -> Tokenizer:
    """Read ``tokenizer.json`` from a file or a model folder (with its chat template, if there is one).

    A folder without that file gets one from :func:`.convert.converted`, kept in ``cache_dir``.
    Raises UserError where there is no tokenizer, or where it cannot be parsed.
    """
    try:
        import tokenizers
    except ImportError as exc:
        found, required = f"Python {sys.executable} without the package tokenizers", "tokenizers, to read the model's tokenizer"
        raise UserError(found, required, "run scripts/bootstrap, or give the vocabulary size instead (random ids)") from exc
    if path.is_dir() and not (path / "tokenizer.json").exists():
        path = converted(path, cache_dir)
    file = path / "tokenizer.json" if path.is_dir() else path
    try:
        content = file.read_bytes()
    except OSError as exc:
        fix = "name the model folder; without a tokenizer, give the vocabulary size instead (random ids)"
        raise UserError(f"no tokenizer at {path} ({exc.strerror})", "a folder with tokenizer.json, or that file", fix) from exc
    try:
        raw = tokenizers.Tokenizer.from_str(content.decode("utf-8"))
    except Exception as exc:  # the Rust side raises bare Exception
        required = "a tokenizer.json of Hugging Face tokenizers"
        raise UserError(f"{file} is not a tokenizer ({exc})", required, "fetch it again") from exc
    config: dict[str, Any] = {}
    template: str | None = None
    with contextlib.suppress(OSError, ValueError):
        config = json.loads((file.parent / "tokenizer_config.json").read_text(encoding="utf-8"))
        template = _template_of(config.get("chat_template"))
    with contextlib.suppress(OSError):
        template = (file.parent / "chat_template.jinja").read_text(encoding="utf-8")
    return Tokenizer(raw, hashlib.sha256(content).hexdigest(), config, template)


def _template_of(value: Any) -> str | None:
    """The chat template in a tokenizer's configuration: a string, or a list of named ones with a ``default``."""
    if isinstance(value, list):
        named = {row.get("name"): row.get("template") for row in value if isinstance(row, dict)}
        value = named.get("default")
    return value if isinstance(value, str) else None
