"""Reports of a run: HTML with plots, Markdown, JUnit, Prometheus text file, terminal table; and two runs compared."""

from __future__ import annotations

from .compare import (
    Comparison,
    compare_runs,
    pair_runs,
    render_compare_html,
    render_compare_markdown,
    render_compare_text,
)
from .files import load_run_dir, write_atomically, write_reports
from .html import render_html
from .junit import render_junit
from .markdown import render_markdown
from .prometheus import render_prometheus
from .tables import summary_table

__all__ = [
    "Comparison",
    "compare_runs",
    "pair_runs",
    "render_compare_html",
    "render_compare_markdown",
    "render_compare_text",
    "load_run_dir",
    "render_html",
    "render_junit",
    "render_markdown",
    "render_prometheus",
    "summary_table",
    "write_atomically",
    "write_reports",
]
