"""TensorRT-LLM's load balancer: replicas by a heap, then ranks by a heap. It never looks at nodes or links.

Described from ``doReplication`` and ``doPlacement`` of its ``moeLoadBalancer.cpp``, and from NVIDIA's "Scaling Expert
Parallelism in TensorRT-LLM" (2025): every further slot goes to the expert with the highest load per replica; then
replicas, hottest first, go to the rank with the least load that has a slot. Of equals, the expert with the higher
number gets the replica and the rank with the lower number the expert: with one slot a rank, the hottest experts share a
node. The original lets two replicas of one expert meet on a rank; here these are moved apart, and counted as repaired.
Its ranks are those of one EP group: with ``group`` routing, each DP group's experts go to its own nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from moe_placer.problem.compile import Problem
from moe_placer.problem.layer import LayerProblem
from moe_placer.problem.replica_counts import replicas_by_load
from moe_placer.result import LayerResult
from moe_placer.solve.heuristic import (
    EngineRule,
    even_slots,
    gpu_result,
    heuristic_result,
    lightest_first,
    pack_in_groups,
)

__all__ = ["TensorRtLlm", "replicas_later_first"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class TensorRtLlm(EngineRule):
    """Greedy replication, then greedy packing to ranks; a rank is a GPU (a node, where experts are sharded)."""

    name = "trtllm"
    summary = "TensorRT-LLM's balancer: replicas by load, then hottest to the least loaded rank"
    source = "https://github.com/NVIDIA/TensorRT-LLM (cpp/tensorrt_llm/runtime/moeLoadBalancer)"

    def place_in_groups(self, problem: Problem, index: int, rng: np.random.Generator) -> LayerResult:
        """Place one layer."""
        layer, replicas = problem.layer(index), None
        if problem.replicas_are_free:
            load = problem.demand[index].sum(axis=0)
            replicas = replicas_later_first(
                load,
                layer.items,
                int(layer.together.sum()),
                partial(problem.capacity.allows, index),
                problem.least_replicas,
            )
            layer = problem.layer(index, replicas)
        if problem.shards > 1:
            return heuristic_result(layer, _pack(problem, layer, layer.slots), rng, replicas=replicas)
        return gpu_result(problem, layer, _pack(problem, layer, problem.capacity.slots[index]), rng, replicas)


def replicas_later_first(
    load: Floats, total: int, most: int, fits: Callable[[Ints], bool] | None = None, least: int = 1
) -> Ints:
    """Return `replicas_by_load`, but of equals the expert with the higher number gets the replica.

    Parameters as of `moe_placer.problem.replica_counts.replicas_by_load`.
    """
    reverse = None if fits is None else lambda replicas: fits(replicas[::-1])
    return replicas_by_load(load[::-1], total, most, reverse, least)[::-1]


def _pack(problem: Problem, layer: LayerProblem, slots: Ints) -> Ints:
    """Return the rank of each item; of equally hot items, the expert with the lower number is first."""

    def pack(items: Ints, slots: Ints) -> Ints:
        by_expert, rank = np.argsort(layer.expert[items], kind="stable"), np.empty(len(items), dtype=np.int64)
        rank[by_expert] = lightest_first(layer.load[items[by_expert]], even_slots(slots, len(items)))
        return rank

    return pack_in_groups(problem, layer, slots, pack)
