"""Runs methods under rules that number an expert's replicas by GPU: first as if all got as much, then by their shares.

Shares are near to even, and replicas that get as much can trade places and be more or fewer. So methods place replicas
as under `even`, GPUs cooled, and these are numbered by GPU. Where nodes differ in shares, half of the effort then goes
on with each replica's own share from there; what is better once numbered is kept.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np

from moe_placer.bounds.bounds import best_bound
from moe_placer.bounds.largest import largest
from moe_placer.limits import Limits
from moe_placer.problem.compile import Problem
from moe_placer.result import OPTIMAL_GAP, LayerResult, Report, Stop, gap, stop_at
from moe_placer.solve.base import Solver, Start
from moe_placer.solve.coolest_gpus import busiest_gpus, cool_busiest
from moe_placer.solve.layerwise import improves
from moe_placer.solve.numbered import in_gpu_order

__all__ = ["run_by_number"]

Run = Callable[[Solver, Problem, Limits, int, "Start | None", Report], list[LayerResult]]

_EVENLY = 0.5  # of the limits, where the rest goes on with each replica's own share


def run_by_number(
    run: Run, method: Solver, problem: Problem, limits: Limits, seed: int, start: Start | None, report: Report
) -> list[LayerResult]:
    """Run a method, and number what it places.

    Parameters
    ----------
    run : callable
        Runs a method on a problem without numbers; takes what follows.
    method : Solver
        Who decides.
    problem : Problem
        With ``shares``.
    limits : Limits
        Time, gap, workers and deterministic effort.
    seed : int
        Of everything random.
    start : Start or None
        A result of each layer to improve on; None: none.
    report : Report
        Called with a layer (its index among MoE layers) and each better result.
    """
    assert problem.shares is not None
    even = problem.evenly()
    goes_on = improves(method) and not problem.shares.alike
    first = limits.part(_EVENLY) if goes_on else limits

    def numbered(index: int, result: LayerResult) -> LayerResult:
        return _numbered(problem, index, result, limits.gap)

    results = run(method, even, first, seed, start, lambda index, result: report(index, numbered(index, result)))
    if any(result.node is None for result in results):
        return results
    cooled = cool_busiest(even, results, limits)[0] if method.cools else results
    found = [numbered(index, result) for index, result in enumerate(cooled)]
    if not goes_on:
        return found
    counts = [own if r.replicas is None else r.replicas for own, r in zip(problem.replicas, found, strict=True)]
    given = replace(problem, replicas=np.stack(counts))
    nodes = [result.node for result in found]
    rest = run(method, given, limits.part(1 - _EVENLY), seed, nodes, lambda _index, _result: None)
    return _better(problem, found, rest, limits.gap)


def _numbered(problem: Problem, index: int, result: LayerResult, within: float) -> LayerResult:
    """Return a result of replicas that get as much as one of replicas with their own shares, by GPU."""
    assert problem.shares is not None
    if result.node is None:
        return result
    layer, bound = problem.layer(index, result.replicas), result.bound
    if not (problem.shares.alike and bound.any_replicas and bound.proof == "dual"):  # that holds for other shares, too
        bound = best_bound(layer, bound.weights)
    one = LayerResult(result.node, layer.z(result.node), bound, Stop.FINISHED, gpu=result.gpu, replicas=result.replicas)
    found = in_gpu_order(problem, index, one)
    stop = stop_at(gap(found.z, bound.value), within, Stop.FINISHED)
    return replace(found, stop=stop, work=result.work, repaired=result.repaired)


def _better(
    problem: Problem, found: Sequence[LayerResult], rest: Sequence[LayerResult], within: float
) -> list[LayerResult]:
    """Take the better of two results of each layer: of those within the gap the one with the cooler busiest GPU."""
    others = [
        in_gpu_order(problem, index, replace(late, replicas=early.replicas))
        for index, (early, late) in enumerate(zip(found, rest, strict=True))
    ]
    busiest = [busiest_gpus(problem, some) for some in (found, others)]
    best = []
    for early, late, *hottest in zip(found, others, *busiest, strict=True):
        bound = largest([early.bound, late.bound])
        allowed = max(min(early.z, late.z), bound.value * (1 + within))
        pairs = [(tokens, one.z, one) for tokens, one in zip(hottest, (early, late), strict=True) if one.z <= allowed]
        one = min(pairs, key=lambda pair: pair[:2])[2]
        stop = Stop.FINISHED if one.stop is Stop.PROVED and gap(one.z, bound.value) > OPTIMAL_GAP else one.stop
        best.append(replace(one, bound=bound, stop=stop, solver_bound=None))
    return best
