"""The relaxation on clusters of items proves what that on single items proves, and gives whole shares."""

from __future__ import annotations

from unittest.mock import patch

import numpy as np
import pytest
from builders import tiny_instance, tiny_traffic
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.bounds import clustered, relaxation
from moe_placer.bounds.assignment import price
from moe_placer.bounds.clustered import offer_by_direction, relax_clustered
from moe_placer.bounds.linear_program import minimise
from moe_placer.bounds.relaxation import relax
from moe_placer.problem.compile import compile_problem
from moe_placer.problem.layer import LayerProblem
from moe_placer.problem.symmetry import SymmetryClasses

SHAPES = {
    "single replicas": {"model": {"experts": 24}, "parallelism": {"dp": 1}},
    "groups": {"model": {"experts": 12}, "parallelism": {"dp": 2}},
    "equal replicas": {"model": {"experts": 12}, "placement": {"replica_routing": "even"}},
}


def case(name: str, seed: int) -> LayerProblem:
    instance = tiny_instance(**{"cluster": {"nodes": 12, "gpus_per_node": 2}, **SHAPES[name]})
    return compile_problem(instance, tiny_traffic(instance, seed)).layer(0)


@pytest.mark.parametrize("name", SHAPES)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=5, deadline=None)
def test_clusters_prove_nearly_what_single_items_prove(name: str, seed: int) -> None:
    layer = case(name, seed)
    whole = relax(layer, any_replicas=True)
    with patch.object(clustered, "_CLUSTERS", 2):
        found = relax_clustered(layer)
    assert whole is not None
    assert found is not None
    share, weights = found
    best = without_slots(layer, whole.weights)
    assert without_slots(layer, weights) == pytest.approx(best, rel=1e-3)
    assert share.sum(axis=1) == pytest.approx(np.ones(layer.items))
    assert (share >= 0).all()
    # What is spread over nodes like this is a solution, so it is not better than the optimum.
    assert fractional_z(layer, share) >= best * (1 - 1e-9)


def test_one_cluster_for_each_item_is_the_relaxation_itself() -> None:
    layer = case("single replicas", 4)
    whole, found = relax(layer, any_replicas=True), relax_clustered(layer)
    assert whole is not None
    assert found is not None
    assert fractional_z(layer, found[0]) == pytest.approx(fractional_z(layer, whole.share), rel=1e-6)


def test_items_of_one_direction_are_one_variable_whatever_they_weigh() -> None:
    delta = np.outer([1.0, 2.0, 5.0, 3.0, 4.0], [2.0, 1.0])
    delta[3:] = np.outer([3.0, 4.0], [1.0, 2.0])
    delta, mass = delta[:, None, :], delta.sum(axis=1)
    of = clustered._clustered(clustered._directions(delta, mass), mass, 2)
    assert of.tolist() in ([0, 0, 0, 1, 1], [1, 1, 1, 0, 0])


@given(st.data())
@settings(max_examples=50, deadline=None)
def test_laid_out_items_weigh_what_their_clusters_put_on_nodes(data: st.DataObject) -> None:
    items = data.draw(st.integers(1, 8))
    of = np.unique(data.draw(st.lists(st.integers(0, 2), min_size=items, max_size=items)), return_inverse=True)[1]
    mass = np.array(data.draw(st.lists(st.integers(1, 9), min_size=items, max_size=items)), dtype=float)
    clusters, nodes = int(of.max()) + 1, 3
    drawn = data.draw(st.lists(st.integers(0, 4), min_size=clusters * nodes, max_size=clusters * nodes))
    parts = np.array(drawn, dtype=float).reshape(clusters, nodes) + np.eye(nodes)[0]
    parts /= parts.sum(axis=1, keepdims=True)
    share = clustered._laid_out(parts, of, mass)
    on = np.zeros((clusters, nodes))
    np.add.at(on, of, mass[:, None] * share)
    assert on == pytest.approx(parts * np.bincount(of, mass)[:, None], abs=1e-9)
    assert ((share > 1e-12).sum(axis=1) - 1).sum() <= clusters * (nodes - 1)  # cuts


def test_nodes_without_slots_are_not_offered_and_a_feasible_relaxation_is_left() -> None:
    layer = case("single replicas", 2)
    classes = SymmetryClasses.of_layer(layer)
    most = layer.widest.astype(float) + 1
    most[3] = 0
    with patch.object(clustered, "_OFFERING", 4):
        offered = offer_by_direction(layer, classes, most, None)
    assert not offered[:, 3].any()
    assert offered.any(axis=1).all()
    with patch.object(clustered, "_OFFERING", 4), patch.object(relaxation, "_AT_ONCE", 0):
        rough = relax(layer, to_round=True)
    whole = relax(layer)
    assert rough is not None
    assert whole is not None
    assert (rough.share.sum(axis=0) <= layer.widest + 1e-6).all()
    assert fractional_z(layer, rough.share) >= fractional_z(layer, whole.share) * (1 - 1e-6)


def test_nothing_is_returned_when_time_is_up() -> None:
    layer = case("groups", 1)
    with patch.object(clustered, "minimise") as solve:
        solve.return_value.status = "unknown"
        assert relax_clustered(layer, 0.001) is None
        assert not offer_by_direction(layer, SymmetryClasses.of_layer(layer), layer.widest, None).any()


def test_a_linear_program_known_by_hand() -> None:
    from scipy import sparse

    rows = sparse.csr_array(np.array([[1.0, 2.0], [3.0, 1.0]]))  # x + 2 y >= 4, 3 x + y >= 6
    solved = minimise(np.array([1.0, 1.0]), rows, np.array([4.0, 6.0]), np.array([np.inf, np.inf]))
    assert solved.status == "optimal"
    assert solved.value == pytest.approx(2.8)
    assert solved.x == pytest.approx([1.6, 1.2])
    assert solved.duals == pytest.approx([0.4, 0.2])
    assert minimise(np.ones(2), rows, np.array([4.0, 6.0]), np.array([1.0, 1.0])).status != "optimal"


def without_slots(layer: LayerProblem, weights: np.ndarray) -> float:
    return float(weights @ layer.base + price(layer, weights).min(axis=1).sum())


def fractional_z(layer: LayerProblem, share: np.ndarray) -> float:
    added = np.zeros(layer.links + 1)
    np.add.at(added, layer.affected, np.einsum("in,inm->nm", share, layer.delta))
    return float((layer.base + added[:-1]).max())
