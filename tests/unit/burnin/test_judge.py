"""Burn-in: samples of nvidia-smi, limits, and what does not apply without a GPU."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path

import pytest
from longhaul.burnin.judge import burnin_facts, judge, limits_from, with_burnin
from longhaul.burnin.sampler import Sampler, parse_samples
from longhaul.errors import UserError
from longhaul.host.state import GpuState, SmiLog
from longhaul.results import GpuLoad, RunResult, Verdict, dump_run, from_jsonable


def run_result() -> RunResult:
    """A ladder that passed, without points or capacity."""
    return RunResult("r", "h", "http://h", "vllm", "1", "m", 0.0, 1.0, Verdict.PASS, (), ())


def test_idle_samples_do_not_count_as_load() -> None:
    text = "0, 345, 1980, 80.1, 30, 0\n0, 1965, 1980, 581.0, 47, 100\n0, 1905, 1980, 600.5, 52, 100\n0, 1935, 1980, [N/A]"
    (load,) = parse_samples(text)
    assert (load.samples, load.loaded_samples) == (3, 2)
    assert load.sm_clock_mhz == 1965
    assert (load.power_w_max, load.temperature_c_max) == (600.5, 52)


def test_a_throttled_gpu_fails_and_no_gpu_is_not_applicable() -> None:
    slow = GpuLoad(0, 10, 8, 900.0, 1980.0, 300.0, 91.0)
    verdict, checks = judge(
        run_result(), loads=[slow], before=None, after=None, allreduce=None, limits=limits_from({}), on_gpu=True
    )
    assert verdict is Verdict.FAIL
    assert {c.name for c in checks if c.verdict is Verdict.FAIL} == {"clocks", "temperature"}
    _, checks = judge(run_result(), loads=(), before=None, after=None, allreduce=None, limits=limits_from({}), on_gpu=False)
    assert {c.name for c in checks if c.verdict is None} == {
        "roofline",
        "clocks",
        "temperature",
        "throttling",
        "ECC",
        "all-reduce",
    }


def test_a_wrong_limit_is_named() -> None:
    with pytest.raises(UserError, match="least_mfu"):
        limits_from({"least_mfu": "fast"})


def loaded(clock: float, throttled: int = 0, reasons: tuple[str, ...] = ()) -> GpuLoad:
    return GpuLoad(0, 20, 10, clock, 1980.0, 700.0, 60.0, throttled, reasons)


def verdict_of(name: str, load: GpuLoad, **limits: object) -> Verdict | None:
    _, checks = judge(
        run_result(), loads=[load], before=None, after=None, allreduce=None, limits=limits_from(limits), on_gpu=True
    )
    return next(c.verdict for c in checks if c.name == name)


def test_reasons_for_slow_clocks_are_told_apart() -> None:
    """A power cap is what a busy card does; heat is not. Idle samples do not count."""
    rows = ["0, 1800, 1980, 700, 60, 100, 0x0000000000000004", "0, 900, 1980, 400, 88, 100, 0x0000000000000040"]
    (load,) = parse_samples("\n".join([*rows, "0, 345, 1980, 80, 40, 0, 0x0000000000000008"]))
    assert load.throttled_samples == 1
    assert load.throttle_reasons == ("sw_power_cap", "hw_thermal_slowdown")
    assert verdict_of("throttling", load) is Verdict.FAIL
    assert verdict_of("throttling", loaded(1800.0, 0, ("sw_power_cap",))) is Verdict.PASS
    assert verdict_of("throttling", loaded(1800.0, 1), most_throttled_share=0.1) is Verdict.PASS


def test_a_driver_that_does_not_tell_reasons_is_not_judged_by_them() -> None:
    (load,) = parse_samples("0, 1800, 1980, 700, 60, 100, [N/A]\n")
    assert load.throttled_samples is None
    assert verdict_of("throttling", load) is None
    assert verdict_of("clocks", load) is Verdict.PASS


def smi(uncorrected: int) -> SmiLog:
    return SmiLog("580", "13.0", (GpuState(0, "NVIDIA H200", "00000000:19:00.0", 0, uncorrected_volatile=uncorrected),))


def test_a_new_memory_error_fails_and_an_old_one_does_not() -> None:
    for then, now, wanted in ((3, 3, Verdict.PASS), (3, 4, Verdict.FAIL)):
        _, checks = judge(
            run_result(),
            loads=[loaded(1900.0)],
            before=smi(then),
            after=smi(now),
            allreduce=None,
            limits=limits_from({}),
            on_gpu=True,
        )
        assert next(c.verdict for c in checks if c.name == "ECC") is wanted


@pytest.mark.parametrize(
    ("found", "wanted"),
    [
        ({"gpus": 2, "bus_gb_per_s": 410.0}, Verdict.PASS),
        ({"gpus": 2, "bus_gb_per_s": 21.0}, Verdict.FAIL),
        ({"gpus": 2, "bus_gb_per_s": 410.0, "error": "the sum of ones is wrong"}, Verdict.FAIL),
        ({"skipped": "one GPU"}, None),
        (None, None),
    ],
)
def test_a_slow_link_fails(found: dict[str, object] | None, wanted: Verdict | None) -> None:
    limits = limits_from({"least_allreduce_gb_per_s": 300})
    _, checks = judge(run_result(), loads=[loaded(1900.0)], before=None, after=None, allreduce=found, limits=limits, on_gpu=True)
    assert next(c.verdict for c in checks if c.name == "all-reduce") is wanted


def test_an_engine_that_never_came_up_fails_with_its_reason_and_without_guesses() -> None:
    verdict, checks = judge(
        run_result(),
        loads=(),
        before=None,
        after=None,
        allreduce={"skipped": "one GPU"},
        limits=limits_from({}),
        on_gpu=True,
        failure="vllm died after 12 s: out of memory",
    )
    assert verdict is Verdict.FAIL
    assert [c.verdict for c in checks] == [Verdict.FAIL, None]
    run = with_burnin(run_result(), verdict, checks, (), None, None)
    assert run.verdict is Verdict.FAIL
    assert ["out of memory" in r.text for r in run.reasons] == [True]
    facts = burnin_facts(run)
    assert (facts["verdict"], facts["checks"][0]["name"]) == ("FAIL", "engine")
    # As it is written, so it is read.
    assert from_jsonable(RunResult, json.loads(dump_run(run))) == run


def fake_smi(folder: Path, body: str) -> None:
    """An nvidia-smi of our own; no GPU is needed to see that the sampler begins, outlives and ends."""
    tool = folder / "nvidia-smi"
    tool.write_text("#!/bin/sh\n" + body, encoding="utf-8")
    tool.chmod(0o755)


ROW = "0, 1800, 1980, 650, 60, 99"


@pytest.mark.parametrize("known", ["clocks_event_reasons.active", "clocks_throttle_reasons.active", "none"])
def test_the_sampler_with_a_made_up_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, known: str) -> None:
    """A fake tool on PATH: this shows how the sampler lives, not what a GPU says."""
    fake_smi(
        tmp_path,
        f'''case "$*" in
  *-l*) while :; do case "$*" in *{known}*) echo "{ROW}, 0x4";; *) echo "{ROW}";; esac; sleep 0.05; done;;
  *{known}*) echo 0x4;;
  *) echo 'Field is not a valid field to query.'; exit 2;;
esac
''',
    )
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    sampler = Sampler(tmp_path / "run")
    assert sampler.start()
    pid = json.loads((tmp_path / "run" / "sampler.json").read_text())["pid"]
    assert os.getsid(pid) == pid, "in a session of its own: a module's end does not take it along"
    end = time.monotonic() + 10
    while not Sampler(tmp_path / "run").read() and time.monotonic() < end:
        time.sleep(0.05)
    # Another object, as in another module: the pid file is all it needs.
    Sampler(tmp_path / "run").stop()
    assert os.waitpid(pid, 0)[0] == pid
    assert not (tmp_path / "run" / "sampler.json").exists()
    (load,) = sampler.read()
    assert load.sm_clock_mhz == 1800
    assert load.throttle_reasons == (() if known == "none" else ("sw_power_cap",))
    sampler.stop()


def test_a_pid_that_is_somebody_elses_now_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "sampler.json").write_text(json.dumps({"pid": os.getpid()}), encoding="utf-8")
    Sampler(tmp_path).stop()
    assert not (tmp_path / "sampler.json").exists()


def test_without_nvidia_smi_there_is_nothing_to_sample(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    sampler = Sampler(tmp_path / "run")
    assert sampler.start() is False
    assert sampler.read() == ()
