"""Chat templates: our rendering is transformers' own, for every construct that templates use."""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import pytest
from longhaul.prompts.chat import chat_counter, render_chat
from longhaul.prompts.tokenizer import load_tokenizer
from tiny_tokenizer import CHATML, write_tokenizer

MESSAGES = [{"role": "system", "content": 'Say "yes" & <no>.'}, {"role": "user", "content": "  zw\u00f6lf\nlines  "}]
TEMPLATES = {
    "chatml": CHATML,
    "blocks are trimmed": "{%- for m in messages %}\n    {{- bos_token + m.role }}\n  {%- if loop.last %}\n !{% endif %}\n{% endfor %}\n",
    "tojson": "{{ messages | tojson }}{{ messages[0] | tojson(indent=2) }}{{ messages[0] | tojson(separators=(',', ':')) }}",
    "break": "{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.content }}{% endfor %}{{ eos_token }}",
    "generation": "{% for m in messages %}{% generation %}{{ m.content | trim }}{% endgeneration %}{% endfor %}",
    "tools": "{% if tools is not none %}tools{% endif %}{% if documents %}documents{% endif %}{{ messages[1].content | trim }}",
    "namespace": "{% set ns = namespace(n=0) %}{% for m in messages %}{% set ns.n = ns.n + 1 %}{% endfor %}{{ ns.n }}{{ pad_token }}",
    "macro": "{% macro line(m) %}[{{ m['role'] }}]{{ m['content'] }}{% endmacro %}{% for m in messages %}{{ line(m) }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}",
}


@pytest.mark.parametrize("name", TEMPLATES)
def test_a_template_renders_as_transformers_renders_it(tmp_path: Path, name: str) -> None:
    transformers = pytest.importorskip("transformers")
    folder = write_tokenizer(tmp_path, template=TEMPLATES[name])
    theirs = transformers.PreTrainedTokenizerFast.from_pretrained(str(folder), local_files_only=True)
    expected = theirs.apply_chat_template(MESSAGES, tokenize=False, add_generation_prompt=True)
    tokenizer = load_tokenizer(folder)
    assert render_chat(tokenizer, MESSAGES) == expected
    assert list(tokenizer.encode(expected)) == theirs.encode(expected, add_special_tokens=False)


def test_a_template_cannot_leave_its_sandbox(tmp_path: Path) -> None:
    tokenizer = load_tokenizer(write_tokenizer(tmp_path, template="{{ ''.__class__.__mro__ }}"))
    with pytest.raises(Exception, match="unsafe"):
        render_chat(tokenizer, MESSAGES)


def test_the_default_of_several_named_templates(tmp_path: Path) -> None:
    folder = write_tokenizer(tmp_path, template=None)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config["chat_template"] = [{"name": "tool_use", "template": "tools"}, {"name": "default", "template": CHATML}]
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    assert load_tokenizer(folder).chat_template == CHATML


def test_counting_takes_the_template_in_where_there_is_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = load_tokenizer(write_tokenizer(tmp_path / "plain", template=None))
    assert chat_counter(plain)("some words") == len(plain.encode("some words"))
    broken = load_tokenizer(write_tokenizer(tmp_path / "broken", template="{{ nope.nope.nope }}"))
    assert chat_counter(broken)("some words") == len(broken.encode("some words"))
    chat = load_tokenizer(write_tokenizer(tmp_path / "chat"))
    framed = "<|im_start|>user\nsome words<|im_end|>\n<|im_start|>assistant\n"
    assert chat_counter(chat)("some words") == len(chat.encode(framed))

    real = builtins.__import__

    def without(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.partition(".")[0] == "jinja2":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    other = load_tokenizer(write_tokenizer(tmp_path / "other", template=CHATML + " "))
    assert chat_counter(other)("some words") == len(other.encode("some words")), "a host without Jinja counts the bare text"
