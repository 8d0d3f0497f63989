"""What counts as which type, where Ansible hands over text; keys that are read from files; HTTP over a Unix socket."""

from __future__ import annotations

import dataclasses
import http.client
import math
import socket
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from longhaul.errors import UserError
from longhaul.keys import read_key
from longhaul.unix_http import UnixHttpConnection
from longhaul.values import convert, converted, number, options_for


@dataclasses.dataclass(frozen=True)
class Wanted:
    count: int
    share: float | None = None
    on: bool = False
    names: tuple[str, ...] = ()
    limits: Mapping[str, int] = dataclasses.field(default_factory=dict)


@given(st.integers(), st.floats(allow_nan=False), st.booleans())
def test_text_means_what_the_value_means(whole: int, real: float, switch: bool) -> None:
    assert convert(str(whole), "int") == convert(whole, "int") == whole
    assert convert(str(real), "float | None") == real
    assert convert(str(switch), "bool") is convert(switch, "bool") is switch
    assert convert(whole, "str") == str(whole)


@pytest.mark.parametrize(
    ("value", "kind"),
    [
        ("2M", "int"),
        (True, "int"),
        (1.5, "int"),
        (None, "int"),
        (math.inf, "int"),
        ("most", "float"),
        (True, "float"),
        ("maybe", "bool"),
        (2, "bool"),
        ("one", "tuple[str, ...]"),
        (1, "tuple[str, ...]"),
        ("a", "Mapping[str, str]"),
        ({"a": "b"}, "Mapping[str, int]"),
    ],
)
def test_what_does_not_fit_names_the_variable(value: Any, kind: str) -> None:
    with pytest.raises(UserError, match=r"found: my_variable .* \| required: (an? |true|names ).*\| fix: set my_variable"):
        converted("my_variable", value, kind)


def test_options_become_arguments_and_what_is_empty_is_not_set() -> None:
    given_options = {"count": "7", "share": "", "on": "yes", "names": [1, 2], "limits": {"a": "-1"}}
    made = Wanted(**options_for(Wanted, given_options, prefix="w_", what="setting"))
    assert made == Wanted(7, None, True, ("1", "2"), {"a": -1})
    with pytest.raises(UserError, match=r"setting 'size' \| required: one of count, limits, names, on, share"):
        options_for(Wanted, {"size": 1}, prefix="w_", what="setting")
    with pytest.raises(UserError, match="fix: correct it"):
        options_for(Wanted, {"count": "x"}, prefix="w_", what="setting", fix="correct it")
    with pytest.raises(UserError, match=r"budget 'x' \| required: a number"):
        number("budget", "x")


def test_a_key_is_read_without_its_newline_and_an_unreadable_one_is_named(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text(" sesame\n", encoding="utf-8")
    assert read_key(file, "my_key_file") == "sesame"
    file.write_text("\n", encoding="utf-8")
    assert read_key(file, "my_key_file") is None
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(UserError, match=r"key file .*not text.*set my_key_file"):
        read_key(file, "my_key_file")
    with pytest.raises(UserError, match=r"token file /nowhere \(No such file.*set my_token"):
        read_key("/nowhere", "my_token", "token file")


def test_http_over_a_unix_socket(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    refused = UnixHttpConnection(path, 1)
    with pytest.raises(FileNotFoundError):
        refused.request("GET", "/")
    assert refused.sock.fileno() == -1, "closed"
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen(1)

        def answer() -> None:
            peer, _ = listener.accept()
            with peer:
                peer.recv(4096)
                peer.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nhi")

        thread = threading.Thread(target=answer)
        thread.start()
        connection = UnixHttpConnection(path, 5)
        connection.request("GET", "/containers/json")
        assert connection.getresponse().read() == b"hi"
        connection.close()
        thread.join()
    Path(path).unlink()
    with pytest.raises((OSError, http.client.HTTPException)):
        UnixHttpConnection(path, 1).request("GET", "/")
