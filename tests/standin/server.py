"""The stand-in's HTTP server: one process, one event loop, an exact schedule for every stream."""

from __future__ import annotations

import asyncio
import collections
import json
import os
import re
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from . import start
from .answers import FILLER, Decoder, answer_numbers
from .cache import PrefixCache, Prompt, from_ids_text, from_words
from .options import Options, parse

_GENERATE_PATHS = ("/v1/completions", "/v1/chat/completions", "/generate")
_IDS_KEYS = {"/v1/completions": b'"prompt":', "/generate": b'"input_ids":'}


class State:
    """Counters, the cache and the queue, shared by all connections."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.cache = PrefixCache()
        self.requests = 0
        self.prompt_tokens = 0
        self.generation_tokens = 0
        self.queries = 0
        self.hits = 0
        self.finished = 0
        self.aborted = 0
        self.preemptions = 0
        self.queue_time_s = 0.0
        self.queue_times = 0
        self.running: set[Stream] = set()
        self.last_running = 0
        self.waiting: collections.deque[Stream] = collections.deque()
        self.prefill_free_at = 0.0
        self.decoder = Decoder(options.tokenizer_json) if options.tokenizer_json else None
        self.truth = Path(options.truth_log).open("a", encoding="utf-8") if options.truth_log else None  # noqa: SIM115 - to the end

    @property
    def used_tokens(self) -> int:
        return sum(s.reserved for s in self.running)

    def admit(self) -> None:
        """Start waiting requests, first come first served, while slots and KV last."""
        while self.waiting:
            stream = self.waiting[0]
            if len(self.running) >= self.options.max_running:
                return
            if self.running and self.used_tokens + stream.reserved > self.options.kv_tokens:
                return
            self.waiting.popleft()
            self.running.add(stream)
            self.last_running = len(self.running)
            stream.begin()

    def shown_running(self) -> int:
        """SGLang's gauge: what ran when a prompt last came in, also when nothing runs any more."""
        return self.last_running

    @property
    def foreign_running(self) -> int:
        """Another client's request, in flight whenever ours are (the counters see it when it is over)."""
        return 1 if self.options.foreign_every and self.running else 0

    def foreign(self) -> None:
        """Another client was served."""
        tokens = self.options.foreign_tokens
        self.prompt_tokens += tokens
        self.queries += tokens
        self.generation_tokens += 50
        self.finished += 1


