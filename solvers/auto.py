"""The default: round the linear relaxation, search where the busiest link is, and let CP-SAT settle what is left."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moe_placer.bounds.bounds import Bound, best_bound, beyond, threshold_bound
from moe_placer.bounds.largest import largest
from moe_placer.bounds.relaxation import relax
from moe_placer.decomposition.aggregate import solve_aggregate
from moe_placer.limits import Deadline, Limits
from moe_placer.problem.compile import Problem
from moe_placer.problem.replicas import could_pay, count_replicas, with_replicas
from moe_placer.result import OPTIMAL_GAP, LayerResult, Report, Stop, why_stopped
from moe_placer.result import gap as relative_gap
from moe_placer.search.local_search import Search, round_shares, search
from moe_placer.search.neighbourhood import around_worst_link, cut_out
from moe_placer.search.replica_budget import share_out
from moe_placer.search.replication import replicate
from moe_placer.solve.base import Start
from moe_placer.solve.layer_time import shorten
from moe_placer.solve.layerwise import LayerSolver, LayerTask, solve_layers
from moe_placer.solve.scenario_placement import place_judged
from moe_placer.solvers.coverage import CoverageSolver
from moe_placer.solvers.cpsat import CpSat, Model, choosing_model

__all__ = ["Auto"]

Floats = npt.NDArray[np.float64]

_RELAX_WORK = 3e-5  # of the relaxation, per item and node
_QUICK_RELAX_WORK = 1e-5  # of the one without slots
_LARGE = 6_000  # items * nodes from which that one bounds
_NOISE = (0.0, 0.5, 0.5, 0.5)  # of each rounding of a large layer's shares: descents from them end apart
_AIM = 0.5  # search aims at this share of the gap, so that it does not stop a hair outside
_LEAST_WORK = 0.1  # that CP-SAT is called with
_WHOLE = 5_000  # items * nodes up to which CP-SAT takes the whole layer; beyond, some nodes at a time
_NODES = 6  # of such a neighbourhood
_PART_WORK = 0.5  # effort on one
_SMALL = 600  # items * nodes for which CP-SAT settles a layer at once
_FIRST_PART, _SHARING = 0.5, 0.25  # of the effort: before replicas move between layers, and for that
_REPLICATING = 0.1  # of the effort of search: on other replicas, where these could pay
_CHOICE_WORK = 0.5  # of CP-SAT on other replicas than those that it has settled
_APART = 0.5  # share of the limits for the layers apart, where the aggregate counts
_EXACT_WORK = 1.0  # effort from which CP-SAT gets half of it: before, search finds more


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
            return CoverageSolver().solve(problem, limits, seed, start, report)
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
            result, spent = _from_relaxation(task)
        if result is None:
            return LayerResult(None, np.inf, best_bound(layer), why_stopped(task.deadline), work=spent)
        settle = layer.items * layer.nodes <= _SMALL or task.work >= _EXACT_WORK
        target = result.bound.value * (1 + _AIM * task.gap)
        part = (task.work - spent) / (1 + settle)
        replicating = _REPLICATING * part if layer.replicas_are_free and could_pay(layer, result.z, target) else 0.0
        if _open(result, task):
            assert result.node is not None
            found = search(layer, result.node, target, part - replicating, task.rng, task.deadline)
            spent += found.work
            if found.z < result.z:
                result = replace(result, node=found.node, z=found.z)
        if replicating and _open(result, task):
            assert result.node is not None
            replicated = replicate(layer, result.node, target, replicating, task.rng, task.deadline)
            spent += replicated.work
            if replicated.z < result.z:
                layer, replicas = replicated.layer, count_replicas(replicated.layer)
                result = replace(result, node=replicated.node, z=replicated.z, solver_bound=None)
        if settle and _open(result, task):
            whole = layer.items * layer.nodes <= _WHOLE
            exact = (
                _by_neighbourhoods if not whole else _with_choice if layer.replicas_are_free else CpSat().solve_layer
            )
            work = max(_LEAST_WORK, task.work - spent)
            result = exact(replace(task, layer=layer, work=work, start=replace(result, replicas=None)))
            replicas = result.replicas if result.replicas is not None else replicas
            spent += result.work
        return _finished(replace(result, replicas=replicas), task.gap, spent, task.deadline)


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
    aim, work = _AIM * limits.gap, limits.total_work * _SHARING
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


def _from_relaxation(task: LayerTask) -> tuple[LayerResult | None, float]:
    """Bound the layer by its relaxation's duals, and take the better of the start and of what rounding gives.

    Without slots the relaxation is several times faster and hardly weaker, so it bounds large layers; where replicas
    are free, it bounds them all. What it places overfills nodes, so that of a large layer is not rounded.
    """
    layer = task.layer
    result, bound, spent = task.start, best_bound(layer), 0.0
    size = layer.items * layer.nodes
    for without_slots in (True, False) if layer.replicas_are_free or size > _LARGE else (False,):
        bounded = bound.weights is not None
        relaxation = relax(layer, task.seconds, any_replicas=without_slots, to_round=bounded)
        spent += size * (_QUICK_RELAX_WORK if without_slots else _RELAX_WORK)
        if relaxation is None:
            break
        if not bounded:
            bound = largest([best_bound(layer, relaxation.weights), bound])
        for noise in () if without_slots and size > _LARGE else _NOISE if size > _LARGE else (0.0,):
            found = _rounded(task, relaxation.share, noise, bound.value)
            spent += 0.0 if found is None else found.work
            if found is not None and (result is None or found.z < result.z):
                result = LayerResult(found.node, found.z, bound, Stop.WORK)
        if result is not None and relative_gap(result.z, bound.value) <= _AIM * task.gap:
            break
    if result is None:
        return None, spent
    return replace(result, bound=_with_threshold(task, bound, result.z)), spent


def _rounded(task: LayerTask, share: Floats, noise: float, target: float) -> Search | None:
    """Round shares [I, N], those that are split with some noise, and descend from there; None if repair fails."""
    if noise:
        share = share + noise * task.rng.random(share.shape) * (share > 0)
    node = round_shares(task.layer, share, task.rng)
    return None if node is None else search(task.layer, node, target, 0.0, task.rng, task.deadline)


def _with_threshold(task: LayerTask, bound: Bound, z: float) -> Bound:
    """Raise the bound by what a placement better than z may not contain, where that is anything."""
    layer = task.layer
    if layer.replicas_are_free:
        return bound
    forbidden = beyond(layer, z)
    if not forbidden[:, layer.widest > 0].any() or task.deadline.over:
        return bound
    relaxation = relax(layer, task.seconds, forbidden)
    weights = relaxation.weights if relaxation is not None else bound.weights
    if weights is None:
        return bound
    return largest([bound, threshold_bound(layer, weights, z)])


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


def _by_neighbourhoods(task: LayerTask) -> LayerResult:
    """Let CP-SAT place a few nodes anew at a time, around the busiest link (large neighbourhood search, Shaw 1998)."""
    assert task.start is not None
    layer, result, spent = task.layer, task.start, 0.0
    while spent < task.work and _open(result, task):
        assert result.node is not None
        part = cut_out(layer, result.node, around_worst_link(layer, result.node, _NODES, task.rng))
        here = part.local(result.node)
        begin = LayerResult(here, part.layer.z(here), result.bound, Stop.WORK)
        whole = replace(task, layer=part.layer, gap=task.gap / 2, work=_PART_WORK, start=begin)
        solved = Model(part.layer, result.bound.value, here).solve(whole, result.bound)
        spent += max(_LEAST_WORK, solved.work)
        if solved.node is not None and solved.z < begin.z:
            node = part.whole(result.node, solved.node)
            result = replace(result, node=node, z=layer.z(node))
    return replace(result, work=spent)


def _finished(result: LayerResult, gap: float, work: float, deadline: Deadline) -> LayerResult:
    """Say what we have and why we stop."""
    here = relative_gap(result.z, result.best_bound)
    if here <= OPTIMAL_GAP:
        return replace(result, stop=Stop.PROVED, work=work)
    stop = Stop.FINISHED if result.stop is Stop.FINISHED else why_stopped(deadline)
    return replace(result, stop=Stop.GAP if here <= gap else stop, work=work)
