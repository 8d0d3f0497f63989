"""Responses and event streams: any split of the bytes reads the same, and nothing malformed is taken for whole."""

from __future__ import annotations

import itertools
import json
from collections.abc import Mapping

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from longhaul.client.http import HttpFormatError, ResponseReader, SseReader, StreamFormatError


class Sink:
    def __init__(self) -> None:
        self.status = 0
        self.headers: Mapping[str, str] = {}
        self.body = b""
        self.ended = False

    def on_head(self, status: int, headers: Mapping[str, str]) -> None:
        self.status, self.headers = status, headers

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_end(self) -> None:
        self.ended = True


def pieces(data: bytes, cuts: list[int]) -> list[bytes]:
    """``data`` cut at these places (mod its length)."""
    at = sorted({c % (len(data) + 1) for c in cuts} | {0, len(data)})
    return [data[a:b] for a, b in itertools.pairwise(at) if b > a]


cuts = st.lists(st.integers(0, 10_000), max_size=12)
CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\nX: y\r\n\r\n5\r\nhello\r\n1;ext=1\r\n \r\nA\r\nworld12345\r\n0\r\nT: r\r\n\r\n"
LENGTH = b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 404 Not Found\r\ncontent-length: 9\r\n\r\nnot there"


@given(cuts, st.sampled_from([(CHUNKED, 200, b"hello world12345"), (LENGTH, 404, b"not there")]))
def test_a_response_reads_the_same_however_it_is_cut(where: list[int], case: tuple[bytes, int, bytes]) -> None:
    data, status, body = case
    sink = Sink()
    reader = ResponseReader(sink)
    for piece in pieces(data, where):
        reader.feed(piece)
    assert (sink.status, sink.body, sink.ended, reader.done) == (status, body, True, True)
    assert reader.keep_alive


@given(cuts)
@example([len(CHUNKED) - 30])
def test_a_truncated_response_is_never_taken_for_whole(where: list[int]) -> None:
    for data in (CHUNKED, LENGTH):
        cut = (where[0] if where else 0) % len(data)
        sink = Sink()
        reader = ResponseReader(sink)
        if cut:
            reader.feed(data[:cut])
        with pytest.raises(HttpFormatError):
            reader.closed()
        assert not sink.ended


@pytest.mark.parametrize(
    "data",
    [
        b"SSH-2.0-OpenSSH_9.2\r\n",
        b"HTTP/2 200\r\n\r\n",
        b"HTTP/1.1 2x0 OK\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip, chunked\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nContent-Encoding: gzip\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n-5\r\n",
        b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nabcd\r\n",
        b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 20_000,
    ],
)
def test_what_is_not_http_is_refused(data: bytes) -> None:
    with pytest.raises(HttpFormatError):
        ResponseReader(Sink()).feed(data)


@given(
    st.lists(
        st.one_of(st.binary(max_size=30), st.sampled_from([b"HTTP/1.1 200 OK\r\n", b"\r\n\r\n", CHUNKED, LENGTH, b"5\r\nab"]))
    )
)
@example([b"HTTP/1.1 200 OK\r\nContent-Length: \xb2\r\n\r\n"])
@example([b"HTTP/1.1 20\xb2 OK\r\n\r\n"])
def test_no_bytes_whatever_raise_anything_but_a_format_error(data: list[bytes]) -> None:
    reader = ResponseReader(Sink())
    try:
        for piece in data:
            reader.feed(piece)
        reader.closed()
    except HttpFormatError:
        pass


def test_a_token_is_not_held_back_until_its_chunk_is_whole() -> None:
    sink = Sink()
    reader = ResponseReader(sink)
    reader.feed(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n64\r\nfirst part")
    assert sink.body == b"first part"


EVENTS = [{"a": 1}, {"text": "zwölf\nlines"}, {"b": [1, 2]}]


@given(cuts, st.sampled_from(["\n", "\r\n", "\r"]))
def test_events_read_the_same_however_they_are_cut(where: list[int], end: str) -> None:
    text = (
        f": ping{end}{end}" + "".join(f"event: m{end}data: {json.dumps(e)}{end}{end}" for e in EVENTS) + f"data: [DONE]{end}{end}"
    )
    reader = SseReader()
    found = [p for piece in pieces(text.encode(), where) for p in reader.feed(piece)]
    # A lone CR at the very end may yet become CRLF: the last event is only sure with one more byte.
    found += reader.feed(b"\n") if end == "\r" else []
    assert [json.loads(p) for p in found[:-1]] == EVENTS
    assert found[-1] == b"[DONE]"
    assert not reader.pending


def test_several_data_lines_are_one_event() -> None:
    assert SseReader().feed(b"data: {\ndata:1}\n\n") == [b"{\n1}"]


def test_html_in_place_of_events_is_refused() -> None:
    with pytest.raises(StreamFormatError):
        SseReader().feed(b"<html>Bad gateway</html>\n\n")