class Stream:
    """One generation: its schedule and its faults."""

    def __init__(self, connection: Connection, path: str, body: dict[str, Any], prompt: Prompt, received_at: float) -> None:
        state = connection.state
        options = state.options
        state.requests += 1
        self.connection, self.state, self.path, self.prompt = connection, state, path, prompt
        self.received_at = received_at
        sampling = body.get("sampling_params") or {}
        self.max_tokens = int(sampling.get("max_new_tokens", body.get("max_completion_tokens", body.get("max_tokens", 16))))
        self.include_usage = bool((body.get("stream_options") or {}).get("include_usage")) or path == "/generate"
        self.chat = path == "/v1/chat/completions"
        self.faulty = (
            options.fault_min_input <= prompt.n_tokens <= options.fault_max_input and state.requests >= options.fault_from
        )
        self.reserved = prompt.n_tokens + self.max_tokens
        self.number = state.requests
        self.sent = 0
        self.first_at = 0.0
        self.last_at = 0.0
        self.cached = 0
        self.text = ""
        self.handle: asyncio.TimerHandle | None = None
        self.due = 0.0
        self.pieces = self._pieces(body)
        if options.preempt_every and self.number % options.preempt_every == 0:
            state.preemptions += 1

    def _pieces(self, body: dict[str, Any]) -> list[str] | None:
        answer = ""
        if self.state.decoder is not None and self.prompt.ids is not None:
            how = self.state.options.needles if self.faulty else "right"
            answer = answer_numbers(self.state.decoder.text(self.prompt.ids), how)
        if not answer:
            return None
        words = re.findall(r"\s*\S+", answer)[: self.max_tokens]
        return words + [FILLER] * (self.max_tokens - len(words))

    def begin(self) -> None:
        """A slot is free: the prefill starts now."""
        options, state = self.state.options, self.state
        loop = asyncio.get_running_loop()
        if options.cache:
            self.cached = state.cache.cached_tokens(self.prompt)
            state.cache.add(self.prompt)
        computed = self.prompt.n_tokens - self.cached
        prefill = options.ttft_s + (computed / options.prefill_rate if options.prefill_rate else 0.0)
        prefill += options.quadratic_s * (computed / 1e6) ** 2
        prefill *= 1 + options.jitter * ((self.number * 7919) % 101) / 100
        if options.too_fast and self.faulty:
            prefill = 0.001
        begins = max(self.received_at, loop.time() if self.sent else self.received_at)
        if state.running and len(state.running) > 1 and options.serial_prefill:
            begins = max(begins, state.prefill_free_at)
        if self.queued:
            begins = max(begins, loop.time())
        state.queue_time_s += max(0.0, begins - self.received_at)
        state.queue_times += 1
        self.due = begins + prefill
        state.prefill_free_at = self.due
        self.handle = loop.call_at(self.due, self._token)

    queued = False
    plain = b""

    def cancel(self) -> None:
        """The client went away."""
        if self.handle is not None:
            self.handle.cancel()
        if self in self.state.running:
            asyncio.get_running_loop().call_later(self.state.options.linger, self._drop)
        elif self in self.state.waiting:
            self.state.waiting.remove(self)

    def _drop(self) -> None:
        self.state.running.discard(self)
        self.state.aborted += 1
        self.state.admit()

    # -- the stream itself

    def _token(self) -> None:
        options = self.state.options
        loop = asyncio.get_running_loop()
        if self.sent == 0:
            self._first(loop.time())
        if self.faulty and self._fault():
            return
        piece = self.pieces[self.sent] if self.pieces is not None else FILLER
        self.sent += 1
        self.state.generation_tokens += 1
        last = self.sent >= self.max_tokens
        self.connection.write_chunk(self._event(piece, last))
        if last:
            self._end(loop.time())
            return
        self.due += options.gap_s
        self.handle = loop.call_at(self.due, self._token)

    def _first(self, now: float) -> None:
        state = self.state
        self.first_at = now
        state.prompt_tokens += self.prompt.n_tokens
        if state.options.cache:
            state.queries += self.prompt.n_tokens
            if state.options.cache_silent != "all":
                state.hits += self.cached
        self.connection.write_head(200, "text/event-stream", chunked=True)

    def _fault(self) -> bool:
        options, connection = self.state.options, self.connection
        if options.die_after is not None and self.sent >= options.die_after:
            if options.die_saying is not None:
                print(Path(options.die_saying).read_text(encoding="utf-8"), end="", flush=True)
            os._exit(137)
        if options.stall_after is not None and self.sent >= options.stall_after:
            return True
        if options.close_after is not None and self.sent >= options.close_after:
            connection.drop()
            return True
        if options.broken_sse_after is not None and self.sent >= options.broken_sse_after:
            connection.write_chunk(b'data: {"id":"cmpl-1","choices":[{"te\n\n')
            connection.drop_gently()
            return True
        if options.error_after is not None and self.sent >= options.error_after:
            error = {
                "error": {"message": "EngineCore encountered an issue (stand-in)", "type": "InternalServerError", "code": 500}
            }
            connection.write_chunk(b"data: " + json.dumps(error).encode() + b"\n\n")
            connection.write_chunk(b"data: [DONE]\n\n")
            connection.finish_chunks()
            self._leave()
            return True
        return False

    def _usage(self) -> dict[str, Any]:
        options = self.state.options
        prompt, completion, cached = self.prompt.n_tokens, self.sent, self.cached
        if self.faulty:
            prompt += options.miscount_prompt
            completion += options.miscount_completion
            cached = 0 if options.cache_silent else cached
        usage: dict[str, Any] = {"prompt_tokens": prompt, "total_tokens": prompt + completion, "completion_tokens": completion}
        details = options.usage_details and (options.engine == "vllm" or cached > 0)
        usage["prompt_tokens_details"] = {"cached_tokens": cached} if details else None
        return usage

    def _event(self, piece: str, last: bool) -> bytes:
        options = self.state.options
        reason = "length" if last else None
        if self.path == "/generate":
            self.text += piece
            usage = self._usage()
            meta: dict[str, Any] = {
                "id": f"{self.number}",
                "finish_reason": {"type": "length", "length": self.max_tokens} if last else None,
            }
            if not (options.drop_usage and self.faulty):
                meta |= {"prompt_tokens": usage["prompt_tokens"], "completion_tokens": usage["completion_tokens"]}
                if options.usage_details:
                    meta["cached_tokens"] = (usage["prompt_tokens_details"] or {}).get("cached_tokens", 0)
            return b"data: " + json.dumps({"text": self.text, "meta_info": meta}, separators=(",", ":")).encode() + b"\n\n"
        if piece == FILLER and not last and self.plain:
            return self.plain  # 20,000 events a second: serialise the common one once
        if self.chat:
            choice = f'{{"index":0,"delta":{{"content":{json.dumps(piece)}}},"finish_reason":{json.dumps(reason)}}}'
            kind = "chat.completion.chunk"
        else:
            rest = f'"logprobs":null,"finish_reason":{json.dumps(reason)},"stop_reason":null'
            choice = f'{{"index":0,"text":{json.dumps(piece)},{rest}}}'
            kind = "text_completion"
        head = f'data: {{"id":"cmpl-{self.number}","object":"{kind}","created":0,"model":{json.dumps(options.served_name)},'
        event = f'{head}"choices":[{choice}]}}\n\n'
        if self.chat and self.sent == 1:
            event = (
                f'{head}"choices":[{{"index":0,"delta":{{"role":"assistant","content":""}},"finish_reason":null}}]}}\n\n{event}'
            )
        if last and self.include_usage and not (options.drop_usage and self.faulty):
            event += f'{head}"choices":[],"usage":{json.dumps(self._usage())}}}\n\n'
        encoded = event.encode()
        if piece == FILLER and not last and not (self.chat and self.sent == 1):
            self.plain = encoded
        return encoded

    def _end(self, now: float) -> None:
        self.last_at = now
        self.connection.write_chunk(b"data: [DONE]\n\n")
        self.connection.finish_chunks()
        if self.state.truth is not None:
            line = {
                "n": self.number,
                "prompt_tokens": self.prompt.n_tokens,
                "ttft_s": self.first_at - self.connection.request_began_at,
                "ttft_after_body_s": self.first_at - self.received_at,
                "upload_s": self.received_at - self.connection.request_began_at,
                "e2e_s": now - self.connection.request_began_at,
                "tokens": self.sent,
                "cached": self.cached,
            }
            self.state.truth.write(json.dumps(line) + "\n")
            self.state.truth.flush()
        self._leave()

    def _leave(self) -> None:
        self.state.finished += 1
        self.state.running.discard(self)
        self.connection.stream = None
        self.state.admit()


