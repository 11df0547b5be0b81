"""Which GPU of its node an item goes to."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import level_traffic, tiny_instance, tiny_traffic
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.bounds import Bound
from moe_placer.packing import pack
from moe_placer.problem import Problem, compile_problem
from moe_placer.result import LayerResult, Status, Stop

ONE_NODE: dict[str, Any] = {
    "model": {"layers": 1, "dense_layers": [], "experts": 4},
    "cluster": {"nodes": 1},
    "parallelism": {"dp": 1},
}


def placed(problem: Problem, index: int, node: list[int]) -> LayerResult:
    at = np.array(node)
    return LayerResult(at, problem.layer(index).z(at), Bound(0.0, "solver"), Status.FEASIBLE, Stop.FINISHED)


def test_gpus_that_take_several_items_are_balanced_by_load() -> None:
    # Two GPUs of two slots: 8 opens the first, 7 the second, 6 joins 7, and 5 the GPU that has a slot left.
    instance = tiny_instance(**ONE_NODE, placement={"slots_per_gpu": 2})
    problem = compile_problem(instance, level_traffic(instance, [[5.0, 6.0, 7.0, 8.0]], 13.0))
    assert pack(problem, [placed(problem, 0, [0, 0, 0, 0])]) == [[(0,), (1,), (1,), (0,)]]


def test_single_slots_keep_the_order_of_items() -> None:
    instance = tiny_instance(**{**ONE_NODE, "cluster": {"nodes": 1, "gpus_per_node": 4}})
    problem = compile_problem(instance, level_traffic(instance, [[5.0, 6.0, 7.0, 8.0]], 13.0))
    assert pack(problem, [placed(problem, 0, [0, 0, 0, 0])]) == [[(0,), (1,), (2,), (3,)]]


@pytest.mark.parametrize("shards", [1, 2])
@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_slots_and_distances_hold_for_any_load(shards: int, seed: int) -> None:
    instance = tiny_instance(
        model={"layers": 3, "experts": 4},
        cluster={"nodes": 2, "gpus_per_node": 4},
        placement={"slots_per_gpu": 2, "replica_routing": "even"},
        parallelism={"expert_tp": shards},
    )
    problem = compile_problem(instance, tiny_traffic(instance, seed))
    rng = np.random.default_rng(seed)
    nodes = [rng.permutation(np.repeat([0, 1], 4)) for _ in range(len(problem))]
    packed = pack(problem, [placed(problem, index, node.tolist()) for index, node in enumerate(nodes)])
    for index, layer in enumerate(packed):
        expert, _ = problem.items(index)
        gpus = np.array(layer)  # [items, shards]
        assert (gpus // 4 == nodes[index][:, None]).all()
        assert np.bincount(gpus.ravel(), minlength=8).max() <= 2
        pairs = {(e, g) for e, taken in zip(expert.tolist(), gpus.tolist(), strict=True) for g in taken}
        assert len(pairs) == gpus.size
