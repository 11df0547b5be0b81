"""Turns a method's results into the instance's: bounds that hold for it, and never worse than a baseline."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moe_placer.bounds.bounds import best_bound
from moe_placer.decomposition.aggregate import link_totals
from moe_placer.decomposition.memory import MemoryDivision
from moe_placer.errors import NothingFoundError
from moe_placer.problem.compile import Problem
from moe_placer.result import LayerResult, Stop, gap, stop_at
from moe_placer.solve.layer_time import layer_times

__all__ = ["never_worse", "objective_of", "of_the_instance"]

_ROUNDING = 1e-9


def of_the_instance(
    problem: Problem, division: MemoryDivision | None, index: int, result: LayerResult, within: float
) -> LayerResult:
    """Return a result with what bounds it whatever memory its layer has, where memory binds over layers.

    A search within the slots that memory leaves a layer proves nothing of others; nor is a layer then done because it
    is within the gap of what these allow. ``within`` is the gap asked for.

    Parameters
    ----------
    problem : Problem
        The compiled instance.
    division : MemoryDivision or None
        How memory that binds over layers is divided; None: it does not bind, or is not divided.
    index : int
        The MoE layer, counted among MoE layers.
    result : LayerResult
        What the method found.
    within : float
        Gap at which a layer counts as solved.
    """
    if not problem.capacity.binds or problem.minimise == "aggregate":
        return result
    bound = result.bound if division is None else division.bounds[index]
    stop = result.stop.without_gap
    if result.node is not None:
        stop = stop_at(gap(result.z, bound.value), within, stop)
    return replace(result, bound=bound, solver_bound=None, stop=stop)


def objective_of(problem: Problem, results: Sequence[LayerResult | None]) -> float | None:
    """Return what is minimised, a cost or (layer times) microseconds; None where a layer has no placement."""
    placed = [result for result in results if result is not None and result.node is not None]
    if len(placed) < len(problem):
        return None
    if problem.minimise == "layers":
        return float(sum(result.z for result in placed))
    if problem.minimise == "layer-time":
        with suppress(NothingFoundError):
            return float(layer_times(problem, placed).sum())
        return None
    return float(link_totals(problem, placed).max(initial=0.0))


def never_worse(
    problem: Problem, results: Sequence[LayerResult], plans: Mapping[str, Sequence[LayerResult]]
) -> list[LayerResult]:
    """Take the better of results and complete plans of other methods: layer by layer, or as a whole what layers share.

    Where the number of replicas is free, plans may have others than the results. Bounds that hold for either stay; one
    that is for the replicas as given is replaced by one for those that come.

    Parameters
    ----------
    problem : Problem
        The compiled instance.
    results : sequence of LayerResult
        One per MoE layer.
    plans : mapping
        Name of a method to its results.
    """
    best = list(results)
    for plan in plans.values():
        draws = problem.near is not None and problem.near.draws  # a layer's draws depend on those before it
        if problem.minimise != "aggregate" and not problem.shares_replicas and not draws:
            pairs = zip(_worth(problem, best), _worth(problem, plan), strict=True)
            worse = [theirs < mine * (1 - _ROUNDING) for mine, theirs in pairs]
        else:
            now, then = objective_of(problem, best), objective_of(problem, plan)
            worse = [now is None or (then is not None and then < now * (1 - _ROUNDING))] * len(best)
        for index in np.flatnonzero(worse).tolist():
            best[index] = _instead(problem, index, best[index], plan[index])
    return best


def _worth(problem: Problem, results: Sequence[LayerResult]) -> list[float]:
    """Return what is minimised, layer by layer; infinite where GPUs cannot take it."""
    if problem.minimise == "layers":
        return [result.z for result in results]
    try:
        return [float(us) for us in layer_times(problem, results)]
    except NothingFoundError:
        return [np.inf] * len(results)


def _instead(problem: Problem, index: int, result: LayerResult, other: LayerResult) -> LayerResult:
    """Return another placement with what is known of a result."""
    assert np.isfinite(other.z)
    bound, solver_bound, stop = result.bound, result.solver_bound, result.stop
    of_these = problem.shares is not None and not bound.any_replicas
    if of_these and not _same(result.replicas, other.replicas):
        bound = best_bound(problem.layer(index, other.replicas), bound.weights)
        solver_bound, stop = None, Stop.FINISHED
    stop = stop_at(gap(other.z, bound.value), 0.0, stop.without_gap)
    return replace(
        result,
        node=other.node,
        z=other.z,
        gpu=other.gpu,
        replicas=other.replicas,
        bound=bound,
        solver_bound=solver_bound,
        stop=stop,
        repaired=0,
    )


def _same(one: npt.NDArray[np.int64] | None, other: npt.NDArray[np.int64] | None) -> bool:
    """Say whether replicas are known to be the same."""
    return one is not None and other is not None and np.array_equal(one, other)
