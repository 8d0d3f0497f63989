"""``quantization_config`` of a checkpoint: bits per stored weight."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..errors import UserError
from .architecture import Quantization
from .config import positive_number


def read_quantization(raw: Any) -> Quantization | None:
    """``quantization_config`` -> bits a stored weight, scales included where their group size is given."""
    if not isinstance(raw, Mapping) or not raw:
        return None
    method = str(raw.get("quant_method") or raw.get("quant_algo") or "").lower()
    if method == "fp8":
        block = raw.get("weight_block_size")
        scale = 0.0
        if isinstance(block, list) and len(block) == 2:
            scale = 32.0 / (positive_number("weight_block_size", block[0]) * positive_number("weight_block_size", block[1]))
        return Quantization("fp8", 8.0 + scale, "linear")
    if method == "mxfp4":
        # 4-bit elements, one 8-bit scale for each 32 (OCP Microscaling formats 1.0).
        return Quantization("mxfp4", 4.25, "experts")
    if method in {"awq", "gptq", "gptq_marlin", "awq_marlin"}:
        bits = positive_number("bits", raw.get("bits") or raw.get("w_bit") or 4)
        group = raw.get("group_size") or raw.get("q_group_size") or 128
        # -1: one scale a column.
        return Quantization(
            method, bits + ((16.0 + bits) / positive_number("group_size", group) if group != -1 else 0.0), "linear"
        )
    if method == "compressed-tensors":
        groups = raw.get("config_groups") or {}
        first: Any = next(iter(groups.values()), {}) if isinstance(groups, Mapping) else {}
        weights = (first.get("weights") if isinstance(first, Mapping) else None) or {}
        bits = positive_number("num_bits", weights.get("num_bits") or 8)
        group = weights.get("group_size") or -1
        return Quantization(method, bits + (16.0 / positive_number("group_size", group) if group != -1 else 0.0), "linear")
    if method == "bitsandbytes":
        four = bool(raw.get("load_in_4bit") or raw.get("_load_in_4bit"))
        return Quantization(method, 4.5 if four else 8.0, "linear")
    if method == "modelopt" or "fp4" in method or "fp8" in method:
        return Quantization(method, 4.5 if "4" in method + str(raw.get("quant_algo", "")).lower() else 8.0, "linear")
    raise UserError(
        f"quantization method {method or 'unknown'!r} in the config",
        "fp8, mxfp4, awq, gptq, compressed-tensors, bitsandbytes or modelopt",
        "give the engine's own figure with --available-kv-gib",
    )
