"""One run as a Prometheus text file for node_exporter's textfile collector (text exposition format 0.0.4)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ..results import SEVERITY, PointResult, RunResult, Stats, Verdict
from .figures import stands, state
from .wording import clean, finite

_STATES = [*[v.value for v in SEVERITY], "NOT RUN"]
_QUANTILES = (("0.5", "p50"), ("0.9", "p90"), ("0.99", "p99"))


@dataclass
class _Families:
    """Metric families in the order they were first named; a series that repeats its labels is kept once."""

    helps: dict[str, str] = field(default_factory=dict)
    series: dict[str, dict[str, float]] = field(default_factory=dict)

    def add(self, name: str, help_text: str, labels: Mapping[str, object], value: object) -> None:
        number = finite(value)
        if number is None:
            return
        self.helps.setdefault(name, help_text)
        inner = ",".join(f'{key}="{_label(text)}"' for key, text in labels.items())
        self.series.setdefault(name, {}).setdefault(f"{{{inner}}}" if inner else "", number)

    def text(self) -> str:
        lines = []
        for name, series in self.series.items():
            lines += [f"# HELP {name} {self.helps[name]}", f"# TYPE {name} gauge"]
            lines += [f"{name}{labels} {_number(value)}" for labels, value in series.items()]
        return "\n".join(lines) + "\n"


def _label(value: object) -> str:
    return clean(value).replace("\r", " ").replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")


def _number(value: float) -> str:
    return str(int(value)) if value == int(value) and abs(value) < 2**53 else repr(value)


def render_prometheus(run: RunResult) -> str:
    """The text file of one run.

    Figures are exported for PASS and FAIL points only: an INVALID figure is no result and an INCONCLUSIVE one is not
    proven; ``longhaul_point_verdict`` says which points those are. Times of a warm run are ``longhaul_warm_*``, so that no
    dashboard mixes them with cold ones. The age of a verdict is ``time() - longhaul_validation_timestamp_seconds``: a file
    cannot state its own age.
    """
    out = _Families()
    who = {"host": run.host, "engine": run.engine, "model": run.model}
    info = {**who, "engine_version": run.engine_version, "run_id": run.run_id, "mode": run.mode}
    text = "Verdict of the last validation run: 1 for the one that holds, 0 for the others."
    for verdict in SEVERITY:
        out.add("longhaul_validation_verdict", text, {**who, "verdict": verdict.value}, int(run.verdict is verdict))
    text = "When the last validation run finished (Unix time). Its age: time() - longhaul_validation_timestamp_seconds."
    out.add("longhaul_validation_timestamp_seconds", text, who, run.finished_unix_s)
    out.add("longhaul_validation_duration_seconds", "How long the run took.", who, run.finished_unix_s - run.started_unix_s)
    out.add("longhaul_validation_complete", "1 when the run went to its end, 0 when it was cut short.", who, int(run.complete))
    out.add("longhaul_validation_info", "Always 1; what was validated, as labels.", info, 1)
    for word in _STATES:
        number = sum(state(p) == word for p in run.points)
        out.add("longhaul_validation_points", "Points of the ladder by verdict.", {**who, "verdict": word}, number)
    if run.mode == "cold":
        passed = (p.input_tokens for p in run.points if p.ran and p.verdict is Verdict.PASS and stands(run, p))
        out.add("longhaul_proven_input_tokens", "Longest prompt that PASSed (0: none did).", who, max(passed, default=0))
    recall = run.needle_recall if run.verdict is not Verdict.INVALID else None
    out.add("longhaul_needle_recall_ratio", "Share of planted facts that the answers held.", who, recall)
    if run.capacity is not None:
        for source, facts in (("predicted", run.capacity.predicted), ("engine", run.capacity.engine)):
            help_text = "Tokens the KV cache holds, as predicted and as the engine says."
            out.add("longhaul_kv_cache_tokens", help_text, {**who, "source": source}, facts.get("kv_cache_tokens"))
    for point in run.points:
        _point(out, run, point, who)
    return out.text()


def _point(out: _Families, run: RunResult, point: PointResult, who: Mapping[str, object]) -> None:
    sizes = {"input_tokens": point.input_tokens, "output_tokens": point.output_tokens, "concurrency": point.concurrency}
    labels = {**who, **sizes}
    for word in _STATES:
        help_text = "Verdict of one point of the ladder: 1 for the one that holds, 0 for the others."
        out.add("longhaul_point_verdict", help_text, {**labels, "verdict": word}, int(state(point) == word))
    if not point.ran or point.verdict not in (Verdict.PASS, Verdict.FAIL) or not stands(run, point):
        return
    warm = run.mode != "cold"
    prefix, what = ("longhaul_warm_", "Warm mode (prefix cache). ") if warm else ("longhaul_", "")
    stats: list[tuple[str, str, Stats | None]] = [
        ("ttft_seconds", "Time to first token.", point.ttft_s),
        ("tpot_seconds", "Time per output token after the first.", point.tpot_s),
        ("itl_seconds", "Gap between two token events.", point.itl_s),
        ("e2e_seconds", "Time from the first byte sent to the last token.", point.e2e_s),
    ]
    if not warm and point.concurrency == 1:
        stats.append(("prefill_tokens_per_second", "Prompt tokens per second of TTFT, per request.", point.prefill_tokens_per_s))
    for name, text, values in stats:
        if values is not None and values.n > 0:
            for quantile, attribute in _QUANTILES:
                out.add(prefix + name, what + text, {**labels, "quantile": quantile}, getattr(values, attribute))
    text = what + "Output tokens per second, all requests."
    out.add(prefix + "output_tokens_per_second", text, labels, point.output_tokens_per_s)
    out.add(prefix + "goodput_requests_per_second", what + "Requests per second within every limit.", labels, point.goodput_per_s)
    for outcome, number in (("completed", point.completed), ("failed", point.failed), ("timed_out", point.timed_out)):
        out.add(prefix + "requests", what + "Requests of a point by outcome.", {**labels, "outcome": outcome}, number)
    if point.physics is not None and not warm:
        text = "Least time a cold prefill can take on this hardware."
        out.add("longhaul_ttft_floor_seconds", text, labels, point.physics.floor_s)
        out.add("longhaul_prefill_mfu_ratio", "Share of the hardware's peak that prefill used.", labels, point.physics.mfu)
