"""Places experts that fire together on one node, where a token is sent once per node: search on exact coverage."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moe_placer.bounds.bounds import best_bound, companions_bound
from moe_placer.problem.compile import Problem
from moe_placer.problem.layer import LayerProblem
from moe_placer.problem.replicas import with_replicas
from moe_placer.result import LayerResult, Stop, gap, stop_at
from moe_placer.search.coverage_search import search_coverage
from moe_placer.search.grouping import group_by_affinity, shuffled
from moe_placer.search.moves import repair
from moe_placer.solve.layerwise import LayerSolver, LayerTask
from moe_placer.solvers.cpsat_coverage import fits_model, settle_coverage

__all__ = ["CoverageSolver"]

Ints = npt.NDArray[np.int64]

_MORE_STARTS = 0.5  # effort from which others than the best placement so far are tried
_RANDOM_STARTS = 2
_DEEP = 0.5  # effort of the round in which bounds are branched on
_EXACT = 0.5  # effort from which CP-SAT settles small layers
_DEEP_WORK, _QUICK_WORK = 3e-5, 3e-6  # effort for a bound, per pair of items


class CoverageSolver(LayerSolver):
    """Iterated local search with exact changes of coverage; starts from heuristics, co-activation and chance."""

    name = "coverage"
    summary = "search on which tokens reach which node, for dispatch once per node (what auto does there)"
    source = "moe_placer"

    def __init__(self, exact_too: bool = False) -> None:
        self.exact_too = exact_too  # whether CP-SAT settles what is small

    def refuses(self, problem: Problem) -> str | None:
        """Refuse dispatch that sends every chosen expert its own copy, and objectives that couple layers."""
        if not problem.coverage:
            return "it counts tokens once per node, and placement.dispatch: per-expert sends a copy per chosen expert"
        return super().refuses(problem)

    def solve_layer(self, task: LayerTask) -> LayerResult:
        """Place one layer; with little effort by descents from the start alone."""
        layer, start = task.layer, task.start
        if start is not None and start.replicas is not None:
            layer = with_replicas(layer, start.replicas)
        starts = _starts(layer, task)
        if not starts:
            return LayerResult(None, np.inf, best_bound(layer), Stop.TIME)
        bound = start.bound if start is not None else best_bound(layer)
        found = search_coverage(layer, starts, bound.value, task.work, task.rng, task.deadline)
        known = start.solver_bound if start is not None else None
        result = LayerResult(found.node, found.z, bound, Stop.TIME, solver_bound=known, work=found.work)
        if start is not None and start.node is not None and start.z <= found.z:
            result = replace(start, work=found.work)
        result = _finished(_bounded(layer, result, task), task.gap)
        settles = self.exact_too and task.work >= _EXACT and fits_model(layer)
        return settle_coverage(replace(task, layer=layer), result) if settles and _open(result, task) else result


def _starts(layer: LayerProblem, task: LayerTask) -> list[Ints]:
    """Return placements to descend from; the best so far is the first."""
    rng, start = task.rng, task.start
    groups, known = group_by_affinity(layer), []
    if start is not None and start.node is not None:
        known = [start.node]
        if task.work < _MORE_STARTS:  # one descent, from the better of two
            grouped = repair(layer, groups, rng)
            return known if grouped is None or start.z <= layer.z(grouped) else [grouped]
    others = [groups, *(shuffled(groups, layer, rng) for _ in range(_RANDOM_STARTS))]
    mended = (repair(layer, node, rng) for node in others)
    return [*known, *(node for node in mended if node is not None)]


def _bounded(layer: LayerProblem, result: LayerResult, task: LayerTask) -> LayerResult:
    """Bound a layer quickly at first, and once more by branching, when a round has effort for that."""
    deep, known = _DEEP <= task.work < 2 * _DEEP, result.bound.companions is not None
    if result.node is None or (known and not deep) or task.deadline.over:
        return result
    found = companions_bound(layer, result.node, task.deadline, deep)
    spent = result.work + (_DEEP_WORK if deep else _QUICK_WORK) * layer.items**2
    better = not known or found.value > result.bound.value
    return replace(result, bound=found if better else result.bound, work=spent)


def _open(result: LayerResult, task: LayerTask) -> bool:
    return result.node is not None and result.stop not in {Stop.PROVED, Stop.GAP} and not task.deadline.over


def _finished(result: LayerResult, within: float) -> LayerResult:
    """Say why we stop."""
    return replace(result, stop=stop_at(gap(result.z, result.best_bound), within, Stop.TIME))
