"""The methods to compare with: known by hand, and what each of them promises."""

from __future__ import annotations

from itertools import product
from typing import Any

import numpy as np
import pytest
from builders import VARIANTS, level_traffic, tiny_instance, tiny_traffic
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.limits import Limits
from moe_placer.problem.compile import Problem, compile_problem
from moe_placer.problem.layer import LayerProblem
from moe_placer.result import LayerResult
from moe_placer.solve.registry import find_solver
from moe_placer.solvers.eplb import balanced_packing
from moe_placer.solvers.flow import cheapest_flow
from moe_placer.solvers.lpt import longest_first
from moe_placer.solvers.trtllm import replicas_later_first


def place(problem: Problem, method: str) -> list[LayerResult]:
    return find_solver(method).solve(problem, Limits(), 0, None, lambda index, result: None)


def crossings(problem: Problem, index: int, result: LayerResult) -> float:
    """Tokens times the links they cross, summed straight from the definition."""
    assert result.node is not None
    expert, replica = problem.items(index, result.replicas)
    demand = problem.item_demand(index, expert, replica)
    return sum(
        float(demand[s, i] * problem.hops[s, n])
        for i, n in enumerate(result.node.tolist())
        for s in range(problem.nodes)
    )


def solo(load: list[float], **changes: Any) -> Problem:
    """Compile one layer of so many experts, one replica each, every node sending the same."""
    model = {"layers": 1, "dense_layers": [], "experts": len(load)}
    instance = tiny_instance(**{"model": model, "parallelism": {"dp": 1}, **changes})
    return compile_problem(instance, level_traffic(instance, [load], sum(load) / 2))


def test_lpt_takes_the_least_loaded_gpu_and_of_empty_ones_the_least_loaded_node() -> None:
    # 4 nodes of 2 GPUs, a slot each: 8 to 5 open the nodes, 4 joins the coolest (5), then 3 joins 6, and so on.
    (result,) = place(solo([8.0, 7.0, 6.0, 5.0, 4.0, 3.0, 2.0, 1.0]), "lpt")
    assert result.node is not None
    assert result.node.tolist() == [0, 1, 2, 3, 3, 2, 1, 0]
    # Two GPUs of two slots in all: 8 | 7, 6 to the second, 5 to the first.
    (result,) = place(
        solo([8.0, 7.0, 6.0, 5.0], cluster={"nodes": 1}, placement={"slots_per_gpu": 2}),
        "lpt",
    )
    assert result.gpu is not None
    assert result.gpu.tolist() == [0, 1, 1, 0]


@given(load=st.lists(st.floats(0.1, 100), min_size=2, max_size=7))
@settings(max_examples=40, deadline=None)
def test_lpt_is_within_grahams_bound(load: list[float]) -> None:
    instance = tiny_instance(
        model={"layers": 1, "dense_layers": [], "experts": len(load)},
        cluster={"nodes": 1, "gpus_per_node": 3},
        parallelism={"dp": 1},
        placement={"slots_per_gpu": 8},
    )
    layer = compile_problem(instance, level_traffic(instance, [load], sum(load))).layer(0)
    gpu = longest_first(layer, np.full(3, 8), np.zeros(3, dtype=np.int64))
    every = (np.bincount(choice, layer.load, 3).max() for choice in product(range(3), repeat=len(load)))
    assert np.bincount(gpu, layer.load, 3).max() <= (4 / 3 - 1 / 9) * min(every) * (1 + 1e-12)


def test_replicas_go_to_the_hottest_and_of_equals_to_the_last() -> None:
    assert replicas_later_first(np.array([4.0, 4.0, 1.0]), 5, 8).tolist() == [2, 2, 1]
    assert replicas_later_first(np.array([4.0, 4.0, 1.0]), 4, 8).tolist() == [1, 2, 1]
    assert replicas_later_first(np.array([9.0, 1.0]), 5, 3).tolist() == [3, 2]  # at most 3 of one expert


