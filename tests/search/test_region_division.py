"""Large layers are divided among regions of the fabric: pods, leaves, nodes; one bound holds over all of it."""

from __future__ import annotations

from dataclasses import replace
from unittest.mock import patch

import numpy as np
import pytest
from builders import DRAGONFLY, MESH, RAILS, THREE_LEVELS, tiny_instance, tiny_traffic
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.bounds.bounds import best_bound
from moe_placer.bounds.region_relaxation import weights_by_region
from moe_placer.bounds.relaxation import relax
from moe_placer.limits import Deadline
from moe_placer.problem.compile import compile_problem
from moe_placer.problem.layer import LayerProblem
from moe_placer.problem.regions import Region, find_regions, innermost, merge
from moe_placer.result import Stop
from moe_placer.search.moves import repair
from moe_placer.search.region_division import divide
from moe_placer.solve import rounded_relaxation
from moe_placer.solve.layerwise import LayerTask

FABRICS = {
    "two levels": {"nodes_per_leaf": 4, "spines": 2},
    "three levels": {**THREE_LEVELS, "nodes_per_leaf": 2},
    "rails": {**RAILS, "nodes_per_pod": 4},
    "one leaf": {"nodes_per_leaf": 12},
    "uneven leaves": {"nodes_per_leaf": 5},
}
REPLICAS = {
    "groups": {},
    "redundant": {"placement": {"replica_routing": "even", "replicas": {"redundant_slots": 10}}},
}


def case(fabric: str, replicas: str, seed: int = 0) -> LayerProblem:
    changes = {"model": {"experts": 12}, "cluster": {"nodes": 12, "fabric": FABRICS[fabric]}, **REPLICAS[replicas]}
    instance = tiny_instance(**changes)
    return compile_problem(instance, tiny_traffic(instance, seed)).layer(0)


def outline(region: Region) -> object:
    return [outline(part) for part in region.parts] if region.parts else int(region.nodes[0])


def whole(layer: LayerProblem) -> Region:
    region = find_regions(layer)
    assert region is not None
    return region


def test_regions_are_those_of_the_fabric() -> None:
    assert outline(whole(case("two levels", "groups"))) == [[0, 1, 2, 3], [4, 5, 6, 7], [8, 9, 10, 11]]
    pods = [[[0, 1], [2, 3]], [[4, 5], [6, 7]], [[8, 9], [10, 11]]]
    assert outline(whole(case("three levels", "groups"))) == pods
    assert outline(whole(case("one leaf", "groups"))) == list(range(12))
    assert outline(whole(case("uneven leaves", "groups"))) == [[0, 1, 2, 3, 4], [5, 6, 7, 8, 9], [10, 11]]
    leaves = innermost(whole(case("three levels", "groups")))
    assert [leaf.nodes.tolist() for leaf in leaves] == [[n, n + 1] for n in range(0, 12, 2)]


def test_links_shared_in_another_way_have_no_regions() -> None:
    instance = tiny_instance(cluster={"nodes": 6, "fabric": DRAGONFLY})
    assert find_regions(compile_problem(instance, tiny_traffic(instance, 0)).layer(0)) is None
    instance = tiny_instance(cluster={"nodes": 6, "fabric": MESH})  # each link leads to one node, so none is shared
    assert outline(whole(compile_problem(instance, tiny_traffic(instance, 0)).layer(0))) == list(range(6))


