"""What SGLang tells of itself beside /metrics (which it has with --enable-metrics only).

As its sources have it (0.5.6.post2, 0.5.12, 0.5.23): ``/server_info`` (older: ``/get_server_info``) holds settings and gauges of
the moment, no counter of tokens; its ``disable_radix_cache`` settles whether anything can be cached. ``/v1/loads`` (0.5.6.post2:
``/get_load``) tells what runs, what waits and what the KV pool holds: other people's requests show there, without counters.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from ...results import Counters
from ..base import ServerInfo

# The second is the older releases' (and deprecated in the newer).
INFO_PATHS = ("/server_info", "/get_server_info")
LOAD_PATHS = ("/v1/loads", "/get_load")


def parse_loads(answer: Any, pool_tokens: int | None = None, unix_s: float | None = None) -> Counters | None:
    """SGLang's ``/v1/loads`` or ``/get_load`` -> Counters with gauges only (``has_counters`` is False), or ``None``.

    Ranks are summed; ``kv_usage`` is that of the fullest. ``/get_load`` names no pool: ``pool_tokens`` (of /server_info) stands in,
    and its tokens include those of waiting prompts.
    """
    rows = answer.get("loads") if isinstance(answer, Mapping) else answer
    ranks = [row for row in rows if isinstance(row, Mapping)] if isinstance(rows, list) else []
    running = waiting = 0.0
    usages: list[float] = []
    for rank in ranks:
        queued, own = _figure(rank, "num_waiting_reqs"), _figure(rank, "num_running_reqs")
        total = _figure(rank, "num_reqs")
        own = total - (queued or 0.0) if own is None and total is not None else own
        if own is None or queued is None:
            return None
        running, waiting = running + max(0.0, own), waiting + queued
        used = _figure(rank, "num_used_tokens")
        used = _figure(rank, "num_tokens") if used is None else used
        pool = _figure(rank, "max_total_num_tokens") or pool_tokens
        if used is not None and pool:
            usages.append(min(1.0, used / pool))
    if not ranks:
        return None
    return Counters(
        unix_s=time.time() if unix_s is None else unix_s, running=running, waiting=waiting, kv_usage=max(usages, default=None)
    )


def _figure(row: Mapping[str, Any], key: str) -> float | None:
    value = row.get(key)
    return float(value) if isinstance(value, (int, float)) and not isinstance(value, bool) else None


# The settings and figures that go into a result.
_TOLD = (
    "version", "max_total_num_tokens", "context_length", "max_running_requests", "chunked_prefill_size", "disable_radix_cache",
    "enable_metrics", "enable_cache_report",
)  # fmt: skip


def parse_info(answer: Any) -> ServerInfo:
    """``/server_info`` -> version, pool, cache and the settings that matter. What is missing is left out."""
    told = {key: answer[key] for key in _TOLD if answer.get(key) is not None} if isinstance(answer, Mapping) else {}
    pool = told.get("max_total_num_tokens")
    return ServerInfo(
        version=str(told["version"]) if "version" in told else None,
        kv_cache_tokens=pool if isinstance(pool, int) else None,
        prefix_cache_off=told.get("disable_radix_cache") is True,
        details=told,
    )
