"""Find which Debian package files of a folder a host still needs. For hosts without a repository."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ..errors import UserError

# dpkg-deb and dpkg-query are asked with these; the parsers below read the answers.
DEB_FORMAT = "${Package}\\t${Version}\\t${Architecture}\\n"
INSTALLED_FORMAT = "${Package}\\t${Version}\\t${db:Status-Abbrev}\\n"


@dataclass(frozen=True)
class Deb:
    """A package file: ``path`` on the host, and what it says of itself."""

    path: str
    name: str
    version: str
    architecture: str


def parse_deb(path: str, text: str) -> Deb:
    """The answer of ``dpkg-deb -W`` for one file."""
    words = text.strip().split("\t")
    if len(words) != 3 or not all(words):
        raise UserError(f"{path} is not a Debian package", "whole .deb files only", f"copy {path} again")
    return Deb(path, *words)


def parse_installed(text: str) -> dict[str, str]:
    """The answer of ``dpkg-query -W``: name -> version, of those that are installed (``ii``, ``hi``)."""
    found = {}
    for line in text.splitlines():
        name, _, rest = line.partition("\t")
        version, _, status = rest.partition("\t")
        if status.strip()[1:2] == "i":
            found[name] = version
    return found


def needed(debs: Sequence[Deb], installed: dict[str, str], newer: Callable[[str, str], bool], architecture: str) -> list[Deb]:
    """Files to install: the newest of each package where it is missing or older on the host. Never a downgrade.

    ``newer(a, b)`` says whether version a is later than b (``dpkg --compare-versions a gt b``). Files of another
    architecture are left out; a folder with none that fits is a UserError.
    """
    newest: dict[str, Deb] = {}
    for deb in debs:
        if deb.architecture not in {architecture, "all"}:
            continue
        held = newest.get(deb.name)
        if held is None or newer(deb.version, held.version):
            newest[deb.name] = deb
    if not newest:
        raise UserError(
            f"{len(debs)} package files, none for {architecture}",
            f"packages for {architecture}",
            "fill the folder for this system",
        )
    return [deb for name, deb in sorted(newest.items()) if name not in installed or newer(deb.version, installed[name])]
