"""Traces and pictures of a timeline: everything that ran is there, where and when it ran, and can be read."""

from __future__ import annotations

import gzip
import itertools
import json
import xml.etree.ElementTree as ET
from collections import defaultdict
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import assert_near, honest, tiny_instance
from click.testing import CliRunner
from dag_examples import VARIANTS, example, reference
from hypothesis import given, settings
from hypothesis import strategies as st
from svg_geometry import escaping_texts, inherited, measure, overlapping_texts

from moe_placer.cli.commands import cli
from moe_placer.dag.palette import COLOURS
from moe_placer.errors import UsageError
from moe_placer.instance import load_instance
from moe_placer.schedule.busiest_link import busiest_link, layer_link_times
from moe_placer.schedule.draw_layer import draw_layer
from moe_placer.schedule.history import History
from moe_placer.schedule.network import Network
from moe_placer.schedule.program import STREAMS, compile_program
from moe_placer.schedule.simulate import Timeline, simulate
from moe_placer.schedule.time_canvas import Axis, milliseconds
from moe_placer.schedule.timeline_pictures import write_pictures
from moe_placer.schedule.trace import chrome_trace, write_chrome_trace
from moe_placer.schedule.workload import Workload
from moe_placer.traffic import load_traffic

SVG = "{http://www.w3.org/2000/svg}"
ANY = pytest.mark.parametrize("name", VARIANTS)
WORKLOADS = (Workload(), Workload(micro_batches=1), Workload("decode", 3.0, 100.0))


@cache
def timeline_of(name: str = "small", workload: Workload = WORKLOADS[0]) -> Timeline:
    """Simulate an example once for all tests that look at its step."""
    return simulate(compile_program(*example(name)), workload, record=True)


@pytest.fixture(scope="module")
def seed_plan() -> Timeline:
    """The 61 layers of the seed deployment on 128 GPUs."""
    return simulate(compile_program(*reference()), Workload(), record=True)


# What links carry over time


@given(
    st.lists(st.tuples(st.floats(0.01, 10), st.lists(st.floats(0, 50), min_size=2, max_size=2)), min_size=1),
    st.integers(3, 40),
)
def test_a_history_is_exact_between_what_was_noted(steps: list[tuple[float, list[float]]], bins: int) -> None:
    history, now, carried = History(2), 0.0, np.zeros(2)
    for length, rates in steps:
        now, carried = now + length, carried + length * np.array(rates)
        history.note(now, carried)
    edges = np.linspace(0, now, bins + 1)
    used = history.utilization(np.array([50.0, 100.0]), edges)
    by_hand = np.zeros_like(used)
    for b in range(bins):
        at = 0.0
        for length, rates in steps:
            both = max(0.0, min(edges[b + 1], at + length) - max(edges[b], at))
            by_hand[:, b] += both * np.array(rates) / (edges[b + 1] - edges[b])
            at += length
    assert used == pytest.approx(by_hand / [[50.0], [100.0]], abs=1e-9)


def test_a_long_history_is_thinned_out_and_loses_no_byte() -> None:
    links = 4_000_000 // 2_000
    history, rng = History(links), np.random.default_rng(0)
    moments = np.cumsum(rng.exponential(1.0, 9_000))
    for now in moments:
        history.note(now, np.full(links, 3.0 * now))
    assert len(history._moments) <= 2_000
    assert history._moments[-1] == moments[-1]
    used = history.utilization(np.full(links, 6.0), np.linspace(0, moments[-1], 50))
    assert_near(used, np.full((links, 49), 0.5))


@ANY
def test_what_links_carry_over_time_adds_up(name: str) -> None:
    timeline = timeline_of(name)
    network, edges = timeline.network, np.linspace(0, timeline.makespan, 101)
    assert network.history is not None
    used = network.history.utilization(network.capacity, edges)
    assert used.shape == (len(network.capacity), 100)
    assert used.min(initial=0.0) >= 0
    assert used.max(initial=0.0) <= 1 + 1e-6
    carried = (used * network.capacity[:, None] * np.diff(edges)).sum(axis=1)
    assert carried == pytest.approx(network.carried)


