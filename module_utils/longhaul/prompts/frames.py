"""What stands around the text of a prompt: the chat template's words, or a plain instruction and question."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UserError
from .chat import render_chat
from .tokenizer import Tokenizer

LATEST_NONCE = 8
"""At most so many tokens stand before the nonce, so that half of it lies in the first block of 16."""
_NONCE_MARK, _BODY_MARK, _QUESTION_MARK = "\ue000nonce\ue001", "\ue000text\ue001", "\ue000question\ue001"
_INSTRUCTION = "A long text follows. It hides some facts. Read it, then answer the question that stands at its end."


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
    return Frame(
        head, tokenizer.encode(f"\n\n{_INSTRUCTION}\n\n"), tokenizer.encode("\n\nQuestion: "), tokenizer.encode("\nAnswer: ")
    )


def chat_frame(tokenizer: Tokenizer) -> Frame:
    """Frame by the tokenizer's chat template. The nonce stands in the system message, or before everything but BOS.

    Templates that know no system role get all in the user message. Raises UserError where the template cannot be used.
    """
    user = f"{_BODY_MARK}\n\n{_QUESTION_MARK}"
    system = {"role": "system", "content": f"{_NONCE_MARK}\n{_INSTRUCTION}"}
    tries = [
        [system, {"role": "user", "content": user}],
        [{"role": "user", "content": f"{_NONCE_MARK}\n{_INSTRUCTION}\n\n{user}"}],
    ]
    rendered = ""
    problem: Exception | None = None
    for messages in tries:
        try:
            rendered = render_chat(tokenizer, messages)
        except Exception as exc:  # whatever a template author raises
            problem = exc
            continue
        if all(rendered.count(m) == 1 for m in (_NONCE_MARK, _BODY_MARK, _QUESTION_MARK)):
            break
    else:
        raise UserError(
            f"a chat template that cannot be rendered ({problem or 'it drops the message'})",
            "a usable template",
            "correct the template beside the tokenizer, or run without needles",
        )
    head, rest = rendered.split(_NONCE_MARK)
    intro, rest = rest.split(_BODY_MARK)
    before, tail = rest.split(_QUESTION_MARK)
    frame = Frame(*(tokenizer.encode(part) for part in (head, intro, before, tail)))
    if len(frame.head) <= LATEST_NONCE:
        return frame
    # A template with much before the message (Llama 3: dates) would fill the first cache block alike for every prompt:
    # then the nonce goes before all of it, after BOS.
    keep = 1 if frame.head[0] == tokenizer.bos_id else 0
    return Frame(frame.head[:keep], frame.head[keep:] + frame.intro, frame.before_question, frame.tail)