def test_trtllm_fills_single_slots_hottest_first() -> None:
    # Every rank is empty until it is full, so rank ids decide: the two hottest share node 0.
    (result,) = place(solo([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0]), "trtllm")
    assert result.gpu is not None
    assert result.gpu.tolist() == [7, 6, 5, 4, 3, 2, 1, 0]


def test_eplb_leaves_single_slots_in_order() -> None:
    assert balanced_packing(np.array([1.0, 3.0, 2.0]), np.array([1, 0, 1, 1])).tolist() == [0, 2, 3]
    assert balanced_packing(np.array([1.0, 3.0, 2.0]), np.array([2, 2])).tolist() == [1, 0, 1]


def test_contiguous_fills_redundant_slots_from_the_first_expert_on() -> None:
    placement = {"replica_routing": "even", "replicas": {"redundant_slots": 3}}
    (result,) = place(solo([1.0, 2.0, 3.0, 4.0, 90.0], placement=placement), "contiguous")
    assert result.replicas is not None
    assert result.replicas.tolist() == [2, 2, 2, 1, 1]
    assert result.gpu is not None
    assert result.gpu.tolist() == [0, 1, 2, 3, 4, 5, 6, 7]


# Two nodes on each of two leaves. Nodes 0 and 1 ask for experts 0 and 1 only, nodes 2 and 3 for 2 and 3 only: at best
# everything stays on its leaf.
LOCAL: dict[str, Any] = {
    "model": {"layers": 1, "dense_layers": [], "experts": 4},
    "cluster": {"gpus_per_node": 1},
    "parallelism": {"dp": 1},
}


def local() -> Problem:
    instance = tiny_instance(**LOCAL)
    traffic = tiny_traffic(instance)
    left, right = traffic.recordings
    load = np.array([[30.0, 10.0, 0.0, 0.0]])
    recordings = (type(left)("left", load, np.array([20.0])), type(right)("right", load[:, ::-1], np.array([20.0])))
    mix = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [0.0, 1.0]])
    return compile_problem(instance, type(traffic)(recordings, mix))


@pytest.mark.parametrize("method", ["flow", "topology-swaps"])
def test_fewest_crossings_by_hand(method: str) -> None:
    problem = local()
    (result,) = place(problem, method)
    assert result.node is not None
    assert sorted(result.node[:2]) == [0, 1]
    assert sorted(result.node[2:]) == [2, 3]
    # Each node starts 100 tokens with 2 choices each; half of them stay, half cross 2 links, whoever sits where.
    assert crossings(problem, 0, result) == pytest.approx(4 * 200 * 0.5 * 2)


def fewest(layer: LayerProblem, price: np.ndarray) -> float:
    """Sum of prices of the cheapest valid placement, by trying them from the cheapest on."""
    every = np.array(list(product(range(layer.nodes), repeat=layer.items)))
    total = price[np.arange(layer.items), every].sum(axis=1)
    return next(float(total[at]) for at in np.argsort(total) if layer.valid(every[at]))


@pytest.mark.parametrize("routing", ["group", "even"])
@pytest.mark.parametrize("apart", ["gpu", "node"])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_flow_is_cheapest_of_all_placements(routing: str, apart: str, seed: int) -> None:
    instance = tiny_instance(
        model={"layers": 2, "experts": 3},
        cluster={"nodes": 4 if routing == "group" else 3},
        placement={"replica_routing": routing, "replicas_apart": apart},
    )
    rng = np.random.default_rng(seed)
    layer = compile_problem(instance, tiny_traffic(instance, seed)).layer(0)
    # Whole prices make ties, and the rounding to steps exact.
    price = rng.integers(0, 5, (layer.items, layer.nodes)).astype(float)
    node = cheapest_flow(layer, price)
    assert node is not None
    assert layer.valid(node)
    assert float(price[np.arange(layer.items), node].sum()) == fewest(layer, price)


