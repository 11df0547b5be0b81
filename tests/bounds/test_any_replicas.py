"""Bounds for any number of replicas: against every choice of replicas and nodes there is, and against the verifier."""

from __future__ import annotations

from itertools import combinations_with_replacement

import numpy as np
import pytest
from builders import every_valid, honest, level_traffic, recomputed, rules_of, tiny_instance, tiny_traffic

from moe_placer.bounds.bounds import any_replicas_bound
from moe_placer.bounds.relaxation import relax
from moe_placer.instance import Instance
from moe_placer.limits import Limits
from moe_placer.problem.compile import Problem, compile_problem
from moe_placer.solve.solve import solve


def free_instance(extra: int = 1) -> Instance:
    """Give 3 experts and ``extra`` redundant slots to 3 nodes of 2 GPUs, in one MoE layer."""
    return tiny_instance(
        model={"experts": 3, "layers": 2},
        cluster={"nodes": 3},
        parallelism={"dp": 1},
        placement={"replica_routing": "even", "replicas": {"redundant_slots": extra}},
    )


def smallest_z(problem: Problem, experts: int, extra: int) -> float:
    """Try every choice of replicas, and every assignment of these to nodes."""
    best = np.inf
    for more in combinations_with_replacement(range(experts), extra):
        replicas = 1 + np.bincount(more, minlength=experts)
        layer = problem.layer(0, replicas)
        best = min([best, *(layer.z(node) for node in every_valid(layer))])
    return best


@pytest.mark.parametrize("extra", [1, 2])
@pytest.mark.parametrize("seed", range(4))
def test_no_choice_of_replicas_beats_the_bound(seed: int, extra: int) -> None:
    instance = free_instance(extra)
    problem = compile_problem(instance, tiny_traffic(instance, seed))
    layer = problem.layer(0)
    relaxation = relax(layer, any_replicas=True)
    assert relaxation is not None
    least = smallest_z(problem, 3, extra)
    assert any_replicas_bound(layer, relaxation.weights).value <= least * (1 + 1e-9)
    for weights in np.random.default_rng(seed).dirichlet(np.ones(layer.links), 20):
        assert any_replicas_bound(layer, weights).value <= least * (1 + 1e-9)


def test_its_value_is_worked_out_by_hand() -> None:
    # 2 nodes, full mesh, 2 experts, one redundant slot; a node starts 200 tokens, each choosing both experts. With all
    # weight on node0->node1, an expert on node 1 costs the 200 tokens of node 0, on node 0 nothing: the bound is 0.
    instance = tiny_instance(
        model={"experts": 2, "layers": 2},
        cluster={"nodes": 2, "fabric": {"kind": "full-mesh"}},
        parallelism={"dp": 1},
        placement={"replica_routing": "even", "replicas": {"redundant_slots": 1}},
    )
    layer = compile_problem(instance, level_traffic(instance, [[100.0, 100.0]], 100.0)).layer(0)
    assert any_replicas_bound(layer, np.array([1.0, 0.0])).value == pytest.approx(0.0, abs=1e-9)
    # Half and half, either node costs each expert 0.5 * 200: together 200 tokens, rounded down a hair.
    assert any_replicas_bound(layer, np.array([0.5, 0.5])).value == pytest.approx(200.0)


@pytest.mark.parametrize(("failed", "bound"), [([], 0.0), ([0], 100.0), ([1], 0.0)])
def test_a_node_without_slots_is_no_place_for_an_expert(failed: list[int], bound: float) -> None:
    """3 nodes, full mesh, 2 experts; each node starts 100 tokens, which all choose both.

    With half of the weight on either link from node 0, an expert on node 1 or 2 costs half of node 0's 100 tokens, and
    on node 0 nothing: unless the only GPU there has failed.
    """
    instance = tiny_instance(
        model={"experts": 2, "layers": 2},
        cluster={"nodes": 3, "gpus_per_node": 1, "fabric": {"kind": "full-mesh"}},
        parallelism={"dp": 1},
        placement={
            "replica_routing": "even",
            "replicas": {"redundant_slots": 1},
            "slots_per_gpu": 3,
            "failed_gpus": failed,
        },
    )
    traffic = level_traffic(instance, [[100.0, 100.0]], 100.0)
    problem = compile_problem(instance, traffic)
    layer = problem.layer(0)
    assert layer.widest.tolist() == [3 * (node not in failed) for node in range(3)]
    halves = {"node0->node1": 0.5, "node0->node2": 0.5}
    weights = np.array([halves.get(link, 0.0) for link in problem.links])
    assert any_replicas_bound(layer, weights).value == pytest.approx(bound)
    gpu = [[[2], [1, 2]]] if failed == [0] else [[[0], [0, 2]]]
    found = recomputed(instance, gpu, traffic, proof="dual", weights=halves, any_copies=True)
    assert found.layers[0].bound == pytest.approx(bound)
    relaxation = relax(layer, any_replicas=True)
    assert relaxation is not None
    assert relaxation.share[:, failed] == pytest.approx(0.0)
    # Tokens of node 0 must go to node 1 or 2, and so must those of each other; without failures all can stay at home.
    best = any_replicas_bound(layer, relaxation.weights).value
    assert best == pytest.approx(100.0 if failed else 200.0 / 3, rel=1e-6)


@pytest.mark.parametrize("seed", range(3))
def test_the_verifier_derives_the_same_value(seed: int) -> None:
    instance = free_instance(2)
    traffic = tiny_traffic(instance, seed)
    solution = solve(instance, traffic, limits=Limits(time_s=5))
    (record,) = solution.placement.layers
    assert record.any_copies is True
    assert record.solver_bound is None
    assert solution.placement.replicas["bound_covers_choice_of_copies"] is True
    assert solution.verification.layers[0].bound == pytest.approx(record.bound, rel=1e-8)


def test_it_is_refused_where_replicas_are_given() -> None:
    instance = tiny_instance()
    traffic = tiny_traffic(instance)
    data = honest(instance, traffic)
    data["layers"][0]["any_copies"] = True
    assert rules_of(instance, data, traffic) == ["proof"]


def test_a_bound_that_holds_for_these_replicas_only_may_be_refused_for_any() -> None:
    instance = free_instance(2)
    traffic = tiny_traffic(instance)
    data = honest(instance, traffic)
    claims = {"proof": "dual", "weights": data["layers"][0]["weights"]}
    of_these = recomputed(instance, data["gpu"], traffic, **claims).layers[0].bound_given_replicas
    of_any = recomputed(instance, data["gpu"], traffic, **claims, any_copies=True).layers[0].bound
    assert of_these is not None
    assert 0 < of_any <= of_these
    data["layers"] = [{"layer": 1, "z": data["layers"][0]["z"], **claims, "any_copies": True, "bound": of_any * 1.001}]
    data["layers"][0]["worst_link"] = recomputed(instance, data["gpu"], traffic).layers[0].worst_link
    assert rules_of(instance, data, traffic) == ["bound"]
