"""The pictures: no text over another or out of its box, every operation there, conventions kept."""

from __future__ import annotations

import json
import re
import xml.etree.ElementTree as ET
from collections import Counter
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import pytest
from dag_examples import VARIANTS, Written, example, reference
from svg_geometry import Area, Picture, escaping_texts, inherited, measure, overlapping_texts

from moe_placer.dag import VIEWS, write_dags
from moe_placer.dag.canvas import Canvas
from moe_placer.dag.palette import COLOURS, WARNING, node_colour, node_hatch, node_stripe
from moe_placer.dag.views import count_tensors, hottest_layer
from moe_placer.verifier.dags import verify_dags

SVG = "{http://www.w3.org/2000/svg}"
EXAMPLES = [*VARIANTS, "reference"]


Drawn = Callable[[str, str], Path]


@pytest.fixture(scope="session")
def drawn(written: Written) -> Drawn:
    """Return the picture of an example's view, drawn once for all tests."""
    return lambda name, view: next(path for path in written(name, view) if path.suffix == ".svg")


@pytest.mark.parametrize("view", VIEWS)
@pytest.mark.parametrize("name", EXAMPLES)
def test_no_text_overlaps_another_or_leaves_its_box(name: str, view: str, drawn: Drawn) -> None:
    picture = measure(drawn(name, view))
    assert picture.texts
    assert [(a.what, b.what) for a, b in overlapping_texts(picture)] == []
    assert [(text.what, symbol.what) for text, symbol in escaping_texts(picture)] == []


def test_the_geometry_test_sees_what_it_should() -> None:
    page = Area(0, 0, 100, 100, "page")
    a, b = Area(10, 10, 30, 20, "a"), Area(25, 15, 45, 25, "b")
    assert len(list(overlapping_texts(Picture(page, [a, b], [])))) == 1
    assert not list(overlapping_texts(Picture(page, [a, Area(30, 10, 40, 20, "c")], [])))
    assert list(escaping_texts(Picture(page, [Area(90, 0, 110, 10, "off")], [])))
    assert list(escaping_texts(Picture(page, [b], [Area(0, 0, 40, 40, "computation-40-40")])))
    in_corner = Area(10, 10, 30, 14, "text")
    assert not list(escaping_texts(Picture(page, [in_corner], [Area(8, 8, 40, 40, "computation-32-32")])))
    assert list(escaping_texts(Picture(page, [in_corner], [Area(8, 8, 40, 40, "communication-32-32")])))


@pytest.mark.parametrize("name", ["small", "one-gpu", "failed-node", "many-groups", "sharded-experts"])
def test_what_is_too_large_is_drawn_lean_and_still_names_every_expert(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, drawn: Drawn
) -> None:
    view = VIEWS["comprehensive_moe_dag"]
    full = drawn(name, view.name).stat().st_size
    monkeypatch.setattr("moe_placer.dag.drawing_files.MOST_SVG_BYTES", 1000)
    notes: list[str] = []
    paths = write_dags(*example(name), tmp_path, [view.name], note=notes.append)
    svg = next(path for path in paths if path.suffix == ".svg")
    assert svg.stat().st_size < 0.8 * full
    assert len([note for note in notes if "comprehensive_moe_dag.svg has" in note]) == 1
    picture = measure(svg)
    assert [(a.what, b.what) for a, b in overlapping_texts(picture)] == []
    assert [(text.what, symbol.what) for text, symbol in escaping_texts(picture)] == []
    written = Counter(word for text in picture.texts for word in re.findall(r"\be(\d+)\b", text.what))
    experts = Counter(str(expert) for op in view.build(*example(name)).operations() for expert, _ in op.experts)
    sums = Counter(op.id.split(".")[2][1:] for op in view.build(*example(name)).operations("expert_reduce"))
    assert written - sums == experts - sums or written == experts


