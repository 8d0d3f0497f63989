"""Addresses, keys and certificates: what is wrong with one is said in one line, without the secret in it."""

from __future__ import annotations

from pathlib import Path

import pytest
from longhaul.client.endpoint import Endpoint, fixed_headers, tls_context
from longhaul.errors import UserError


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("http://h:8000", Endpoint("http", "h", 8000)),
        ("h:8000", Endpoint("http", "h", 8000)),
        ("https://h/v1", Endpoint("https", "h", 443)),
        ("http://[::1]:30000/llm/v1/", Endpoint("http", "::1", 30000, "/llm")),
    ],
)
def test_urls(url: str, expected: Endpoint) -> None:
    assert Endpoint.parse(url) == expected


@pytest.mark.parametrize("url", ["ftp://h", "http://", "http://h:port", "http://h:99999", "http://[::1", "http://user:pw@h"])
def test_bad_urls_get_one_line(url: str) -> None:
    with pytest.raises(UserError):
        Endpoint.parse(url)


def test_a_secret_in_a_url_is_not_repeated() -> None:
    with pytest.raises(UserError) as caught:
        Endpoint.parse("http://user:hunter2@h")
    assert "hunter2" not in str(caught.value)


def test_a_key_that_would_break_the_header_is_refused() -> None:
    with pytest.raises(UserError) as caught:
        fixed_headers("good\r\nX-Evil: 1")
    assert "Evil" not in str(caught.value)


def test_a_ca_file_without_a_certificate_is_refused(tmp_path: Path) -> None:
    empty = tmp_path / "empty.pem"
    empty.write_text("not a certificate\n")
    with pytest.raises(UserError, match="no certificate in it"):
        tls_context(empty)
    with pytest.raises(UserError, match=r"CA file .*none\.pem \(No such file or directory\)"):
        tls_context(tmp_path / "none.pem")
