"""The suite on real hosts says why it is skipped, and cannot be skipped where it is required."""

from __future__ import annotations

import itertools
import os
import subprocess
import sys

import pytest
from support.paths import ROOT
from testbed import fixtures
from testbed.bed import FIRST_PORT, PORTS_PER_SLOT, SLOTS, BedError


def test_a_skip_names_its_reason() -> None:
    words = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "tests/testbed/test_bed.py"]
    # Without any program in sight nobody can make a bed, root or not.
    environment = {**os.environ, "LONGHAUL_TESTBED": "", "PATH": "/nowhere"}
    done = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout
    assert "passed" not in done.stdout
    assert "no testbed here: the testbed needs" in done.stdout


def test_what_is_required_is_not_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LONGHAUL_TESTBED", "")
    assert fixtures._unavailable("the testbed needs root") == "no testbed here: the testbed needs root"
    monkeypatch.setenv("LONGHAUL_TESTBED", "required")
    with pytest.raises(BedError, match=r"required.*the testbed needs root"):
        fixtures._unavailable("the testbed needs root")


def test_two_beds_never_hand_out_the_same_port() -> None:
    ranges = [range(FIRST_PORT + slot * PORTS_PER_SLOT, FIRST_PORT + (slot + 1) * PORTS_PER_SLOT) for slot in range(SLOTS)]
    assert all(earlier.stop <= later.start for earlier, later in itertools.pairwise(ranges))
    # Below the ephemeral ports, or any outgoing connection could hold one of them.
    assert ranges[-1].stop <= 32768
