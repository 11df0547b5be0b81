"""Compiled costs against the definition, and what must not change the optimum."""

from __future__ import annotations

from dataclasses import FrozenInstanceError, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
from builders import VARIANTS, level_traffic, smallest_z, tiny_instance, tiny_traffic
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.fabric import build_fabric, compile_routes
from moe_placer.instance import Instance
from moe_placer.problem.compile import Problem, compile_problem
from moe_placer.problem.demand import demand
from moe_placer.problem.replica_counts import replicas_by_load
from moe_placer.traffic import Traffic


def naive_cost(instance: Instance, traffic: Traffic, problem: Problem, node: np.ndarray) -> np.ndarray:
    """``scale[k] * sum_i sum_s D[s, i] A[k, s, node(i)]``, with every factor spelled out."""
    nodes = instance.cluster.nodes
    routes = compile_routes(build_fabric(instance), nodes)
    shares = routes.shares.toarray().reshape(-1, nodes, nodes)
    scale = instance.cluster.fabric.node_gb_per_s / routes.bandwidth
    if instance.objective.metric == "tokens":
        scale = np.ones(len(scale))
    cost = np.zeros(len(routes.links))
    tokens = demand(instance, traffic)[0]
    expert, replica = problem.items(0)
    for i, (e, r) in enumerate(zip(expert, replica, strict=True)):
        for s in range(nodes):
            if instance.cluster.joined(s, node[i]):
                continue  # by NVLink
            if instance.placement.replica_routing == "group":
                d = tokens[s, e] if s * instance.parallelism.dp // nodes == r else 0.0
            else:
                d = tokens[s, e] / problem.replicas[0, e]
            cost += scale * d * shares[:, s, node[i]]
    return dict(zip(routes.links, cost, strict=True))


@pytest.mark.parametrize("metric", ["time", "tokens"])
@pytest.mark.parametrize("variant", VARIANTS)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_costs_follow_the_definition(variant: str, metric: str, seed: int) -> None:
    instance = tiny_instance(**{**VARIANTS[variant], "objective": {"metric": metric}})
    traffic = tiny_traffic(instance, seed)
    problem = compile_problem(instance, traffic)
    layer = problem.layer(0)
    node = np.random.default_rng(seed).integers(layer.nodes, size=layer.items)
    naive = naive_cost(instance, traffic, problem, node)
    cost = layer.cost(node)
    assert layer.z(node) == pytest.approx(max(naive.values()), abs=1e-6)
    for name, value in zip(problem.links, cost, strict=True):
        assert value == pytest.approx(naive[name], abs=1e-6)
    assert sum(problem.multiplicity) == len(naive)


def test_demand_is_what_the_definition_says() -> None:
    # 2 GPUs a node start 100 tokens each; an expert chosen 30 times by 100 tokens gets 200 * 0.3 = 60 of every node.
    instance = tiny_instance(model={"layers": 2})
    traffic = level_traffic(instance, [[30.0, 70.0, 60.0, 40.0]], 100.0)
    assert demand(instance, traffic)[0, 3] == pytest.approx([60.0, 140.0, 120.0, 80.0])


def brute(instance: Instance, traffic: Traffic) -> float:
    return smallest_z(compile_problem(instance, traffic).layer(0))


SOLO: dict[str, Any] = {"model": {"layers": 2}, "cluster": {"gpus_per_node": 1}, "parallelism": {"dp": 1}}


@pytest.mark.parametrize("seed", range(3))
def test_relabelling_keeps_the_optimum(seed: int) -> None:
    instance = tiny_instance(**SOLO)
    traffic = tiny_traffic(instance, seed)
    best = brute(instance, traffic)
    experts = np.random.default_rng(seed).permutation(4)
    shuffled = [type(r)(r.name, r.load[:, experts], r.tokens) for r in traffic.recordings]
    assert brute(instance, Traffic(tuple(shuffled), traffic.mix)) == pytest.approx(best)
    swapped = traffic.mix[[2, 3, 0, 1]]  # the two leaves trade places
    assert brute(instance, Traffic(traffic.recordings, swapped)) == pytest.approx(best)


