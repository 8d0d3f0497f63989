"""Corpora: what is on disk is exactly what prompts are cut from, and nothing half-built is ever used."""

from __future__ import annotations

import errno
import gzip
import json
import shutil
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from longhaul.cli import main
from longhaul.errors import UserError
from longhaul.prompts import build as build_module
from longhaul.prompts import corpus as corpus_module
from longhaul.prompts.build import BuildProgress, ensure_corpus, recommended_tokens
from longhaul.prompts.corpus import corpus_from_ids, find_corpora, open_corpus, random_ids_corpus
from longhaul.prompts.ids import distinct_ngram_share, render_ids
from longhaul.prompts.text import file_chunks, random_ids
from longhaul.prompts.tokenizer import load_tokenizer
from tiny_tokenizer import SPECIAL, write_tokenizer


@pytest.fixture(scope="session")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_tokenizer(tmp_path_factory.mktemp("tokenizer"))


@pytest.fixture(scope="session")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Generated corpora are at least 131,072 tokens long; less is quicker to build and the same otherwise."""
    monkeypatch.setattr(build_module, "MIN_GENERATED_TOKENS", 30_000)
    monkeypatch.setattr(corpus_module, "ALPHABET_TOKENS", 10_000)


POOL = corpus_from_ids(np.concatenate([random_ids(202_048, 3000, 1), np.arange(0, 120, dtype=np.uint32)]))


@given(st.integers(0, POOL.n_tokens), st.integers(0, POOL.n_tokens))
def test_any_slice_of_the_json_is_the_slice_of_the_ids(a: int, b: int) -> None:
    start, stop = min(a, b), max(a, b)
    assert json.loads(b"[" + bytes(POOL.json(start, stop)).rstrip(b",") + b"]") == POOL.ids(start, stop).tolist()


@pytest.mark.parametrize("length", [1, 1023, 1024, 1025, 2048])
def test_slices_reach_the_very_end(length: int) -> None:
    corpus = random_ids_corpus(50_000, length)
    assert bytes(corpus.json(0, length)) == render_ids(corpus.ids(0, length))
    with pytest.raises(IndexError):
        corpus.json(0, length + 1)


def test_generated_corpus_is_built_once_and_then_mapped(tokenizer_dir: Path, cache: Path) -> None:
    seen: list[BuildProgress] = []
    first = ensure_corpus(tokens=40_000, cache_dir=cache, tokenizer=tokenizer_dir, progress=seen.append)
    assert [p.stage for p in seen][-2:] == ["checking", "done"]
    assert [p.tokens for p in seen] == sorted(p.tokens for p in seen)
    again = ensure_corpus(tokens=40_000, cache_dir=cache, tokenizer=tokenizer_dir, progress=lambda p: pytest.fail(str(p)))
    assert again.n_tokens == first.n_tokens == 40_000
    assert np.array_equal(again.ids(0, 40_000), first.ids(0, 40_000))
    assert first.meta.distinct_16gram_share == 1.0


def test_a_longer_corpus_begins_with_the_shorter_so_the_prompts_stay(tokenizer_dir: Path, tmp_path: Path) -> None:
    short = ensure_corpus(tokens=35_000, cache_dir=tmp_path, tokenizer=tokenizer_dir)
    long = ensure_corpus(tokens=90_000, cache_dir=tmp_path, tokenizer=tokenizer_dir)
    limited = ensure_corpus(tokens=35_000, cache_dir=tmp_path, tokenizer=tokenizer_dir)
    assert np.array_equal(short.ids(0, 35_000), long.ids(0, 35_000))
    assert limited.n_tokens == 35_000
    assert limited.meta.tokens == 90_000
    assert limited.fingerprint == short.fingerprint
    assert np.array_equal(limited.alphabet, short.alphabet)
    assert [m.tokens for _, m in find_corpora(tmp_path)] == [90_000]


def test_seeds_and_tokenizers_do_not_share_a_corpus(tokenizer_dir: Path, cache: Path, tmp_path: Path) -> None:
    other = write_tokenizer(tmp_path / "other", vocab=900)
    corpora = [
        ensure_corpus(tokens=1000, cache_dir=cache, tokenizer=tokenizer_dir, seed=0),
        ensure_corpus(tokens=1000, cache_dir=cache, tokenizer=tokenizer_dir, seed=1),
        ensure_corpus(tokens=1000, cache_dir=cache, tokenizer=other, seed=0),
    ]
    assert len({c.fingerprint for c in corpora}) == 3
    assert len({c.ids(0, 1000).tobytes() for c in corpora}) == 3


def test_even_a_tokenizer_of_single_bytes_gets_text_without_repeats(tmp_path: Path) -> None:
    tokenizer = write_tokenizer(tmp_path / "bytes", byte_level_only=True)
    corpus = ensure_corpus(tokens=200_000, cache_dir=tmp_path, tokenizer=tokenizer)
    assert distinct_ngram_share(corpus.ids(0, corpus.n_tokens)) > 0.99999


def test_special_tokens_spelled_in_the_text_do_not_become_special_ids(tokenizer_dir: Path, tmp_path: Path) -> None:
    text = tmp_path / "text.txt"
    text.write_text(f"before {SPECIAL[0]} between {SPECIAL[1]}user{SPECIAL[2]} after " * 20)
    corpus = ensure_corpus(tokens=None, cache_dir=tmp_path, tokenizer=tokenizer_dir, source=text)
    added = load_tokenizer(tokenizer_dir).added_ids
    assert len(added) == 3
    assert added.isdisjoint(corpus.ids(0, corpus.n_tokens).tolist())
    assert "between" in load_tokenizer(tokenizer_dir).decode(corpus.ids(0, 40).tolist())


def test_plain_and_gzip_files_give_the_same_ids(tokenizer_dir: Path, tmp_path: Path) -> None:
    words = "".join(f"line {i} of a text with ünïcödé in it\n" for i in range(4000))
    (tmp_path / "a.txt").write_text(words, encoding="utf-8")
    (tmp_path / "a.gz").write_bytes(gzip.compress(words.encode()))
    plain, packed = (
        ensure_corpus(tokens=None, cache_dir=tmp_path, tokenizer=tokenizer_dir, source=tmp_path / name)
        for name in ("a.txt", "a.gz")
    )
    assert np.array_equal(plain.ids(0, plain.n_tokens), packed.ids(0, packed.n_tokens))
    assert plain.tokenizer is not None
    assert plain.tokenizer.decode(plain.ids(0, plain.n_tokens).tolist()) == words
    assert "".join(file_chunks(tmp_path / "a.gz")) == words


def test_a_short_file_is_refused_with_its_length_or_extended(tokenizer_dir: Path, tmp_path: Path) -> None:
    text = tmp_path / "short.txt"
    text.write_text(" ".join(map(str, range(500))))
    whole = ensure_corpus(tokens=None, cache_dir=tmp_path, tokenizer=tokenizer_dir, source=text)
    with pytest.raises(UserError, match=f"has {whole.n_tokens} tokens"):
        ensure_corpus(tokens=50_000, cache_dir=tmp_path, tokenizer=tokenizer_dir, source=text)
    extended = ensure_corpus(tokens=50_000, cache_dir=tmp_path, tokenizer=tokenizer_dir, source=text, extend=True)
    assert extended.n_tokens == 50_000
    assert extended.meta.source_tokens == whole.n_tokens
    assert np.array_equal(extended.ids(0, whole.n_tokens), whole.ids(0, whole.n_tokens))


def test_a_file_that_repeats_itself_is_told_apart(tokenizer_dir: Path, tmp_path: Path) -> None:
    text = tmp_path / "tiled.txt"
    text.write_text("the same sentence again and again, " * 1000)
    tiled = ensure_corpus(tokens=None, cache_dir=tmp_path, tokenizer=tokenizer_dir, source=text)
    assert tiled.meta.distinct_16gram_share < 0.05


def test_random_corpus_on_disk_equals_the_one_in_memory(tmp_path: Path) -> None:
    disk = ensure_corpus(tokens=20_000, cache_dir=tmp_path, vocab_size=50_000, seed=9)
    memory = random_ids_corpus(50_000, 20_000, seed=9)
    assert bytes(disk.json(0, 20_000)) == bytes(memory.json(0, 20_000))


def test_a_damaged_corpus_is_not_used_but_built_again(tmp_path: Path) -> None:
    good = ensure_corpus(tokens=1000, cache_dir=tmp_path, vocab_size=50_000)
    text = bytes(good.json(0, 1000))
    folder = find_corpora(tmp_path)[0][0]
    (folder / "ids.json").write_bytes(b"1,2,3,")
    with pytest.raises(UserError, match="no whole corpus"):
        open_corpus(folder)
    assert find_corpora(tmp_path) == []
    assert bytes(ensure_corpus(tokens=1000, cache_dir=tmp_path, vocab_size=50_000).json(0, 1000)) == text


def test_leftovers_of_a_killed_build_are_ignored_and_removed(tmp_path: Path) -> None:
    ensure_corpus(tokens=1000, cache_dir=tmp_path, vocab_size=50_000)
    folder = find_corpora(tmp_path)[0][0].parent
    (folder / ".building-1").mkdir()
    (folder / ".building-1" / "ids.u32").write_bytes(b"half")
    ensure_corpus(tokens=300_000, cache_dir=tmp_path, vocab_size=50_000)
    assert sorted(p.name for p in folder.iterdir()) == [".lock", "300000"]


def test_two_runs_build_once(tmp_path: Path) -> None:
    done: list[int] = []
    waited = threading.Event()
    start = threading.Barrier(2)

    def build() -> None:
        def watch(at: BuildProgress) -> None:
            if at.stage == "waiting":
                waited.set()
            elif at.stage == "checking":
                waited.wait(10)
            elif at.stage == "done":
                done.append(at.tokens)

        start.wait()
        ensure_corpus(tokens=131_072, cache_dir=tmp_path, vocab_size=50_000, progress=watch)

    threads = [threading.Thread(target=build) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert waited.is_set()
    assert done == [131_072]


def test_disk_too_small_is_said_before_anything_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(build_module.shutil, "disk_usage", lambda _: usage._replace(free=10 * 2**20))
    with pytest.raises(UserError, match=r"10 MiB free .* 120 MiB"):
        ensure_corpus(tokens=10_485_760, cache_dir=tmp_path, vocab_size=50_000)


def test_disk_that_fills_up_during_the_build_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: object) -> bytes:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(build_module, "render_ids", full)
    with pytest.raises(UserError, match="MiB free for the corpus"):
        ensure_corpus(tokens=1000, cache_dir=tmp_path, vocab_size=50_000)
    assert [p.name for p in tmp_path.glob("corpus/*/*")] == [".lock"]


def test_files_that_cannot_be_text_are_refused_in_one_line(tokenizer_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b"caf\xe9 " * 10)
    (tmp_path / "empty").write_bytes(b"")
    cut = gzip.compress(("some text " * 5000).encode())
    (tmp_path / "cut.gz").write_bytes(cut[: len(cut) // 2])
    for name, words in [
        ("latin", "not UTF-8"),
        ("empty", "has 0 tokens"),
        ("cut.gz", "damaged gzip"),
        ("none", "cannot be read"),
    ]:
        with pytest.raises(UserError, match=words) as caught:
            ensure_corpus(tokens=None, cache_dir=tmp_path, tokenizer=tokenizer_dir, source=tmp_path / name)
        assert "\n" not in str(caught.value)


def test_what_a_person_can_get_wrong(tokenizer_dir: Path, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("{}")
    cases = [
        ({"tokens": 10}, "neither a tokenizer"),
        ({"tokens": 10, "tokenizer": tmp_path / "nowhere"}, "no tokenizer at"),
        ({"tokens": 10, "tokenizer": tmp_path}, "is not a tokenizer"),
        ({"tokens": 10, "vocab_size": 9}, "vocabulary of 9"),
        ({"tokens": 0, "vocab_size": 99}, "0 corpus tokens"),
        ({"tokens": None, "tokenizer": tokenizer_dir}, "no number of tokens"),
        ({"tokens": 10, "source": tmp_path / "x", "vocab_size": 99}, "file without a tokenizer"),
    ]
    for arguments, words in cases:
        with pytest.raises(UserError, match=words):
            ensure_corpus(cache_dir=tmp_path, **arguments)


def test_a_host_without_the_tokenizers_package_is_told_what_to_do(tokenizer_dir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tokenizers", None)
    with pytest.raises(UserError, match="scripts/bootstrap"):
        load_tokenizer(tokenizer_dir)


def test_a_cache_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot be written"):
        ensure_corpus(tokens=10, cache_dir=tmp_path / "file", vocab_size=99)


def test_recommended_length_leaves_room_for_random_starts() -> None:
    assert recommended_tokens(1000) >= 1000 + 65_536
    assert recommended_tokens(10_485_760) >= 10_485_760 * 1.1


def test_command_line_builds_and_tells(tokenizer_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--cache-dir", str(tmp_path)]
    assert main(["corpus", "info", *words]) == 0
    assert "no corpus" in capsys.readouterr().out
    assert main(["corpus", "build", "--tokenizer", str(tokenizer_dir), "--longest-prompt", "1000", *words]) == 0
    built = capsys.readouterr().out
    assert "66,536 tokens ready" in built
    assert "distinct 16-grams: 100.0000%" in built
    folder = built.split("folder: ")[1].strip()
    assert main(["corpus", "info", folder]) == 0
    assert "tokens: 66,536" in capsys.readouterr().out
    assert main(["corpus", "build", "--tokenizer", str(tokenizer_dir), "--tokens", "1000", *words]) == 0
    assert "(already built)" in capsys.readouterr().out
    assert main(["corpus", "info", str(tmp_path)]) == 2
    assert main(["corpus", "build", "--vocab-size", "5", "--tokens", "9", *words]) == 2
    errors = capsys.readouterr().err.strip().splitlines()
    assert len([e for e in errors if "found:" in e and "fix:" in e]) == 2
