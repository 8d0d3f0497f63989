"""Prompts: the exact number of tokens always, the same for the same seed, cold by construction."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from longhaul.errors import UserError
from longhaul.prompts.build import ensure_corpus
from longhaul.prompts.corpus import Corpus, random_ids_corpus
from longhaul.prompts.factory import PromptFactory
from longhaul.prompts.ids import distinct_ngram_share
from longhaul.prompts.needles import KINDS, plan_needles
from longhaul.prompts.tokenizer import Tokenizer, load_tokenizer
from tiny_tokenizer import write_tokenizer
from tokenizers import Tokenizer as RawTokenizer
from tokenizers.processors import TemplateProcessing

RANDOM = random_ids_corpus(202_048, 70_000)


@pytest.fixture(scope="session")
def words(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    folder = tmp_path_factory.mktemp("prompts")
    return ensure_corpus(tokens=60_000, cache_dir=folder, tokenizer=write_tokenizer(folder / "tokenizer"))


def tokenizer_of(corpus: Corpus) -> Tokenizer:
    assert corpus.tokenizer is not None
    return corpus.tokenizer


@given(st.integers(1, 30_000), st.text(max_size=10), st.integers(0, 2**40))
def test_the_pieces_are_a_json_array_of_exactly_n_ids(n: int, key: str, seed: int) -> None:
    prompt = PromptFactory(RANDOM, seed).prompt(n, seed_key=key)
    body = b"".join(prompt.ids_json)
    ids = json.loads(body)
    assert len(ids) == prompt.n_tokens == n
    assert len(body) == prompt.json_bytes
    assert b" " not in body
    assert prompt.sha256 == hashlib.sha256(body).hexdigest()
    nonce = [int(i) for i in prompt.nonce.split(",")]
    assert ids[: len(nonce)] == nonce
    assert len(nonce) == min(n, 16)
    assert ids[len(nonce) :] == RANDOM.ids(prompt.start, prompt.start + n - len(nonce)).tolist()


def test_the_text_is_the_memory_map_itself(words: Corpus) -> None:
    prompt = PromptFactory(words, 1).prompt(50_000, seed_key="k")
    views = [p for p in prompt.ids_json if isinstance(p, memoryview)]
    assert sum(len(v) for v in views) > 0.99 * prompt.json_bytes
    assert all(v.obj is words.json(0, 10).obj for v in views)


def test_the_seed_decides_everything() -> None:
    one, two = PromptFactory(RANDOM, 5), PromptFactory(random_ids_corpus(202_048, 70_000), 5)
    two.prompt(100, seed_key="asked before, must not matter")
    assert one.prompt(9000, seed_key="p/1") == two.prompt(9000, seed_key="p/1")
    assert one.prompt(9000, seed_key="p/1").sha256 != PromptFactory(RANDOM, 6).prompt(9000, seed_key="p/1").sha256


def test_no_two_keys_share_a_first_block() -> None:
    factory = PromptFactory(RANDOM, 5)
    prompts = [factory.prompt(64, seed_key=f"point/{i}") for i in range(500)]
    assert len({p.nonce for p in prompts}) == 500
    assert len({p.start for p in prompts}) > 480


def test_nothing_repeats_inside_a_prompt(words: Corpus) -> None:
    ids = PromptFactory(words, 1).prompt(words.n_tokens, seed_key="k").ids()
    assert distinct_ngram_share(np.asarray(ids, dtype=np.uint32)) == 1.0


def test_prefix_ids_come_first_and_are_declared_as_shared() -> None:
    prompt = PromptFactory(RANDOM, 1).prompt(40, seed_key="k", prefix_ids=(7, 8))
    ids = prompt.ids()
    assert ids[:2] == [7, 8]
    assert ids[2:18] == [int(i) for i in prompt.nonce.split(",")]
    assert len(ids) == 40
    assert prompt.shared_prefix_tokens == 2


@settings(max_examples=40, deadline=None)
@given(
    st.sampled_from(KINDS),
    st.lists(st.sampled_from([0.0, 0.1, 0.5, 0.99, 1.0]), min_size=2, max_size=5),
    st.integers(900, 5000),
    st.sampled_from([None, False]),
)
def test_prompts_with_needles_are_exact_too(words: Corpus, kind: str, depths: list[float], n: int, chat: bool | None) -> None:
    plan = plan_needles(kind, depths[:1] if kind == "single" else depths, seed=1, key="k")  # type: ignore[arg-type]
    prompt = PromptFactory(words, 1, chat=chat).prompt(n, seed_key="k", needles=plan)
    ids = prompt.ids()
    assert len(ids) == n
    text = tokenizer_of(words).decode(ids)
    assert [text.count(f.text) for f in plan.facts] == [1] * len(plan.facts)
    assert text.count(plan.question) == 1
    assert text.endswith(plan.cue)
    assert prompt.needles == plan.needles


def test_needles_stand_where_they_are_said_to(words: Corpus) -> None:
    tokenizer = tokenizer_of(words)
    for depth in (0.0, 0.25, 0.5, 0.75, 1.0):
        plan = plan_needles("single", [depth], seed=1, key="k")
        ids = PromptFactory(words, 1).prompt(10_000, seed_key="k", needles=plan).ids()
        before = tokenizer.encode(tokenizer.decode(ids).split(plan.facts[0].text)[0])
        assert len(before) / 10_000 == pytest.approx(depth, abs=0.02)


def test_the_nonce_stands_in_the_first_block_under_a_chat_template(words: Corpus) -> None:
    factory = PromptFactory(words, 1)
    plan = plan_needles("single", [0.5], seed=1, key="k")
    one, two = (factory.prompt(1000, seed_key=k, needles=plan) for k in "ab")
    text = tokenizer_of(words).decode(one.ids())
    assert text.startswith("<|im_start|>system\n")
    assert f"{plan.question}<|im_end|>\n<|im_start|>assistant\n{plan.cue}" in text
    first, second = one.ids()[:16], two.ids()[:16]
    assert first != second
    assert one.shared_prefix_tokens < 16
    assert first[: one.shared_prefix_tokens] == second[: one.shared_prefix_tokens]


DATED = (
    "{{ '<|im_start|>' }}system: Cutting Knowledge Date: December 2023, Today Date: {{ strftime_now('%d %b %Y') }}\n"
    "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant: "
)


def test_a_template_that_begins_with_much_text_does_not_push_the_nonce_out_of_the_first_block(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path / "t", template=DATED))
    corpus = ensure_corpus(tokens=5000, cache_dir=tmp_path, tokenizer=tmp_path / "t")
    plan = plan_needles("single", [0.5], seed=1, key="k")
    prompt = PromptFactory(corpus, 1).prompt(1000, seed_key="k", needles=plan)
    ids = prompt.ids()
    assert len(ids) == 1000
    assert prompt.shared_prefix_tokens == 1
    assert ids[0] == tokenizer.token_id("<|im_start|>")
    assert ",".join(map(str, ids[1:17])) == prompt.nonce
    text = tokenizer.decode(ids[17:])
    assert text.startswith("system: Cutting Knowledge Date")
    # The day of the run must not change the prompt.
    assert "2025-01-01" in text


@pytest.mark.parametrize("how", ["config", "post-processor"])
def test_plain_prompts_begin_with_bos_where_the_model_is_used_to_it(tmp_path: Path, how: str) -> None:
    folder = write_tokenizer(tmp_path / "t", template=None)
    if how == "config":
        config = json.loads((folder / "tokenizer_config.json").read_text())
        (folder / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": True}))
    else:
        raw = RawTokenizer.from_file(str(folder / "tokenizer.json"))
        bos = raw.token_to_id("<|im_start|>")
        raw.post_processor = TemplateProcessing(single="<|im_start|> $A", special_tokens=[("<|im_start|>", bos)])
        raw.save(str(folder / "tokenizer.json"))
    corpus = ensure_corpus(tokens=5000, cache_dir=tmp_path, tokenizer=folder)
    plan = plan_needles("single", [0.5], seed=1, key="k")
    prompt = PromptFactory(corpus, 1).prompt(1000, seed_key="k", needles=plan)
    bos_id = tokenizer_of(corpus).token_id("<|im_start|>")
    assert [i for i, token in enumerate(prompt.ids()) if token == bos_id] == [0]
    assert prompt.shared_prefix_tokens == 1
    assert len(prompt.ids()) == 1000


NO_SYSTEM = (
    "{% for m in messages %}{% if m['role'] == 'system' %}{{ raise_exception('no system') }}{% endif %}"
    "[INST] {{ m['content'] }} [/INST]{% endfor %}"
)


def test_templates_without_a_system_role_and_broken_ones(words: Corpus, tmp_path: Path) -> None:
    plan = plan_needles("single", [0.5], seed=1, key="k")
    tokenizer = load_tokenizer(write_tokenizer(tmp_path / "a", template=NO_SYSTEM))
    corpus = ensure_corpus(tokens=5000, cache_dir=tmp_path, tokenizer=tmp_path / "a")
    prompt = PromptFactory(corpus, 1).prompt(1000, seed_key="k", needles=plan)
    assert tokenizer.decode(prompt.ids()).startswith("[INST] ")
    assert len(prompt.ids()) == 1000
    for broken in ("{{ nope.nope.nope }}", "{% if %}", "constant"):
        write_tokenizer(tmp_path / "b", template=broken)
        corpus.tokenizer = load_tokenizer(tmp_path / "b")
        with pytest.raises(UserError, match="chat template"):
            PromptFactory(corpus, 1).prompt(1000, seed_key="k", needles=plan)
        assert len(PromptFactory(corpus, 1, chat=False).prompt(1000, seed_key="k", needles=plan).ids()) == 1000


def test_what_cannot_be_built_is_refused_with_the_numbers(words: Corpus) -> None:
    plan = plan_needles("multi", [0.0, 0.5, 1.0], seed=1, key="k")
    with pytest.raises(UserError, match=r"corpus of 70000 tokens.*at least 99984"):
        PromptFactory(RANDOM, 1).prompt(100_000, seed_key="k")
    with pytest.raises(UserError, match="at least 1"):
        PromptFactory(RANDOM, 1).prompt(0, seed_key="k")
    with pytest.raises(UserError, match="no tokenizer"):
        PromptFactory(RANDOM, 1).prompt(1000, seed_key="k", needles=plan)
    with pytest.raises(UserError, match="no tokenizer"):
        PromptFactory(RANDOM, 1).text_prompt(1000, seed_key="k")
    with pytest.raises(UserError, match="a prompt of 100 tokens") as caught:
        PromptFactory(words, 1).prompt(100, seed_key="k", needles=plan)
    least = int(caught.value.required.split()[2])
    assert len(PromptFactory(words, 1).prompt(least, seed_key="k", needles=plan).ids()) == least
    with pytest.raises(UserError, match="a text prompt of 5 tokens"):
        PromptFactory(words, 1).text_prompt(5, seed_key="k")


@pytest.mark.parametrize("n", [60, 61, 62, 500, 4001, 20_000])
@pytest.mark.parametrize("with_needles", [False, True])
def test_text_is_realigned_to_the_servers_count(words: Corpus, n: int, with_needles: bool) -> None:
    """The server counts a chat template of 23 tokens around the text, which no client can see in the text itself."""
    tokenizer = tokenizer_of(words)

    def count(text: str) -> int:
        return 23 + len(tokenizer.encode(text))

    plan = plan_needles("multi", [0.0, 0.3, 1.0], seed=1, key="k") if with_needles else None
    n += 400 if with_needles else 0
    prompt = PromptFactory(words, 1).text_prompt(n, seed_key="k", count=count, needles=plan)
    assert count(prompt.text) == n
    assert prompt.residual_tokens == 0
    assert prompt.counted_tokens == n
    assert prompt.rounds <= 8
    assert prompt.text.startswith(prompt.nonce)
    if plan:
        assert prompt.text.endswith(plan.question)
        assert all(prompt.text.count(f.text) == 1 for f in plan.facts)


def test_a_counter_that_cannot_be_met_leaves_a_stated_residual(words: Corpus) -> None:
    tokenizer = tokenizer_of(words)
    prompt = PromptFactory(words, 1).text_prompt(501, seed_key="k", count=lambda t: len(tokenizer.encode(t)) // 2 * 2)
    assert abs(prompt.residual_tokens) == 1
    assert prompt.counted_tokens == 501 + prompt.residual_tokens


def test_text_prompts_differ_by_key_and_repeat_by_seed(words: Corpus) -> None:
    factory = PromptFactory(words, 1)
    assert factory.text_prompt(300, seed_key="a") == factory.text_prompt(300, seed_key="a")
    one, two = factory.text_prompt(300, seed_key="a").text, factory.text_prompt(300, seed_key="b").text
    assert one[:16] != two[:16]