@pytest.mark.parametrize("seed", range(3))
def test_more_room_never_hurts_and_more_tokens_scale(seed: int) -> None:
    instance = tiny_instance(**SOLO)
    traffic = tiny_traffic(instance, seed)
    best = brute(instance, traffic)
    roomy = tiny_instance(**{**SOLO, "placement": {"slots_per_gpu": 2}})
    assert brute(roomy, traffic) <= best * (1 + 1e-12)
    busy = tiny_instance(**{**SOLO, "traffic": {"tokens_per_gpu": 300.0}})
    assert brute(busy, traffic) == pytest.approx(3 * best)


@given(st.lists(st.floats(0.1, 100), min_size=1, max_size=4), st.integers(0, 4))
@settings(deadline=None)
def test_replicas_by_load_minimise_the_largest_load_per_replica(load: list[float], extra: int) -> None:
    loads, total = np.array(load), len(load) + extra
    replicas = replicas_by_load(loads, total, total)
    assert replicas.sum() == total
    assert replicas.min() >= 1
    every = (np.array(c) for c in product(range(1, extra + 2), repeat=len(load)) if sum(c) == total)
    assert (loads / replicas).max() == pytest.approx(min((loads / c).max() for c in every))


@given(st.integers(0, 10_000))
@settings(max_examples=60, deadline=None)
def test_valid_counts_slots_pins_and_replicas_node_by_node(seed: int) -> None:
    """Nodes differ in all of these, so that a count on the wrong node is found out."""
    rng = np.random.default_rng(seed)
    instance = tiny_instance(model={"experts": 3}, cluster={"nodes": 4, "gpus_per_node": 2}, parallelism={"dp": 2})
    layer = compile_problem(instance, tiny_traffic(instance)).layer(0)
    slots, together = rng.integers(0, 7, 4), rng.integers(0, 3, 4)
    pinned = np.where(rng.random(layer.items) < 0.15, rng.integers(0, 4, layer.items), -1)
    layer = replace(layer, slots=slots, together=together, pinned=pinned)
    for node in rng.integers(0, 4, (40, layer.items)):
        node = np.where(pinned >= 0, np.where(rng.random(layer.items) < 0.9, pinned, node), node)
        by_hand = all(
            sum(node == n) <= slots[n]
            and all(sum((node == n) & (layer.expert == e)) <= together[n] for e in range(3))
            and all(node[i] == n for i in np.flatnonzero(pinned == n))
            for n in range(4)
        )
        assert layer.valid(node) == by_hand


@pytest.mark.parametrize(("apart", "most"), [("gpu", 4), ("node", 2)])
def test_an_expert_gets_no_more_replicas_than_there_are_places(apart: str, most: int) -> None:
    """Expert 0 gets nearly all tokens, so that every redundant slot would go to it: 2 nodes of 2 GPUs hold so many."""
    instance = tiny_instance(
        model={"experts": 4, "layers": 2},
        cluster={"nodes": 2, "gpus_per_node": 2},
        parallelism={"dp": 1},
        placement={
            "slots_per_gpu": 2,
            "replica_routing": "even",
            "replicas": {"redundant_slots": 3},
            "replicas_apart": apart,
        },
    )
    traffic = level_traffic(instance, [[1000.0, 3.0, 2.0, 1.0]], 500.0)
    replicas = compile_problem(instance, traffic).replicas
    assert replicas[0, 0] == most
    assert replicas.sum() == 7


def test_problems_cannot_be_changed_and_are_compared_by_identity() -> None:
    instance = tiny_instance()
    first, second = (compile_problem(instance, tiny_traffic(instance)) for _ in range(2))
    with pytest.raises(FrozenInstanceError):
        first.name = "other"  # type: ignore[misc]
    with pytest.raises(FrozenInstanceError):
        first.layer(0).layer = 7  # type: ignore[misc]
    assert first != second  # comparing the arrays in them would raise
    assert first.layer(0) != second.layer(0)
