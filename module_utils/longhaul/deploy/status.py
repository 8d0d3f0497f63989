"""The status of an endpoint: what is deployed, its health, its last verdict and that one's age, KV cache use and requests."""

from __future__ import annotations

import contextlib
import json
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ..engines.base import EngineAdapter
from ..engines.metrics import parse_counters
from ..engines.registry import get_engine
from ..errors import UserError
from ..files import read_json
from ..results import Counters
from .layout import Layout
from .runtimes.registry import runtime_of
from .spec import Spec, load_spec, read_api_key
from .startup import http_status, http_text


@dataclass(frozen=True)
class EndpointStatus:
    """One endpoint now. ``state``: absent (nothing deployed), up, down. ``kv_usage`` 0..1, ``running`` requests."""

    state: str
    deployed: str | None = None
    health: str | None = None
    verdict: str | None = None
    verdict_age_s: float | None = None
    kv_usage: float | None = None
    running: float | None = None


def endpoint_status(where: Layout, now_unix_s: float | None = None) -> EndpointStatus:
    """Ask the endpoint of this layout. Never raises for a server that does not answer."""
    spec = load_spec(where)
    if spec is None:
        return EndpointStatus("absent")
    adapter = get_engine(spec.engine)
    facts = read_json(where.facts_file) or {}
    verdict = facts.get("verdict") or {}
    now = time.time() if now_unix_s is None else now_unix_s
    code = http_status(spec.url + adapter.health_path, 10)
    load = parse_counters(http_text(spec.url + adapter.metrics_path).encode(), adapter.metrics)
    if code == 200 and adapter.metrics.gauges_lag:
        load = _as_of_now(spec, adapter, load)
    return EndpointStatus(
        state="up" if code == 200 else "down",
        deployed=f"{spec.label} {spec.settings.served_model_name} @ {spec.settings.context_tokens:,}",
        health="healthy" if code == 200 else f"HTTP {code}" if code else "no answer",
        verdict=verdict.get("verdict"),
        verdict_age_s=now - float(verdict["at_unix_s"]) if verdict.get("at_unix_s") else None,
        kv_usage=load.kv_usage,
        running=load.running,
    )


def _as_of_now(spec: Spec, adapter: EngineAdapter, gauges: Counters) -> Counters:
    """What the engine says of its load now, in place of gauges that lag; where it does not say, the gauges."""
    key = None
    with contextlib.suppress(UserError, ValueError):  # who asks for the status may not be allowed to read the engine's own key
        key = read_api_key(spec, None, remote=False)
    for path in adapter.load_paths:
        with contextlib.suppress(ValueError):
            now = adapter.parse_load(json.loads(http_text(spec.url + path, api_key=key)))
            if now is not None:
                return replace(gauges, running=now.running, kv_usage=gauges.kv_usage if now.kv_usage is None else now.kv_usage)
    return gauges


def log_tail(where: Layout, lines: int, grep: str = "") -> list[str]:
    """The last lines of the engine's log (a file, or its container's), those that match ``grep`` only."""
    spec = load_spec(where)
    text = runtime_of(where, spec).log_lines(spec)
    wanted = re.compile(grep) if grep else None
    return [x for x in text if wanted is None or wanted.search(x)][-lines:]


def age(seconds: float | None) -> str:
    """``12 s``, ``5 min``, ``3 h``, ``9 d``; a dash for None."""
    if seconds is None:
        return "-"
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{max(seconds, 0):.0f} s"


def status_table(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """Rows (``host`` and the fields of :class:`EndpointStatus`) -> aligned lines of plain text."""
    header = ("HOST", "STATE", "DEPLOYED", "HEALTH", "VERDICT", "AGE", "KV", "REQUESTS")
    cells: list[tuple[str, ...]] = [header]
    for row in rows:
        usage, running = row.get("kv_usage"), row.get("running")
        words = (str(row.get(name) or "-") for name in ("host", "state", "deployed", "health", "verdict"))
        kv = "-" if usage is None else f"{100 * float(usage):.0f}%"
        cells.append((*words, age(row.get("verdict_age_s")), kv, "-" if running is None else f"{float(running):.0f}"))
    widths = [max(len(r[i]) for r in cells) for i in range(len(header))]
    return ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in cells]
