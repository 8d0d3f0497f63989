"""The HTML report in a real browser: no error, no request, light, dark, on a phone, and printed."""

from __future__ import annotations

import dataclasses
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
from longhaul.report.compare import compare_runs
from longhaul.report.compare_views import render_compare_html
from longhaul.report.html import render_html
from longhaul.results import RunResult
from support import debian
from support.browser import PROGRAM, Browser, Page
from unit.report import fixtures

pytestmark = pytest.mark.browser

PROGRAMS = {**PROGRAM, "pdftotext": "poppler-utils"}
# A4 in CSS pixels, without the margins.
A4_WIDTH = 718
PHONE = {"width": 390, "height": 844, "phone": True}


def many() -> list[RunResult]:
    return [dataclasses.replace(fixtures.mixed(), host=f"h{i:02d}") for i in range(12)]


def comparison() -> str:
    first, second = fixtures.passing(), fixtures.mixed()
    return render_compare_html([compare_runs(first, second)])


REPORTS: dict[str, Callable[[], str]] = {
    "fleet": lambda: render_html(fixtures.fleet()),
    "passing": lambda: render_html([fixtures.passing()]),
    "mixed": lambda: render_html([fixtures.mixed()]),
    "minimal": lambda: render_html([fixtures.minimal()]),
    "none": lambda: render_html([]),
    "many": lambda: render_html(many()),
    "comparison": comparison,
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """Chromium for all tests here; skips, with the reason, where it cannot be had and LONGHAUL_BROWSER is not ``required``."""
    reason = debian.why_not(PROGRAMS)
    if reason and os.environ.get("LONGHAUL_BROWSER") != "required":
        pytest.skip(f"no browser here: {reason}")
    debian.install(PROGRAMS)
    with Browser.start() as made:
        yield made


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """Name -> the address of a report on disk."""
    folder = tmp_path_factory.mktemp("reports")
    for name, render in REPORTS.items():
        (folder / f"{name}.html").write_text(render(), encoding="utf-8")
    return {name: (folder / f"{name}.html").as_uri() for name in REPORTS}


def brightness(page: Page, element: str = "body") -> float:
    """Of an element's background: 0 is black, 255 is white."""
    colour = page.evaluate(f"getComputedStyle(document.querySelector({element!r})).backgroundColor")
    values = [float(word) for word in str(colour).partition("(")[2].rstrip(")").replace(",", " ").split()[:3]]
    assert len(values) == 3, colour
    return sum(values) / 3


def contrast_of_text(page: Page) -> float:
    """How far the text's brightness is from that of its background."""
    colour = page.evaluate("getComputedStyle(document.body).color")
    values = [float(word) for word in str(colour).partition("(")[2].rstrip(")").replace(",", " ").split()[:3]]
    return abs(sum(values) / 3 - brightness(page))


def too_wide(page: Page) -> list[str]:
    """What is laid out beyond the right edge of the window and is not inside something that scrolls by itself."""
    found: list[str] = page.evaluate(
        """[...document.body.querySelectorAll('*')].filter(element => {
             if (element.parentElement.closest(matchMedia('print').matches ? 'svg' : '.scroll, svg')) return false;
             const box = element.getBoundingClientRect();
             return box.width && box.right > document.documentElement.clientWidth + 1;
           }).map(element => element.tagName + '.' + element.getAttribute('class') + ' ' + element.textContent.slice(0, 60))"""
    )
    return found


def printed(page: Page, folder: Path) -> tuple[int, str]:
    """Number of pages and the text of the page as it is printed."""
    (folder / "page.pdf").write_bytes(page.pdf())
    words: Sequence[str] = [str(shutil.which("pdftotext")), "-layout", str(folder / "page.pdf"), "-"]
    text = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60).stdout
    return text.count("\f"), text


@pytest.mark.parametrize("name", REPORTS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_it_opens_without_an_error_and_asks_for_nothing(browser: Browser, pages: dict[str, str], name: str, scheme: str) -> None:
    page = browser.open(pages[name], scheme=scheme)
    assert page.messages == []
    assert page.requests == [pages[name]]
    assert page.evaluate("document.title")
    assert too_wide(page) == []
    assert brightness(page) > 200 if scheme == "light" else brightness(page) < 60
    assert contrast_of_text(page) > 120
    page.close()


@pytest.mark.parametrize("name", REPORTS)
def test_on_a_phone_nothing_is_wider_than_the_window(browser: Browser, pages: dict[str, str], name: str) -> None:
    page = browser.open(pages[name], **PHONE)
    assert page.messages == []
    assert page.evaluate("innerWidth") == PHONE["width"], "the page says itself how wide a phone is"
    assert page.evaluate("document.documentElement.scrollWidth") <= PHONE["width"], too_wide(page)
    assert too_wide(page) == []
    # The text can be read without zooming.
    assert float(str(page.evaluate("getComputedStyle(document.body).fontSize")).removesuffix("px")) >= 14
    page.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_printed_it_says_the_verdict_on_white_paper(browser: Browser, pages: dict[str, str], tmp_path: Path, scheme: str) -> None:
    for name, words in {"passing": ["PASS", "TTFT"], "mixed": ["INVALID", "FAIL", "2,096,900"]}.items():
        page = browser.open(pages[name], scheme=scheme, width=A4_WIDTH)
        count, text = printed(page, tmp_path)
        assert 1 <= count <= 20
        assert [word for word in words if word not in text] == []
        page.call("Emulation.setEmulatedMedia", media="print", features=[{"name": "prefers-color-scheme", "value": scheme}])
        assert brightness(page) > 240, "a dark page would cost ink"
        assert contrast_of_text(page) > 120
        assert too_wide(page) == [], "paper does not scroll"
        page.close()


def test_a_click_sorts_the_table_and_a_fold_opens(browser: Browser, pages: dict[str, str]) -> None:
    page = browser.open(pages["fleet"])
    before = page.evaluate("document.querySelector('table tbody').textContent")
    page.evaluate("document.querySelector('table th button').click()")
    first = page.evaluate("document.querySelector('table tbody').textContent")
    page.evaluate("document.querySelector('table th button').click()")
    second = page.evaluate("document.querySelector('table tbody').textContent")
    assert len({before, first, second}) > 1
    assert first != second
    assert page.evaluate("document.querySelector('table th').getAttribute('aria-sort')") == "descending"
    page.evaluate("document.querySelectorAll('details').forEach(fold => fold.open = true)")
    assert too_wide(page) == []
    assert page.messages == []
    page.close()


def test_a_page_that_is_broken_is_noticed(browser: Browser, tmp_path: Path) -> None:
    """Otherwise the tests above would prove nothing."""
    (tmp_path / "broken.html").write_text(
        "<!DOCTYPE html><body><div style='width:2000px'>wide</div><img src='missing.png'>"
        "<script>console.error('said'); undefinedName()</script>"
    )
    page = browser.open((tmp_path / "broken.html").as_uri(), **PHONE)
    assert any("said" in message for message in page.messages)
    assert any("undefinedName is not defined" in message for message in page.messages)
    assert any(request.endswith("missing.png") for request in page.requests)
    assert too_wide(page)
    page.close()
