"""What is sent: the same prompts for one seed, never one twice, with needles, as text; and what a repeated prompt looks like."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from longhaul.results import RunResult, Verdict
from longhaul.validate.config import NeedleSettings, Point
from longhaul.validate.run import validate
from standin.fixture import StandIn
from support.records import read_records
from tiny_tokenizer import write_tokenizer
from unit.validate.runs import CALM, HONEST, PHYSICS, QUICK, SLOWER, codes, config


def test_the_same_seed_gives_both_engines_the_same_prompts(tmp_path: Path, run: Callable[..., RunResult]) -> None:
    sent = []
    for engine in ("vllm", "sglang"):
        run(QUICK, tmp_path / engine, engine=engine, points=(Point(500, 4, 2),))
        sent.append({(r.index, r.prompt_sha256) for r in read_records(tmp_path / engine / "requests.jsonl")})
    assert sent[0] == sent[1]


# How a server that remembers a prompt tells it: (stand-in, physics known) -> code, cached share by the words.
CACHES = [
    pytest.param(HONEST, {}, "cached_prompt", "by usage.cached_tokens", id="it says so"),
    pytest.param((*HONEST, "--cache-silent", "usage"), {}, "cached_prompt", "by cache counters", id="only the counters say so"),
    pytest.param(
        (*HONEST, "--prefill-rate", "5000", "--cache-silent", "all"),
        SLOWER,
        "below_floor",
        "would explain it",
        id="nothing says so",
    ),
]


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
@pytest.mark.parametrize(("standin", "changes", "code", "words"), CACHES)
def test_the_same_prompt_twice_is_invalid(
    engine: str, standin: tuple[str, ...], changes: dict[str, Any], code: str, words: str, tmp_path: Path
) -> None:
    careless: dict[str, Any] = {"engine": engine, "cache_salt": False, "flush": False, **changes}
    with StandIn("--engine", engine, *standin) as server:
        cold = validate(config(server.url, tmp_path / "a", **careless), lambda s: None)
        warm = validate(config(server.url, tmp_path / "b", **careless), lambda s: None)
    assert cold.verdict is Verdict.PASS, cold.reasons
    assert warm.verdict is Verdict.INVALID
    reason = next(r for r in warm.points[0].reasons if r.code == code)
    assert words in reason.text
    if code == "cached_prompt":
        assert warm.points[0].cache_state == "WARM"
        assert warm.points[0].cached_share == pytest.approx(3984 / 4000, abs=0.005)
    else:
        physics = warm.points[0].physics
        assert physics is not None
        assert (physics.explaining_cached_share or 0) > 0.4


@pytest.mark.parametrize("engine", ["vllm", "sglang"])
def test_salt_or_flush_makes_the_same_prompt_cold_again(engine: str, tmp_path: Path) -> None:
    with StandIn("--engine", engine, *HONEST) as server:
        for number in (1, 2):
            result = validate(config(server.url, tmp_path / str(number), engine=engine), lambda s: None)
            assert result.verdict is Verdict.PASS, result.reasons


def test_warm_mode_measures_the_cache_and_says_so(tmp_path: Path, run: Callable[..., RunResult]) -> None:
    result = run(HONEST, tmp_path, mode="warm", **PHYSICS)
    assert result.verdict is Verdict.PASS, result.reasons
    assert result.mode == "warm"
    assert result.points[0].cache_state == "WARM"
    assert result.points[0].cached_share == pytest.approx(0.996, abs=0.01)


def test_many_short_distinct_prompts_give_no_false_alarm(tmp_path: Path, run: Callable[..., RunResult]) -> None:
    for engine in ("vllm", "sglang"):
        result = run(QUICK, tmp_path / engine, engine=engine, points=(Point(40, 2, 50),), repeats=2)
        assert result.points[0].completed == 100
        assert not codes(result) & {"cached_prompt", "token_error", "below_floor", "cache_unknown"}


def test_needles_are_asked_for_in_the_timed_request(tmp_path: Path, run: Callable[..., RunResult]) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    known = ("--tokenizer-json", str(tokenizer / "tokenizer.json"), *QUICK)
    wanted: dict[str, Any] = {
        "tokenizer_dir": tokenizer, "vocab_size": None, "corpus_dir": tmp_path / "cache", "points": (Point(1500, 40, 1),),
        "needles": NeedleSettings(enabled=True, kinds=("multi", "single"), depths=(0.1, 0.9)), "limits": replace(CALM, needle_recall=0.9),
    }  # fmt: skip
    right = run(known, tmp_path / "right", **wanted)
    assert right.verdict is Verdict.PASS, right.reasons
    assert right.needle_recall == 1.0
    assert {(c.kind, c.depth, c.asked, c.found) for c in right.needles} == {
        ("multi", 0.1, 1, 1), ("multi", 0.9, 1, 1), ("single", 0.1, 1, 1), ("single", 0.9, 1, 1),
    }  # fmt: skip
    wrong = run((*known, "--needles", "wrong"), tmp_path / "wrong", **wanted)
    assert wrong.verdict is Verdict.FAIL
    assert [r.code for r in wrong.reasons] == ["needle_recall"]
    assert wrong.needle_recall == 0.0
    kept = read_records(tmp_path / "wrong" / "requests.jsonl")[0].needles
    assert kept[0].expected != kept[0].answer.split(",")[0].strip(), "the raw answer is kept"
    told = [asked.told for asked in wrong.needle_answers]
    assert len(told) == sum(cell.asked for cell in wrong.needles), "every answer is in the result too, for its report"
    assert all(t.subject is not None and t.subject in (t.question or "") and t.answer and not t.found for t in told)


def test_a_corpus_that_repeats_itself_is_noted_and_no_ground_for_needles(tmp_path: Path, run: Callable[..., RunResult]) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    tiled, fresh = tmp_path / "tiled.txt", tmp_path / "fresh.txt"
    words = [f"{chr(97 + i % 26)}{chr(97 + i * 7 % 26)}{i}" for i in range(60_000)]
    tiled.write_text(" ".join(words[:200]) * 400, encoding="utf-8")
    fresh.write_text(" ".join(words), encoding="utf-8")
    needles = NeedleSettings(enabled=True, kinds=("single",), depths=(0.5,))
    given: dict[str, Any] = {
        "tokenizer_dir": tokenizer, "vocab_size": None, "corpus_dir": tmp_path / "cache", "points": (Point(6000, 40, 1),),
    }  # fmt: skip
    known = ("--tokenizer-json", str(tokenizer / "tokenizer.json"), *QUICK)
    asked = run(known, tmp_path / "1", corpus_source=tiled, needles=needles, **given)
    assert asked.verdict is Verdict.INCONCLUSIVE
    assert codes(asked) == {"repeated_text"}
    assert "required for needles" in asked.points[0].reasons[0].text
    timed = run(known, tmp_path / "2", corpus_source=tiled, **given)
    assert timed.verdict is Verdict.PASS, "the time of a dense prefill does not depend on its text"
    assert "the corpus repeats itself" in timed.settings["corpus_note"]
    other = run(known, tmp_path / "3", corpus_source=fresh, needles=needles, **given)
    assert other.verdict is Verdict.PASS, other.reasons
    assert other.settings["corpus_note"] is None


def test_needles_do_not_apply_to_random_weights(tmp_path: Path, run: Callable[..., RunResult]) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    result = run(
        QUICK, tmp_path / "out", tokenizer_dir=tokenizer, vocab_size=None, corpus_dir=tmp_path / "cache",
        points=(Point(1500, 4, 1),), needles=NeedleSettings(enabled=True, dummy_weights=True), limits=replace(CALM, needle_recall=0.9),
    )  # fmt: skip
    assert result.verdict is Verdict.PASS, result.reasons
    assert result.needle_recall is None
    assert "not applicable" in (result.needle_note or "")


def test_text_mode_aligns_with_the_servers_own_count(tmp_path: Path, run: Callable[..., RunResult]) -> None:
    tokenizer = write_tokenizer(tmp_path / "tokenizer")
    result = run(
        QUICK, tmp_path / "out", tokenizer_dir=tokenizer, vocab_size=None, corpus_dir=tmp_path / "cache",
        transport="text", points=(Point(300, 4, 1), Point(700, 4, 2)),
    )  # fmt: skip
    assert [p.token_error_max for p in result.points] == [0, 0]
    assert result.verdict is Verdict.PASS, result.reasons
