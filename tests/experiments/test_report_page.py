"""A report's page, used in Chromium: sorted, opened by keyboard, on a phone, in the dark, on paper."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from report_rows import EVIL, Rows, draw_here, luminance, write_folder

READY = "body[data-ready]"
CHARTS = ["profile", "held-out", "time", "layer-chart", "fabric", "links", "gpus"]


def opened(tab: Any, folder: Path) -> Any:
    page = tab.open(folder / "index.html")
    page.wait_for_selector(READY, state="attached")
    return page


def test_every_chart_is_drawn_and_described(made: Path, tab: Any) -> None:
    page = opened(tab, made)
    for name in CHARTS:
        svg = page.locator(f"#{name} svg")
        assert svg.count() == 1, name
        box = svg.bounding_box()
        assert box["width"] > 200, name
        assert page.locator(f"#{name} [role=graphics-document]").first.get_attribute("aria-label"), name


def test_tables_sort_both_ways_and_say_so(made: Path, tab: Any) -> None:
    page = opened(tab, made)
    table = page.locator("table.sortable").first
    header = table.locator("thead th").nth(1)
    numbers = lambda: [  # noqa: E731
        float(cell.replace(",", "")) for cell in table.locator("tbody td:nth-child(2)").all_inner_texts()
    ]
    assert header.get_attribute("aria-sort") is None
    header.locator("button").focus()
    page.keyboard.press("Enter")
    assert (header.get_attribute("aria-sort"), numbers()) == ("ascending", sorted(numbers()))
    page.keyboard.press("Enter")
    assert (header.get_attribute("aria-sort"), numbers()) == ("descending", sorted(numbers(), reverse=True))
    table.locator("thead th button").first.click()
    names = table.locator("tbody th").all_inner_texts()
    assert names == sorted(names)
    assert table.locator("[aria-sort]").count() == 1


def test_a_layer_opens_to_its_placement(made: Path, rows: Rows, tab: Any) -> None:
    page = opened(tab, made)
    page.select_option("#solver", label="eplb")
    page.wait_for_selector(READY, state="attached")
    run = next(row for row in rows if row.get("solver") == "eplb")
    button = page.locator("#layer-table tbody button").nth(1)
    button.focus()
    page.keyboard.press("Enter")
    assert button.get_attribute("aria-expanded") == "true"
    assert page.evaluate("document.activeElement.id") == "placement-title"
    assert page.inner_text("#placement-title") == "Layer 2: eplb on tiny"
    solved = run["traffic"]["solved_for"]
    worst, cost = solved["worst_link"][1], solved["z"][1]
    bandwidth = {link["name"]: link["bandwidth"] for link in rows[0]["links"]}[worst]
    tokens = cost * bandwidth / 400
    us = tokens * 7168 / (bandwidth * 1e9) * 1e6  # rows of these tests have no link_utilization
    note = page.inner_text("#placement-note")
    found = re.match(r"Busiest link (\S+): ([\d,.]+) tokens, ([\d,.]+) µs \(cost ([\d,.]+)\)\. ", note)
    assert found is not None, note
    assert found[1] == worst
    assert [float(number.replace(",", "")) for number in found.groups()[1:]] == pytest.approx(
        [tokens, us, cost], abs=0.06
    )
    shown = page.locator("#layer-table tbody tr").nth(1).locator("td").all_inner_texts()
    assert shown[-2:] == [found[2], found[3]]
    shown = [cell for row in page.locator("#placement tbody tr").all() for cell in row.locator("td").all_inner_texts()]
    held = {gpu: f"{e}.{r}" for e, replicas in enumerate(run["gpu"][1]) for r, gpu in enumerate(replicas)}
    assert shown == [held[gpu] for gpu in range(8)]
    page.keyboard.press("Escape")
    assert page.locator("#placement").is_hidden()
    assert button.get_attribute("aria-expanded") == "false"


def test_choosing_changes_what_is_shown(made: Path, tab: Any) -> None:
    page = opened(tab, made)
    page.select_option("#instance", label="dragonfly")
    page.get_by_text("Below: contiguous on dragonfly.").wait_for()
    page.wait_for_selector(READY, state="attached")
    assert set(page.locator("#solver option").all_inner_texts()) == {"contiguous", "random"}
    assert page.locator("#links svg").count() == 1


def test_a_phone_needs_no_sideways_scrolling(made: Path, new_tab: Callable[..., Any]) -> None:
    page = opened(new_tab(viewport={"width": 390, "height": 844}), made)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_paper_gets_all_of_it(made: Path, tab: Any) -> None:
    page = opened(tab, made)
    page.emulate_media(media="print")
    assert page.locator("#choice").is_hidden()
    assert page.locator("#gpus svg").is_visible()
    assert page.pdf(format="A4").startswith(b"%PDF")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_can_be_read(scheme: str, made: Path, new_tab: Callable[..., Any]) -> None:
    page = opened(new_tab(viewport={"width": 1200, "height": 900}, color_scheme=scheme), made)
    pairs = page.evaluate(
        """() => {
          const ground = node => {
            for (; node; node = node.parentElement) {
              const colour = getComputedStyle(node).backgroundColor;
              if (!/, 0\\)$/.test(colour)) return colour;
            }
            return "rgb(255, 255, 255)";
          };
          const own = node => [...node.childNodes].some(child => child.nodeType === 3 && child.data.trim());
          return [...document.querySelectorAll("body *:not(script):not(noscript)")]
            .filter(node => own(node) && node.getClientRects().length)
            .map(node => {
              const style = getComputedStyle(node);
              return [node.tagName, node.ownerSVGElement ? style.fill : style.color, ground(node)];
            });
        }"""
    )
    assert len(pairs) > 100
    for tag, ink, paper in pairs:
        low, high = sorted(luminance(as_hex(colour)) for colour in (ink, paper))
        assert (high + 0.05) / (low + 0.05) >= 4.5, (tag, ink, paper)


def as_hex(colour: str) -> str:
    parts = [int(float(part)) for part in colour[colour.index("(") + 1 : -1].split(",")[:3]]
    return "#" + "".join(f"{part:02x}" for part in parts)


def test_what_assistive_technology_meets(made: Path, tab: Any) -> None:
    page = opened(tab, made)
    assert page.get_attribute("html", "lang") == "en"
    assert [page.locator(tag).count() for tag in ("h1", "main", "header")] == [1, 1, 1]
    levels = page.evaluate("[...document.querySelectorAll('h1,h2,h3')].map(heading => Number(heading.tagName[1]))")
    assert all(below <= above + 1 for above, below in pairwise(levels))
    for table in page.locator("table").all():
        assert table.locator("caption").count() == 1
        assert table.locator("thead th:not([scope=col]), tbody th:not([scope=row])").count() == 0
    for region in page.locator("[role=region]").all():
        assert region.get_attribute("tabindex") == "0"
        assert region.get_attribute("aria-label")
    for control in page.locator("button, select").all():
        assert control.evaluate("node => (node.labels?.[0] ?? node).textContent.trim()")
    ids = page.evaluate("[...document.querySelectorAll('body > * [id]:not(svg *)')].map(node => node.id)")
    assert len(ids) == len(set(ids))


def test_a_script_in_a_name_does_not_run(rows: Rows, tmp_path: Path, tab: Any) -> None:
    evil = json.loads(json.dumps(rows).replace('"tiny"', json.dumps(EVIL)).replace('"eplb"', json.dumps(EVIL)))
    evil[-1]["reason"] = "<img src=x onerror=alert(1)>"
    draw_here(write_folder(tmp_path, evil, question=EVIL))
    page = opened(tab, tmp_path)
    page.locator("#layer-table tbody button").first.click()
    assert EVIL.replace("\n", " ") in page.inner_text(".question")
    assert page.locator("img").count() == 0
