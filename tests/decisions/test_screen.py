"""Does placing pay: how recordings are cut, what gains and intervals are, and which verdict follows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest
from builders import tiny_instance, tiny_tokens, tiny_traffic
from told import told

from moe_placer import Limits, load_placement, result_schema, solve, verify
from moe_placer.decisions.resampling import draw_weights, find_gain, time_layers
from moe_placer.decisions.screen import ScreenSettings, Verdict, screen
from moe_placer.decisions.units import MOST_UNITS, pool, read_units, read_units_by_node
from moe_placer.errors import InputError, UsageError
from moe_placer.experiments.compare.metrics import find_flows
from moe_placer.fabric import link_bandwidths, link_us
from moe_placer.instance import Instance
from moe_placer.instance.sizes import back_ratio, expert_us
from moe_placer.placement import Placement
from moe_placer.traffic.recording import Recording, Traffic
from moe_placer.verifier.loads import read_network

REPO = Path(__file__).parents[2]
EVEN = tiny_instance(placement={"replica_routing": "even"})
QUICK = ScreenSettings(solver="greedy", limits=Limits(workers=1), draws=200)
SMALL = """
name: small
model: {layers: 2, hidden_size: 4096, attention_heads: 4, head_dim: 16, experts: 8, top_k: 2, expert_hidden_size: 32,
  vocab_size: 1000}
