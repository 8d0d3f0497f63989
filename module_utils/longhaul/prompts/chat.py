"""What stands around the text of a prompt: the words of a chat template, or a plain instruction and question.

Templates are rendered as transformers does. Hosts have Jinja and no transformers, so the rendering is our own; a test holds it
against ``apply_chat_template``.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import TYPE_CHECKING, Any

from ..errors import UserError
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from jinja2 import Template

_NAMED_TOKENS = ("bos_token", "eos_token", "unk_token", "pad_token")
_LATEST_NONCE = 8
"""At most so many tokens stand before the nonce, so that half of it lies in the first block of 16."""
_NONCE_MARK, _BODY_MARK, _QUESTION_MARK = "\ue000nonce\ue001", "\ue000text\ue001", "\ue000question\ue001"
_INSTRUCTION = "A long text follows. It hides some facts. Read it, then answer the question that stands at its end."


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

    env = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[Generation, loopcontrols])
    env.filters["tojson"] = partial(json.dumps, ensure_ascii=False)
    env.globals["raise_exception"] = fail
    # A fixed date: the prompt must not depend on the day of the run.
    env.globals["strftime_now"] = lambda _format: "2025-01-01"
    return env.from_string(source)


@dataclass(frozen=True)
class Frame:
    """Ids around the text: before the nonce, between nonce and text, between text and question, after the question."""

    head: tuple[int, ...]
    intro: tuple[int, ...]
    before_question: tuple[int, ...]
    tail: tuple[int, ...]


def plain_frame(tokenizer: Tokenizer) -> Frame:
    """Frame for a base model or a tokenizer without a chat template: BOS (where the model is used to it), text, question."""
    head = (tokenizer.bos_id,) if tokenizer.adds_bos and tokenizer.bos_id is not None else ()
    words = (f"\n\n{_INSTRUCTION}\n\n", "\n\nQuestion: ", "\nAnswer: ")
    return Frame(head, *(tokenizer.encode(text) for text in words))


def chat_frame(tokenizer: Tokenizer) -> Frame:
    """Frame by the tokenizer's chat template. The nonce stands in the system message, or before everything but BOS.

    Templates that know no system role get all in the user message. Raises UserError where the template cannot be used.
    """
    user = f"{_BODY_MARK}\n\n{_QUESTION_MARK}"
    system = {"role": "system", "content": f"{_NONCE_MARK}\n{_INSTRUCTION}"}
    alone = {"role": "user", "content": f"{_NONCE_MARK}\n{_INSTRUCTION}\n\n{user}"}
    problem = "it drops the message"
    for messages in ([system, {"role": "user", "content": user}], [alone]):
        try:
            rendered = render_chat(tokenizer, messages)
        except Exception as exc:  # whatever a template author raises
            problem = str(exc)
            continue
        if all(rendered.count(m) == 1 for m in (_NONCE_MARK, _BODY_MARK, _QUESTION_MARK)):
            break
    else:
        found, fix = (
            f"a chat template that cannot be rendered ({problem})",
            "correct the template beside the tokenizer, or run without needles",
        )
        raise UserError(found, "a usable template", fix)
    head, rest = rendered.split(_NONCE_MARK)
    intro, rest = rest.split(_BODY_MARK)
    before, tail = rest.split(_QUESTION_MARK)
    frame = Frame(*(tokenizer.encode(part) for part in (head, intro, before, tail)))
    if len(frame.head) <= _LATEST_NONCE:
        return frame
    # A template with much before the message (Llama 3: dates) would fill the first cache block alike for every prompt:
    # then the nonce goes before all of it, after BOS.
    keep = 1 if frame.head[0] == tokenizer.bos_id else 0
    return Frame(frame.head[:keep], frame.head[keep:] + frame.intro, frame.before_question, frame.tail)