class Connection(asyncio.Protocol):
    """HTTP/1.1, one request after another (no pipelining)."""

    def __init__(self, state: State) -> None:
        self.state = state
        self.transport: asyncio.Transport = None  # type: ignore[assignment]
        self.buffer = bytearray()
        self.head: tuple[str, str, dict[str, str]] | None = None
        self.need = 0
        self.stream: Stream | None = None
        self.request_began_at = 0.0
        self.pending_head = b""
        self.discarding = False

    @property
    def options(self) -> Options:
        return self.state.options

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = transport  # type: ignore[assignment]

    def connection_lost(self, exc: Exception | None) -> None:
        if self.stream is not None:
            self.stream.cancel()
            self.stream = None

    def data_received(self, data: bytes) -> None:
        if self.discarding:
            return
        if not self.buffer and self.head is None:
            self.request_began_at = asyncio.get_running_loop().time()
        self.buffer += data
        while True:
            if self.head is None:
                end = self.buffer.find(b"\r\n\r\n")
                if end < 0:
                    return
                lines = bytes(self.buffer[:end]).decode("latin-1").split("\r\n")
                del self.buffer[: end + 4]
                method, path, _ = lines[0].split(" ", 2)
                headers = {k.lower(): v.strip() for k, _, v in (line.partition(":") for line in lines[1:])}
                self.head = (method, re.sub(r"^https?://[^/]+", "", path).split("?")[0], headers)
                self.need = int(headers.get("content-length", 0))
                limit = self.options.reject_over
                if limit is not None and self.need > limit:
                    self.discarding = True
                    self.respond(
                        413, {"detail": "Request Entity Too Large"}, text="<html><h1>413 Request Entity Too Large</h1></html>"
                    )
                    self.drop_gently()
                    return
            if len(self.buffer) < self.need:
                return
            body, head = self.buffer, self.head
            if len(body) > self.need:
                body, self.buffer = bytearray(body[: self.need]), bytearray(body[self.need :])
            else:
                self.buffer = bytearray()
            self.head = None
            self.handle(*head, body)
            if not self.buffer:
                return

    # -- writing

    def write_head(self, status: int, kind: str, *, chunked: bool = False, length: int = 0) -> None:
        phrase = {200: "OK", 400: "Bad Request", 401: "Unauthorized", 404: "Not Found", 413: "Content Too Large"}.get(
            status, "Status"
        )
        size = "transfer-encoding: chunked" if chunked else f"content-length: {length}"
        server = "nginx" if status == 413 else "uvicorn"
        self.pending_head = f"HTTP/1.1 {status} {phrase}\r\nserver: {server}\r\ncontent-type: {kind}\r\n{size}\r\n\r\n".encode()

    def write_chunk(self, data: bytes) -> None:
        head, self.pending_head = self.pending_head, b""
        self.transport.write(head + b"%x\r\n" % len(data) + data + b"\r\n")

    def finish_chunks(self) -> None:
        self.transport.write(b"0\r\n\r\n")

    def respond(self, status: int, value: object = None, *, text: str | None = None) -> None:
        data = text.encode() if text is not None else json.dumps(value).encode()
        kind = "application/json" if text is None else "text/html" if text.startswith("<") else "text/plain; version=0.0.4"
        self.write_head(status, kind, length=len(data))
        head, self.pending_head = self.pending_head, b""
        self.transport.write(head + data)

    def drop(self) -> None:
        """Close at once, the way a dying peer does."""
        if self.stream is not None:
            self.state.running.discard(self.stream)
            self.stream = None
        self.transport.abort()

    def drop_gently(self) -> None:
        """Close once everything is written."""
        if self.stream is not None:
            self.state.running.discard(self.stream)
            self.stream = None
        self.transport.close()

    def error(self, path: str, status: int, message: str) -> None:
        """An error in the engine's own shape."""
        kind = "BadRequestError" if status == 400 else "InternalServerError"
        if self.options.engine == "vllm":
            self.respond(status, {"error": {"message": message, "type": kind, "param": None, "code": status}})
        elif path == "/generate":
            self.respond(status, {"error": {"message": message}})
        else:
            self.respond(status, {"object": "error", "message": message, "type": kind, "param": None, "code": status})

    # -- routes

    def handle(self, method: str, path: str, headers: dict[str, str], body: bytearray) -> None:
        options = self.options
        guarded = path.startswith("/v1") if options.engine == "vllm" else not path.startswith(("/health", "/metrics"))
        if options.api_key and guarded and headers.get("authorization") != f"Bearer {options.api_key}":
            self.respond(401, {"error": "Unauthorized"})
            return
        if method == "POST" and path in _GENERATE_PATHS:
            self.generate(path, body)
            return
        if path == "/standin" and method == "POST":
            # Tests only: a new command line, and everything forgotten, without the cost of a new process.
            self.state.__init__(parse(json.loads(bytes(body))))  # type: ignore[misc]
            self.respond(200, {})
        elif path == "/metrics" and options.metrics:
            self.respond(200, text=metrics_text(self.state))
        elif path in ("/health", "/health_generate", "/ping"):
            self.respond(200, text="")
        elif path == "/v1/models":
            card = {"id": options.served_name, "object": "model", "owned_by": options.engine, "root": options.model}
            self.respond(200, {"object": "list", "data": [card | {"max_model_len": options.context}]})
        elif path == "/version":
            self.respond(200, {"version": "0.0.0"})
        elif path in ("/server_info", "/get_server_info") and options.dev_mode:
            used = self.state.used_tokens / options.kv_tokens
            info = {"max_total_num_tokens": options.kv_tokens, "context_length": options.context, "version": "0.0.0"}
            if options.engine == "sglang":  # its own flags stand there too, by their names
                info |= {"disable_radix_cache": not options.cache, "enable_metrics": options.metrics}
            self.respond(
                200, info | {"internal_states": [{"memory_usage": {"token_capacity": options.kv_tokens}, "token_usage": used}]}
            )
        elif path in ("/get_load", "/v1/loads") and options.engine == "sglang" and path != options.without_path:
            self.respond(200, loads(self.state, path))
        elif path in ("/flush_cache", "/reset_prefix_cache") and method == "POST" and options.dev_mode:
            if self.state.running and options.engine == "sglang":
                self.respond(400, text="Flush cache failed: requests are running")
                return
            self.state.cache = PrefixCache()
            self.respond(200, text="Cache flushed." if options.engine == "sglang" else "")
        elif path == "/tokenize" and method == "POST":
            data = json.loads(bytes(body))
            text = data.get("prompt")
            words = text.split() if isinstance(text, str) else chat_words(data.get("messages") or [])
            overhead = 0 if isinstance(text, str) else options.chat_overhead
            count = from_words(words, overhead, "").n_tokens
            self.respond(200, {"count": count, "max_model_len": options.context, "tokens": list(range(count))})
        else:
            self.respond(404, {"detail": "Not Found"})

    def generate(self, path: str, raw: bytearray) -> None:
        options = self.options
        try:
            body, prompt = read_generation(path, raw, options)
        except (ValueError, KeyError, TypeError) as exc:
            self.error(path, 400, f"stand-in cannot read the request: {exc}")
            return
        faulty = options.fault_min_input <= prompt.n_tokens <= options.fault_max_input
        faulty = faulty and self.state.requests + 1 >= options.fault_from
        if options.http_error and faulty:
            self.state.requests += 1
            self.error(path, options.http_error, "stand-in was told to refuse this request")
            return
        if body.get("model", options.served_name) != options.served_name and options.engine == "vllm":
            self.error(path, 404, f"The model `{body['model']}` does not exist.")
            return
        stream = Stream(self, path, body, prompt, asyncio.get_running_loop().time())
        if prompt.n_tokens + stream.max_tokens > options.context:
            self.error(
                path,
                400,
                f"This model's maximum context length is {options.context} tokens. However, you requested "
                f"{stream.max_tokens} output tokens and your prompt contains {prompt.n_tokens} input tokens.",
            )
            return
        if not body.get("stream"):
            self.error(path, 400, "the stand-in only streams")
            return
        self.stream = stream
        self.state.waiting.append(stream)
        self.state.admit()
        stream.queued = True