cluster: {nodes: 4, gpus_per_node: 2, gpu: {memory_gb: 1.0}, fabric: {kind: full-mesh}}
placement: {slots_per_gpu: 2, replicas: {redundant_slots: 8}, replica_routing: even}
traffic: {kind: load, tokens_per_gpu: 1000}
"""


def windows(count: int, skew: float, noise: float = 0.05, seed: int = 0) -> np.ndarray[Any, Any]:
    """Draw counts [windows, 2 layers, 8 experts]; two experts of the same GPU are ``skew`` times as hot as others."""
    rng = np.random.default_rng(seed)
    rate = np.ones((2, 8))
    rate[:, :2] = skew
    return np.rint(1000 * rate * rng.lognormal(0, noise, (count, 2, 8))).astype(np.int64)


def write(folder: Path, **arrays: Any) -> Path:
    file = folder / "recording.npz"
    if "window_load" in arrays:
        arrays["load"] = arrays["window_load"].sum(axis=0)
    np.savez(file, **arrays)
    return file


@pytest.fixture
def small(tmp_path: Path) -> Path:
    file = tmp_path / "small.yaml"
    file.write_text(SMALL)
    return file


def timed(instance: Instance, placement: Placement, traffic: Traffic) -> tuple[list[float], list[float]]:
    """Time layers straight from the definitions, without units."""
    network, flows = read_network(instance), find_flows(instance, placement, traffic)
    load = np.stack([network.load(flow) for flow in flows.sent])
    us = link_us(instance, link_bandwidths(instance, network.links), load)
    shards = instance.parallelism.expert_tp
    return us.max(axis=1).tolist(), [expert_us(instance, shards * tokens) for tokens in flows.gpu.max(axis=1)]


VARIANTS: list[dict[str, Any]] = [
    {"placement": {"replica_routing": "even", "dispatch_dtype": "fp8", "combine_dtype": "bf16"}},
    {},
    {"parallelism": {"dp": 1, "expert_tp": 2}},
    {"placement": {"dispatch": "per-node"}},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=["even", "group", "sharded", "per node"])
def test_units_weighed_and_added_are_what_all_their_tokens_give(changes: dict[str, Any]) -> None:
    instance = tiny_instance(**changes)
    traffic = tiny_tokens(instance, tokens=(30, 50))
    placement = solve(instance, traffic, solver="greedy", limits=Limits(workers=1)).placement
    units = [list(cut(recording, 5)) for recording in traffic.recordings]
    weights = draw_weights(units, 3, seed=1)
    found = time_layers(instance, placement, units, traffic.mix, weights)
    for draw in range(4):
        drawn = [
            pool([unit for unit, times in zip(of, weight[draw], strict=True) for _ in range(int(times))])
            for of, weight in zip(units, weights, strict=True)
        ]
        link, gpu = timed(instance, placement, Traffic(tuple(drawn), traffic.mix))
        assert found.link_us[draw] == pytest.approx(link)
        assert found.gpu_us[draw] == pytest.approx(gpu)
    assert np.array_equal(found.total_us, (1 + back_ratio(instance)) * found.link_us + found.gpu_us)
    verified = verify(instance, placement, traffic)  # the traffic that was solved for is all units, once
    assert found.total_us[0] == pytest.approx(verified.layer_us)


def cut(recording: Recording, parts: int) -> Iterator[Recording]:
    assert recording.topk is not None
    experts = recording.load.shape[1]
    for topk in np.array_split(recording.topk, parts):
        load = np.stack([np.bincount(topk[:, layer].ravel(), minlength=experts) for layer in range(topk.shape[1])])
        yield Recording(recording.name, load.astype(float), np.full(topk.shape[1], float(len(topk))), topk)


def test_draws_have_as_many_units_as_there_are() -> None:
    (first, second) = draw_weights([[None] * 5, [None] * 2], 50, seed=0)  # type: ignore[list-item]
    assert first.shape == (51, 5)
    assert second.shape == (51, 2)
    assert (first[0] == 1).all()
    assert (first.sum(axis=1) == 5).all()
    assert len({tuple(row) for row in first}) > 20


def test_a_gain_and_its_interval_by_hand() -> None:
    before = np.array([10.0, *[10.0] * 100])
    after = np.array([8.0, *np.linspace(7.0, 9.0, 100)])
    found = find_gain(before, after, 0.9)
    assert found.gain == pytest.approx(0.2)
    assert (found.low, found.high) == (pytest.approx(0.11), pytest.approx(0.29))
    assert find_gain(np.zeros(3), np.zeros(3), 0.95).gain == 0


def test_intervals_hold_the_gain_of_endless_traffic_about_as_often_as_they_say() -> None:
    traffic = tiny_traffic(EVEN, recordings=1)
    mine = solve(EVEN, traffic, solver="greedy", limits=Limits(workers=1)).placement
    other = mine.model_copy(update={"gpu": tuple(tuple(reversed(layer)) for layer in mine.gpu)})
    gain = 1 - whole_step(mine, traffic) / whole_step(other, traffic)
    rng, held, mean = np.random.default_rng(3), 0, traffic.recordings[0].load
    for _ in range(15):
        counts = rng.poisson(mean / 2, (16, *mean.shape)).astype(float)
        units = [[Recording("unit", load, load.sum(axis=1) / 2) for load in counts]]
        weights = draw_weights(units, 200, seed=int(rng.integers(1000)))
        old, new = (time_layers(EVEN, plan, units, traffic.mix, weights) for plan in (other, mine))
        found = find_gain(old.total_us.sum(axis=1), new.total_us.sum(axis=1), 0.95)
        assert found.low <= found.high
        held += found.low <= gain <= found.high
    assert held >= 12


def whole_step(placement: Placement, traffic: Traffic) -> float:
    link, gpu = timed(EVEN, placement, traffic)
    return 2 * sum(link) + sum(gpu)


def test_windows_are_cut_into_past_and_future(tmp_path: Path, small: Path) -> None:
    from moe_placer import load_instance

    instance = load_instance(small)
    table = windows(300, 2.0)
    units = read_units(write(tmp_path, window_load=table), instance)
    assert (units.kind, len(units.plan) + len(units.score)) == ("windows", MOST_UNITS)
    whole = pool(units.plan).load + pool(units.score).load
    assert np.array_equal(whole, table.sum(axis=0))
    assert np.array_equal(units.plan[0].load, table[:3].sum(axis=0))  # the first of 128 has 3 of 300


@pytest.mark.parametrize(
    ("arrays", "kind"),
    [
        ({"seq": np.repeat(np.arange(40), 3)}, "sequences"),
        ({"token_window": np.repeat(np.arange(40), 3)}, "windows"),
        ({}, "blocks"),
        ({"seq": np.zeros(120, np.int64)}, "whole"),
    ],
)
def test_tokens_are_cut_by_what_tells_them_apart(tmp_path: Path, small: Path, arrays: Any, kind: str) -> None:
    from moe_placer import load_instance

    instance, rng = load_instance(small), np.random.default_rng(0)
    topk = np.argsort(rng.random((120, 2, 8)), axis=2)[:, :, :2]
    units = read_units(write(tmp_path, topk=topk, **arrays), instance)
    assert units.kind == kind
    rows = [unit.topk for unit in (*units.plan, *units.score) if unit.topk is not None]
    assert sorted(map(bytes, np.concatenate(rows).astype(np.uint8))) == sorted(map(bytes, topk.astype(np.uint8)))
    if kind == "sequences":
        assert np.array_equal(units.score[0].topk, topk[3:6])  # the second of them


def by_rank(folder: Path, instance: Instance) -> Path:
    """Write tokens of 8 ranks, two on each node: a node's tokens choose the experts that the next node has."""
    rng, tokens = np.random.default_rng(1), 1600
    source = rng.integers(0, 8, tokens)
    topk = np.empty((tokens, 2, 2), np.int64)
    topk[:, :, 0] = 2 * ((source // 2 + 1) % 4)[:, None] + rng.integers(0, 2, (tokens, 2))
    topk[:, :, 1] = topk[:, :, 0] ^ 1
    table = [[np.bincount(topk[source == rank, layer].ravel(), minlength=8) for layer in (0, 1)] for rank in range(8)]
    arrays = {"load": np.sum(table, axis=0), "source_load": table, "token_source": source}
    return write(folder, topk=topk, token_window=np.arange(tokens) // 40, **arrays)


def test_source_ranks_keep_their_nodes(tmp_path: Path, small: Path) -> None:
    from moe_placer import load_instance

    alike = load_instance(small)
    traffic = alike.traffic.model_copy(update={"sources": "recorded"})
    apart = alike.model_copy(update={"traffic": traffic})
    file = by_rank(tmp_path, apart)
    nodes = read_units_by_node(file, apart)
    assert [units.name for units in nodes] == [f"recording.npz, node {node}" for node in range(4)]
    with np.load(file) as arrays:
        whole, source = arrays["topk"], arrays["token_source"]
    for node, units in enumerate(nodes):
        rows = np.concatenate([unit.topk for unit in (*units.plan, *units.score) if unit.topk is not None])
        assert np.array_equal(rows, whole[source // 2 == node])
    assert [units.name for units in read_units_by_node(file, alike)] == ["recording.npz"]
    known, unknown = (screen(instance, [file], settings=QUICK) for instance in (apart, alike))
    assert known.links
    assert unknown.links
    assert known.links.low > 0.8  # experts move to the node whose tokens choose them
    assert unknown.links.high < 0.2


def test_people_are_told_where_source_ranks_are_lost(tmp_path: Path, small: Path) -> None:
    small.write_text(SMALL.replace("kind: load", "kind: load, sources: recorded"))
    lost = told("screen", write(tmp_path, window_load=windows(32, 6.0)), "--instance", small, *FAST)
    assert "taken alike: counts of windows do not tell source ranks apart" in lost.out
    from moe_placer import load_instance

    kept = told("screen", by_rank(tmp_path, load_instance(small)), "--instance", small, *FAST)
    assert kept.out.startswith("recording.npz, node 0 and 3 more: planned on 20 windows, scored on 20 others")
    assert "taken alike" not in kept.out


def test_what_cannot_be_cut_is_refused(tmp_path: Path, small: Path) -> None:
    from moe_placer import load_instance

    instance = load_instance(small)
    with pytest.raises(InputError, match=r"window_load: found int64 of shape \[4, 2, 7\]"):
        read_units(write(tmp_path, window_load=np.ones((4, 2, 7), np.int64)), instance)
    with pytest.raises(InputError, match="a count below 0"):
        read_units(write(tmp_path, window_load=-windows(4, 1.0)), instance)
    odd = write(tmp_path, topk=np.tile(np.arange(2), (9, 2, 1)), seq=np.zeros(8, int))
    with pytest.raises(InputError, match="a whole number for each of the 9 tokens"):
        read_units(odd, instance)
    once = instance.model_copy(update={"placement": tiny_instance(placement={"dispatch": "per-node"}).placement})
    with pytest.raises(InputError, match="found counts only, expected whole tokens"):
        read_units(write(tmp_path, window_load=windows(4, 1.0)), once)


def test_the_verdict_follows_from_the_traffic(tmp_path: Path, small: Path) -> None:
    hot = told("screen", write(tmp_path, window_load=windows(32, 6.0)), "--instance", small, *FAST, "--json").json
    jsonschema.validate(hot, result_schema("screen"))
    assert hot["verdict"] == "recommend_trial"
    assert hot["time"]["low"] > 0.02
    assert hot["recordings"] == [{"name": "recording.npz", "kind": "windows", "planned_on": 16, "scored_on": 16}]
    assert hot["migration"]["replicas"] > 0
    even = told("screen", write(tmp_path, window_load=windows(32, 1.0)), "--instance", small, *FAST, "--json", code=7)
    assert even.json["verdict"] == "not_recommended_now"
    assert even.json["time"]["high"] < 0.02
    assert "moe-placer: not_recommended_now: the gain in layer time lies between" in even.err
    few = told("screen", write(tmp_path, window_load=windows(14, 6.0)), "--instance", small, *FAST, "--json", code=8)
    jsonschema.validate(few.json, result_schema("screen"))
    assert "has 14 windows, expected at least 16" in few.json["reason"]


FAST = ("--solver", "greedy", "--workers", 1, "--draws", 200)


def test_what_is_near_the_threshold_or_not_paid_back_is_not_recommended(tmp_path: Path, small: Path) -> None:
    from moe_placer import load_instance

    instance, file = load_instance(small), write(tmp_path, window_load=windows(32, 6.0))
    clear = screen(instance, [file], settings=QUICK)
    assert (clear.verdict, clear.current) == (Verdict.RECOMMEND_TRIAL, "contiguous")
    assert clear.time
    assert clear.migration
    assert clear.migration.payback_steps
    assert clear.time.low < clear.time.gain < clear.time.high or clear.time.low <= clear.time.high
    near = screen(instance, [file], settings=changed(min_gain=(clear.time.low + clear.time.high) / 2))
    assert near.verdict == Verdict.INSUFFICIENT_EVIDENCE
    assert "neither above nor below" in near.reason
    late = screen(instance, [file], settings=changed(horizon_steps=clear.migration.payback_steps / 2))
    assert late.verdict == Verdict.NOT_RECOMMENDED_NOW
    assert "steps to pay back" in late.reason
    assert clear.solution
    same = screen(instance, [file], clear.solution.placement, QUICK)
    assert same.migration
    assert (same.verdict, same.migration.replicas) == (Verdict.NOT_RECOMMENDED_NOW, 0)


def changed(**fields: Any) -> ScreenSettings:
    return ScreenSettings(**{**vars(QUICK), **fields})


def test_people_read_it_and_a_model_stands_in_for_an_instance(tmp_path: Path, small: Path) -> None:
    from drafted import SMALL as CONFIG
    from drafted import write as write_config

    file = write(tmp_path, window_load=windows(32, 6.0))
    out = told("screen", file, "--instance", small, *FAST).out
    assert out.splitlines()[0] == "recording.npz: planned on 16 windows, scored on 16 others"
    assert "  layer time    +" in out
    assert out.splitlines()[-1].startswith("Verdict: recommend_trial: the gain in layer time lies between")
    config = write_config(tmp_path, "config.json", {**CONFIG, "n_routed_experts": 8})
    options = ("--gpus", 8, "--gpus-per-node", 2, "--redundant-slots", 8)
    drafted = told("screen", file, "--model", config, *options, *FAST, "--json")
    assert drafted.json["instance"]["name"] == "deepseek-v2-8xh100"
    assert "needs --instance INSTANCE, or --model" in told("screen", file, code=2).err
    assert "--gpus goes with --model" in told("screen", file, "--instance", small, "--gpus", 8, code=2).err


@pytest.mark.parametrize(
    "wrong", [{"min_gain": 1.0}, {"confidence": 0.4}, {"draws": 10}, {"horizon_steps": 0.0}], ids=str
)
def test_settings_that_make_no_sense(wrong: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match="expected"):
        changed(**wrong)
    with pytest.raises(UsageError, match="no recording is given"):
        screen(EVEN, [])


def test_a_current_plan_must_be_one_of_this_model(tmp_path: Path, small: Path) -> None:
    file = write(tmp_path, window_load=windows(32, 6.0))
    tiny = REPO / "instances" / "tiny.yaml"
    told("solve", tiny, "-o", tmp_path, "--solver", "greedy", "--no-dag", "--workers", 1, "-q")
    assert load_placement(tmp_path / "placement.json").gpu
    wrong = told("screen", file, "--instance", small, *FAST, "--current", tmp_path / "placement.json", code=1)
    assert "a current plan of" in wrong.err
