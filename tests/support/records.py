"""Reads what a run left in requests.jsonl."""

from __future__ import annotations

import contextlib
import json
from pathlib import Path

from longhaul.results import RequestRecord, from_jsonable


def read_records(path: Path) -> list[RequestRecord]:
    """Read a ``requests.jsonl``; a last line cut off by a kill is left out."""
    records: list[RequestRecord] = []
    for line in path.read_text(encoding="utf-8").splitlines():
        with contextlib.suppress(ValueError):
            records.append(from_jsonable(RequestRecord, json.loads(line)))
    return records
