"""Container images for the engine tests, made without any public registry and pushed to the bed's own.

``standin`` is small: a Debian root file system with Python and ``tests/standin``. ``vllm`` holds the real vLLM CPU engine of
``support.engine``; its base has the same Python, 3.11.
"""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from longhaul.deploy.environments import parse_lock
from support.engine import LOCK, engine_python

from testbed.bed import PYTHON_PACKAGES, REPO, Bed, BedError, _rootfs

STANDIN = REPO / "tests" / "standin"
# Triton compiles GPU kernels: 1 GB that the CPU engine never loads.
# Nor does it run PyTorch's own tests, or compile against its headers.
_LEFT_OUT = ("triton", "torch/test", "torch/include")


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
    base = bed.import_rootfs(_rootfs(PYTHON_PACKAGES, "minbase"))
    made = {}
    for tag in tags:
        variables = {"PYTHONPATH": "/opt/standin", "PYTHONUNBUFFERED": "1", "STANDIN_IMAGE_TAG": tag, **(environment or {})}
        with container(bed, base) as box:
            copy(bed, STANDIN, box, "/opt/standin/standin")
            made[tag] = push(bed, box, "standin", tag, variables)
    return made


def vllm(bed: Bed) -> Image:
    """The real vLLM CPU engine: ``python3 -m vllm.entrypoints.openai.api_server …``; no compiler inside, so use eager mode."""
    site = engine_python().parents[1] / "lib" / "python3.11" / "site-packages"
    key = parse_lock(LOCK.read_text(encoding="utf-8")).sha256[:8]
    name = f"{bed.registry}/vllm-cpu:0.32.0-{key}"
    if bed.docker("image", "inspect", name, check=False).returncode:
        base = bed.import_rootfs(_rootfs(PYTHON_PACKAGES, "minbase"))
        variables = {"PYTHONPATH": "/opt/engine", "PYTHONUNBUFFERED": "1", "PYTHONDONTWRITEBYTECODE": "1"}
        with container(bed, base) as box:
            # With the bytecode of what it imports, where engines ran before: three processes would each compile it at every start.
            copy(bed, site, box, "/opt/engine", _LEFT_OUT, bytecode=True)
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
