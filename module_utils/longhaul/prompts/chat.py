"""Chat templates: messages as the text that the model sees, rendered as transformers does.

Hosts have Jinja and no transformers, so the rendering is our own; a test holds it against ``apply_chat_template``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from typing import TYPE_CHECKING, Any

from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from jinja2 import Template

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")


def render_chat(tokenizer: Tokenizer, messages: Sequence[Mapping[str, str]]) -> str:
    """Messages -> text by the tokenizer's chat template, ending where the assistant begins to speak.

    Raises what jinja2 or the template raises: a template is code of its author.
    """
    names: dict[str, Any] = {}
    for name in _NAMED_TOKENS:
        value = tokenizer.config.get(name)
        names[name] = value.get("content", "") if isinstance(value, dict) else value or ""
    template = _compiled(tokenizer.chat_template or "")
    return template.render(messages=messages, tools=None, documents=None, add_generation_prompt=True, **names)


def chat_counter(tokenizer: Tokenizer) -> Callable[[str], int]:
    """text -> tokens of a request with ``text`` as its only user message, by our own count.

    The chat template counts too where there is one that can be rendered; without one, the bare text is counted.
    """
    try:
        render_chat(tokenizer, [{"role": "user", "content": "text"}])
        has_template = bool(tokenizer.chat_template)
    except Exception:  # no Jinja here, or whatever a template author raises
        has_template = False
    if not has_template:
        return lambda text: len(tokenizer.encode(text))
    return lambda text: len(tokenizer.encode(render_chat(tokenizer, [{"role": "user", "content": text}])))


@lru_cache(maxsize=8)
def _compiled(source: str) -> Template:
    """A template in the environment that transformers gives it: sandboxed, blocks trimmed, its filters and functions."""
    import jinja2
    from jinja2.ext import Extension, loopcontrols
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    class Generation(Extension):
        """``{% generation %}`` marks the assistant's words for training; what stands inside is plain text here."""

        tags = {"generation"}  # noqa: RUF012 - as jinja2 declares it

        def parse(self, parser: jinja2.parser.Parser) -> list[jinja2.nodes.Node]:
            next(parser.stream)
            return parser.parse_statements(("name:endgeneration",), drop_needle=True)

    def fail(message: str) -> str:
        raise jinja2.TemplateError(message)

    def tojson(value: Any, ensure_ascii: bool = False, **style: Any) -> str:
        return json.dumps(value, ensure_ascii=ensure_ascii, **style)

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    env.filters["tojson"] = tojson
    env.globals["raise_exception"] = fail
    # A fixed date: the prompt must not depend on the day of the run.
    env.globals["strftime_now"] = lambda _format: "2025-01-01"
    return env.from_string(source)
