"""scripts/test names files of tests: what was renamed must not drop out of a tier in silence."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_path_that_scripts_test_names_is_there() -> None:
    named = set(re.findall(r"\btests/[\w/.]+\.py\b", (ROOT / "scripts/test").read_text(encoding="utf-8")))
    assert len(named) > 5
    assert [path for path in sorted(named) if not (ROOT / path).is_file()] == []


def test_every_folder_of_tests_has_a_tier() -> None:
    folders = {path.parent.relative_to(ROOT).parts[1] for path in (ROOT / "tests").rglob("test_*.py")}
    script = (ROOT / "scripts/test").read_text(encoding="utf-8")
    assert [folder for folder in sorted(folders) if not re.search(rf"\btests/{folder}(?![\w/])", script)] == []