def test_recording_changes_nothing_and_is_off_unless_asked_for() -> None:
    program = compile_program(*example())
    plain = simulate(program, Workload())
    recorded = simulate(program, Workload(), record=True)
    assert plain.network.history is None
    assert np.array_equal(plain.end, recorded.end, equal_nan=True)
    with pytest.raises(ValueError, match="not recorded"):
        chrome_trace(plain)
    with pytest.raises(ValueError, match="not recorded"):
        draw_layer(plain, "by-hand")


def test_links_rest_between_transfers() -> None:
    instance = tiny_instance()
    network = Network(instance, record=True)
    nodes = instance.cluster.nodes
    sent = np.full((nodes, nodes), 1e6)
    network.start(0.0, sent)
    end = network.next_end()
    assert end is not None
    network.advance(end[0])
    network.start(3 * end[0], sent)
    network.advance(4 * end[0])
    assert network.history is not None
    used = network.history.utilization(network.capacity, end[0] * np.arange(5))
    assert used[:, 1:3] == pytest.approx(0.0, abs=1e-9)
    assert used[:, 3] == pytest.approx(used[:, 0])
    assert used[:, 0].max() > 0.5


# Chrome traces


def events_of(timeline: Timeline) -> list[dict[str, Any]]:
    events: list[dict[str, Any]] = json.loads(chrome_trace(timeline))["traceEvents"]
    return events


def nanoseconds(event: dict[str, Any]) -> tuple[int, int]:
    """Begin and end as Perfetto reads them: it rounds start and duration, each for itself, to whole nanoseconds."""
    begin = round(event["ts"] * 1000)
    return begin, begin + round(event["dur"] * 1000)


@pytest.mark.parametrize("workload", WORKLOADS)
@ANY
def test_a_trace_keeps_the_rules_of_the_format(name: str, workload: Workload) -> None:
    events = events_of(timeline_of(name, workload))
    assert {event["ph"] for event in events} <= {"M", "X", "C"}  # no B without its E
    timed = [event for event in events if event["ph"] != "M"]
    assert timed == events[-len(timed) :]
    assert [event["ts"] for event in timed] == sorted(event["ts"] for event in timed)
    named = defaultdict(list)
    for event in events:
        if event["ph"] == "M":
            named[event["name"]].append((event["pid"], event.get("tid", 0)))
    assert all(len(set(places)) == len(places) for places in named.values())
    assert set(named["thread_name"]) == set(named["thread_sort_index"])
    threads = defaultdict(list)
    for event in timed:
        assert (event["pid"], 0) in named["process_name"]
        if event["ph"] == "X":
            threads[event["pid"], event["tid"]].append(nanoseconds(event))
    assert set(threads) <= set(named["thread_name"])
    for spans in threads.values():
        assert all(begin < end for begin, end in spans)
        assert all(a[1] <= b[0] for a, b in itertools.pairwise(spans))