def test_flow_keeps_what_is_pinned() -> None:
    pin = {"layer": 0, "expert": 0, "gpu": 3}
    instance = tiny_instance(**{**LOCAL, "placement": {"pinned": [pin]}})
    layer = compile_problem(instance, tiny_traffic(instance)).layer(0)
    price = np.random.default_rng(0).random((4, 4))
    node = cheapest_flow(layer, price)
    assert node is not None
    assert node[0] == 3
    assert float(price[np.arange(4), node].sum()) == pytest.approx(fewest(layer, price))


@pytest.mark.parametrize("variant", VARIANTS)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=5, deadline=None)
def test_swaps_never_cross_more_and_flow_crosses_least(variant: str, seed: int) -> None:
    instance = tiny_instance(**VARIANTS[variant])
    problem = compile_problem(instance, tiny_traffic(instance, seed))
    start, swapped, least = (place(problem, method) for method in ("eplb", "topology-swaps", "flow"))
    for index in range(len(problem)):
        before, after = crossings(problem, index, start[index]), crossings(problem, index, swapped[index])
        assert after <= before * (1 + 1e-9)
        if start[index].replicas is None:  # else these are other replicas than flow's
            assert crossings(problem, index, least[index]) <= after * (1 + 1e-9) + 1e-6


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_swaps_never_overload_a_gpu(seed: int) -> None:
    instance = tiny_instance(model={"experts": 8, "layers": 2}, parallelism={"dp": 1}, placement={"slots_per_gpu": 2})
    problem = compile_problem(instance, tiny_traffic(instance, seed))
    (start,), (swapped,) = place(problem, "eplb"), place(problem, "topology-swaps")
    assert start.node is not None
    assert swapped.gpu is not None
    layer = problem.layer(0)
    # The busiest GPU at the start, with each node's items spread over its GPUs as the method spreads them.
    busiest = 0.0
    for n in range(problem.nodes):
        load = layer.load[start.node == n]
        pack = balanced_packing(load, np.full(2, 2))
        busiest = max(busiest, float(np.bincount(pack, load).max(initial=0.0)))
    assert np.bincount(swapped.gpu, layer.load).max() <= busiest * (1 + 1e-9)


@pytest.mark.parametrize("method", ["eplb", "eplb-global", "lpt", "trtllm", "topology-swaps"])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=15, deadline=None)
def test_replicas_of_one_expert_are_on_different_gpus(method: str, seed: int) -> None:
    # One expert takes nearly all load, so all redundant slots go to it: half of the GPUs have a replica.
    instance = tiny_instance(
        model={"layers": 1, "dense_layers": [], "experts": 8},
        parallelism={"dp": 1},
        placement={"replica_routing": "even", "replicas": {"redundant_slots": 8}, "slots_per_gpu": 2},
    )
    load = np.random.default_rng(seed).gamma(0.3, 1.0, 8) + 0.01
    problem = compile_problem(instance, level_traffic(instance, [load.tolist()], float(load.sum()) / 2))
    (result,) = place(problem, method)
    assert result.gpu is not None
    assert result.node is not None
    expert, _ = problem.items(0, result.replicas)
    assert len(set(zip(expert.tolist(), result.gpu.tolist(), strict=True))) == len(expert) == 16
    assert (result.gpu // problem.gpus_per_node == result.node).all()
    assert np.bincount(result.gpu).max() == 2
    if method == "lpt":
        assert result.repaired == 0


@pytest.mark.parametrize("apart", ["gpu", "node"])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_swaps_bring_no_replicas_together(apart: str, seed: int) -> None:
    instance = tiny_instance(
        model={"experts": 6, "layers": 2},
        placement={"replica_routing": "even", "replicas_apart": apart, "slots_per_gpu": 2},
    )
    problem = compile_problem(instance, tiny_traffic(instance, seed))
    (start,), (swapped,) = place(problem, "eplb"), place(problem, "topology-swaps")
    assert swapped.repaired == start.repaired
