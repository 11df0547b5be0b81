"""Runs methods under rules that prefer near replicas: first as if all replicas got as much, then by the rule itself.

What a method places for even use is where a local search starts that counts the rule exactly; quick methods are only
counted. Where ranks draw (SGLang's static map), the search goes by what draws come to on average, and what is returned
is counted with the draws of the whole plan.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moe_placer.bounds.best_split import prove_split
from moe_placer.bounds.bounds import Bound, split_bound
from moe_placer.limits import Deadline, Limits
from moe_placer.problem.compile import Problem
from moe_placer.problem.replica_counts import replica_order
from moe_placer.result import LayerResult, Report, Stop, gap, stop_at, why_stopped
from moe_placer.search.near_search import cool_near, search_near
from moe_placer.search.near_trades import NearState
from moe_placer.solve.base import Solver, Start
from moe_placer.solve.gpu_assignment import pack
from moe_placer.solve.layerwise import LayerSolver, LayerTask, improves, solve_layers

__all__ = ["as_served", "busiest_as_served", "cool_as_served", "costs_as_served", "run_by_nearness"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Run = Callable[[Solver, Problem, Limits, int, "Start | None", Report], list[LayerResult]]

_EVENLY, _NEARLY = 0.1, 0.03  # of the limits, where the rest goes on by the rule; the gap that will do there
_COOLING = 1  # seed of what is drawn to cool GPUs


def run_by_nearness(
    run: Run, method: Solver, problem: Problem, limits: Limits, seed: int, start: Start | None, report: Report
) -> list[LayerResult]:
    """Run a method, and search on by the rule.

    Parameters
    ----------
    run : callable
        Runs a method on a problem whose replicas get as much; takes what follows.
    method : Solver
        Who decides.
    problem : Problem
        With ``near``.
    limits : Limits
        Time, gap, workers and deterministic effort.
    seed : int
        Of everything random.
    start : Start or None
        A result of each layer to improve on; None: none.
    report : Report
        Called with a layer (its index among MoE layers) and each better result.
    """
    even = problem.evenly()
    goes_on = improves(method)
    first = replace(limits.part(_EVENLY), gap=max(limits.gap, _NEARLY)) if goes_on else limits
    results = run(method, even, first, seed, start, lambda _index, _result: None)
    if any(result.node is None for result in results):
        return results
    placed = zip(results, pack(even, results), strict=True)
    found = [_counted(problem, index, *one, searched=goes_on) for index, one in enumerate(placed)]
    for index, result in enumerate(found):
        report(index, result)
    if goes_on:
        rest = limits.part(1 - _EVENLY)
        searched = solve_layers(_NearSearch(limits.bounds), problem, rest, seed, None, report, found)
        return _better_as_served(problem, searched, found)
    return as_served(problem, found)


def _counted(
    problem: Problem, index: int, result: LayerResult, gpus: Sequence[tuple[int, ...]], searched: bool
) -> LayerResult:
    """Count a layer placed for even use by the rule; what bounds even use bounds nothing here.

    Parameters
    ----------
    problem : Problem
    index : int
        The MoE layer, counted among MoE layers.
    result : LayerResult
        As placed for even use.
    gpus : sequence of tuple
        GPU of each item.
    searched : bool
        Whether a search goes on from there.
    """
    gpu = _first_gpus(gpus)
    node = gpu // problem.gpus_per_node
    replicas = problem.replicas[index] if result.replicas is None else result.replicas
    z = problem.layer(index, replicas).z(node)
    unproved, stop = Bound(0.0, "solver"), Stop.WORK if searched else result.stop.without_gap
    of_result = replicas if searched else result.replicas
    return LayerResult(node, z, unproved, stop, gpu=gpu, replicas=of_result, work=result.work, repaired=result.repaired)


def _better_as_served(
    problem: Problem, searched: Sequence[LayerResult], before: Sequence[LayerResult]
) -> list[LayerResult]:
    """Return what was searched, or what there was before where draws make that worse than their average says."""
    found = as_served(problem, searched)
    if problem.near is None or not problem.near.draws:
        return found
    kept = as_served(problem, before)
    return kept if sum(one.z for one in found) > sum(one.z for one in kept) else found


class _NearSearch(LayerSolver):
    """Local search on one layer by the rule itself."""

    name = "near"
    summary = "trades of replicas, counted exactly"

    def __init__(self, bounds: bool) -> None:
        self.bounds = bounds

    def solve_layer(self, task: LayerTask) -> LayerResult:
        """Search on from a start, which has GPUs and replicas."""
        near, start = task.layer.near, task.start
        assert near is not None
        assert start is not None
        assert start.gpu is not None
        assert start.replicas is not None
        expert, _ = replica_order(start.replicas)
        begun, bound = NearState(near, near.placed(expert, start.gpu)), start.bound
        if self.bounds and bound.proof == "solver" and not task.deadline.over:
            bound = split_bound(prove_split(near, task.seconds))
        allowed = bound.value * (1 + task.gap)
        best, tired = search_near(begun, task.rng, task.work, allowed, task.deadline)
        found = _result(best, replace(start, bound=bound, stop=Stop.WORK, work=best.spent))
        otherwise = Stop.FINISHED if tired else why_stopped(task.deadline)
        return replace(found, stop=stop_at(gap(found.z, bound.value), task.gap, otherwise))


def cool_as_served(
    problem: Problem, results: Sequence[LayerResult], within: float, deadline: Deadline
) -> list[LayerResult]:
    """Cool the busiest GPU of each layer while no z rises above ``max(z, bound * (1 + within))``.

    Where ranks draw, that is so on average over draws.

    Parameters
    ----------
    problem : Problem
        With ``near``.
    results : sequence of LayerResult
        One per MoE layer.
    within : float
        The gap to each layer's re-checkable bound that is allowed: 0.001 is 0.1%.
    deadline : Deadline
        When to stop, whatever has been reached.
    """
    packed, found = pack(problem, results), []
    for index, (result, gpus) in enumerate(zip(results, packed, strict=True)):
        near = problem.layer(index, result.replicas).near
        assert near is not None
        expert, _ = problem.items(index, result.replicas)
        state = NearState(near, near.placed(expert, _first_gpus(gpus)))
        rng = np.random.default_rng((_COOLING, index))
        cooled = cool_near(state, rng, result.bound.value * (1 + within), deadline)
        better = cooled.busiest < state.busiest
        stop = result.stop.without_gap if cooled.z > result.z else result.stop
        found.append(_result(cooled, replace(result, stop=stop)) if better else result)
    return as_served(problem, found)


def busiest_as_served(problem: Problem, results: Sequence[LayerResult]) -> Floats:
    """Return the tokens of each layer's busiest GPU [MoE layers], with the draws that ranks make."""
    busiest = []
    for index, (expert, gpu, share) in enumerate(_served(problem, results, pack(problem, results))):
        tokens = np.bincount(gpu, (problem.demand[index][:, expert] * share).sum(axis=0))
        busiest.append(float(tokens.max(initial=0.0)))
    return np.array(busiest)


