"""The address of a server, what every request to it carries, and words for why it cannot be reached."""

from __future__ import annotations

import asyncio
import ssl
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import UserError


@dataclass(frozen=True)
class Endpoint:
    """Where the server is. ``base_path`` has no trailing slash (``/api`` behind a gateway, else empty)."""

    scheme: str
    host: str
    port: int
    base_path: str = ""

    @classmethod
    def parse(cls, url: str) -> Endpoint:
        """``http://host:port/prefix`` -> Endpoint; a trailing ``/v1`` is dropped, because paths carry it."""
        refused = UserError(f"url {url!r}", "http://HOST:PORT or https://HOST[:PORT]", "set --url to the server's address")
        try:
            parts = urlsplit(url if "://" in url else f"http://{url}")
            port = parts.port
        except ValueError:
            raise refused from None
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise refused
        if parts.username or parts.password or parts.query or parts.fragment:
            raise UserError("a url with user, query or fragment", "a bare address", "pass the key with --api-key-file")
        path = parts.path.rstrip("/")
        path = path[: -len("/v1")] if path.endswith("/v1") else path
        return cls(parts.scheme, parts.hostname, port or (443 if parts.scheme == "https" else 80), path)

    @property
    def authority(self) -> str:
        """``host[:port]`` for the Host header; IPv6 in brackets."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == (443 if self.scheme == "https" else 80) else f"{host}:{self.port}"

    @property
    def url(self) -> str:
        """The address as text."""
        return f"{self.scheme}://{self.authority}{self.base_path}"


def fixed_headers(api_key: str | None, headers: Mapping[str, str] | None = None) -> dict[str, str]:
    """The headers of every request: the caller's own, then the key. UserError for a key that no header can carry."""
    made = dict(headers or {})
    if api_key:
        if not api_key.isascii() or not api_key.isprintable():
            raise UserError("an API key with non-printable characters", "printable ASCII", "check the key file")
        made["Authorization"] = f"Bearer {api_key}"
    return made


def tls_context(ca_file: Path | None = None) -> ssl.SSLContext:
    """What an https server's certificate is verified with: the system's authorities, and those in ``ca_file`` (PEM).

    Verification cannot be turned off. UserError where ``ca_file`` holds no certificate.
    """
    context = ssl.create_default_context()
    if ca_file is not None:
        try:
            context.load_verify_locations(cafile=ca_file)
        except (OSError, ssl.SSLError) as exc:
            reason = exc.strerror if isinstance(exc, OSError) and not isinstance(exc, ssl.SSLError) else "no certificate in it"
            fix = "correct --ca-file (context_test_ca_file)"
            raise UserError(f"CA file {ca_file} ({reason})", "a readable PEM file of certificates", fix) from exc
    return context


def connect_words(exc: BaseException) -> str:
    """Why no connection was made, in a few words."""
    if isinstance(exc, asyncio.TimeoutError):
        return "no connection in time"
    if isinstance(exc, ConnectionRefusedError):
        return "connection refused (nothing listens there)"
    if isinstance(exc, ssl.SSLCertVerificationError):
        return f"TLS certificate not trusted ({exc.verify_message}): name the authority that signed it with --ca-file (context_test_ca_file)"
    if isinstance(exc, ssl.SSLError):
        return f"TLS failed ({exc.reason}): is it an http:// address?"
    return str(exc) or type(exc).__name__
