"""The watch kept over pages: what it must notice, and that a quiet page passes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from browser import Tab

BAD = {
    "exception: gone wrong": "<script>throw new Error('gone wrong')</script>",
    "said aloud": "<script>console.error('said aloud')</script>",
    "dialog: boo": "<script>alert('boo')</script>",
    "request: https://example.invalid/x.png": "<img src='https://example.invalid/x.png' alt=''>",
    "request: https://example.invalid/a": "<script>fetch('https://example.invalid/a').catch(() => 0)</script>",
}


@pytest.mark.parametrize(("complaint", "markup"), BAD.items())
def test_complaints_are_noticed(complaint: str, markup: str, chromium: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text(f"<!doctype html><title>x</title>{markup}", encoding="utf-8")
    tab = Tab(chromium.new_context().new_page())  # one that may complain
    tab.open(page)
    while complaint not in tab.complaints:  # it may come late; the test's own timeout ends what never comes
        tab.page.wait_for_timeout(20)
    tab.page.context.close()


def test_a_quiet_page_passes_at_its_fragment(tab: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    page.write_text("<!doctype html><title>x</title><p id=here>quiet<script>console.log(1)</script>", encoding="utf-8")
    assert tab.open(page, "here").inner_text("#here:target") == "quiet"
    assert page.resolve().as_uri() + "#here" == tab.page.url
    assert tab.complaints == []