def _served(
    problem: Problem, results: Sequence[LayerResult], packed: Sequence[Sequence[tuple[int, ...]]]
) -> list[tuple[Ints, Ints, Floats]]:
    """Return expert and GPU of each item of every layer, and the share of each node's tokens that it gets."""
    assert problem.near is not None
    items = [problem.items(index, result.replicas)[0] for index, result in enumerate(results)]
    gpus = [_first_gpus(layer) for layer in packed]
    return list(zip(items, gpus, problem.near.exact(list(zip(items, gpus, strict=True))), strict=True))


def _first_gpus(packed: Sequence[tuple[int, ...]]) -> Ints:
    """Return the GPU of each item [items], which is whole."""
    return np.array([own[0] for own in packed], dtype=np.int64)


def _result(state: NearState, before: LayerResult) -> LayerResult:
    """Return a layer as the search left it; items are ordered by replica, then expert, and an expert's by GPU."""
    replicas = state.on.sum(axis=1)
    expert, replica = replica_order(replicas)
    first = np.cumsum(replicas) - replicas
    gpu = np.nonzero(state.on)[1][first[expert] + replica]
    node = gpu // state.size
    z = float(state.near.cost(expert, node).max(initial=0.0))
    return replace(before, node=node, z=z, gpu=gpu, replicas=replicas)


def costs_as_served(
    problem: Problem, results: Sequence[LayerResult], packed: Sequence[Sequence[tuple[int, ...]]]
) -> list[Floats]:
    """Return the cost of every link [K] of all layers with the draws that ranks make; ``packed`` are items' GPUs."""
    found = []
    for index, (expert, gpu, share) in enumerate(_served(problem, results, packed)):
        near = problem.layer(index, results[index].replicas).near
        assert near is not None
        found.append(near.cost_of_shares(expert, gpu, share))
    return found


def as_served(problem: Problem, results: Sequence[LayerResult]) -> list[LayerResult]:
    """Return layers with what their busiest links cost with the draws that ranks make; others stay as they are."""
    if problem.near is None or not problem.near.draws:
        return list(results)
    found = []
    costs = costs_as_served(problem, results, pack(problem, results))
    for result, cost in zip(results, costs, strict=True):
        z = float(cost.max(initial=0.0))
        stop = result.stop.without_gap if z > result.z else result.stop
        found.append(replace(result, z=z, stop=stop))
    return found