def test_of_what_is_larger_than_verify_reads_a_part_is_drawn_and_said(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    instance, placement, traffic = example()
    tensors = count_tensors(instance, placement, traffic)
    monkeypatch.setattr("moe_placer.dag.drawing_files.MOST_TENSORS", 10)
    monkeypatch.setattr("moe_placer.dag.drawing_files.PART_TENSORS", tensors // 2)
    notes: list[str] = []
    paths = write_dags(instance, placement, traffic, tmp_path, note=notes.append)
    whole = {"simplified_moe_dag", "detailed_expert_dag", "complete_deployment_dag"}
    assert {path.stem for path in paths} == {*whole, "comprehensive_part_dag"}
    shown = json.loads((tmp_path / "comprehensive_part_dag.json").read_text())["graph"]["layers"]
    assert len(shown) == instance.model.layers // 2
    assert hottest_layer(instance, placement, traffic) in shown
    (note,) = notes
    assert note.startswith(f"comprehensive_part_dag has layers {shown[0]} to {shown[-1]} instead of comprehensive_moe_")
    assert f"layers {shown[0]} to {shown[-1]}, " in (tmp_path / "comprehensive_part_dag.svg").read_text()
    assert [v for check in verify_dags(instance, placement, tmp_path, traffic) for v in check.violations] == []
    monkeypatch.setattr("moe_placer.dag.drawing_files.MOST_MERGED_TENSORS", 10)
    write_dags(instance, placement, traffic, tmp_path, ["complete_deployment_dag"], note=notes.append)
    assert notes[-1].startswith("complete_deployment_dag left out: all layers have about")


def test_the_number_of_tensors_is_about_right() -> None:
    for parts in (example(), example("redundant"), reference()):
        edges = VIEWS["comprehensive_moe_dag"].build(*parts).graph.number_of_edges()
        assert 0.7 < count_tensors(*parts) / edges < 1.2


@pytest.mark.parametrize("view", ["simplified_moe_dag", "detailed_expert_dag"])
def test_every_operation_has_its_symbol(view: str, drawn: Drawn) -> None:
    dag = VIEWS[view].build(*reference())
    root = ET.parse(drawn("reference", view)).getroot()
    tips = {}
    for use in root.iter(f"{SVG}use"):
        title = use.find(f"{SVG}title")
        if title is not None and title.text:
            tips[title.text.strip().partition("\n")[0]] = use.attrib["{http://www.w3.org/1999/xlink}href"]
    for op in dag.operations():
        assert tips[op.id].startswith(f"#{op.role}-")
    edges = sum(path.find(f"{SVG}title") is not None for path in root.iter(f"{SVG}path"))
    assert edges == dag.graph.number_of_edges()


def test_dashes_and_warnings_are_those_of_the_graph(drawn: Drawn) -> None:
    dag = VIEWS["detailed_expert_dag"].build(*reference())
    root = inherited(ET.parse(drawn("reference", "detailed_expert_dag")).getroot())
    paths = [path for path in root.iter(f"{SVG}path") if path.find(f"{SVG}title") is not None]
    assert sum("stroke-dasharray" in path.attrib for path in paths) == sum(edge.dashed for edge in dag.edges())
    on_the_worst = sum(edge.hot > 0.999999 for edge in dag.edges())
    assert 0 < on_the_worst < sum(bool(edge.routes) for edge in dag.edges()) / 2
    assert sum(path.get("stroke") == WARNING for path in paths) == on_the_worst
    widths = {}
    for path in paths:
        tensor = (path.find(f"{SVG}title").text or "").split("\n")[1].split()[0]  # type: ignore[union-attr]
        widths[tensor] = float(path.attrib["stroke-width"])
    sizes = {edge.tensor: edge.bytes for edge in dag.edges()}
    for a, b in pairwise(sorted(widths, key=lambda tensor: sizes[tensor])):
        assert widths[a] <= widths[b]
    assert max(widths.values()) == 4.0


@pytest.mark.parametrize("view", VIEWS)
def test_links_are_named_with_plain_tokens_time_and_cost(view: str, tmp_path: Path) -> None:
    instance, placement, traffic = example("redundant")
    fabric = instance.cluster.fabric.model_copy(update={"oversubscription": 8.0})
    slow = instance.model_copy(update={"cluster": instance.cluster.model_copy(update={"fabric": fabric})})
    dag = VIEWS[view].build(slow, placement, traffic)
    written = write_dags(slow, placement, traffic, tmp_path, [view])
    (svg,) = (path for path in written if path.suffix == ".svg")
    texts = [text.what for text in measure(svg).texts]
    named = [text for text in texts if "->" in text]
    assert named
    for text in named:
        for link in re.findall(r"\w+->\w+", text):
            assert re.search(rf"{link}: [\d,]+ tokens, [\d,.]+ µs \(cost [\d,]+\)", text), text
    assert any("cost: tokens at node-link speed (a token on a link of half" in text for text in texts)
    # The costliest link, between leaf and spine, has an eighth of a node's speed: its tokens are an eighth of its cost.
    layer, costs = next(iter(dag.facts["links"].items()))
    link = max(costs, key=costs.get)
    cost, us = dag.facts["per_token"][link]
    assert cost == 8.0
    words = f"{link}: {costs[link] / 8:,.0f} tokens, {costs[link] / 8 * us:,.1f} µs (cost {costs[link]:,.0f})"
    assert any(words in text for text in named), (layer, words)


def test_names_are_escaped_and_kept(drawn: Drawn) -> None:
    text = drawn("special-characters", "simplified_moe_dag").read_text()
    title = ET.fromstring(text).find(f"{SVG}title")
    assert title is not None
    assert title.text is not None
    assert VARIANTS["special-characters"]["name"] in title.text


def test_colours_stay_apart_for_colour_blind_people() -> None:
    """Simulate protanopia and deuteranopia (Viénot, Brettel, Mollon 1999): no two fills become alike."""
    linear = [[(int(c[i : i + 2], 16) / 255) ** 2.2 for i in (1, 3, 5)] for c in (*COLOURS, WARNING)]
    matrices = {
        "protan": [[0.11238, 0.88762, 0.0], [0.11238, 0.88762, 0.0], [0.00401, -0.00401, 1.0]],
        "deutan": [[0.29275, 0.70725, 0.0], [0.29275, 0.70725, 0.0], [-0.02234, 0.02234, 1.0]],
    }
    for name, matrix in matrices.items():
        seen = [[sum(m * v for m, v in zip(row, rgb, strict=True)) for row in matrix] for rgb in linear]
        for index, a in enumerate(seen):
            for b in seen[index + 1 :]:
                near = sum((max(x, 0) ** (1 / 2.2) - max(y, 0) ** (1 / 2.2)) ** 2 for x, y in zip(a, b, strict=True))
                assert near**0.5 > 0.06, f"{name}: {a} and {b}"


def test_hatches_can_be_seen_and_forty_nodes_told_apart() -> None:
    looks = {(node_colour(node), node_hatch(node)) for node in range(40)}
    assert len(looks) == 40
    for node in range(len(COLOURS)):  # of the hatch, six tenths opaque, on the colour: some channel differs clearly
        colour, stripe = node_colour(node), node_stripe(node)
        assert max(0.6 * abs(int(stripe[i : i + 2], 16) - int(colour[i : i + 2], 16)) for i in (1, 3, 5)) > 50


def test_sizes(drawn: Drawn) -> None:
    for view in VIEWS:
        path = drawn("reference", view)
        assert path.stat().st_size < 6e6
        assert not re.search(r"https?://(?!www\.w3\.org/)", path.read_text()), "an SVG that is not self-contained"


def test_what_recurs_is_written_once_and_what_looks_alike_together() -> None:
    part = Canvas(0, 0, "")
    part.line("M0 0H9", width=2.0)
    part.text("x & y", 1, 2, 9.0)
    canvas = Canvas(100, 50, "a < b")
    for x in (10, 30):
        canvas.stamp(part.items, x, 5)
    canvas.group("frames")
    canvas.frame((1, 2, 30, 20), fill="#F7F7F7", tip="frame")
    canvas.symbol("routing", (40, 10, 30, 20), ["op"], fill=canvas.fill_of(9), name="L1.gate.g0")
    root = ET.fromstring(canvas.svg())
    assert root.findtext(f"{SVG}title") == "a < b"
    (stamped,) = (group for group in root.iter(f"{SVG}g") if group.get("id") == "part0")
    assert [text.text for text in root.iter(f"{SVG}text")] == ["x & y", "op"]
    assert len(stamped.findall(f".//{SVG}path")) == 1
    (frames,) = (group for group in root.iter(f"{SVG}g") if group.get("id") == "frames")
    assert [rect.findtext(f"{SVG}title") for rect in frames.iter(f"{SVG}rect")] == ["frame"]

    scene = json.loads(json.dumps(canvas.scene({"L1.gate.g0": 7})))
    assert scene["items"][:2] == [[0, 10, 5], [0, 30, 5]]
    line, words = scene["stamps"][0]
    assert (scene["forms"][line[0]], words[0]) == (["M0 0H9", None, 0], "x & y")
    frame, symbol, text = scene["items"][2:]
    assert (scene["forms"][frame[0]][1:], scene["forms"][symbol[0]][1:]) == ([[0, 0, 30, 20], 0], [[0, 0, 30, 20], 1])
    assert symbol[1:3] + symbol[4:] == [40, 10, 7]
    assert scene["looks"][symbol[3]][0] in scene["hatches"]
    assert text[0] == "op"


@pytest.mark.parametrize("view", ["comprehensive_moe_dag", "complete_deployment_dag"])
def test_large_drawings_can_be_read_at_full_size(view: str, drawn: Drawn) -> None:
    root = inherited(ET.parse(drawn("reference", view)).getroot())
    sizes = Counter(float(text.attrib["font-size"]) for text in root.iter(f"{SVG}text"))
    assert min(sizes) >= 9, sizes


def test_symbols_of_the_complete_deployment_state_gpus_and_shapes(drawn: Drawn) -> None:
    texts = [text.what for text in measure(drawn("reference", "complete_deployment_dag")).texts]
    assert texts.count("8 experts A") == texts.count("8 experts B") == 16 * 58
    assert texts.count("GPU 120-127") == 2 * 58
    assert any(re.fullmatch(r"\[32\d{3}\.\d, 7168\]", text) for text in texts)
    orders = sum(edge.travel == "order" for edge in VIEWS["complete_deployment_dag"].build(*reference()).edges())
    assert any(f"({orders:,} edges in .json and .dot)" in text for text in texts)


def test_labels_of_operations_in_dot_have_dimensions(tmp_path: Path) -> None:
    paths = write_dags(*reference(), tmp_path, ["detailed_expert_dag"])
    text = next(path for path in paths if path.suffix == ".dot").read_text()
    labels = dict(re.findall(r'^"([^"]+)" \[.*\blabel="([^"]*)"', text, re.MULTILINE))
    layer = next(name for name in labels if ".attention.g0" in name).partition(".")[0]
    assert labels[f"{layer}.attention.g0"].endswith(r"MHA\nGPU 0-7\n[8192, 7168] to [8192, 7168]")
    assert labels[f"{layer}.gate.g3"].endswith(r"[8192, 7168] to [8192, 8]")
    assert labels["output.g0"].endswith(r"GPU 0-7\n[8192, 7168]")
