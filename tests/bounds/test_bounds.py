"""Every bound is below the best there is, and the verifier derives the same from the record."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from builders import proof_claims, recomputed, smallest_z, tiny_instance, tiny_traffic
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.bounds import assignment
from moe_placer.bounds.assignment import transport
from moe_placer.bounds.bounds import beyond, dual_bound, even_weights, hot_expert_bound, threshold_bound
from moe_placer.bounds.relaxation import relax
from moe_placer.problem.compile import compile_problem
from moe_placer.problem.layer import LayerProblem
from moe_placer.verifier import integer_bounds

CASES = {
    "plain": {"cluster": {"gpus_per_node": 1}, "parallelism": {"dp": 1}},
    "mesh": {"cluster": {"gpus_per_node": 1, "fabric": {"kind": "full-mesh"}}, "parallelism": {"dp": 1}},
    "spare": {"model": {"experts": 3}, "cluster": {"nodes": 3, "gpus_per_node": 2}, "parallelism": {"dp": 1}},
    "even": {"model": {"experts": 2}, "cluster": {"gpus_per_node": 1}, "placement": {"replica_routing": "even"}},
}


def case(name: str, seed: int) -> LayerProblem:
    instance = tiny_instance(**CASES[name])
    return compile_problem(instance, tiny_traffic(instance, seed)).layer(0)


@pytest.mark.parametrize("name", CASES)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_no_placement_is_below_a_bound(name: str, seed: int) -> None:
    layer, rng = case(name, seed), np.random.default_rng(seed)
    least = smallest_z(layer) * (1 + 1e-9)
    relaxation = relax(layer)
    assert relaxation is not None
    assert hot_expert_bound(layer).value <= least
    for weights in (relaxation.weights, rng.dirichlet(np.ones(layer.links)), *even_weights(layer)):
        assert dual_bound(layer, weights).value <= least
        for threshold in (least * 0.9, least, least * 1.2):
            assert threshold_bound(layer, weights, threshold).value <= least


def test_even_weights_cover_each_link_once() -> None:
    layer = case("plain", 0)
    weights = np.stack(even_weights(layer))
    assert weights.sum(axis=1) == pytest.approx(np.ones(len(weights)))
    assert ((weights > 0).sum(axis=0) == 1).all()


@pytest.mark.parametrize("name", CASES)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_the_relaxations_weights_are_the_best(name: str, seed: int) -> None:
    layer, rng = case(name, seed), np.random.default_rng(seed)
    relaxation = relax(layer)
    assert relaxation is not None
    assert relaxation.share.sum(axis=1) == pytest.approx(np.ones(layer.items))
    best = dual_bound(layer, relaxation.weights).value
    for weights in rng.dirichlet(np.ones(layer.links), 10):
        assert dual_bound(layer, weights).value <= best * (1 + 1e-6) + 1e-6


def test_transport_of_many_pairs_is_not_above_the_cheapest_assignment(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = case("plain", 0)
    price = np.random.default_rng(0).random((layer.items, layer.nodes))
    price[:, 0] /= 10  # all want the first node
    exact = transport(layer, price)[0]
    monkeypatch.setattr(assignment, "_MOST_PAIRS", 0)
    cost, possible = transport(layer, price)
    assert possible
    assert cost == pytest.approx(price.min(axis=1).sum())
    assert cost < exact


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_transport_is_the_cheapest_assignment(seed: int) -> None:
    layer, rng = case("spare", seed), np.random.default_rng(seed)
    price = rng.random((layer.items, layer.nodes))
    price[rng.random(price.shape) < 0.3] = np.inf
    every = (
        sum(price[i, n] for i, n in enumerate(nodes))
        for nodes in product(range(layer.nodes), repeat=layer.items)
        if (np.bincount(nodes, minlength=layer.nodes) <= layer.widest).all()
    )
    least = min(every)
    cost, possible = transport(layer, price)
    assert possible == np.isfinite(least)
    if possible:
        assert cost == pytest.approx(least)


def derived_and_stated(name: str, proof: str) -> tuple[float, float]:
    instance = tiny_instance(**CASES[name])
    traffic = tiny_traffic(instance, 4)
    problem = compile_problem(instance, traffic)
    layer = problem.layer(0)
    node = np.repeat(np.arange(layer.nodes), layer.slots)[: layer.items]
    gpu: list[list[list[int]]] = [[] for _ in range(instance.model.experts)]
    used: dict[int, int] = {}
    for item, n in enumerate(node.tolist()):
        gpu[layer.expert[item]].append([n * problem.gpus_per_node + used.setdefault(n, 0)][0])
        used[n] += 1
    relaxation = relax(layer)
    assert relaxation is not None
    ours = {
        "dual": dual_bound(layer, relaxation.weights),
        "hot-experts": hot_expert_bound(layer),
        "threshold": threshold_bound(layer, relaxation.weights, layer.z(node)),
    }[proof]
    claims = proof_claims(problem.links, proof)
    if ours.weights is not None:
        claims["weights"] = dict(zip(problem.links, ours.weights.tolist(), strict=True))
    if ours.hot is not None:
        claims["hot"] = (int(layer.expert[ours.hot]), int(layer.replica[ours.hot]))
    claims["threshold"] = ours.threshold
    derived = recomputed(instance, [gpu, gpu], traffic, **claims).layers[0].bound
    return derived, ours.value


@pytest.mark.parametrize("proof", ["dual", "hot-experts", "threshold"])
@pytest.mark.parametrize("name", CASES)
def test_the_verifier_derives_the_same(name: str, proof: str) -> None:
    derived, stated = derived_and_stated(name, proof)
    assert derived == pytest.approx(stated, rel=1e-7)


@pytest.mark.parametrize("proof", ["dual", "threshold"])
@pytest.mark.parametrize("name", CASES)
def test_the_verifier_derives_no_less_where_slots_do_not_count(
    name: str, proof: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    exact, _ = derived_and_stated(name, proof)
    monkeypatch.setattr(assignment, "_MOST_PAIRS", 0)
    derived, stated = derived_and_stated(name, proof)
    assert stated <= derived * (1 + 1e-9)
    monkeypatch.setattr(integer_bounds, "_MOST_PAIRS", 0)
    monkeypatch.setattr(integer_bounds, "_by_moves", lambda *_: None)
    freely, stated = derived_and_stated(name, proof)
    assert freely == pytest.approx(stated, rel=1e-7, abs=1e-9)
    assert freely <= exact * (1 + 1e-9)


def test_hot_expert_by_hand() -> None:
    # 2 nodes of 1 GPU, full mesh, 2 experts: the node without the hot expert sends it all its 100 tokens' choices.
    instance = tiny_instance(
        model={"experts": 2, "layers": 2, "top_k": 1},
        cluster={"nodes": 2, "gpus_per_node": 1, "fabric": {"kind": "full-mesh"}},
        parallelism={"dp": 1},
    )
    traffic = tiny_traffic(instance, 0, recordings=1)
    share = traffic.recordings[0].load[0] / traffic.recordings[0].tokens[0]
    bound = hot_expert_bound(compile_problem(instance, traffic).layer(0))
    assert bound.value == pytest.approx(100 * share.max())
    assert bound.hot == int(share.argmax())


def test_nothing_is_forbidden_far_above() -> None:
    layer = case("plain", 0)
    assert not beyond(layer, 1e12).any()
    assert beyond(layer, 0.0).all()
