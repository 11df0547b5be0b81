"""The time of a layer, links and busiest GPU together: what it is, what bounds it, and how it gets shorter.

    t[l] = dispatch + slowest GPU + combine = (z[l] + price * busiest[l]) * round trip of a cost of 1

as ``objective.minimise: layer-time`` asks for. The search for z comes first. From its placement, and from one with
replicas by load, replicas then trade GPUs under limits on z that rise step by step; the shortest time found stays.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moe_placer.bounds.bounds import Bound
from moe_placer.limits import Limits
from moe_placer.problem.compile import Problem
from moe_placer.problem.replica_counts import replicas_by_load
from moe_placer.problem.replicas import count_replicas
from moe_placer.result import LayerResult
from moe_placer.search.local_search import search
from moe_placer.search.timed_replicas import replicate_for_time
from moe_placer.solve.base import Start
from moe_placer.solve.coolest_gpus import busiest_gpus, can_cool, cool_within
from moe_placer.solve.gpu_assignment import pack, pack_layer

__all__ = ["layer_times", "least_busiest", "shorten"]

Floats = npt.NDArray[np.float64]

_STEPS = (0.0, 0.001, 0.003, 0.01, 0.03, 0.1)  # how far z may rise, as a share; a step that saves nothing is the last
_SEARCH = 0.2  # share of the effort for replicas by load, where the search chose others


def layer_times(problem: Problem, results: Sequence[LayerResult]) -> Floats:
    """Microseconds of each layer's dispatch, slowest GPU and combine, one after the other [MoE layers].

    Raises
    ------
    NothingFoundError
        The replicas of a node do not go on its GPUs.
    """
    z = np.array([result.z for result in results])
    return np.asarray((z + problem.gpu_price * busiest_gpus(problem, results)) * problem.round_trip_us)


def least_busiest(problem: Problem, index: int) -> float:
    """Tokens that the busiest GPU of a layer has at least: the mean, or those of the hottest replica.

    Where replicas are a choice, of the choice that makes the hottest one coolest.
    """
    layer, capacity = problem.layer(index), problem.capacity
    hottest = float(layer.load.max(initial=0.0))
    if problem.replicas_are_free:
        load, replicas = problem.demand.load[index], int(problem.replicas[index].sum())
        if problem.redundant_in_all is not None:
            slots = int(np.minimum(capacity.usable, capacity.per_gpu).sum())
            replicas = min(len(load) + problem.redundant_in_all, slots)
        hottest = float((load / replicas_by_load(load, replicas, int(capacity.places.sum()))).max(initial=0.0))
    works = int((capacity.usable > 0).sum())
    return max(hottest, float(layer.load.sum()) / max(1, works))


def shorten(
    problem: Problem, results: Sequence[LayerResult], start: Start | None, limits: Limits, seed: int
) -> list[LayerResult]:
    """Shorten the time of each layer by trades between GPUs, from its result and from a placement of replicas by load.

    Parameters
    ----------
    problem : Problem
        The compiled instance.
    results : sequence of LayerResult
        Good for z, with the bounds on it; layers without a placement stay without.
    start : sequence, optional
        Nodes of each layer's items with the problem's replicas.
    limits : Limits
        Of the whole solve; this takes milliseconds a layer, and a fifth of the effort where the search chose replicas.
    seed : int
        Of everything random.
    """
    if any(result.node is None for result in results):
        return list(results)
    best = []
    for index, (result, gpus) in enumerate(zip(results, pack(problem, results), strict=True)):
        first = replace(result, gpu=np.array([own[0] for own in gpus], dtype=np.int64))
        found = [*_steps(problem, index, first, limits)]
        for other in _by_load(problem, index, result, start, limits, seed):
            found += _steps(problem, index, other, limits)
        shortest = min(found, key=lambda one: _time(problem, index, one))
        shortest = _with_other_replicas(problem, index, shortest, limits)
        # What was proved of z, or reached, is not said of the time.
        best.append(replace(shortest, stop=shortest.stop.without_gap))
    return best


def _by_load(
    problem: Problem, index: int, result: LayerResult, start: Start | None, limits: Limits, seed: int
) -> Iterator[LayerResult]:
    """Place the replicas by load, where the search chose others: no other choice has a cooler hottest replica."""
    own = problem.replicas[index]
    node = None if start is None else start[index]
    if result.replicas is None or np.array_equal(result.replicas, own) or node is None:
        return
    # Memory was divided for the replicas that there are, and a budget that layers share is spent.
    if problem.capacity.binds or result.replicas.sum() != own.sum():
        return
    work = _SEARCH * limits.total_work / len(problem)
    rng = np.random.default_rng((seed, index))
    found = search(problem.layer(index), node, result.bound.value, work, rng, limits.deadline)
    bound = _for_any_replicas(result)
    placed = replace(result, node=found.node, z=found.z, replicas=own, gpu=None, bound=bound, solver_bound=None)
    gpus = pack_layer(problem, index, placed, np.zeros(len(problem.capacity.memory_slots), dtype=np.int64))
    yield replace(placed, gpu=np.array([gpu[0] for gpu in gpus], dtype=np.int64))


def _with_other_replicas(problem: Problem, index: int, result: LayerResult, limits: Limits) -> LayerResult:
    """Let other experts have the replicas that are a choice, while that shortens the layer's time."""
    assert result.gpu is not None
    pinned = any(row == index and replica > 0 for row, _, replica in problem.pinned)
    if not problem.replicas_are_free or problem.capacity.binds or pinned:
        return result
    layer, deadline = problem.layer(index, result.replicas), replace(limits.deadline, at=np.inf)
    found = replicate_for_time(layer, result.gpu, problem.capacity.slots[index], deadline)
    if found.layer is layer:
        return result
    node = found.gpu // problem.gpus_per_node
    z, replicas = found.layer.z(node), count_replicas(found.layer)
    bound = _for_any_replicas(result)
    return replace(result, node=node, gpu=found.gpu, z=z, replicas=replicas, bound=bound, solver_bound=None)


def _for_any_replicas(result: LayerResult) -> Bound:
    """Return what is known of a layer whatever replicas its experts have."""
    return result.bound if result.bound.any_replicas else Bound(0.0, "solver")


def _steps(problem: Problem, index: int, result: LayerResult, limits: Limits) -> Iterator[LayerResult]:
    """Let z rise step by step while the layer's time falls."""
    yield result
    least, now = _time(problem, index, result), result
    for step in _STEPS if can_cool(problem) else ():
        now = cool_within(problem, index, now, result.z * (1 + step), replace(limits.deadline, at=np.inf))
        yield now
        if step > 0 and _time(problem, index, now) >= least:
            return
        least = min(least, _time(problem, index, now))


def _time(problem: Problem, index: int, result: LayerResult) -> float:
    assert result.gpu is not None
    tokens = np.bincount(result.gpu, problem.layer(index, result.replicas).load)
    return float(result.z + problem.gpu_price * tokens.max())
