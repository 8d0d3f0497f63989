"""What the package makes of a host's ``engine_*`` variables."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ansible.errors import AnsibleError
from ansible.plugins.lookup import LookupBase

if importlib.util.find_spec("longhaul") is None:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "module_utils"))

from longhaul.deploy.engine_variables import container_options, inputs, setting_options

DOCUMENTATION = r"""
name: longhaul_engine
short_description: A host's engine variables as options of Longhaul's modules
description:
  - Reads the variables of role engine that hold where the lookup stands, and returns them under the names that modules take.
author: [Longhaul]
options:
  _terms:
    description: V(settings) for the endpoint's settings, V(container) for the container's part of the spec.
    required: true
    choices: [settings, container]
"""

EXAMPLES = r"""
- name: Show the settings of the endpoint
  ansible.builtin.debug:
    msg: "{{ lookup('longhaul_engine', 'settings') }}"
"""

RETURN = r"""
_value:
  description: One mapping for each term.
  type: list
  elements: dict
"""

PARTS = {"settings": setting_options, "container": container_options}


class LookupModule(LookupBase):
    """Registered by ansible.cfg."""

    def run(self, terms: list[str], variables: Mapping[str, Any] | None = None, **kwargs: Any) -> list[dict[str, Any]]:
        """One mapping for each term."""
        found = []
        for term in terms:
            if term not in PARTS:
                raise AnsibleError(f"longhaul_engine knows {' and '.join(PARTS)}, not {term!r}")
            known = variables or {}
            chosen = self._templar.template({name: known[name] for name in inputs(term) if name in known})
            found.append(PARTS[term](chosen))
        return found
