"""What a bundle carries: what its locks name and the host lacks."""

from __future__ import annotations

from longhaul.bundle.wheelhouse import needed, parse_installed
from longhaul.deploy.environments import parse_lock


def test_what_the_host_has_is_left_out() -> None:
    lock = parse_lock("torch==2.11.0\nPy_YAML==6.0\nnumpy==2.2.6\n")
    there = parse_installed('[{"name": "torch", "version": "2.11.0+cu130"}, {"name": "py-yaml", "version": "6.0"}]')
    assert needed([lock], there) == (("numpy==2.2.6",), ("torch==2.11.0", "Py_YAML==6.0"))
    assert parse_installed("numpy==2.2.6\nx @ file:///x.whl\n") == {"numpy": "2.2.6"}
    local = parse_lock("torch==2.11.0+cpu\n")
    assert needed([local], {"torch": "2.11.0"})[0] == ("torch==2.11.0+cpu",), "a local version is asked for and not there"
