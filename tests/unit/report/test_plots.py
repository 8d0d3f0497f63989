"""A plot is one function and its name in PLOTS."""

from __future__ import annotations

import pytest
from longhaul.report import plots
from longhaul.report.html import render_html
from longhaul.report.page import figure
from unit.report import fixtures


def test_a_new_plot_is_one_function(monkeypatch: pytest.MonkeyPatch) -> None:
    def requests(view: plots.View) -> list[str]:
        return [figure("Requests", view.load, f"<p>{view.run.host}: {sum(p.completed for p in view.points)}</p>")]

    run = fixtures.passing()
    before = render_html([run])
    monkeypatch.setattr(plots, "PLOTS", (*plots.PLOTS, requests))
    after = render_html([run])
    drawn = f"<p>{run.host}: {sum(p.completed for p in run.points if p.concurrency == 1)}</p>"
    assert drawn not in before
    assert drawn in after
