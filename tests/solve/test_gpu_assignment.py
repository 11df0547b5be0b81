"""GPUs inside a node: every replica gets some, and nothing that memory, slots or pins forbid."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
from builders import level_traffic, tiny_instance, tiny_traffic
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.bounds.bounds import Bound
from moe_placer.errors import NothingFoundError
from moe_placer.problem.compile import Problem, compile_problem
from moe_placer.result import LayerResult, Stop
from moe_placer.search.moves import repair
from moe_placer.solve.gpu_assignment import pack

SHAPES: dict[str, dict[str, Any]] = {
    "full": {},
    "spare": {"cluster": {"gpus_per_node": 3}},
    "two slots": {"placement": {"slots_per_gpu": 2}},
    "sharded": {"parallelism": {"dp": 1, "expert_tp": 2}},
    "failed": {"cluster": {"gpus_per_node": 3}, "placement": {"failed_gpus": [0, 4]}},
    "pinned": {"placement": {"pinned": [{"layer": 1, "expert": 2, "gpu": 5}, {"layer": 2, "expert": 0, "gpu": 5}]}},
}
ONE_NODE: dict[str, Any] = {
    "model": {"layers": 1, "dense_layers": [], "experts": 4},
    "cluster": {"nodes": 1},
    "parallelism": {"dp": 1},
}


def placed(problem: Problem, index: int, node: Sequence[int] | np.ndarray) -> LayerResult:
    at = np.array(node)
    return LayerResult(at, problem.layer(index).z(at), Bound(0.0, "solver"), Stop.FINISHED)


def results_of(problem: Problem, seed: int) -> list[LayerResult]:
    rng, results = np.random.default_rng(seed), []
    for index in range(len(problem)):
        layer = problem.layer(index)
        node = repair(layer, rng.integers(0, layer.nodes, layer.items), rng)
        assert node is not None
        results.append(placed(problem, index, node))
    return results


@pytest.mark.parametrize("name", SHAPES)
@given(seed=st.integers(0, 10_000))
@settings(max_examples=25, deadline=None)
def test_any_valid_placement_is_packed(name: str, seed: int) -> None:
    instance = tiny_instance(**SHAPES[name])
    problem = compile_problem(instance, tiny_traffic(instance, seed))
    results = results_of(problem, seed)
    for index, (result, packed) in enumerate(zip(results, pack(problem, results), strict=True)):
        expert, replica = problem.items(index)
        assert result.node is not None
        held: dict[int, list[int]] = {}
        for i, gpus in enumerate(packed):
            assert len(set(gpus)) == problem.shards
            assert {gpu // problem.gpus_per_node for gpu in gpus} == {int(result.node[i])}
            for gpu in gpus:
                held.setdefault(gpu, []).append(int(expert[i]))
            pin = problem.pinned.get((index, int(expert[i]), int(replica[i])))
            assert pin is None or gpus == (pin,)
        assert not set(held) & set(instance.placement.failed_gpus)
        assert all(len(on) == len(set(on)) <= instance.placement.slots_per_gpu for on in held.values())


def test_memory_stays_even_where_there_are_spare_slots() -> None:
    # Two replicas a node on three GPUs, two layers: four replicas, and no GPU holds two before every GPU holds one.
    instance = tiny_instance(cluster={"gpus_per_node": 3})
    problem = compile_problem(instance, tiny_traffic(instance))
    result = placed(problem, 0, [0, 1, 2, 3] * 2)
    held = np.bincount([gpu for layer in pack(problem, [result, result]) for gpus in layer for gpu in gpus])
    assert held.tolist() == [2, 1, 1] * 4


def test_gpus_that_a_method_chose_stay() -> None:
    instance = tiny_instance()
    problem = compile_problem(instance, tiny_traffic(instance))
    gpu = np.array([7, 5, 3, 1, 6, 4, 2, 0])
    z = problem.layer(0).z(gpu // 2)
    result = LayerResult(gpu // 2, z, Bound(0.0, "solver"), Stop.FINISHED, gpu=gpu)
    assert pack(problem, [result, result])[0] == [(g,) for g in gpu]


def test_a_node_that_was_given_too_much_is_named() -> None:
    instance = tiny_instance()
    problem = compile_problem(instance, tiny_traffic(instance))
    result = placed(problem, 0, [2] * 3 + [0, 0, 1, 1, 3])
    with pytest.raises(NothingFoundError, match="node 2 cannot take the 3 expert replicas"):
        pack(problem, [result, result])


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
