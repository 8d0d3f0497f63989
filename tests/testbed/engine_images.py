"""The stand-in under the engines' own names, so that roles and argv are exactly those of production."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from testbed import images
from testbed.bed import Bed
from testbed.images import Image

SHIMS = Path(__file__).resolve().parent / "shims"


def engines(bed: Bed, tags: Sequence[str] = ("1.0", "2.0")) -> dict[str, Image]:
    """``engine:TAG`` in the bed's registry: ``python3 -m vllm.entrypoints.openai.api_server …`` starts the stand-in."""
    made: dict[str, Image] = {}
    for tag, base in images.standin(bed, tags).items():
        variables: Mapping[str, str] = {
            "PYTHONPATH": "/opt/standin:/opt/shims",
            "PYTHONUNBUFFERED": "1",
            "STANDIN_IMAGE_TAG": tag,
        }
        with images.container(bed, base.reference) as box:
            images.copy(bed, SHIMS, box, "/opt/shims")
            made[tag] = images.push(bed, box, "engine", tag, variables)
    return made
