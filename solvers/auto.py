"""The default: round the linear relaxation, search where the busiest link is, and let CP-SAT settle what is left."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from moe_placer.bounds.bounds import best_bound
from moe_placer.decomposition.aggregate import solve_aggregate
from moe_placer.limits import Deadline, Limits
from moe_placer.problem.compile import Problem
from moe_placer.problem.replicas import could_pay, count_replicas, with_replicas
from moe_placer.result import OPTIMAL_GAP, LayerResult, Report, Stop, stop_at, why_stopped
from moe_placer.result import gap as relative_gap
from moe_placer.search.replica_budget import share_out
from moe_placer.search.replication import replicate
from moe_placer.solve.base import Start
from moe_placer.solve.layer_time import shorten
from moe_placer.solve.layerwise import LayerSolver, LayerTask, solve_layers
from moe_placer.solve.rounded_relaxation import AIM, from_relaxation, search_on
from moe_placer.solve.scenario_placement import place_judged
from moe_placer.solvers.coverage import CoverageSolver
from moe_placer.solvers.cpsat import Model, choosing_model, settle

__all__ = ["Auto"]

_LEAST_WORK = 0.1  # that CP-SAT is called with
_TINY = 200  # items * nodes up to which CP-SAT comes before search
_SMALL, _CHOOSING = 400, 600  # up to which it is called at all, with half of the effort; where replicas are free
_REACH = 0.0015  # how far beyond the gap it is called there
_FIRST_PART, _SHARING = 0.5, 0.25  # of the effort: before replicas move between layers, and for that
_REPLICATING = 0.1  # of the effort of search: on other replicas, where these could pay
_CHOICE_WORK = 0.5  # of CP-SAT on other replicas than those that it has settled
_APART = 0.5  # share of the limits for the layers apart, where the aggregate counts


class Auto(LayerSolver):
    """Linear relaxation, rounding, exact-delta search; proves its gap by link weights."""

    name = "auto"
    summary = "linear relaxation, rounding, local search, then CP-SAT; re-checkable bounds (the default)"
    source = "moe_placer"
    exact = True
    cools = True

    def solve(
        self, problem: Problem, limits: Limits, seed: int, start: Start | None, report: Report
    ) -> list[LayerResult]:
        """Place all layers, each apart, and then what they share: the aggregate, or a budget of replicas.

        Parameters as of `Solver.solve`.
        """
        if problem.coverage:
            return CoverageSolver(exact_too=True).solve(problem, limits, seed, start, report)
        if problem.minimise == "aggregate":
            return self._jointly(problem, limits, seed, start, report)
        if problem.minimise == "layer-time":
            on_links = replace(problem, minimise="layers")
            return shorten(problem, self.solve(on_links, limits, seed, start, report), start, limits, seed)
        if not problem.shares_replicas:
            return super().solve(problem, limits, seed, start, report)
        return _by_shares(self, problem, limits, seed, start, report)

    def refuses(self, problem: Problem) -> str | None:
        """Refuse nothing but a joint objective where tokens count once per node."""
        return CoverageSolver().refuses(problem) if problem.coverage else None

    def _jointly(
        self, problem: Problem, limits: Limits, seed: int, start: Start | None, report: Report
    ) -> list[LayerResult]:
        """Place layers apart, and start a joint search from there."""
        work, left = limits.total_work, limits.deadline.left
        deadline = replace(limits.deadline, at=time.monotonic() + _APART * left)
        apart = super().solve(problem, replace(limits, work=_APART * work, deadline=deadline), seed, start, report)
        return solve_aggregate(problem, replace(limits, work=(1 - _APART) * work), seed, apart, report)

    def solve_layer(self, task: LayerTask) -> LayerResult:
        """Place one layer; the first call solves the relaxation, later ones search on."""
        if task.layer.judge is not None:
            return place_judged(task, self._by_busiest_link)
        return self._by_busiest_link(task)

    def _by_busiest_link(self, task: LayerTask) -> LayerResult:
        layer, start = task.layer, task.start
        if start is not None and start.z == 0:
            return replace(start, bound=best_bound(layer), stop=Stop.PROVED)
        replicas = start.replicas if start is not None else None
        if replicas is not None:
            layer = with_replicas(layer, replicas)
            task = replace(task, layer=layer)
        result, spent = start, 0.0
        if start is None or start.bound.weights is None:
            result, spent = from_relaxation(task)
        if result is None:
            return LayerResult(None, np.inf, best_bound(layer), why_stopped(task.deadline), work=spent)
        size, target = layer.items * layer.nodes, result.bound.value * (1 + AIM * task.gap)
        settles = size <= (_CHOOSING if layer.replicas_are_free else _SMALL)
        half = (task.work - spent) / (1 + settles)
        replicating = _REPLICATING * half if layer.replicas_are_free and could_pay(layer, result.z, target) else 0.0
        if size > _TINY:
            result, used = _searched(task, result, target, half - replicating)
            spent += used
        if replicating and _open(result, task):
            assert result.node is not None
            replicated = replicate(layer, result.node, target, replicating, task.rng, task.deadline)
            spent += replicated.work
            if replicated.z < result.z:
                layer, replicas = replicated.layer, count_replicas(replicated.layer)
                task = replace(task, layer=layer)
                result = replace(result, node=replicated.node, z=replicated.z, solver_bound=None, stop=Stop.WORK)
        if settles and _pays(size, result, task) and _open(result, task):
            exact = _with_choice if layer.replicas_are_free else settle
            work = max(_LEAST_WORK, half if size <= _TINY else task.work - spent)
            result = exact(replace(task, work=work, start=replace(result, replicas=None)))
            replicas = result.replicas if result.replicas is not None else replicas
            spent += result.work
        if result.stop is not Stop.FINISHED and result.replicas is None:
            result, used = _searched(task, result, target, task.work - spent)
            spent += used
        return _finished(replace(result, replicas=replicas), task.gap, spent, task.deadline)


def _searched(task: LayerTask, result: LayerResult, target: float, work: float) -> tuple[LayerResult, float]:
    """Improve a result that is still open by search; also return the effort that it took."""
    if work <= 0 or not _open(result, task):
        return result, 0.0
    result, found = search_on(task, result, target, work)
    return replace(result, stop=Stop.FINISHED) if found.exhausted else result, found.work


def _pays(size: int, result: LayerResult, task: LayerTask) -> bool:
    """Whether CP-SAT is likely to close what is left of the gap (docs/methods.md has the measurements)."""
    if size <= _TINY or task.layer.replicas_are_free:
        return True
    return relative_gap(result.z, result.best_bound) - task.gap <= _REACH


def _by_shares(
    solver: Auto, problem: Problem, limits: Limits, seed: int, start: Start | None, report: Report
) -> list[LayerResult]:
    """Solve layers with equal shares of a budget, move replicas to where they are worth more, and solve on."""
    deadline = limits.deadline
    half = replace(deadline, at=min(deadline.at, time.monotonic() + deadline.left / 2))
    part = replace(limits, work=limits.total_work * _FIRST_PART, deadline=half)
    results = solve_layers(solver, problem, part, seed, start, report)
    if problem.redundant_in_all is None or deadline.over or any(result.node is None for result in results):
        return results
    layers = [problem.layer(index) for index in range(len(problem))]
    aim, work = AIM * limits.gap, limits.total_work * _SHARING
    shared = share_out(layers, results, problem.redundant_in_all, aim, limits.gap, work, deadline)
    changed = [i for i, (old, new) in enumerate(zip(results, shared, strict=True)) if old is not new]
    # What shrinks is told of first, so that what has been told of is never more than the budget.
    for index in sorted(changed, key=lambda i: _items(shared[i]) - _items(results[i])):
        report(index, shared[index])
    rest = replace(limits, work=limits.total_work * (1 - _FIRST_PART - _SHARING))
    return solve_layers(solver, problem, rest, seed, None, report, shared)


def _items(result: LayerResult) -> int:
    return 0 if result.node is None else len(result.node)


def _open(result: LayerResult, task: LayerTask) -> bool:
    """Whether there is something left to do, and time."""
    return relative_gap(result.z, result.best_bound) > max(task.gap, OPTIMAL_GAP) and not task.deadline.over


def _with_choice(task: LayerTask) -> LayerResult:
    """Let CP-SAT settle the layer with the replicas it has, then look for others; finished where it finds none."""
    layer, start = task.layer, task.start
    assert start is not None
    assert start.node is not None
    given = Model(layer, start.bound.value, start.node).solve(task, start.bound)
    chooser = None if given.stop is not Stop.FINISHED else choosing_model(layer, start.bound, given)
    if chooser is None:
        return given
    chosen = chooser.solve(replace(task, work=_CHOICE_WORK, start=replace(given, stop=Stop.WORK)), given.bound)
    stop = Stop.FINISHED if chosen.stop is Stop.WORK and chosen.z >= given.z else chosen.stop
    return replace(chosen, stop=stop, work=given.work + chosen.work)


def _finished(result: LayerResult, gap: float, work: float, deadline: Deadline) -> LayerResult:
    """Say what we have and why we stop."""
    otherwise = Stop.FINISHED if result.stop is Stop.FINISHED else why_stopped(deadline)
    return replace(result, stop=stop_at(relative_gap(result.z, result.best_bound), gap, otherwise), work=work)
