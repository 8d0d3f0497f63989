"""Nothing stands in requirements.txt that no code of ours uses."""

from __future__ import annotations

import re

import pytest
from support.paths import ROOT

# Read by transformers where a model has such files, and imported by nobody else.
THROUGH_TRANSFORMERS = {"protobuf": "tokenizer.model", "sentencepiece": "tokenizer.model", "tiktoken": "tiktoken"}
IMPORTED_AS = {"ansible-core": "ansible", "ansible-runner": "ansible_runner"}
REQUIRED = [
    re.split(r"[\s\[<>=!~;]", line.strip())[0]
    for line in (ROOT / "requirements.txt").read_text(encoding="utf-8").splitlines()
    if line.strip() and not line.startswith(("#", "-"))
]


@pytest.fixture(scope="module")
def product() -> str:
    """All our Python that is no test and no benchmark."""
    folders = ("module_utils", "library", "plugins", "scripts")
    files = [f for folder in folders for f in (ROOT / folder).rglob("*") if f.is_file() and (f.suffix == ".py" or not f.suffix)]
    return "\n".join(f.read_text(encoding="utf-8") for f in files)


@pytest.mark.parametrize("name", REQUIRED)
def test_a_requirement_is_imported_by_our_code(name: str, product: str) -> None:
    if name in THROUGH_TRANSFORMERS:
        assert "transformers" in REQUIRED
        assert THROUGH_TRANSFORMERS[name] in product
        return
    module = IMPORTED_AS.get(name, name)
    assert re.search(rf"^\s*(import|from) {module}\b", product, re.MULTILINE), f"nothing imports {module}"
