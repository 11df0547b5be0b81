"""TensorRT-LLM's load balancer: copies by a heap, then ranks by a heap. It never looks at nodes or links.

Described from ``doReplication`` and ``doPlacement`` of its ``moeLoadBalancer.cpp``, and from NVIDIA's "Scaling Expert
Parallelism in TensorRT-LLM" (2025): every further slot goes to the expert with the highest load per copy; then copies,
hottest first, go to the rank with the least load that has a slot. Of equals, the expert with the higher number gets
the copy and the rank with the lower number the expert: with one slot a rank, the hottest experts share a node. The
original lets two copies of one expert meet on a rank; here these are moved apart, and counted as repaired. Its ranks
are those of one EP group: with ``group`` routing, each DP group's experts go to its own nodes.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import numpy.typing as npt

from moe_placer.problem.compile import LayerProblem, Problem
from moe_placer.problem.replica_counts import copies_by_load
from moe_placer.result import LayerResult
from moe_placer.solve.heuristic import (
    EngineRule,
    even_slots,
    gpu_result,
    heuristic_result,
    lightest_first,
    pack_in_groups,
)

__all__ = ["TensorRtLlm", "copies_later_first"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class TensorRtLlm(EngineRule):
    """Greedy replication, then greedy packing to ranks; a rank is a GPU (a node, where experts are sharded)."""

    name = "trtllm"
    summary = "TensorRT-LLM's balancer: copies by load, then hottest to the least loaded rank"
    source = "https://github.com/NVIDIA/TensorRT-LLM (cpp/tensorrt_llm/runtime/moeLoadBalancer)"

    def place_in_groups(self, problem: Problem, index: int, rng: np.random.Generator) -> LayerResult:
        """Place one layer."""
        layer, copies = problem.layer(index), None
        if problem.copies_are_free:
            load = problem.demand[index].sum(axis=0)
            copies = copies_later_first(
                load, layer.items, int(layer.together.sum()), partial(problem.capacity.allows, index)
            )
            layer = problem.layer(index, copies)
        if problem.shards > 1:
            return heuristic_result(layer, _pack(problem, layer, layer.slots), rng, copies=copies)
        return gpu_result(problem, layer, _pack(problem, layer, problem.capacity.slots[index]), rng, copies)


def copies_later_first(load: Floats, replicas: int, most: int, fits: Callable[[Ints], bool] | None = None) -> Ints:
    """Return `copies_by_load`, but of equals the expert with the higher number gets the copy."""
    reverse = None if fits is None else lambda copies: fits(copies[::-1])
    return copies_by_load(load[::-1], replicas, most, reverse)[::-1]


def _pack(problem: Problem, layer: LayerProblem, slots: Ints) -> Ints:
    """Return the rank of each item; of equally hot items, the expert with the lower number is first."""

    def pack(items: Ints, slots: Ints) -> Ints:
        by_expert, rank = np.argsort(layer.expert[items], kind="stable"), np.empty(len(items), dtype=np.int64)
        rank[by_expert] = lightest_first(layer.load[items[by_expert]], even_slots(slots, len(items)))
        return rank

    return pack_in_groups(problem, layer, slots, pack)
