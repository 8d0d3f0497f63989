"""Make the tokenizer of the shipped toy model: a byte-level BPE of 4,096 words, trained on Longhaul's own generated text.

Deterministic; run from the repository's root: ``PYTHONPATH=module_utils .venv/bin/python scripts/dev/make-scout-mini-tokenizer.py``.
"""

from __future__ import annotations

import json
from itertools import islice
from pathlib import Path

from longhaul.prompts.text import generated_chunks
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

OUT = Path(__file__).resolve().parents[2] / "roles/model_store/files/models/scout-mini"


def main() -> None:
    """Train and write."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=4096,
        special_tokens=["<bos>", "<eos>", "<pad>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(islice(generated_chunks(7), 64), trainer)
    tokenizer.save(str(OUT / "tokenizer.json"), pretty=False)
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "<bos>",
        "eos_token": "<eos>",
        "pad_token": "<pad>",
        "model_max_length": 10485760,
        "clean_up_tokenization_spaces": False,
        "chat_template": "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}",
    }
    (OUT / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    print(tokenizer.get_vocab_size(), (OUT / "tokenizer.json").stat().st_size)


if __name__ == "__main__":
    main()
