"""Trades: their exact effect, and that nothing breaks a constraint."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from builders import VARIANTS, tiny_instance, tiny_traffic
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.bounds.bounds import even_weights
from moe_placer.limits import Deadline
from moe_placer.problem.compile import compile_problem
from moe_placer.problem.layer import LayerProblem
from moe_placer.search.local_search import deal_in_turn, descend, round_shares, search
from moe_placer.search.moves import Moves, excess, repair

VARIANTS_HERE = {
    **VARIANTS,
    "apart": {"placement": {"replica_routing": "even", "replicas_apart": "node"}, "cluster": {"gpus_per_node": 3}},
    "pinned": {"placement": {"pinned": [{"layer": 1, "expert": 0, "replica": 1, "gpu": 5}]}},
}


def random_layer(variant: str, seed: int) -> tuple[LayerProblem, np.ndarray, np.random.Generator]:
    instance = tiny_instance(**VARIANTS_HERE[variant])
    layer = compile_problem(instance, tiny_traffic(instance, seed)).layer(0)
    rng = np.random.default_rng(seed)
    slots = np.repeat(np.arange(layer.nodes), layer.slots)
    node = repair(layer, rng.permutation(slots)[: layer.items], rng)
    assert node is not None
    return layer, node, rng


@pytest.mark.parametrize("variant", VARIANTS_HERE)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_the_best_trade_is_the_best_of_all(variant: str, seed: int) -> None:
    layer, node, rng = random_layer(variant, seed)
    moves = Moves(layer, node)
    target = moves.z * rng.uniform(0.3, 0.99)
    before, best = moves.excess(target), np.inf
    for i in range(layer.items):
        for j in range(layer.items):
            swapped = node.copy()
            swapped[i], swapped[j] = node[j], node[i]
            if node[i] != node[j] and layer.valid(swapped):
                best = min(best, float(excess(layer.cost(swapped), target)) - before)
        for n in range(layer.nodes):
            moved = node.copy()
            moved[i] = n
            if n != node[i] and layer.valid(moved):
                best = min(best, float(excess(layer.cost(moved), target)) - before)
    change, item, partner, to = moves.best_trade(np.arange(layer.items), target)
    assert change == pytest.approx(best, rel=1e-6, abs=1e-6 * max(1.0, before))
    if np.isfinite(change):
        moves.apply(item, partner, to)
        assert layer.valid(moves.node)
        assert moves.excess(target) - before == pytest.approx(change, rel=1e-6, abs=1e-6 * max(1.0, before))


@pytest.mark.parametrize("variant", VARIANTS_HERE)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_search_never_ends_above_its_start_nor_breaks_a_constraint(variant: str, seed: int) -> None:
    layer, node, rng = random_layer(variant, seed)
    moves = Moves(layer, node)
    target = layer.z(node) * 0.9
    before = moves.excess(target)
    descend(moves, target, Deadline())
    assert layer.valid(moves.node)
    assert moves.excess(target) <= before
    found = search(layer, node, target, 0.01, rng, Deadline())
    assert layer.valid(found.node)
    assert found.z == pytest.approx(layer.z(found.node))


@given(seed=st.integers(0, 10_000))
@settings(max_examples=30, deadline=None)
def test_repair_mends_what_can_be_mended(seed: int) -> None:
    rng = np.random.default_rng(seed)
    instance = tiny_instance(
        model={"experts": 3},
        cluster={"nodes": 3},
        placement={"replica_routing": "even", "replicas_apart": "node"},
    )
    layer = compile_problem(instance, tiny_traffic(instance, seed)).layer(0)
    assert any(layer.valid(np.array(n)) for n in product(range(3), repeat=6))
    mended = repair(layer, rng.integers(3, size=6), rng)
    assert mended is not None
    assert layer.valid(mended)


def test_rounding_keeps_whole_shares() -> None:
    layer, node, rng = random_layer("plain", 1)
    share = np.zeros((layer.items, layer.nodes))
    share[np.arange(layer.items), node] = 1.0
    rounded = round_shares(layer, share, rng)
    assert rounded is not None
    assert (rounded == node).all()


def test_repair_leaves_a_small_fault_to_few_changes(monkeypatch: pytest.MonkeyPatch) -> None:
    """A linear program, which may move anything, is the last resort."""
    monkeypatch.setattr("moe_placer.search.moves.nearest_valid", lambda *_: pytest.fail("not needed"))
    layer, node, rng = random_layer("plain", 2)
    crowded = node.copy()
    crowded[node == 0] = 1
    mended = repair(layer, crowded, rng)
    assert mended is not None
    assert layer.valid(mended)
    assert (mended != crowded).sum() <= 2 * (node == 0).sum()


def test_repair_moves_the_replicas_of_a_single_expert_apart() -> None:
    instance = tiny_instance(
        model={"experts": 1, "top_k": 1},
        cluster={"nodes": 3},
        placement={"replica_routing": "even", "replicas_apart": "node"},
    )
    layer = compile_problem(instance, tiny_traffic(instance)).layer(0)
    mended = repair(layer, np.zeros(layer.items, dtype=np.int64), np.random.default_rng(0))
    assert mended is not None
    assert layer.valid(mended)


@pytest.mark.parametrize("variant", ["plain", "apart"])
def test_search_from_new_starts_ends_once_they_find_nothing_else(variant: str) -> None:
    """Without link weights there are kicks only, for as long as the effort lasts."""
    layer, node, _ = random_layer(variant, 3)
    weights, most = even_weights(layer)[0], 0.5
    found = search(layer, node, 0.0, most, np.random.default_rng(1), Deadline(), weights)
    kicked = search(layer, node, 0.0, most / 10, np.random.default_rng(1), Deadline())
    assert layer.valid(found.node)
    assert found.exhausted
    assert not kicked.exhausted
    assert found.work < most
    assert kicked.work >= most / 10
    assert found.z == pytest.approx(layer.z(found.node))
    assert found.z <= kicked.z * (1 + 1e-9)
    again = search(layer, node, 0.0, most, np.random.default_rng(1), Deadline(), weights)
    assert again.node.tolist() == found.node.tolist()


@pytest.mark.parametrize(
    ("load", "slots", "place"),
    [([5, 4, 3, 2, 1, 0], [3, 3], [0, 1, 1, 0, 0, 1]), ([1, 2, 3], [1, 2], [1, 1, 0]), ([7, 9], [2, 0, 2], [2, 0])],
)
def test_items_are_dealt_there_and_back(load: list[int], slots: list[int], place: list[int]) -> None:
    assert deal_in_turn(np.array(load, dtype=float), np.array(slots)).tolist() == place
