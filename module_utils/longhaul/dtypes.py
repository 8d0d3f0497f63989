"""Number formats of weights and caches: one name and one size for each, whatever an engine or a checkpoint calls it."""

from __future__ import annotations

from collections.abc import Mapping

from .errors import UserError

# Bytes per element. 4-bit formats without their scales, which depend on the group size.
DTYPE_BYTES: Mapping[str, float] = {
    "fp32": 4.0,
    "bf16": 2.0,
    "fp16": 2.0,
    "fp8": 1.0,
    "int8": 1.0,
    "fp4": 0.5,
    "int4": 0.5,
}
_ALIASES: Mapping[str, str] = {
    "bfloat16": "bf16",
    "float16": "fp16",
    "half": "fp16",
    "float32": "fp32",
    "float": "fp32",
    "fp8_e4m3": "fp8",
    "fp8_e5m2": "fp8",
    "fp8_inc": "fp8",
    "float8_e4m3fn": "fp8",
    "float8_e5m2": "fp8",
    "mxfp8": "fp8",
    "mxfp4": "fp4",
    "nvfp4": "fp4",
    "compressed-tensors": "fp8",
    "fbgemm_fp8": "fp8",
    "modelopt": "fp8",
    "modelopt_fp4": "fp4",
    "awq": "int4",
    "gptq": "int4",
    "w8a8": "int8",
}


def normal_dtype(word: str) -> str:
    """The name in ``DTYPE_BYTES`` for a dtype or quantization as engines write it. An unknown word comes back in lower case."""
    key = word.lower().removeprefix("torch.")
    return _ALIASES.get(key, key)


def known_dtype(word: str, *, default: str | None = None) -> str:
    """Like :func:`normal_dtype`, for words that must be known: an unknown one gives ``default``, or a UserError without it."""
    name = normal_dtype(word)
    if name in DTYPE_BYTES:
        return name
    if default is not None:
        return default
    raise UserError(f"dtype {word!r}", "one of " + ", ".join(DTYPE_BYTES), "use one of these names")
