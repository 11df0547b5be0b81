"""The documentation site that `make docs` builds: its links, its search, and how it looks on a desktop and a phone."""

from __future__ import annotations

from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest

import moe_placer
from moe_placer.cli.commands import cli

pytestmark = pytest.mark.site

AXE = Path(__file__).parent.parent / ".venv" / "javascript" / "node_modules" / "axe-core" / "axe.min.js"
SIZES = {"desktop": {"width": 1440, "height": 900}, "phone": {"width": 390, "height": 844}}
# One page of each kind: index, prose, wide tables, code, generated parts, a report with pictures, search.
LOOKED_AT = (
    *("docs/README", "docs/solving", "docs/nics", "docs/glossary", "docs/commands", "docs/api", "search"),
    *("docs/library", "docs/tutorial-proof", "docs/tutorial-first-plan"),
    *("README", "reports/2026-11-27-real-traces/README"),
)


class Links(HTMLParser):
    """What a page links to, and what in it can be linked to."""

    def __init__(self, page: Path) -> None:
        super().__init__()
        self.targets: list[str] = []
        self.ids: set[str] = set()
        self.feed(page.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attributes: list[tuple[str, str | None]]) -> None:
        for name, value in attributes:
            if name == "id" and value:
                self.ids.add(value)
            elif value and (name == "href" or (name == "src" and tag != "script")):
                self.targets.append(value)


def test_no_link_inside_the_site_is_dead(site: Path) -> None:
    pages = {page.resolve(): Links(page) for page in site.rglob("*.html") if "_static" not in page.parts}
    assert len(pages) > 40
    dead = []
    for page, links in pages.items():
        for target in links.targets:
            parts = urlsplit(target)
            if parts.scheme or parts.netloc:
                continue
            file = (page.parent / unquote(parts.path)).resolve() if parts.path else page
            fragment = unquote(parts.fragment)
            known = file.is_file() and (not fragment or file not in pages or fragment in pages[file].ids)
            if not known:
                dead.append(f"{page.relative_to(site.resolve())}: {target}")
    assert not dead


def test_every_command_and_name_has_its_reference(site: Path) -> None:
    commands, names = ((site / "docs" / f"{page}.html").read_text() for page in ("commands", "api"))
    assert [name for name in cli.commands if f'id="moe-placer-{name}"' not in commands] == []
    undocumented = [name for name in moe_placer.__all__ if f'id="moe_placer.{name}"' not in names]
    assert undocumented == ["__version__"]


def test_search_finds_without_a_network(site: Path, tab: Any) -> None:
    page = tab.open(site / "index.html")
    page.wait_for_url("**/docs/README.html")
    page.goto((site / "search.html").as_uri() + "?q=incumbent")
    page.wait_for_selector("#search-results li a")
    assert "glossary" in " ".join(page.locator("#search-results li a").evaluate_all("all => all.map(a => a.href)"))


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", LOOKED_AT)
def test_pages_fit_the_screen_and_axe_finds_nothing_serious(
    name: str, size: str, site: Path, new_tab: Callable[..., Any]
) -> None:
    page = new_tab(viewport=SIZES[size]).open(site / f"{name}.html")
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"]
    assert serious(page) == []


def test_axe_finds_what_is_wrong(tab: Any, tmp_path: Path) -> None:
    bad = tmp_path / "bad.html"
    bad.write_text("<!doctype html><html lang='en'><title>x</title><main><button></button></main></html>")
    assert [found.split(":")[0] for found in serious(tab.open(bad))] == ["button-name"]


def serious(page: Any) -> list[str]:
    """Run axe in a page, and return what it calls serious or critical: rule and elements."""
    if not AXE.exists():
        pytest.skip("axe-core is not installed: make .venv/.javascript (needs Node.js)")
    page.add_script_tag(path=str(AXE))
    found: list[str] = page.evaluate("""async () => (await axe.run({preload: false})).violations
        .filter(rule => ["serious", "critical"].includes(rule.impact))
        .map(rule => `${rule.id}: ` + rule.nodes.map(node => node.target.join(" ")).slice(0, 5).join("; "))""")
    return found
