"""The run as JUnit XML: one test suite for each host, one test case for each point."""

from __future__ import annotations

import xml.etree.ElementTree as ET  # only writes
from collections.abc import Sequence

from ..results import PointResult, Reason, RunResult, Verdict, worst
from .figures import all_reasons, cache_text, engine_name, p50, point_name, prefill_rate, run_only_reasons, stands, unique_reasons
from .wording import DASH, clean, finite, instant, one_line, rate, seconds, with_unit


def render_junit(runs: Sequence[RunResult]) -> str:
    """JUnit XML. FAIL is a ``failure``; INVALID and INCONCLUSIVE are an ``error`` of that type; not run is ``skipped``
    (but for FAIL: the server had died).

    A verdict that no point accounts for (an incomplete run, needle recall) gets a test case ``run`` of its own, so that a
    run that did not PASS is never green.
    """
    root = ET.Element("testsuites", name="longhaul")
    totals = {"tests": 0, "failures": 0, "errors": 0, "skipped": 0}
    for run in runs:
        suite = ET.SubElement(root, "testsuite", name=clean(f"{run.host} {engine_name(run)}"), hostname=clean(run.host))
        stamp = instant(run.started_unix_s)
        if stamp != DASH:
            suite.set("timestamp", stamp.replace(" UTC", "").replace(" ", "T"))
        suite.set("time", _time(run.finished_unix_s - run.started_unix_s))
        properties = ET.SubElement(suite, "properties")
        facts = [("run_id", run.run_id), ("model", run.model), ("engine", engine_name(run)), ("url", run.url), ("mode", run.mode)]
        for name, value in [*facts, ("verdict", run.verdict.value)]:
            ET.SubElement(properties, "property", name=name, value=clean(value))
        classname = one_line(f"longhaul.{run.engine}.{run.host}")
        counts = dict.fromkeys(totals, 0)
        for point in run.points:
            case = ET.SubElement(suite, "testcase", classname=classname, name=point_name(point), time=_time(point.wall_s))
            _judge(case, counts, point.verdict, unique_reasons(point.reasons), point.ran)
            ET.SubElement(case, "system-out").text = _figures(run, point)
        own = run_only_reasons(run)
        accounted = worst(p.verdict for p in run.points if p.ran) if any(p.ran for p in run.points) else Verdict.PASS
        if own or not run.points or (run.verdict is not Verdict.PASS and accounted is Verdict.PASS):
            case = ET.SubElement(suite, "testcase", classname=classname, name="run", time=_time(None))
            verdict = worst(r.verdict for r in own) if own else run.verdict
            reasons = own or [r for _, r in all_reasons(run)]
            _judge(case, counts, verdict, reasons, True)
        for name, number in counts.items():
            suite.set(name, str(number))
            totals[name] += number
    for name, number in totals.items():
        root.set(name, str(number))
    ET.indent(root)
    return '<?xml version="1.0" encoding="UTF-8"?>\n' + ET.tostring(root, encoding="unicode") + "\n"


def _judge(case: ET.Element, counts: dict[str, int], verdict: Verdict, reasons: Sequence[Reason], ran: bool) -> None:
    """Write the verdict into the test case and count it."""
    texts = [f"{r.verdict.value} [{one_line(r.code)}] {clean(r.text)}" for r in reasons]
    counts["tests"] += 1
    if not ran and verdict is not Verdict.FAIL:
        counts["skipped"] += 1
        ET.SubElement(case, "skipped", message=one_line(reasons[0].text) if reasons else "not run").text = "\n".join(texts)
    elif verdict is not Verdict.PASS:
        tag, message = "failure" if verdict is Verdict.FAIL else "error", one_line(texts[0]) if texts else verdict.value
        counts[f"{tag}s"] += 1
        ET.SubElement(case, tag, type=verdict.value, message=message).text = "\n".join(texts)


def _time(value: float | None) -> str:
    number = finite(value)
    return f"{max(number or 0.0, 0.0):.3f}"


def _figures(run: RunResult, point: PointResult) -> str:
    if not point.ran:
        return f"not run; expected {seconds(point.expected_s)}"
    if not stands(run, point):
        return "figures withheld: INVALID"
    prefill = with_unit(rate(prefill_rate(run, point)), "tokens/s")
    return (
        f"TTFT p50 {seconds(p50(point.ttft_s))}; prefill {prefill}; TPOT p50 {seconds(p50(point.tpot_s))}; "
        f"cache {cache_text(point)}; completed {point.completed}, failed {point.failed}, timed out {point.timed_out}"
    )
