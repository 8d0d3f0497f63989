"""Models without a tokenizer.json: transformers makes one, once, and it reads text as the model's own files do."""

from __future__ import annotations

import io
import json
import sys
from pathlib import Path

import pytest
from longhaul.cli import main
from longhaul.errors import UserError
from longhaul.prompts import convert
from longhaul.prompts.build import ensure_corpus
from longhaul.prompts.convert import converted, has_tokenizer, vocabulary_files
from longhaul.prompts.text import generated_chunks
from longhaul.prompts.tokenizer import load_tokenizer
from tiny_tokenizer import CHATML, SPECIAL, without_tokenizer_json, write_tokenizer

TEXT = f"The river runs. {SPECIAL[1]}hello 12,345 zw\u00f6lf"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return without_tokenizer_json(write_tokenizer(tmp_path_factory.mktemp("model")))


def test_vocabulary_and_merges_give_the_same_ids_as_the_tokenizer_json(model: Path, tmp_path: Path) -> None:
    assert [f.name for f in vocabulary_files(model)] == ["vocab.json"]
    assert has_tokenizer(model)
    same = load_tokenizer(write_tokenizer(tmp_path / "whole"))
    made = load_tokenizer(model, tmp_path / "cache")
    assert made.encode(TEXT) == same.encode(TEXT)
    assert made.decode(made.encode(TEXT)) == TEXT
    assert made.chat_template == CHATML
    assert made.bos_id == same.bos_id
    assert not (model / "tokenizer.json").exists(), "the model's folder stays as it is"


def test_it_is_converted_once_for_each_content(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = converted(model, tmp_path)
    made_at = (first / "tokenizer.json").stat().st_mtime_ns
    monkeypatch.setattr(convert, "_load", lambda *_: pytest.fail("converted again"))
    assert converted(model, tmp_path) == first
    assert (first / "tokenizer.json").stat().st_mtime_ns == made_at
    assert [f.name for f in (tmp_path / "tokenizers").iterdir()] == [first.name], "nothing half-made is left"


def test_prompts_of_such_a_model_are_cut_from_its_tokens(model: Path, tmp_path: Path) -> None:
    corpus = ensure_corpus(tokens=3000, cache_dir=tmp_path, tokenizer=model)
    assert corpus.tokenizer is not None
    assert corpus.tokenizer.token_id(SPECIAL[0]) is not None
    assert corpus.n_tokens == 3000


def test_a_sentencepiece_model_is_read_as_its_own_library_reads_it(tmp_path: Path) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="in requirements.txt; this environment is older")
    pytest.importorskip("google.protobuf", reason="in requirements.txt; this environment is older")
    folder = tmp_path / "llama"
    folder.mkdir()
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(next(generated_chunks(7)).split(". ")), model_writer=written,
        vocab_size=1200, model_type="bpe", byte_fallback=True, minloglevel=2,
    )  # fmt: skip
    (folder / "tokenizer.model").write_bytes(written.getvalue())
    config = {"tokenizer_class": "LlamaTokenizer", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "add_bos_token": True, "legacy": False}))
    own = sentencepiece.SentencePieceProcessor(model_proto=written.getvalue())
    made = load_tokenizer(folder, tmp_path)
    for text in ("The river runs", "12 zw\u00f6lf, and quiet"):
        assert list(made.encode(text)) == own.encode(text)
    assert made.adds_bos


def test_without_any_tokenizer_file_one_line_names_what_would_do(tmp_path: Path) -> None:
    (tmp_path / "model.safetensors").touch()
    assert not has_tokenizer(tmp_path)
    with pytest.raises(UserError, match=r"no tokenizer in .*tokenizer\.json, or files to make it from"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("tokenizer_class", ["NoSuchTokenizer", None])
def test_what_transformers_cannot_read_is_said_in_one_line(tmp_path: Path, tokenizer_class: str | None) -> None:
    folder = tmp_path / "m"
    folder.mkdir()
    (folder / "tiktoken.model").write_bytes(b"\x00\x01 not a vocabulary")
    if tokenizer_class:
        # Code of the model's author would have to run: it never does.
        config = {"tokenizer_class": tokenizer_class, "auto_map": {"AutoTokenizer": ["tokenization_x.XTokenizer", None]}}
        (folder / "tokenizer_config.json").write_text(json.dumps(config))
        (folder / "tokenization_x.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    with pytest.raises(UserError, match=r"none can be made from tiktoken\.model") as caught:
        load_tokenizer(folder, tmp_path / "cache")
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "ran").exists()
    assert not list((tmp_path / "cache" / "tokenizers").iterdir())


def test_a_host_without_transformers_is_told_what_to_do(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convert, "can_convert", lambda: False)
    assert not has_tokenizer(model)
    with pytest.raises(UserError, match=r"without transformers .*fix: run 'scripts/longhaul corpus tokenizer DIR'"):
        load_tokenizer(model, tmp_path)


def test_a_cache_that_cannot_be_written_is_named(model: Path, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be written"):
        converted(model, tmp_path / "file")


def test_the_command_line_makes_one(model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    assert main(["corpus", "tokenizer", str(model), "--cache-dir", str(tmp_path), "--out", str(out)]) == 0
    assert capsys.readouterr().out.strip() == str(out / "tokenizer.json")
    assert load_tokenizer(out).encode(TEXT) == load_tokenizer(model, tmp_path).encode(TEXT)
    assert main(["corpus", "tokenizer", str(out)]) == 0
    assert "has a tokenizer.json" in capsys.readouterr().out


def test_reading_a_tokenizer_json_does_not_import_transformers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "transformers", None)  # an import of it would fail
    assert load_tokenizer(write_tokenizer(tmp_path)).encode(TEXT)