def test_what_binds_single_nodes_is_not_divided() -> None:
    layer = case("two levels", "groups")
    assert find_regions(replace(layer, pinned=np.where(np.arange(layer.items) == 3, 1, -1))) is None
    assert find_regions(replace(layer, domain=np.arange(12) // 4)) is None


@pytest.mark.parametrize("replicas", REPLICAS)
@pytest.mark.parametrize("fabric", FABRICS)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=4, deadline=None)
def test_a_link_that_a_region_shares_costs_the_same_whichever_node_holds_an_item(
    fabric: str, replicas: str, seed: int
) -> None:
    layer, rng = case(fabric, replicas, seed), np.random.default_rng(seed)
    leaves = innermost(whole(layer))
    merged = merge(layer, leaves, np.arange(layer.items), outside=True)
    of_node = np.zeros(layer.nodes, dtype=np.int64)
    for number, leaf in enumerate(leaves):
        of_node[leaf.nodes] = number
    node = rng.integers(0, layer.nodes, layer.items)
    cost, theirs = layer.cost(node), merged.layer.cost(of_node[node])
    single = [(own[0], at) for at, own in enumerate(merged.stands_for) if len(own) == 1]
    for link, at in single:
        assert theirs[at] == pytest.approx(cost[link], rel=1e-9, abs=1e-9)
    if fabric != "one leaf":
        assert single
    assert sorted(np.concatenate(merged.stands_for).tolist()) == list(range(layer.links))
    weights = merged.spread(rng.random(merged.layer.links), layer.links)
    assert (weights > 0).all()


@pytest.mark.parametrize("replicas", REPLICAS)
@pytest.mark.parametrize("fabric", ["two levels", "three levels", "rails"])
def test_leaves_prove_nearly_what_nodes_prove(fabric: str, replicas: str) -> None:
    layer = case(fabric, replicas)
    weights, single = weights_by_region(layer, whole(layer)), relax(layer, any_replicas=True)
    assert weights is not None
    assert single is not None
    assert weights.sum() == pytest.approx(1)
    ours, best = best_bound(layer, weights).value, best_bound(layer, single.weights).value
    assert 0.97 * best <= ours <= best * (1 + 1e-9) + 1e-9 or not layer.replicas_are_free
    assert ours >= 0.97 * best


@pytest.mark.parametrize("replicas", REPLICAS)
@pytest.mark.parametrize("fabric", FABRICS)
def test_a_division_gives_every_item_a_slot(fabric: str, replicas: str) -> None:
    layer = case(fabric, replicas)
    division = divide(layer, whole(layer), 0.0, np.random.default_rng(0), Deadline())
    assert division is not None
    assert (np.bincount(division.node, minlength=layer.nodes) <= layer.slots).all()
    node = repair(layer, division.node, np.random.default_rng(0))
    assert node is not None
    drawn = []
    for seed in range(5):
        rng = np.random.default_rng(seed)
        other = repair(layer, rng.permutation(division.node), rng)
        assert other is not None
        drawn.append(layer.z(other))
    assert layer.z(node) < np.median(drawn)


def test_time_that_is_over_leaves_nothing_divided() -> None:
    layer = case("two levels", "groups")
    assert divide(layer, whole(layer), 0.0, np.random.default_rng(0), Deadline(0.0)) is None


@pytest.mark.parametrize("replicas", REPLICAS)
def test_a_vast_layer_is_bounded_and_placed_by_division(replicas: str) -> None:
    layer = case("two levels", replicas)
    task = LayerTask(layer, 0.05, 0.25, np.random.default_rng(0))
    with (
        patch.object(rounded_relaxation, "VAST", 0),
        patch.object(rounded_relaxation, "_LARGE", 0),
        patch.object(rounded_relaxation, "_CLOSE", 1.0),
        patch.object(rounded_relaxation, "relax", side_effect=AssertionError),
    ):
        result, work = rounded_relaxation.from_relaxation(task)
    assert result is not None
    assert result.node is not None
    assert layer.valid(result.node)
    assert result.z == layer.z(result.node)
    assert result.stop is Stop.WORK
    assert work > 0
    plain, _ = rounded_relaxation.from_relaxation(replace(task, rng=np.random.default_rng(0)))
    assert plain is not None
    assert result.bound.value <= plain.z * (1 + 1e-9)
    assert plain.bound.value <= result.z * (1 + 1e-9)


@pytest.mark.parametrize("replicas", REPLICAS)
def test_a_large_layer_is_relaxed_whole_where_division_leaves_a_wider_gap(replicas: str) -> None:
    layer = case("two levels", replicas)
    task = LayerTask(layer, 1.0, 0.25, np.random.default_rng(0))
    with patch.object(rounded_relaxation, "_LARGE", 0):
        with patch.object(rounded_relaxation, "relax", side_effect=AssertionError):
            divided, _ = rounded_relaxation.from_relaxation(task)
        whole_too, _ = rounded_relaxation.from_relaxation(replace(task, gap=0.0, rng=np.random.default_rng(0)))
    plain, _ = rounded_relaxation.from_relaxation(replace(task, gap=0.0))
    assert divided is not None
    assert whole_too is not None
    assert plain is not None
    assert whole_too.z <= divided.z
    assert divided.bound.value <= whole_too.bound.value
    assert plain.bound.value * (1 - 1e-4) <= whole_too.bound.value <= plain.z
