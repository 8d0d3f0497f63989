"""OpenAI-shaped requests and answers, as every engine that we know takes and gives them: usage, streamed events, errors."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from .base import BodyTemplate, EngineAdapter, HttpRequest, ServerInfo, StreamEvent, Usage


def openai_event(event: Mapping[str, Any]) -> StreamEvent:
    """One SSE payload of ``/v1/completions`` or ``/v1/chat/completions``, or an error of any known shape."""
    if event.get("error") is not None or event.get("object") == "error":
        return StreamEvent(error=message_of(event) or json.dumps(event)[:400])
    choices = event.get("choices")
    first: Mapping[str, Any] = choices[0] if isinstance(choices, list) and choices and isinstance(choices[0], Mapping) else {}
    delta = first.get("delta")
    text = first.get("text")
    if text is None and isinstance(delta, Mapping):
        text = delta.get("content")
    told, usage = event.get("usage"), None
    if isinstance(told, Mapping):
        details = told.get("prompt_tokens_details")
        cached = details.get("cached_tokens") if isinstance(details, Mapping) else None
        usage = Usage(told.get("prompt_tokens"), told.get("completion_tokens"), cached)
    reason = first.get("finish_reason")
    token = _carries_token(first, has_usage=usage is not None)
    return StreamEvent(str(text or ""), usage, None if reason is None else str(reason), token=token)


def _carries_token(choice: Mapping[str, Any], *, has_usage: bool) -> bool:
    """Whether an entry of ``choices`` is a token, with text or without. A chat stream opens with a role, which is none."""
    if "text" in choice:
        return choice["text"] is not None and not (choice["text"] == "" and choice.get("finish_reason") and has_usage)
    delta = choice.get("delta") or {}
    if "role" in delta and not delta.get("content"):
        return False
    return bool(delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning"))


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


class OpenAiEngine(EngineAdapter):
    """An engine with the OpenAI routes, ``/health``, ``/metrics`` and ``/version``; the rest is the adapter's own.

    ``takes_cache_salt``: a request's ``cache_salt`` keeps its prompt's blocks apart from every other prompt's in the prefix cache.
    """

    health_path: str = "/health"
    models_path: str = "/v1/models"
    metrics_path: str = "/metrics"
    info_paths: Sequence[str] = ("/version",)
    takes_cache_salt: bool = False

    def _greedy(self, model: str, output_tokens: int, cache_salt: str | None) -> dict[str, Any]:
        exact = {"max_tokens": output_tokens, "min_tokens": output_tokens, "ignore_eos": True, "temperature": 0}
        salt = {"cache_salt": cache_salt} if cache_salt and self.takes_cache_salt else {}
        return {"model": model, **exact, "stream": True, "stream_options": {"include_usage": True}, **salt}

    def generate_ids(self, model: str, output_tokens: int, *, cache_salt: str | None = None) -> BodyTemplate:
        """A streamed ``/v1/completions`` request; the prompt's JSON array goes between ``head`` and ``tail``."""
        text = json.dumps(self._greedy(model, output_tokens, cache_salt), separators=(",", ":"))
        return BodyTemplate("/v1/completions", b'{"prompt":', b"," + text[1:].encode())

    def chat(self, model: str, text: str, output_tokens: int, *, cache_salt: str | None = None) -> HttpRequest:
        """A streamed ``/v1/chat/completions`` request with one message of a person."""
        body = self._greedy(model, output_tokens, cache_salt) | {"messages": [{"role": "user", "content": text}]}
        return HttpRequest("POST", "/v1/chat/completions", body)

    def count_tokens(self, model: str, text: str) -> HttpRequest:
        """``POST /tokenize``."""
        body = {"model": model, "messages": [{"role": "user", "content": text}], "add_generation_prompt": True}
        return HttpRequest("POST", "/tokenize", body)

    def parse_count(self, answer: Any) -> int | None:
        """``count`` of its answer."""
        count = answer.get("count") if isinstance(answer, Mapping) else None
        return count if isinstance(count, int) else None

    def parse_event(self, event: Mapping[str, Any], text_so_far: str) -> StreamEvent:
        """One SSE payload of ``/v1/completions`` or ``/v1/chat/completions``; texts come as pieces."""
        return openai_event(event)

    def error_message(self, status: int, body: bytes) -> str:
        """The server's own words in an HTTP error body; else the start of the body; else the status. Never empty."""
        try:
            data: object = json.loads(body)
        except ValueError:
            data = None
        return message_of(data) or body[:400].decode("utf-8", "replace").strip() or f"HTTP {status} with an empty body"

    def parse_info(self, answer: Any) -> ServerInfo:
        """``/version`` -> the version, where the answer holds one."""
        version = answer.get("version") if isinstance(answer, Mapping) else None
        return ServerInfo() if version is None else ServerInfo(str(version), details={"version": version})
