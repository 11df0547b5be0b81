"""Parts of derivations that whole verifications rarely come to, each by hand."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from builders import MESH, honest, tiny_instance, tiny_traffic

from moe_placer.bounds.bounds import Bound
from moe_placer.placement import Placement
from moe_placer.result import LayerResult, Stop
from moe_placer.verifier import bounds_anew, verify
from moe_placer.verifier.bounds_anew import memory_bound
from moe_placer.verifier.facts import _alike, _short
from moe_placer.verifier.loads import read_network
from moe_placer.verifier.placed_layers import PlacedLayer, read_layers
from moe_placer.verifier.rules import read_replicas

FAT_TREE = {"kind": "fat-tree", "nodes_per_leaf": 2, "spines": 2, "oversubscription": 2.0}


@pytest.mark.parametrize(
    ("scale", "proves"),
    [([1.0, 2.0], True), ([1.0, 2.0**101], False), ([2.0**-101, 1.0], False), ([2.0**-100, 2.0**100], True)],
)
def test_costs_of_a_token_out_of_range_prove_nothing(scale: list[float], proves: bool) -> None:
    network: Any = SimpleNamespace(scale=np.array(scale), longest=1)
    layer: Any = SimpleNamespace(demand=np.ones((1, 1)), roundings=1)
    below = bounds_anew._safely_below(np.array([4.0]), network, layer)
    assert below == (pytest.approx([4.0], rel=1e-12) if proves else [0.0])
    assert below < 4.0


def test_tokens_that_are_sent_are_counted_where_they_are_known() -> None:
    nothing: list[tuple[PlacedLayer, np.ndarray]] = []
    known = PlacedLayer(
        1, np.array([1, 1]), np.array([4.0, 6.0]), 1, np.zeros(1), 0.0, lambda: np.ones((1, 1)), nothing
    )
    assert known.tokens == 10.0
    assert replace(known, replicas=None, received=np.zeros(0)).tokens == 0.0


def test_demand_is_worked_out_when_it_is_asked_for_and_that_of_one_layer_is_kept() -> None:
    instance = tiny_instance()
    traffic, network = tiny_traffic(instance), read_network(instance)
    placement = Placement.model_validate(honest(instance, traffic))
    layers = read_layers(instance, network, traffic, read_replicas(instance, placement), set(instance.moe_layers))
    kept = layers[0].last
    assert kept == []
    for layer in (*layers, layers[0]):
        demand = layer.demand
        assert demand is layer.demand
        assert [one for one, _ in kept] == [layer]
        assert demand is not None
        assert demand.sum(axis=0).tolist() == layer.received.tolist()


def test_where_memory_leaves_no_assignment_nothing_is_proved() -> None:
    prices, free = [np.full((3, 2), 5.0)], np.zeros(2)
    room = np.array([9, 9])
    assert memory_bound(prices, np.array([1, 1]), free, room) == 0.0
    assert memory_bound(prices, np.array([2, 1]), free, room) == pytest.approx(15.0)


def test_the_longest_way_counts_every_link_of_every_route() -> None:
    mesh = read_network(tiny_instance(cluster={"fabric": MESH}))
    assert mesh.longest == 1
    # Between leaves: the node's own link, up and down by either of two spines, and the other node's link.
    tree = read_network(tiny_instance(cluster={"nodes": 4, "fabric": FAT_TREE}))
    assert tree.longest == 6


@pytest.mark.parametrize(("stated", "expected"), [(1, True), (0, False), (True, 1), ("1", 1), (None, 0)])
def test_facts_are_of_their_type(stated: object, expected: object) -> None:
    assert not _alike(stated, expected)
    assert _alike(expected, expected)


def test_a_layer_of_which_nothing_is_stated_has_no_bound() -> None:
    instance = tiny_instance()
    traffic = tiny_traffic(instance)
    data = honest(instance, traffic)
    del data["layers"][1]
    found = verify(instance, Placement.model_validate(data), traffic)
    assert not found.ok
    assert [check.bound for check in found.layers if check.layer == instance.moe_layers[1]] == [0.0]


def test_long_facts_are_cut_at_eighty_characters() -> None:
    assert _short("x" * 80) == "x" * 80
    assert _short("x" * 81) == "x" * 77 + "..."


def test_a_gap_to_a_word_is_not_known() -> None:
    result = LayerResult(np.zeros(1, dtype=np.int64), 2.0, Bound(1.0, "solver"), Stop.FINISHED)
    assert result.gap == float("inf")
    assert replace(result, bound=Bound(1.0, "dual")).gap == 1.0
