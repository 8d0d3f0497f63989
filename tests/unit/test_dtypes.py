"""One name for each number format, whatever an engine calls it."""

from __future__ import annotations

import pytest
from longhaul.dtypes import DTYPE_BYTES, known_dtype, normal_dtype
from longhaul.errors import UserError


@pytest.mark.parametrize(
    ("name", "dtype"), [("torch.bfloat16", "bf16"), ("fp8_e4m3", "fp8"), ("Float16", "fp16"), ("mxfp4", "fp4"), ("awq", "int4")]
)
def test_dtype_names_of_the_engines(name: str, dtype: str) -> None:
    assert normal_dtype(name) == dtype


def test_an_unknown_word_is_kept_refused_or_replaced_as_the_caller_asks() -> None:
    assert normal_dtype("Auto") == "auto"
    assert known_dtype("auto", default="bf16") == "bf16"
    with pytest.raises(UserError, match="fp9"):
        known_dtype("fp9")


def test_every_name_has_a_size() -> None:
    assert all(normal_dtype(name) == name and size > 0 for name, size in DTYPE_BYTES.items())