@ANY
def test_a_trace_shows_every_operation_on_each_of_its_streams(name: str) -> None:
    timeline = timeline_of(name)
    per_node = timeline.program.instance.cluster.gpus_per_node
    expected = set()
    for task in timeline.tasks().tolist():
        if round(1e3 * timeline.end[task]) > round(1e3 * timeline.start[task]):
            for stream in timeline.program.streams(timeline.operation(task)):
                node = stream // len(STREAMS) // per_node
                expected.add((timeline.name(task), f"node {node}", stream % len(STREAMS), stream // len(STREAMS)))
    events = events_of(timeline)
    process = {e["pid"]: e["args"]["name"] for e in events if e["name"] == "process_name"}
    thread = {(e["pid"], e["tid"]): e["args"]["name"] for e in events if e["name"] == "thread_name"}
    shown = set()
    for event in events:
        if event["ph"] == "X" and process[event["pid"]] != "critical path":
            _, gpu, label = thread[event["pid"], event["tid"]].split(" ")
            index = ("compute", "NVLink", "network").index(label)
            shown.add((event["name"], process[event["pid"]], index, int(gpu)))
    assert shown == expected


@ANY
def test_the_critical_path_in_a_trace_has_no_gap(name: str) -> None:
    timeline = timeline_of(name)
    spans = [nanoseconds(e) for e in events_of(timeline) if e["ph"] == "X" and e["pid"] == 1]
    assert spans[0][0] == 0
    assert spans[-1][1] == round(1e3 * timeline.makespan)
    assert all(a[1] == b[0] for a, b in itertools.pairwise(spans))


def test_counters_add_up_to_what_links_carried() -> None:
    timeline = timeline_of()
    counters = defaultdict(list)
    for event in events_of(timeline):
        if event["ph"] == "C":
            counters[event["name"]].append((event["ts"], event["args"]["%"]))
    network = timeline.network
    assert set(counters) == set(network.routes.links)
    for k, link in enumerate(network.routes.links):
        moments, percent = map(np.array, zip(*counters[link], strict=True))
        assert moments[0] == 0
        assert percent[-1] == 0
        assert (np.diff(percent) != 0).all()
        carried = (np.diff(moments) * percent[:-1] / 100).sum() * network.capacity[k]
        assert carried == pytest.approx(network.carried[k], rel=0.02)


def test_what_an_operation_tells() -> None:
    timeline = timeline_of()
    program, durations = timeline.program, timeline.durations
    told: dict[str, dict[str, Any]] = {}
    for event in events_of(timeline):
        if event["ph"] == "X" and event["pid"] > 2 and event["args"]:
            assert event["name"] not in told  # once, on the first GPU
            told[event["name"]] = event["args"]
    p = program.names.index("L1.expert.e3.r1")
    assert told["L1.expert.e3.r1.b1"] == {
        "operation": "L1.expert.e3.r1",
        "kind": "expert",
        "formula": "expert",
        "layer": 1,
        "micro_batch": 1,
        "gpus": 1,
        "experts": ["3 (replica 1)"],
        "tokens": pytest.approx(program.tokens[p] / 2, rel=1e-5),
        "flops": pytest.approx(durations.flops[p], rel=1e-5),
        "bytes_read": pytest.approx(durations.read[p], rel=1e-5),
        "overhead_us": 2,
    }
    assert durations.flops[p] == pytest.approx(2 * 2 * 64 * 32 * program.tokens[p] / 2)
    sends = [args for args in told.values() if args["kind"] == "dispatch_send"]
    assert sum(args["network_bytes"] for args in sends) == pytest.approx(
        sum(sent.sum() for p, sent in program.sent.items() if program.kinds[p] == "dispatch_send"), rel=1e-4
    )
    assert sum(args["tokens"] for args in sends) == pytest.approx(3 * 2 * 800)  # 3 MoE layers, top 2 of 800 tokens


def test_traces_are_the_same_every_time_and_may_be_compressed(tmp_path: Path) -> None:
    timeline = timeline_of("special-characters")
    write_chrome_trace(timeline, tmp_path / "a.json")
    for name in ("b.json.gz", "c.json.gz"):
        write_chrome_trace(timeline_of("special-characters"), tmp_path / name)
    plain = (tmp_path / "a.json").read_bytes()
    assert gzip.decompress((tmp_path / "b.json.gz").read_bytes()) == plain
    assert (tmp_path / "b.json.gz").read_bytes() == (tmp_path / "c.json.gz").read_bytes()
    assert json.loads(plain)["otherData"]["instance"] == VARIANTS["special-characters"]["name"]


# Pictures


def check_geometry(path: Path) -> None:
    picture = measure(path)
    assert picture.texts
    assert [(a.what, b.what) for a, b in overlapping_texts(picture)] == []
    assert [(text.what, symbol.what) for text, symbol in escaping_texts(picture)] == []
    for rect in inherited(ET.parse(path).getroot()).iter(f"{SVG}rect"):
        if "x" in rect.attrib and "stroke" in rect.attrib:
            x, y, width, height = (float(rect.attrib[key]) for key in ("x", "y", "width", "height"))
            assert 0 <= x <= x + width <= picture.page.right
            assert 0 <= y <= y + height <= picture.page.bottom


@pytest.mark.parametrize("workload", WORKLOADS)
@ANY
def test_no_text_overlaps_another_or_leaves_the_page(name: str, workload: Workload, tmp_path: Path) -> None:
    for path in write_pictures(timeline_of(name, workload), "by-hand", tmp_path):
        check_geometry(path)


def test_pictures_of_the_seed_plan(seed_plan: Timeline, tmp_path: Path) -> None:
    paths = write_pictures(seed_plan, "contiguous", tmp_path)
    assert [path.name for path in paths] == ["schedule_step.svg", "schedule_layer.svg"]
    for path in paths:
        check_geometry(path)
        assert path.stat().st_size < 6e6
    step = paths[0].read_text()
    assert all(f">layer {layer}<" in step or f">{layer}<" in step for layer in range(61))
    assert "contiguous: a step of " + milliseconds(seed_plan.makespan) in step


def test_a_layer_of_many_nodes_shows_those_on_the_critical_path(seed_plan: Timeline) -> None:
    text, program = draw_layer(seed_plan, "contiguous", 30), seed_plan.program
    shown = {node for node in range(16) if f">node {node}<" in text}
    path = [seed_plan.operation(task) for task in seed_plan.critical_path()]
    needed = {gpu // 8 for p in path if program.layer[p] == 30 for gpu in program.gpus[p]}
    assert needed
    assert needed <= shown
    assert len(shown) == 8
    assert "8 of 16 nodes" in text


def test_labels_of_bars_stay_in_their_bars(seed_plan: Timeline, tmp_path: Path) -> None:
    path = write_pictures(seed_plan, "contiguous", tmp_path)[1]
    groups = {group.get("id"): group for group in inherited(ET.parse(path).getroot()).iter(f"{SVG}g")}
    checked = 0
    for name in ("path", "nodes"):
        bars = [
            tuple(float(r.attrib[k]) for k in ("x", "y", "width", "height")) for r in groups[name].iter(f"{SVG}rect")
        ]
        for text in groups[name].iter(f"{SVG}text"):
            x, y, size = (float(text.attrib[key]) for key in ("x", "y", "font-size"))
            right = x + 0.6021 * size * len(text.text or "")
            if x > 200:
                assert any(a <= x and right <= a + w + 0.2 and b <= y - size / 2 and y <= b + h for a, b, w, h in bars)
                checked += 1
    assert checked > 50


@pytest.mark.parametrize("workload", WORKLOADS)
def test_a_layer_shows_every_operation_of_its_nodes(workload: Workload, tmp_path: Path) -> None:
    timeline = timeline_of("small", workload)
    text = draw_layer(timeline, "by-hand", 2)
    nodes = next(g for g in inherited(ET.fromstring(text)).iter(f"{SVG}g") if g.get("id") == "nodes")
    tips = [title.text.split("\n") for title in nodes.iter(f"{SVG}title") if title.text]
    shown = {(tip[0], tip[2] if tip[2].startswith("micro-batch") else "") for tip in tips}
    for task in timeline.tasks().tolist():
        p = timeline.operation(task)
        if timeline.program.layer[p] == 2 and timeline.program.streams(p):
            letter = f"micro-batch {'AB'[timeline.batch(task)]}" if workload.micro_batches == 2 else ""
            assert (timeline.program.names[p], letter) in shown
    fills = {rect.get("fill", "") for rect in nodes.iter(f"{SVG}rect")}
    assert any(fill.startswith("url(#node") for fill in fills) == (workload.micro_batches == 2)
    assert fills & set(COLOURS)


def test_the_layer_that_needs_the_busiest_link_longest_is_drawn() -> None:
    timeline = timeline_of()
    times = layer_link_times(timeline)
    assert (times.sum(axis=0) * timeline.network.capacity) == pytest.approx(timeline.network.carried)
    layer, link = np.unravel_index(times.argmax(), times.shape)
    assert f": layer {layer}, " in draw_layer(timeline, "by-hand")
    assert busiest_link(timeline, int(layer)) == link
    assert busiest_link(timeline, 0) is None  # dense
    alone = timeline_of("one-node")
    assert busiest_link(alone) is None
    spans = {}
    for layer in range(1, 4):
        own = [t for t in alone.tasks().tolist() if alone.program.layer[alone.operation(t)] == layer]
        spans[layer] = max(alone.end[own]) - min(alone.start[own])
    assert f": layer {max(spans, key=lambda one: spans[one])}, " in draw_layer(alone, "by-hand")


@pytest.mark.parametrize("layer", [-1, 4])
def test_layers_that_do_not_exist_are_refused(layer: int, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=f"there is no layer {layer}: small has 0 to 3"):
        write_pictures(timeline_of(), "by-hand", tmp_path / "new", layer)
    assert not (tmp_path / "new").exists()


@settings(max_examples=50)
@given(st.floats(0, 1e6), st.floats(1e-2, 1e7), st.floats(200, 2000))
def test_ticks_are_round_and_neither_crowded_nor_few(begin: float, long: float, width: float) -> None:
    axis = Axis(begin, begin + long, 10.0, width)
    at = [axis.x(tick) for tick in axis.ticks()]
    assert len(at) <= width / 89 + 1
    assert len(at) >= width / 90 / 2.51 - 1
    assert all(10 <= x <= 10 + width for x in at)


@pytest.mark.parametrize(
    ("us", "text"),
    [(0.5, "0.5 µs"), (999.0, "999 µs"), (1234.0, "1.23 ms"), (99_000.0, "99.00 ms"), (660_766.5, "660.8 ms")],
)
def test_times_carry_units(us: float, text: str) -> None:
    assert milliseconds(us) == text


# The command


def test_the_command_writes_files_whole_or_not_at_all(tmp_path: Path) -> None:
    content = tiny_instance().model_dump(mode="json", exclude_none=True) | {"traffic": {"kind": "synthetic", "seed": 1}}
    (tmp_path / "tiny.yaml").write_text(json.dumps(content))
    instance, files = load_instance(tmp_path / "tiny.yaml"), tmp_path / "files"
    (tmp_path / "placement.json").write_text(json.dumps(honest(instance, load_traffic(instance))))
    command = ["schedule", str(tmp_path / "tiny.yaml"), str(tmp_path / "placement.json")]
    asked = ["--json", "--pictures", str(files), "--chrome-trace", str(files / "trace.json.gz")]
    done = CliRunner().invoke(cli, [*command, *asked, "--layer", "0"])
    assert done.exit_code == 0, done.output
    assert json.loads(done.stdout)["schema"] == "moe-placer/schedule/1"
    names = {path.name for path in files.iterdir()}
    assert names == {"schedule_step.svg", "schedule_layer.svg", "trace.json.gz"}
    assert all(name in done.stderr for name in names)
    wrong = CliRunner().invoke(cli, [*command, "--pictures", str(tmp_path / "other"), "--layer", "99"])
    assert isinstance(wrong.exception, UsageError)
    assert not wrong.stdout
    assert not (tmp_path / "other").exists()
    alone = CliRunner().invoke(cli, [*command, "--layer", "0"])
    assert isinstance(alone.exception, UsageError)
    assert "--pictures" in str(alone.exception)
