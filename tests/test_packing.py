"""GPUs inside a node: every replica gets some, and nothing that memory, slots or pins forbid."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from builders import tiny_instance, tiny_traffic
from hypothesis import given, settings
from hypothesis import strategies as st

from moe_placer.bounds import Bound
from moe_placer.errors import NothingFoundError
from moe_placer.moves import repair
from moe_placer.packing import pack
from moe_placer.problem import Problem, compile_problem
from moe_placer.result import LayerResult, Status, Stop

SHAPES: dict[str, dict[str, Any]] = {
    "full": {},
    "spare": {"cluster": {"gpus_per_node": 3}},
    "two slots": {"placement": {"slots_per_gpu": 2}},
    "sharded": {"parallelism": {"dp": 1, "expert_tp": 2}},
    "failed": {"cluster": {"gpus_per_node": 3}, "placement": {"failed_gpus": [0, 4]}},
    "pinned": {"placement": {"pinned": [{"layer": 1, "expert": 2, "gpu": 5}, {"layer": 2, "expert": 0, "gpu": 5}]}},
}


def results_of(problem: Problem, seed: int) -> list[LayerResult]:
    rng, results = np.random.default_rng(seed), []
    for index in range(len(problem)):
        layer = problem.layer(index)
        node = repair(layer, rng.integers(0, layer.nodes, layer.items), rng)
        assert node is not None
        results.append(LayerResult(node, layer.z(node), Bound(0.0, "solver"), Status.FEASIBLE, Stop.FINISHED))
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
    # Two replicas a node on three GPUs, two layers: four copies, and no GPU holds two before every GPU holds one.
    instance = tiny_instance(cluster={"gpus_per_node": 3})
    problem = compile_problem(instance, tiny_traffic(instance))
    node = np.tile([0, 1, 2, 3], 2)
    result = LayerResult(node, problem.layer(0).z(node), Bound(0.0, "solver"), Status.FEASIBLE, Stop.FINISHED)
    held = np.bincount([gpu for layer in pack(problem, [result, result]) for gpus in layer for gpu in gpus])
    assert held.tolist() == [2, 1, 1] * 4


def test_gpus_that_a_method_chose_stay() -> None:
    instance = tiny_instance()
    problem = compile_problem(instance, tiny_traffic(instance))
    gpu = np.array([7, 5, 3, 1, 6, 4, 2, 0])
    z = problem.layer(0).z(gpu // 2)
    result = LayerResult(gpu // 2, z, Bound(0.0, "solver"), Status.FEASIBLE, Stop.FINISHED, gpu=gpu)
    assert pack(problem, [result, result])[0] == [(g,) for g in gpu]


def test_a_node_that_was_given_too_much_is_named() -> None:
    instance = tiny_instance()
    problem = compile_problem(instance, tiny_traffic(instance))
    node = np.array([2] * 3 + [0, 0, 1, 1, 3])
    result = LayerResult(node, problem.layer(0).z(node), Bound(0.0, "solver"), Status.FEASIBLE, Stop.FINISHED)
    with pytest.raises(NothingFoundError, match="node 2 cannot take the 3 expert replicas"):
        pack(problem, [result, result])