def chat_words(messages: list[dict[str, Any]]) -> list[str]:
    """All words of a conversation."""
    return [w for m in messages for w in str(m.get("content", "")).split()]


def read_generation(path: str, raw: bytearray, options: Options) -> tuple[dict[str, Any], Prompt]:
    """The request without its ids, and the prompt. A long array of ids is cut out before the JSON is decoded."""
    salt_of = (lambda b: "") if options.salt_ignored or options.engine == "sglang" else (lambda b: str(b.get("cache_salt", "")))
    key = _IDS_KEYS.get(path)
    if key is not None:
        at = raw.find(key)
        begin = at + len(key)
        while at >= 0 and raw[begin : begin + 1].isspace():
            begin += 1
        if at >= 0 and raw[begin : begin + 1] == b"[":
            end = raw.find(b"]", begin)
            body = json.loads(bytes(raw[:begin]) + b"0" + bytes(raw[end + 1 :]))
            with memoryview(raw) as view, view[begin + 1 : end] as inside:
                return body, from_ids_text(inside, salt_of(body), keep=options.cache or options.tokenizer_json is not None)
    body = json.loads(bytes(raw))
    if path == "/v1/chat/completions":
        return body, from_words(chat_words(body["messages"]), options.chat_overhead, salt_of(body))
    text = body["prompt"] if "prompt" in body else body["text"]
    if not isinstance(text, str):
        raise TypeError("prompt is neither text nor a list of ids")
    return body, from_words(text.split(), 0, salt_of(body))


