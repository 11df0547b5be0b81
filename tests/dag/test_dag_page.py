"""The page of a large drawing, used in Chromium as a person would: by mouse, by keyboard, on a phone, by a link."""

from __future__ import annotations

import base64
import json
import re
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from command_line import REPO
from dag_examples import example

from moe_placer.dag import VIEWS, Dag, write_dags
from moe_placer.dag.labels import amount, gpu_list
from moe_placer.dag.page import to_page
from moe_placer.dag.views import hottest_layer
from moe_placer.library import open_library
from moe_placer.traffic import load_traffic

SVG = "{http://www.w3.org/2000/svg}"
VIEW = "comprehensive_moe_dag"
LARGE = [view for view in VIEWS.values() if view.page]
READY = "body[data-ready]"


@pytest.fixture(scope="module")
def dag() -> Dag:
    return VIEWS[VIEW].build(*example())


@pytest.fixture(scope="module")
def file(dag: Dag, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("page") / f"{VIEW}.html"
    path.write_text(to_page(dag, VIEW, VIEWS[VIEW].draw(dag)), encoding="utf-8")
    return path


def opened(tab: Any, path: Path, fragment: str = "") -> Any:
    page = tab.open(path, fragment)
    page.wait_for_selector(READY)
    return page


def view_of(page: Any) -> tuple[float, float, float]:
    """Magnification, and where the drawing's corner is, after the next frame."""
    page.evaluate("new Promise(done => requestAnimationFrame(() => requestAnimationFrame(done)))")
    k, x, y = map(float, page.get_attribute("#view", "data-view").split())
    return k, x, y


def search(page: Any, text: str) -> str:
    """Type, and return what the page says of it."""
    page.fill("#query", text)
    return page.inner_text("#count")


def ids_of(page: Any, steps: int) -> list[str]:
    found = []
    for _ in range(steps):
        page.keyboard.press("Enter")
        found.append(page.inner_text("#panel .id"))
    return found


@pytest.mark.parametrize("view", LARGE, ids=lambda view: view.name)
def test_every_operation_is_found_in_the_drawing(view: Any, tmp_path: Path, tab: Any) -> None:
    paths = write_dags(*example("many-groups"), tmp_path, [view.name])
    graph = json.loads(next(path for path in paths if path.suffix == ".json").read_text())
    page = opened(tab, next(path for path in paths if path.suffix == ".html"))
    assert f"{len(graph['nodes'])} operations and {len(graph['edges'])} tensors" in page.inner_text("#panel")
    for row in graph["nodes"][:: max(1, len(graph["nodes"]) // 12)]:
        page.evaluate("id => { location.hash = new URLSearchParams({ op: id }) }", row["id"])
        page.wait_for_function("id => document.querySelector('#panel .id').innerText === id", arg=row["id"])
        before = view_of(page)
        page.keyboard.press("Escape")  # what was opened is in the middle: a click there opens it again
        box = page.locator("#view").bounding_box()
        page.mouse.click(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2)
        assert page.inner_text("#panel .id") == row["id"]
        assert view_of(page) == before


def test_details_are_the_graphs_own(dag: Dag, file: Path, tab: Any) -> None:
    page = opened(tab, file)
    for name in ("L1.gate_scatter.g0", "L1.expert.e2.r1", "L3.dispatch_receive.n2", "L0.mlp.g1", "gather"):
        page.evaluate("id => { location.hash = new URLSearchParams({ op: id }) }", name)
        page.wait_for_function("id => document.querySelector('#panel .id').innerText === id", arg=name)
        op, text = dag.operation(name), page.inner_text("#panel")
        assert gpu_list(op.gpus).removeprefix("GPU ").replace(",", ", ") in text
        assert amount(op.bytes_read, "B") in text
        assert not op.flops or amount(op.flops, "FLOP") in text
        exact = re.findall(r"^([\d,.]+) (?:FLOP|bytes)", text, re.MULTILINE)
        figures = [figure for figure in (op.flops, op.bytes_read) if figure]
        assert [float(number.replace(",", "")) for number in exact] == pytest.approx(figures, rel=1e-9, abs=0.05)
        rows = page.locator("#panel .tensors > li").all_inner_texts()
        edges = [*dag.incoming(name), *dag.outgoing(name)]
        assert len(rows) == len(edges)
        for row, edge in zip(rows, edges, strict=True):
            other = edge.source if edge.target == name else edge.target
            shape = [float(number.replace(",", "")) for number in re.findall(r"([\d,.]+) [a-z]", row.split("\n")[1])]
            assert other in row.split("\n")[0]
            assert edge.tensor in row
            assert shape[: len(edge.shape)] == pytest.approx(edge.shape, abs=0.05)
            assert amount(edge.bytes, "B") in row
            assert {"same-gpu": "stays", "nvlink": "NVLink", "network": "network"}[edge.travel] in row
            assert (f"{len(dag.links_on_the_way(edge))} link" in row) == bool(edge.routes)


def test_links_on_the_way_and_the_worst_of_the_layer(dag: Dag, file: Path, tab: Any) -> None:
    page = opened(tab, file, "op=L1.dispatch_receive.n0")
    page.locator("#panel summary").last.scroll_into_view_if_needed()
    for summary in page.locator("#panel summary").all():
        summary.click()
    rows = [tuple(row.split()) for row in page.locator("#panel table tr:has(td)").all_inner_texts()]
    cost, per_token = dag.facts["links"][1], dag.facts["per_token"]

    def carried(link: str) -> tuple[str, str, str]:
        tokens = cost[link] / per_token[link][0]
        return f"{tokens:,.0f}", f"{tokens * per_token[link][1]:,.1f}", f"{cost[link]:,.0f}"

    assert sorted(rows) == sorted(
        (link, f"{share:.0%}", *carried(link))
        for edge in dag.incoming("L1.dispatch_receive.n0")
        for link, share in dag.links_on_the_way(edge).items()
    )
    worst = max(cost, key=lambda link: cost[link])
    tokens, us, costs = carried(worst)
    shown = page.locator("#panel .bars li").first.inner_text().split()
    assert shown == [worst, tokens, "tokens,", us, "µs", "(cost", f"{costs})"]
    assert "cost: tokens at node-link speed (a token on a link of half" in page.inner_text("#panel")


SEARCHES: dict[str, Callable[[Any], bool]] = {
    "expert 2": lambda op: any(expert == 2 for expert, _ in op.experts),
    "e2 copy 1": lambda op: (2, 1) in op.experts,
    "GPU 5": lambda op: 5 in op.gpus,
    "gpus 2-3": lambda op: bool({2, 3} & set(op.gpus)),
    "layer 1 expert 2": lambda op: op.layer == 1 and any(expert == 2 for expert, _ in op.experts),
    "layer 1,3 gating": lambda op: op.layer in {1, 3} and op.kind in {"gate", "gate_scatter"},
    "L2 node 0": lambda op: op.layer == 2 and min(op.gpus) < 2,
    "dp 1 expert.": lambda op: op.group == 1 and op.kind == "expert",
    "l1.dispatch_send.n3": lambda op: op.id == "L1.dispatch_send.n3",
    "dispatch receive": lambda op: op.kind == "dispatch_receive",
}


def test_search_finds_what_the_graph_has(dag: Dag, file: Path, tab: Any) -> None:
    page = opened(tab, file)
    for text, wanted in SEARCHES.items():
        ids = [op.id for op in dag.operations() if wanted(op)]
        assert ids, text
        said = search(page, text)
        assert said == f"{len(ids)} match{'es' if len(ids) > 1 else ''}", text
    for text, said in {"expert 99": "no such expert: the last is 3", "layer 4": "no such layer: the last is 3"}.items():
        assert search(page, text) == said
    assert search(page, "turbine") == "no match"
    assert search(page, "") == ""


def test_next_and_previous_open_and_show_each_match(dag: Dag, file: Path, tab: Any) -> None:
    page = opened(tab, file)
    ids = [op.id for op in dag.operations("expert") if op.experts[0][0] == 2]
    search(page, "expert 2")
    all_shown = view_of(page)
    assert ids_of(page, len(ids) + 1) == [*ids, ids[0]]
    assert page.inner_text("#count") == f"1 of {len(ids)}"
    assert view_of(page)[0] > all_shown[0]
    page.click("#previous")
    assert page.inner_text("#panel .id") == ids[-1]
    page.click("#next")
    assert page.inner_text("#panel .id") == ids[0]
    page.focus("#query")
    page.keyboard.press("Shift+Enter")
    assert page.inner_text("#panel .id") == ids[-1]


def test_wheel_buttons_keys_drag_and_fit_change_the_view(file: Path, tab: Any) -> None:
    page = opened(tab, file)
    page.click("#fit")
    k, x, y = start = view_of(page)
    page.mouse.move(400, 300)
    page.mouse.wheel(0, -300)
    closer = view_of(page)
    top = page.locator("#view").bounding_box()["y"]
    assert closer[0] > k
    for now, before, at in zip(closer[1:], (x, y), (400, 300 - top), strict=True):
        # What is under the pointer stays there.
        assert (at - now) / closer[0] == pytest.approx((at - before) / k, abs=0.5)
    page.mouse.down()
    page.mouse.move(430, 320, steps=3)
    page.mouse.up()
    assert view_of(page) == pytest.approx((closer[0], closer[1] + 30, closer[2] + 20), abs=0.01)
    page.click("#fit")
    assert view_of(page) == start
    for more, less in (("#closer", "#farther"), ("+", "-")):
        (page.click if more[0] == "#" else page.keyboard.press)(more)
        assert view_of(page)[0] > k
        (page.click if less[0] == "#" else page.keyboard.press)(less)
        assert view_of(page) == pytest.approx(start, abs=0.01)
    page.keyboard.press("ArrowRight")
    assert view_of(page) == pytest.approx((k, x - 80, y))
    page.keyboard.press("0")
    assert view_of(page) == start


@pytest.mark.parametrize("view", LARGE, ids=lambda view: view.name)
def test_a_page_opens_at_the_layer_with_the_busiest_link(view: Any, tmp_path: Path, tab: Any) -> None:
    instance, placement, traffic = example()
    paths = write_dags(instance, placement, traffic, tmp_path, [view.name])
    page = opened(tab, next(path for path in paths if path.suffix == ".html"))
    k, x, y = view_of(page)
    seen = page.locator("#view").bounding_box()
    boxes = {
        title.split()[0]: tuple(float(use.attrib[key]) for key in ("x", "y"))
        for use in ET.parse(next(path for path in paths if path.suffix == ".svg")).iter(f"{SVG}use")
        if (title := use.findtext(f"{SVG}title"))
    }
    layer = hottest_layer(instance, placement, traffic)
    experts = [place for name, place in boxes.items() if re.match(rf"(L{layer}\.expert|expert\.L{layer})\.", name)]
    assert experts
    for left, top in experts:
        assert 0 <= x + k * left < seen["width"]
        assert 0 <= y + k * top < seen["height"]
    page.click("#fit")
    assert view.name == "detailed_expert_dag" or k >= view_of(page)[0]


def test_equal_links_are_said_to_be_equal(dag: Dag, file: Path, tab: Any) -> None:
    page = opened(tab, file, "op=L1.dispatch_receive.n0")
    cost = dag.facts["links"][1]
    level = sum(value >= 0.99 * max(cost.values()) for value in cost.values())
    assert level > 1
    assert f"{level} are within 1% of the costliest, so equally busy." in page.inner_text("#panel")


def test_the_keyboard_alone_does_it(dag: Dag, file: Path, tab: Any) -> None:
    page = opened(tab, file)
    page.keyboard.press("/")
    page.keyboard.type("layer 2 expert 1 copy 0")
    page.keyboard.press("Enter")
    assert page.inner_text("#panel .id") == "L2.expert.e1.r0"
    neighbour = dag.incoming("L2.expert.e1.r0")[0].source
    for _ in range(20):
        page.keyboard.press("Tab")
        if page.evaluate("document.activeElement.innerText") == neighbour:
            break
    page.keyboard.press("Enter")
    assert page.inner_text("#panel .id") == neighbour
    assert page.evaluate("document.activeElement.tagName") == "H2"
    page.keyboard.press("Escape")
    assert page.locator("#panel .found a").all_inner_texts() == ["L2.expert.e1.r0"]
    assert page.evaluate("document.activeElement.id") == "view"
    page.keyboard.press("Enter")  # what is in the middle: the neighbour that was just shown
    assert page.inner_text("#panel .id") == neighbour
    page.keyboard.press("Escape")
    page.keyboard.press("Escape")
    assert page.input_value("#query") == ""
    assert page.inner_text("#panel .id") == VIEW


def test_a_link_opens_the_same_again(file: Path, tab: Any) -> None:
    page = opened(tab, file)
    search(page, "layer 2")
    page.keyboard.press("Enter")
    fragment = page.url.partition("#")[2]
    assert fragment == "q=layer+2&op=L2.attention.g0"
    shown = view_of(page)
    page = opened(tab, file, fragment)
    assert page.input_value("#query") == "layer 2"
    assert page.inner_text("#panel .id") == "L2.attention.g0"
    assert view_of(page) == shown
    page.click("#panel .tensors a >> nth=0")
    assert page.inner_text("#panel .id") == "L1.aggregate.g0"
    page.go_back()
    page.wait_for_function("document.querySelector('#panel .id').innerText === 'L2.attention.g0'")
    page = opened(tab, file, "op=L9.nothing")
    assert page.inner_text("#count") == "no operation L9.nothing"


def test_dark_paper_turns_white_for_print(file: Path, new_tab: Any) -> None:
    page = opened(new_tab(color_scheme="dark"), file)
    corner = """(() => {
      const copy = new OffscreenCanvas(1, 1).getContext("2d");
      copy.drawImage(document.querySelector("#view"), 0, 0);
      return copy.getImageData(0, 0, 1, 1).data[0];
    })()"""
    page.click("#fit")
    view_of(page)
    assert page.evaluate(corner) < 32
    assert page.evaluate(f"(dispatchEvent(new Event('beforeprint')), {corner})") == 255
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    view_of(page)
    assert page.evaluate(corner) < 32


def test_a_phone_shows_details_under_the_drawing_and_pinches(file: Path, new_tab: Any) -> None:
    tab = new_tab(viewport={"width": 390, "height": 844}, has_touch=True, is_mobile=True, color_scheme="dark")
    page = opened(tab, file)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    assert "Busiest link of each layer" in page.inner_text("#panel")
    page.click("#about")
    assert not page.is_visible("#panel")
    k = view_of(page)[0]
    wire = page.context.new_cdp_session(page)
    for kind, apart in (("touchStart", 40), ("touchMove", 60), ("touchMove", 80), ("touchEnd", 0)):
        points = [{"x": 195 - apart, "y": 400, "id": 0}, {"x": 195 + apart, "y": 400, "id": 1}] if apart else []
        wire.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})
    assert view_of(page)[0] == pytest.approx(2 * k, rel=0.05)
    search(page, "l1.gate.g2")
    page.keyboard.press("Enter")
    assert page.inner_text("#panel .id") == "L1.gate.g2"
    assert page.locator("#view").bounding_box()["height"] > 300
    page.click("#panel .close")
    assert not page.is_visible("#panel")


HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>${alert(3)}'\"&\\u003c]]>"


def test_hostile_names_are_only_text(tmp_path: Path, tab: Any) -> None:
    instance, placement, traffic = example("special-characters")
    instance = instance.model_copy(update={"name": HOSTILE})
    dag = VIEWS[VIEW].build(instance, placement, traffic)
    dag.facts["links"] = {
        layer: {link + HOSTILE: cost for link, cost in costs.items()} for layer, costs in dag.facts["links"].items()
    }
    dag.facts["per_token"] = {link + HOSTILE: figures for link, figures in dag.facts["per_token"].items()}
    dag.routes = {pair: {link + HOSTILE: share for link, share in links.items()} for pair, links in dag.routes.items()}
    path = tmp_path / "hostile.html"
    path.write_text(to_page(dag, VIEW, VIEWS[VIEW].draw(dag)), encoding="utf-8")
    page = opened(tab, path, "op=L1.dispatch_receive.n0")
    page.locator("#panel summary").first.click()
    assert HOSTILE in page.inner_text("#panel")
    assert page.title() == f"{HOSTILE}: {VIEW}"
    page.keyboard.press("Escape")
    assert page.inner_text("#panel h2") == HOSTILE
    assert page.locator("img").count() == 0
    assert page.locator("script").count() == 3


COMPARE = """async (files) => {
  const pixels = await Promise.all(files.map(async (file) => {
    const image = new Image();
    image.src = "data:image/png;base64," + file;
    await image.decode();
    const context = new OffscreenCanvas(image.width, image.height).getContext("2d");
    context.drawImage(image, 0, 0);
    return context.getImageData(0, 0, image.width, image.height).data;
  }));
  let ink = 0, away = 0;
  for (let at = 0; at < pixels[1].length; at += 1) {
    ink += 255 - pixels[1][at];
    away += Math.abs(pixels[0][at] - pixels[1][at]);
  }
  return [pixels[0].length === pixels[1].length, ink / pixels[1].length, away / pixels[1].length];
}"""


@pytest.mark.parametrize("view", LARGE, ids=lambda view: view.name)
def test_the_canvas_shows_what_the_svg_shows(view: Any, tmp_path: Path, tab: Any) -> None:
    """Painted by the page and by Chromium itself, the drawing is the same but for the edges of lines and letters."""
    paths = {path.suffix: path for path in write_dags(*example("many-groups"), tmp_path, [view.name])}
    page = opened(tab, paths[".html"])
    page.click("#fit")
    for _ in range(4):  # until all texts are large enough to be written
        page.keyboard.press("+")
    k, x, y = view_of(page)
    box = page.locator("#view").bounding_box()
    ours = page.locator("#view").screenshot()
    width = float(re.search(r'width="([\d.]+)"', paths[".svg"].read_text())[1]) * k  # type: ignore[index]
    frame = tmp_path / "frame.html"
    place = f"position:absolute;left:{x}px;top:{y}px;width:{width}px"
    frame.write_text(f"<body style='margin:0;overflow:hidden'><img src='{paths['.svg'].name}' style='{place}'>")
    page = tab.open(frame)
    theirs = page.screenshot(clip={"x": 0, "y": 0, "width": box["width"], "height": box["height"]})
    same_size, ink, away = page.evaluate(COMPARE, [base64.b64encode(png).decode() for png in (ours, theirs)])
    assert same_size
    assert ink > 2  # there is something to compare
    assert away < 0.08 * ink


def test_the_same_graph_gives_the_same_bytes_in_little_space(dag: Dag, file: Path) -> None:
    page = to_page(VIEWS[VIEW].build(*example()), VIEW, VIEWS[VIEW].draw(dag))
    assert page == file.read_text(encoding="utf-8")
    assert not re.search(r"https?://(?!www\.w3\.org/)", page), "a page that is not self-contained"


@pytest.mark.slow
@pytest.mark.timeout(1800)  # half a minute of CPU time, on a machine that may be shared
@pytest.mark.parametrize("name", ["h100-128", "dsv3-320"])
def test_the_largest_open_and_pan_within_three_seconds_of_cpu_time(name: str, tmp_path: Path, tab: Any) -> None:
    """Counted is the thread that runs the page: how long others wait for a core is not the page's."""
    library = open_library(REPO / "library")
    record = library.record(name)
    assert record.best is not None
    instance = library.instance(record)
    dag = VIEWS[VIEW].build(instance, library.placement(record, record.best.placement), load_traffic(instance))
    html = tmp_path / f"{name}.html"
    html.write_text(to_page(dag, VIEW, VIEWS[VIEW].draw(dag)), encoding="utf-8")
    wire = tab.page.context.new_cdp_session(tab.page)
    wire.send("Performance.enable", {"timeDomain": "threadTicks"})

    def cpu_s() -> float:
        metrics = wire.send("Performance.getMetrics")["metrics"]
        return float(next(one["value"] for one in metrics if one["name"] == "TaskDuration"))

    before = cpu_s()
    page = opened(tab, html)
    view_of(page)
    ready = cpu_s() - before
    for key in [*["ArrowRight", "+"] * 5, *["ArrowDown", "-"] * 5]:
        page.keyboard.press(key)
        view_of(page)
    total = cpu_s() - before
    print(f"{name}: shown after {ready:.2f} CPU s, 20 frames in {total - ready:.2f} CPU s more")
    assert 0.1 < total < 3
