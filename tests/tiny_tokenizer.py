"""A small real tokenizer for tests: BPE trained on the spot, ChatML template, special tokens as SmolLM2 has them."""

from __future__ import annotations

import json
from pathlib import Path

from longhaul.prompts.text import generated_chunks
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
CHATML = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def write_tokenizer(folder: Path, *, vocab: int = 1200, template: str | None = CHATML, byte_level_only: bool = False) -> Path:
    """Train (0.2 s) and save tokenizer.json and tokenizer_config.json in ``folder``."""
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    size = len(alphabet) + len(SPECIAL) if byte_level_only else vocab
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=alphabet,
        special_tokens=[AddedToken(s, special=True) for s in SPECIAL],
        show_progress=False,
    )
    raw.train_from_iterator([next(generated_chunks(7))], trainer)
    folder.mkdir(parents=True, exist_ok=True)
    raw.save(str(folder / "tokenizer.json"))
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"} | ({"chat_template": template} if template else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def without_tokenizer_json(folder: Path, tokenizer_class: str = "Qwen2Tokenizer") -> Path:
    """Turn the tokenizer in ``folder`` into vocabulary and merges, as older releases of GPT-2 and Qwen have it."""
    raw = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))["model"]
    (folder / "vocab.json").write_text(json.dumps(raw["vocab"]), encoding="utf-8")
    merges = "\n".join(m if isinstance(m, str) else " ".join(m) for m in raw["merges"])
    (folder / "merges.txt").write_text(f"#version: 0.2\n{merges}\n", encoding="utf-8")
    (folder / "tokenizer.json").unlink()
    config = json.loads((folder / "tokenizer_config.json").read_text(encoding="utf-8"))
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "tokenizer_class": tokenizer_class}), encoding="utf-8")
    return folder
