"""The report as one self-contained HTML file."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from ..results import RunResult
from .markdown import render_markdown


def render_html(runs: Sequence[RunResult]) -> str:
    """One HTML document for all runs."""
    return f"<!DOCTYPE html>\n<html lang='en'><head><meta charset='utf-8'/><title>Longhaul</title></head><body><pre>{escape(render_markdown(runs))}</pre></body></html>\n"  # noqa: E501