def loads(state: State, path: str) -> object:
    """SGLang's load: the list of 0.5.6's /get_load, or the object of the newer /v1/loads."""
    running, waiting = len(state.running) + state.foreign_running, len(state.waiting)
    if path == "/get_load":
        tokens = state.used_tokens + sum(s.prompt.n_tokens for s in state.waiting)
        return [{"dp_rank": 0, "num_reqs": running + waiting, "num_waiting_reqs": waiting, "num_tokens": tokens, "ts_tic": 0.0}]
    load = {
        "dp_rank": 0,
        "num_running_reqs": running,
        "num_waiting_reqs": waiting,
        "num_used_tokens": state.used_tokens,
        "max_total_num_tokens": state.options.kv_tokens,
        "token_usage": min(1.0, state.used_tokens / state.options.kv_tokens),
        "cache_hit_rate": 0.0,
    }
    return {"version": "0.0.0", "dp_rank_count": 1, "loads": [load]}


def metrics_text(state: State) -> str:
    """The Prometheus page of either engine."""
    options = state.options
    usage = min(1.0, state.used_tokens / options.kv_tokens)
    running, waiting = len(state.running), len(state.waiting)
    if options.engine == "vllm":
        labels = f'{{engine="0",model_name="{options.served_name}"}}'
        values = {
            "vllm:num_requests_running": running,
            "vllm:num_requests_waiting": waiting,
            "vllm:kv_cache_usage_perc": usage,
            "vllm:prefix_cache_queries_total": state.queries,
            "vllm:prefix_cache_hits_total": state.hits,
            "vllm:num_preemptions_total": state.preemptions,
            "vllm:prompt_tokens_total": state.prompt_tokens,
            "vllm:generation_tokens_total": state.generation_tokens,
        }
        lines = [f"# TYPE {name} gauge\n{name}{labels} {float(value)}" for name, value in values.items()]
        lines += [f"vllm:request_queue_time_seconds_sum{labels} {state.queue_time_s}"]
        lines += [f"vllm:request_queue_time_seconds_count{labels} {float(state.queue_times)}"]
        for reason, count in (("stop", 0), ("length", state.finished), ("abort", 0)):
            where = f'{{engine="0",finished_reason="{reason}",model_name="{options.served_name}"}}'
            lines.append(f"vllm:request_success_total{where} {float(count)}")
    else:
        labels = f'{{model_name="{options.served_name}"}}'
        values = {
            "sglang:prompt_tokens_total": state.prompt_tokens,
            "sglang:cached_tokens_total": state.hits,
            "sglang:generation_tokens_total": state.generation_tokens,
            "sglang:num_requests_total": state.finished,
            # As on a real one, the gauge is not set anew when the last request ends.
            "sglang:num_running_reqs": state.shown_running(),
            "sglang:num_queue_reqs": waiting,
            "sglang:token_usage": usage,
            "sglang:num_used_tokens": state.used_tokens,
            "sglang:max_total_num_tokens": options.kv_tokens,
            "sglang:queue_time_seconds_sum": state.queue_time_s,
            "sglang:queue_time_seconds_count": state.queue_times,
        }
        # Like the real one: the counter of cached tokens appears with the first hit.
        lines = [f"{name}{labels} {float(value)}" for name, value in values.items() if value or "cached" not in name]
    return "\n".join(lines) + "\n"


async def _serve(options: Options) -> int:
    loop = asyncio.get_running_loop()
    state = State(options)
    server = await loop.create_server(lambda: Connection(state), options.host, options.port, backlog=1024)
    port = server.sockets[0].getsockname()[1]
    stopped = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, stopped.set)
    start.ready(options)
    start.say(f"INFO:     Uvicorn running on http://{options.host}:{port} (Press CTRL+C to quit)")

    async def other_client() -> None:
        # Asked anew at short intervals: options change while this waits, and the next test must not meet the last one's stranger.
        since = loop.time()
        while True:
            await asyncio.sleep(0.02)
            every = state.options.foreign_every
            if not every:
                since = loop.time()
            elif loop.time() - since >= every:
                since = loop.time()
                if state.running:
                    state.foreign()

    foreign = asyncio.ensure_future(other_client())
    await stopped.wait()
    foreign.cancel()
    server.close()
    return 0


def main(argv: Sequence[str] | None = None) -> int:
    """Run until SIGTERM."""
    options = parse(argv)
    start.play(options)
    begun = time.monotonic()
    try:
        return asyncio.run(_serve(options))
    except OSError as exc:
        start.say(f"OSError: {exc} (after {time.monotonic() - begun:.1f} s)")
        return 1
