"""Runs methods that place by node where places are single GPUs: the GPUs that they choose are taken as given."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from moe_placer.bounds.bounds import best_bound
from moe_placer.limits import Limits
from moe_placer.problem.compile import Problem
from moe_placer.result import LayerResult, Report
from moe_placer.solve.base import Solver, Start
from moe_placer.solve.by_nearness import run_by_nearness
from moe_placer.solve.by_number import run_by_number
from moe_placer.solve.gpu_assignment import fit_to_gpus, pack
from moe_placer.solve.heuristic import OnePass
from moe_placer.solve.layerwise import is_quick

__all__ = ["problem_for", "run_method", "runs_as_it_is"]


def problem_for(method: Solver, problem: Problem) -> Problem:
    """Return the problem that a method is given: of nodes for rules of one pass, and of replicas that get as much."""
    return _of_places(method, problem.evenly())


def _of_places(method: Solver, problem: Problem) -> Problem:
    one_pass = isinstance(method, OnePass) or is_quick(method)
    return problem.by_node if one_pass and problem.by_node is not None else problem


def runs_as_it_is(method: Solver, problem: Problem) -> bool:
    """Whether a method is run on the problem itself, whose layers it then places each apart."""
    return problem.shares is None and problem.near is None and _of_places(method, problem) is problem


def run_method(
    method: Solver, problem: Problem, limits: Limits, seed: int, start: Start | None, report: Report
) -> list[LayerResult]:
    """Run a method; what one places by node gets the GPUs that it gets without NICs.

    Parameters
    ----------
    method : Solver
        Who decides.
    problem : Problem
        The compiled instance.
    limits : Limits
        Time, gap, workers and deterministic effort.
    seed : int
        Of everything random.
    start : Start or None
        A result of each layer to improve on; None: none.
    report : Report
        Called with a layer (its index among MoE layers) and each better result.

    Raises
    ------
    NothingFoundError
        The replicas of a node do not go on its GPUs.
    """
    if problem.near is not None:
        return run_by_nearness(_run, method, problem, limits, seed, start, report)
    if problem.shares is not None:
        return run_by_number(_run, method, problem, limits, seed, start, report)
    return _run(method, problem, limits, seed, start, report)


def _run(
    method: Solver, problem: Problem, limits: Limits, seed: int, start: Start | None, report: Report
) -> list[LayerResult]:
    """Run a method on a problem whose replicas go by DP group, or all get as much, or have a share each.

    Parameters as of `run_method`.
    """
    own = _of_places(method, problem)
    if own is problem:
        return method.solve(problem, limits, seed, start, report)
    results = method.solve(own, limits, seed, None, lambda _index, _result: None)
    placed = _on_gpus(problem, own, results)
    for index, result in enumerate(placed):
        report(index, result)
    return placed


def _on_gpus(problem: Problem, by_node: Problem, results: Sequence[LayerResult]) -> list[LayerResult]:
    """Give every replica its GPU, and say what that comes to with the NICs; a layer without a placement stays so."""
    if any(result.node is None for result in results):
        return [LayerResult(None, np.inf, r.bound, r.stop) for r in results]
    fitted = fit_to_gpus(by_node, results)
    placed = []
    for index, (result, gpus) in enumerate(zip(fitted, pack(by_node, fitted), strict=True)):
        gpu, layer = np.array([own[0] for own in gpus], dtype=np.int64), problem.layer(index, result.replicas)
        placed.append(
            LayerResult(
                gpu,
                layer.z(gpu),
                best_bound(layer),
                result.stop,
                gpu=gpu,
                replicas=result.replicas,
                repaired=result.repaired,
            )
        )
    return placed
