"""Longhaul: deploy long-context LLM servers, prove what they hold, keep the proof.

One body, two names: Ansible ships this package to hosts as ``ansible.module_utils.longhaul``;
the command line and the tests import it as ``longhaul``. Imports inside it are therefore relative.
"""

from __future__ import annotations

__version__ = "0.1.0"
