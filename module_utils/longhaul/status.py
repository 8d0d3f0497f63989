"""Day two: what is deployed, is it healthy, what was its last verdict and how old is that, how full is the KV cache."""

from __future__ import annotations

import re
import time
import urllib.request
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .dockerd import ContainerLog, DockerRuntime
from .engines import get_engine
from .files import read_json
from .layout import Layout
from .spec import load_spec
from .startup import http_status

_OPENER = urllib.request.build_opener(urllib.request.ProxyHandler({}))


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
    adapter = get_engine(str(spec["engine"]))
    facts = read_json(where.facts_file) or {}
    verdict = facts.get("verdict") or {}
    now = time.time() if now_unix_s is None else now_unix_s
    code = http_status(str(spec["url"]) + adapter.health_path, 10)
    gauges = _gauges(str(spec["url"]) + adapter.metrics_path, (adapter.metrics.kv_usage, adapter.metrics.running))
    return EndpointStatus(
        state="up" if code == 200 else "down",
        deployed=f"{spec['engine']} {spec['version']} {spec['settings']['served_model_name']} @ {int(spec['settings']['context_tokens']):,}",
        health="healthy" if code == 200 else f"HTTP {code}" if code else "no answer",
        verdict=verdict.get("verdict"),
        verdict_age_s=now - float(verdict["at_unix_s"]) if verdict.get("at_unix_s") else None,
        kv_usage=gauges[0],
        running=gauges[1],
    )


def _gauges(url: str, names: Sequence[str]) -> tuple[float | None, ...]:
    try:
        with _OPENER.open(url, timeout=5) as answer:
            text = answer.read().decode(errors="replace")
    except (OSError, ValueError):
        return tuple(None for _ in names)
    found = []
    for name in names:
        values = [float(v) for v in re.findall(rf"^{re.escape(name)}(?:\{{[^}}]*\}})? (\S+)", text, re.MULTILINE)]
        found.append(sum(values) if values else None)
    return tuple(found)


def log_tail(where: Layout, lines: int, grep: str = "") -> list[str]:
    """The last lines of the engine's log (a file, or its container's), those that match ``grep`` only."""
    spec = load_spec(where)
    if spec is not None and spec["runtime"] == "docker":
        text = ContainerLog(DockerRuntime(where), str(spec["spec_id"]), 0.0)()
    else:
        try:
            text = where.log.read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return []
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
    cells = [header]
    for row in rows:
        usage, running = row.get("kv_usage"), row.get("running")
        cells.append(
            (
                str(row["host"]),
                str(row.get("state") or "-"),
                str(row.get("deployed") or "-"),
                str(row.get("health") or "-"),
                str(row.get("verdict") or "-"),
                age(row.get("verdict_age_s")),
                "-" if usage is None else f"{100 * float(usage):.0f}%",
                "-" if running is None else f"{float(running):.0f}",
            )
        )
    widths = [max(len(r[i]) for r in cells) for i in range(len(header))]
    return ["  ".join(c.ljust(w) for c, w in zip(r, widths, strict=True)).rstrip() for r in cells]
