"""Results under rules that number an expert's replicas by GPU: each replica gets the number that its GPU gives it.

Methods place replicas as if any of them could have any number. Sorting an expert's GPUs among its replicas gives a
placement that the engine serves so; what is sent differs by as much as shares do. Bounds hold for every numbering.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moe_placer.bounds.bounds import Bound, numbered_bound
from moe_placer.bounds.largest import largest
from moe_placer.bounds.relaxation import relax
from moe_placer.limits import Deadline
from moe_placer.problem.compile import Problem
from moe_placer.result import OPTIMAL_GAP, LayerResult, gap

__all__ = ["bound_any_numbers", "bound_as_stated", "gpus_in_order", "in_gpu_order"]

Ints = npt.NDArray[np.int64]

_ROUNDING = 1e-12


def in_gpu_order(problem: Problem, index: int, result: LayerResult) -> LayerResult:
    """Return the result of a layer with each expert's replicas sorted by GPU, and what that costs."""
    if problem.shares is None or result.node is None:
        return result
    expert, _ = problem.items(index, result.replicas)
    key = result.node if result.gpu is None else result.gpu
    order = _sorted_within(expert, key)
    node, gpu = result.node[order], None if result.gpu is None else result.gpu[order]
    if np.array_equal(order, np.arange(len(order))):
        return result
    z = problem.layer(index, result.replicas).z(node)
    if abs(z - result.z) <= _ROUNDING * result.z:
        return replace(result, node=node, gpu=gpu)
    stop = result.stop.without_gap if z > result.z else result.stop
    return replace(result, node=node, gpu=gpu, z=z, stop=stop)


def gpus_in_order(
    problem: Problem, index: int, result: LayerResult, gpus: Sequence[tuple[int, ...]]
) -> list[tuple[int, ...]]:
    """Sort the GPUs that a layer's items were packed on, as `in_gpu_order` does.

    Parameters
    ----------
    problem : Problem
        The compiled instance.
    index : int
        The MoE layer, counted among MoE layers.
    result : LayerResult
        The layer.
    gpus : sequence of tuple
        GPU of each item.
    """
    expert, _ = problem.items(index, result.replicas)
    return [gpus[i] for i in _sorted_within(expert, np.array([own[0] for own in gpus])).tolist()]


def bound_as_stated(problem: Problem, index: int, result: LayerResult) -> Bound:
    """Return a layer's bound as one that holds for every number of replicas, where these are a choice.

    Where nodes differ in shares, none is known: then the bound is for the replicas as given.
    """
    bound = result.bound
    known = bound.any_replicas or bound.given_replicas is not None or bound.proof == "solver"
    if problem.shares is None or not problem.shares.chosen or known:
        return bound
    if problem.shares.alike and bound.weights is not None:
        return numbered_bound(problem.layer(index, result.replicas), bound.weights)
    return replace(bound, value=0.0, given_replicas=bound.value)


def bound_any_numbers(problem: Problem, results: Sequence[LayerResult], deadline: Deadline) -> list[LayerResult]:
    """Have bounds hold for every number of replicas, by the best link weights for that, where these are a choice."""
    shares = problem.shares
    if shares is None or not shares.chosen:
        return list(results)
    found = []
    for index, result in enumerate(results):
        layer, bound = problem.layer(index, result.replicas), bound_as_stated(problem, index, result)
        relaxation = relax(layer, deadline.left, any_replicas=True) if shares.alike and not deadline.over else None
        if relaxation is not None:
            bound = largest([numbered_bound(layer, relaxation.weights), bound])
        stop = result.stop.without_gap if gap(result.z, bound.value) > OPTIMAL_GAP else result.stop
        found.append(replace(result, bound=bound, solver_bound=None, stop=stop))
    return found


def _sorted_within(expert: Ints, key: Ints) -> Ints:
    """Return which item's place each item takes [items], so that ``key`` rises with the replicas of every expert."""
    place = np.argsort(expert, kind="stable")  # items are in the order of replicas
    order = np.empty(len(expert), dtype=np.int64)
    order[place] = np.lexsort((key, expert))
    return order
