"""What engines do inside each EP group, and how they deal experts where slots are spare."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import tiny_instance, tiny_traffic
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.limits import Limits
from moe_placer.problem.compile import Problem, compile_problem
from moe_placer.result import LayerResult
from moe_placer.solve.heuristic import ep_groups, even_slots
from moe_placer.solve.registry import find_solver
from moe_placer.solve.solve import solve

ENGINE_RULES = ("eplb", "eplb-global", "lpt", "trtllm", "topology-swaps", "round-robin")
TWO_SLOTS: dict[str, Any] = {"model": {"experts": 8}, "placement": {"slots_per_gpu": 2}}
VARIANTS: dict[str, dict[str, Any]] = {
    "one slot": {},
    "two slots": TWO_SLOTS,
    "spare slots": {"model": {"experts": 3}, "placement": {"slots_per_gpu": 2}},
    "four groups": {"model": {"experts": 2}, "parallelism": {"dp": 4}},
    "failed": {"cluster": {"gpus_per_node": 3}, "placement": {"failed_gpus": [0, 7]}},
    "sharded": {"model": {"experts": 2}, "parallelism": {"expert_tp": 2}},
}


def place(problem: Problem, method: str) -> list[LayerResult]:
    return find_solver(method).solve(problem, Limits(), 0, None, lambda index, result: None)


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("method", ENGINE_RULES)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=10, deadline=None)
def test_a_dp_group_keeps_its_experts_on_its_own_nodes(method: str, variant: str, seed: int) -> None:
    instance = tiny_instance(**VARIANTS[variant])
    problem = compile_problem(instance, tiny_traffic(instance, seed))
    for index, result in enumerate(place(problem, method)):
        _, replica = problem.items(index, result.replicas)
        assert result.node is not None
        assert problem.group_of_node[result.node].tolist() == replica.tolist()
        assert result.repaired == 0


@given(seed=st.integers(0, 10_000))
@settings(max_examples=20, deadline=None)
def test_a_group_is_packed_as_if_it_were_alone(seed: int) -> None:
    both = tiny_instance(**TWO_SLOTS)
    alone = tiny_instance(**TWO_SLOTS, cluster={"nodes": 2}, parallelism={"dp": 1})
    traffic = tiny_traffic(both, seed)
    for method in set(ENGINE_RULES) - {"topology-swaps"}:  # which looks at links to all other nodes
        whole = place(compile_problem(both, traffic), method)
        for group in (0, 1):
            own = type(traffic)(traffic.recordings, traffic.mix[2 * group : 2 * group + 2])
            for result, lone in zip(whole, place(compile_problem(alone, own), method), strict=True):
                assert result.node is not None
                assert lone.node is not None
                mine = result.node[8 * group : 8 * group + 8] - 2 * group
                assert mine.tolist() == lone.node.tolist(), method


def test_even_routing_and_one_group_are_one_ep_group() -> None:
    for changes in ({"placement": {"replica_routing": "even"}}, {"parallelism": {"dp": 1}}):
        instance = tiny_instance(**changes)
        problem = compile_problem(instance, tiny_traffic(instance))
        ((items, nodes),) = ep_groups(problem, problem.layer(0))
        assert (len(items), len(nodes)) == (problem.layer(0).items, 4)


@pytest.mark.parametrize("method", ENGINE_RULES)
def test_what_a_group_has_no_slot_for_goes_elsewhere_and_is_counted(method: str) -> None:
    # 12 GPUs for 8 replicas, but three of the six GPUs of group 0 failed: it has slots for 3 of its 4 experts.
    instance = tiny_instance(cluster={"gpus_per_node": 3}, placement={"failed_gpus": [0, 1, 2]})
    traffic = tiny_traffic(instance)
    solution = solve(instance, traffic, solver=method)
    assert solution.repaired == 2  # one in each of two layers
    problem = compile_problem(instance, traffic)
    for index, result in enumerate(place(problem, method)):
        assert result.node is not None
        strayed = np.flatnonzero(problem.group_of_node[result.node] != problem.layer(index).replica)
        assert len(strayed) == 1
        own = np.arange(4)
        assert problem.layer(index).load[strayed[0]] == problem.layer(index).load[own].min()


@pytest.mark.parametrize(
    ("slots", "items", "expected"),
    [
        ([1, 1, 1, 1], 4, [1, 1, 1, 1]),
        ([2, 2, 2, 2], 4, [1, 1, 1, 1]),  # not 2, 2, 0, 0
        ([2, 2, 2, 2], 6, [2, 1, 2, 1]),
        ([1, 1, 1, 1], 2, [1, 0, 1, 0]),
        ([1, 3, 0, 3], 6, [1, 3, 0, 2]),
        ([3, 3], 5, [3, 2]),
        ([2, 2], 0, [0, 0]),
    ],
)
def test_places_get_equally_many(slots: list[int], items: int, expected: list[int]) -> None:
    assert even_slots(np.array(slots), items).tolist() == expected


@given(slots=st.lists(st.integers(0, 5), min_size=1, max_size=9), share=st.floats(0, 1))
def test_shares_fit_and_differ_by_one(slots: list[int], share: float) -> None:
    there = np.array(slots)
    items = int(share * there.sum())
    found = even_slots(there, items)
    assert found.sum() == items
    assert (found <= there).all()
    least = min((int(f) for f, s in zip(found, there, strict=True) if f < s), default=5)
    assert found.max(initial=0) <= least + 1 or found.max(initial=0) == 0


def test_contiguous_spreads_experts_over_gpus_in_order() -> None:
    instance = tiny_instance(parallelism={"dp": 1}, placement={"slots_per_gpu": 2}, model={"experts": 12})
    (result, _) = place(compile_problem(instance, tiny_traffic(instance)), "contiguous")
    assert result.gpu is not None
    assert result.gpu.tolist() == [0, 0, 1, 2, 2, 3, 4, 4, 5, 6, 6, 7]
    half = tiny_instance(parallelism={"dp": 1})  # 4 experts on 8 GPUs
    (result, _) = place(compile_problem(half, tiny_traffic(half)), "contiguous")
    assert result.gpu is not None
    assert result.gpu.tolist() == [0, 2, 4, 6]
