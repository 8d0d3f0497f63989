"""OpenAI-shaped JSON, as every engine that we know answers it: usage, streamed events, errors."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from .base import StreamEvent, Usage


def openai_usage(usage: Mapping[str, Any]) -> Usage:
    """``usage`` of the OpenAI routes; ``cached_tokens`` is ``None`` where the server says nothing."""
    details = usage.get("prompt_tokens_details")
    cached = details.get("cached_tokens") if isinstance(details, Mapping) else None
    return Usage(usage.get("prompt_tokens"), usage.get("completion_tokens"), cached)


def openai_event(event: Mapping[str, Any]) -> StreamEvent:
    """One SSE payload of ``/v1/completions`` or ``/v1/chat/completions``."""
    choices = event.get("choices")
    first: Mapping[str, Any] = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], Mapping) else {}
    delta = first.get("delta")
    text = first.get("text")
    if text is None and isinstance(delta, Mapping):
        text = delta.get("content")
    usage = event.get("usage")
    reason = first.get("finish_reason")
    return StreamEvent(
        text=str(text or ""),
        usage=openai_usage(usage) if isinstance(usage, Mapping) else None,
        finish_reason=None if reason is None else str(reason),
    )


def message_of(data: object) -> str | None:
    """The human sentence inside an error object of any known shape, or ``None``.

    Shapes: ``{"error": {"message"}}`` (vLLM, SGLang /generate), ``{"error": "text"}`` (authentication),
    ``{"object": "error", "message"}`` (SGLang OpenAI routes), ``{"detail": "text" | [{"msg", "loc"}]}`` (FastAPI).
    """
    if isinstance(data, str):
        return data.strip() or None
    if isinstance(data, list):
        found = [m for m in map(message_of, data) if m]
        return "; ".join(found) or None
    if not isinstance(data, Mapping):
        return None
    for key in ("error", "message", "detail", "msg"):
        if key in data and (inner := message_of(data[key])):
            place = data.get("loc")
            if key == "msg" and isinstance(place, list):
                return f"{'.'.join(map(str, place))}: {inner}"
            return inner
    return None


def error_message(status: int, body: bytes) -> str:
    """The server's own words in an HTTP error body; else the start of the body; else the status. Never empty."""
    try:
        data: object = json.loads(body)
    except ValueError:
        data = None
    return message_of(data) or body[:400].decode("utf-8", "replace").strip() or f"HTTP {status} with an empty body"
