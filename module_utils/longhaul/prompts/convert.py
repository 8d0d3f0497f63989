"""``tokenizer.json`` for a model that comes without one, made by transformers from the files that it does have.

Some models ship a SentencePiece model, a tiktoken file or vocabulary and merges only. transformers reads them; what it makes
of them is saved once in the cache as ``tokenizer.json``, so that prompts, and hosts, need the small package ``tokenizers`` only.
Runs where transformers is installed: on the controller.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import shutil
import sys
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from ..errors import UserError

# What holds a vocabulary, in the names of the Hub: SentencePiece, tiktoken, Mistral's tekken, BPE, WordPiece.
_VOCABULARIES = (
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "tiktoken.model",
    "*.tiktoken",
    "tekken.json",
    "vocab.json",
    "vocab.txt",
)
# What says how to use it.
_SETTINGS = (
    "merges.txt",
    "config.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
)


def default_cache_dir() -> Path:
    """``$LONGHAUL_CACHE``, else ``$XDG_CACHE_HOME/longhaul``, else ``~/.cache/longhaul``."""
    if own := os.environ.get("LONGHAUL_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "longhaul"


def files_to_convert(names: Iterable[str]) -> tuple[str, ...]:
    """Of the file names in a model's folder, those that a ``tokenizer.json`` is made from; empty where it has one already."""
    there = set(names)
    vocabularies = sorted(n for n in there if any(fnmatch(n, pattern) for pattern in _VOCABULARIES))
    if "tokenizer.json" in there or not vocabularies:
        return ()
    return (*vocabularies, *(n for n in _SETTINGS if n in there))


def vocabulary_files(folder: Path) -> tuple[Path, ...]:
    """The files of a model folder from which a ``tokenizer.json`` can be made, sorted."""
    return tuple(sorted({f for pattern in _VOCABULARIES for f in folder.glob(pattern) if f.is_file()}))


def can_convert() -> bool:
    """Whether this Python has transformers."""
    return importlib.util.find_spec("transformers") is not None


def has_tokenizer(folder: Path) -> bool:
    """Whether a tokenizer can be read from this folder, here: a ``tokenizer.json``, or files for it and transformers."""
    return (folder / "tokenizer.json").exists() or (can_convert() and bool(vocabulary_files(folder)))


def converted(folder: Path, cache_dir: Path | None = None) -> Path:
    """A folder with the ``tokenizer.json`` of the model in ``folder``, made on the first call and kept in the cache.

    The cache's key is the content of the model's tokenizer files. Nothing is downloaded, and no code of the model runs.
    Raises UserError: no tokenizer file at all, no transformers, or a tokenizer that transformers cannot turn into that form.
    """
    found = vocabulary_files(folder)
    if not found:
        required = "tokenizer.json, or files to make it from (" + ", ".join(_VOCABULARIES) + ")"
        fix = "name the model folder; without a tokenizer, give the vocabulary size instead (random ids)"
        raise UserError(f"no tokenizer in {folder}", required, fix)
    sources = [*found, *(folder / name for name in _SETTINGS if (folder / name).is_file())]
    key = hashlib.sha256(b"".join(f"{f.name}\n".encode() + hashlib.sha256(f.read_bytes()).digest() for f in sources))
    target = (cache_dir or default_cache_dir()) / "tokenizers" / key.hexdigest()[:32]
    if not (target / "tokenizer.json").exists():
        _convert(sources, target)
    return target


def _convert(sources: list[Path], target: Path) -> None:
    names = ", ".join(f.name for f in sources[:3])
    if not can_convert():
        found = f"no tokenizer.json in {sources[0].parent} (only {names}), and Python {sys.executable} without transformers"
        fix = "run 'scripts/longhaul corpus tokenizer DIR' on the controller and put its tokenizer.json into the model's folder"
        raise UserError(found, "tokenizer.json", fix)
    work = target.with_name(f".making-{target.name}-{os.getpid()}")
    try:
        work.mkdir(parents=True)
        # A copy of these files alone: the folder may hold weights, and nothing else of it must decide.
        for file in sources:
            shutil.copyfile(file, work / file.name)
        tokenizer = _load(work, names)
        made = work / "made"
        tokenizer.save_pretrained(str(made))
        if not (made / "tokenizer.json").exists():
            raise _refused(names, f"transformers reads it as {type(tokenizer).__name__}, which has no such form")
        with contextlib.suppress(OSError):  # another run was quicker: its result is the same
            made.rename(target)
    except OSError as exc:
        found = f"the tokenizer made from {names} cannot be written to {target} ({exc.strerror or exc})"
        raise UserError(found, "a writable folder", "point LONGHAUL_CACHE or --cache-dir to one") from exc
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _load(folder: Path, names: str) -> Any:
    # Read when huggingface_hub and transformers are imported: no question to the Hub, no advice on PyTorch.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), local_files_only=True, trust_remote_code=False)
    except Exception as exc:  # each tokenizer class raises its own
        words = " ".join(str(exc).split())[:300] or type(exc).__name__
        raise _refused(names, words) from exc


def _refused(names: str, words: str) -> UserError:
    return UserError(
        f"no tokenizer.json, and none can be made from {names} ({words})",
        "a tokenizer that transformers reads without code of the model's author; tokenizer.model needs sentencepiece and protobuf, "
        "tiktoken files need tiktoken",
        "install them, or get a tokenizer.json for this model, or give the vocabulary size instead (random ids)",
    )
