"""Readers of what comes off the wire: an HTTP/1.1 response, and the server-sent events in its body.

Bytes are the only input, so both are tested without a socket. They are strict: a truncated or malformed answer raises.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

_MAX_HEADER_BYTES = 64 * 1024
_MAX_EVENT_BYTES = 64 * 1024 * 1024  # SGLang repeats the whole text in each event: generous, but not without end


class HttpFormatError(Exception):
    """The peer does not speak HTTP/1.1, or not the part of it that a streaming engine needs."""


class StreamFormatError(Exception):
    """The body is not a stream of server-sent events with JSON in them."""


class Sink(Protocol):
    def on_head(self, status: int, headers: Mapping[str, str]) -> None: ...

    def on_body(self, data: bytes) -> None: ...

    def on_end(self) -> None: ...


class ResponseReader:
    """Incremental HTTP/1.1 response reader: feed bytes, get ``on_head``, ``on_body`` and ``on_end`` calls.

    Strict where leniency would hide a truncated answer: a body that ends before its declared length, a bad chunk
    header or trailing bytes after the end raise HttpFormatError.
    """

    def __init__(self, sink: Sink, *, head_only: bool = False) -> None:
        self._sink = sink
        self._head_only = head_only
        self._buffer = b""
        self._state = "head"
        self._left = 0
        self.keep_alive = False
        self.started = False
        self.done = False

    def feed(self, data: bytes) -> None:
        """Take the next bytes off the wire."""
        self.started = True
        buffer = self._buffer + data if self._buffer else data
        position = 0
        while True:
            if self._state == "head":
                end = buffer.find(b"\r\n\r\n", position)
                if end < 0:
                    if len(buffer) - position > _MAX_HEADER_BYTES:
                        raise HttpFormatError(f"no end of the response header within {_MAX_HEADER_BYTES} bytes")
                    if not b"HTTP/1.".startswith(buffer[position : position + 7]):
                        raise HttpFormatError(f"not an HTTP/1.1 response: {buffer[position : position + 60]!r}")
                    break
                self._head(buffer[position:end])
                position = end + 4
            elif self._state == "size":
                end = buffer.find(b"\r\n", position)
                if end < 0:
                    if len(buffer) - position > 256:
                        raise HttpFormatError("chunk header without an end")
                    break
                text = buffer[position:end].split(b";", 1)[0].strip()
                if not text or text.strip(b"0123456789abcdefABCDEF"):
                    raise HttpFormatError(f"bad chunk size {text[:40]!r}")
                self._left = int(text, 16)
                position = end + 2
                self._state = "chunk" if self._left else "trailer"
            elif self._state in ("chunk", "length"):
                # Hand on what is there: a token must not wait for the rest of a large chunk.
                take = min(self._left, len(buffer) - position)
                if take:
                    self._sink.on_body(buffer[position : position + take])
                    position += take
                    self._left -= take
                if self._left:
                    break
                if self._state == "length":
                    self._finish()
                    continue
                if len(buffer) - position < 2:
                    break
                if buffer[position : position + 2] != b"\r\n":
                    raise HttpFormatError("chunk longer than its declared size")
                position += 2
                self._state = "size"
            elif self._state == "trailer":
                end = buffer.find(b"\r\n", position)
                if end < 0:
                    break
                if end == position:
                    self._finish()
                position = end + 2
            elif self._state == "close":
                if position < len(buffer):
                    self._sink.on_body(buffer[position:])
                    position = len(buffer)
                break
            else:
                if position < len(buffer):
                    self.keep_alive = False  # bytes nobody asked for: never reuse this connection
                    position = len(buffer)
                break
        self._buffer = buffer[position:]

    def closed(self) -> None:
        """The peer closed its side. Only a body without a declared length may end so."""
        if self.done:
            return
        if self._state == "close":
            self.keep_alive = False
            self._finish()
            return
        if not self.started:
            raise HttpFormatError("the server closed the connection without an answer")
        raise HttpFormatError("the server closed the connection in mid-answer")

    def _finish(self) -> None:
        self._state = "done"
        self.done = True
        self._sink.on_end()

    def _head(self, head: bytes) -> None:
        lines = head.decode("latin-1").split("\r\n")
        words = lines[0].split(" ", 2)
        if len(words) < 2 or words[0] not in ("HTTP/1.1", "HTTP/1.0") or len(words[1]) != 3 or not _is_number(words[1]):
            raise HttpFormatError(f"not an HTTP/1.1 status line: {lines[0][:80]!r}")
        status = int(words[1])
        headers: dict[str, str] = {}
        for line in lines[1:]:
            name, colon, value = line.partition(":")
            if not colon or not name or name != name.strip():
                raise HttpFormatError(f"bad header line {line[:80]!r}")
            key = name.lower()
            if key == "content-length" and headers.get(key, value.strip()) != value.strip():
                raise HttpFormatError("two different Content-Length headers")
            headers[key] = value.strip()
        if 100 <= status < 200:
            return  # interim (100 Continue, 103 Early Hints): the real head follows
        connection = headers.get("connection", "").lower()
        self.keep_alive = "close" not in connection and (words[0] == "HTTP/1.1" or "keep-alive" in connection)
        coding = headers.get("transfer-encoding", "").lower()
        length = headers.get("content-length")
        if headers.get("content-encoding", "identity").lower() not in ("", "identity"):
            raise HttpFormatError(f"content-encoding {headers['content-encoding']} was not asked for (a proxy compresses)")
        self._sink.on_head(status, headers)
        if self._head_only or status in (204, 304):
            self._finish()
        elif coding:
            if coding != "chunked":
                raise HttpFormatError(f"transfer-encoding {coding!r} is not supported")
            self._state = "size"
        elif length is not None:
            if not _is_number(length):
                raise HttpFormatError(f"bad Content-Length {length[:40]!r}")
            self._left = int(length)
            self._state = "length"
        else:
            self._state = "close"


def _is_number(text: str) -> bool:
    return text.isascii() and text.isdigit()  # a superscript two is a digit to isdigit alone


class SseReader:
    """Incremental reader of server-sent events: bytes in, complete ``data`` payloads out.

    Takes LF, CRLF and CR line ends, comments and fields other than ``data`` (ignored), and events over several
    ``data`` lines, as the HTML standard's event-stream format has them.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._data: list[bytes] = []

    @property
    def pending(self) -> bool:
        """True where an event has begun and not ended: at the end of a stream, a truncated one."""
        return bool(self._rest.strip() or self._data)

    def feed(self, data: bytes) -> list[bytes]:
        """The payloads completed by these bytes, in order."""
        fresh = not self._rest and not self._data
        if fresh and data[:6] == b"data: " and data[-2:] == b"\n\n" and data.count(b"\n") == 2 and b"\r" not in data:
            return [data[6:-2]]  # the shape both engines send, one event in one segment
        buffer = self._rest + data if self._rest else data
        if b"\r" in buffer:
            held = buffer.endswith(b"\r")  # may be the first half of CRLF
            body = buffer[:-1] if held else buffer
            buffer = body.replace(b"\r\n", b"\n").replace(b"\r", b"\n") + (b"\r" if held else b"")
        lines = buffer.split(b"\n")
        self._rest = lines.pop()
        if len(self._rest) > _MAX_EVENT_BYTES:
            raise StreamFormatError(f"a line of over {_MAX_EVENT_BYTES} bytes in the event stream")
        out: list[bytes] = []
        for line in lines:
            if not line:
                if self._data:
                    out.append(b"\n".join(self._data))
                    self._data = []
            elif line[:5] == b"data:":
                self._data.append(line[6:] if line[5:6] == b" " else line[5:])
            elif line[:1] != b":" and line.partition(b":")[0] not in (b"event", b"id", b"retry"):
                raise StreamFormatError(f"not a server-sent event: {line[:80]!r}")
        return out
