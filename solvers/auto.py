"""The default: round the linear relaxation, search where the worst link is, and let CP-SAT settle what is left."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np

from moe_placer.bounds import Bound, best_bound, beyond, threshold_bound
from moe_placer.coupling.aggregate import solve_aggregate
from moe_placer.descent import round_shares, search
from moe_placer.neighbourhood import around_worst_link, cut_out
from moe_placer.problem import LayerProblem, Problem
from moe_placer.relaxation import relax
from moe_placer.result import OPTIMAL_GAP, LayerResult, Status, Stop
from moe_placer.result import gap as relative_gap
from moe_placer.solver import Deadline, LayerSolver, Limits, Report, Start
from moe_placer.solvers.cpsat import CpSat, Model

__all__ = ["Auto"]

_RELAX_WORK = 3e-5  # of the relaxation, per item and node
_QUICK_RELAX_WORK = 1e-5  # of the one without slots
_LARGE = 6_000  # items * nodes from which that one comes first
_AIM = 0.5  # search aims at this share of the gap, so that it does not stop a hair outside
_LEAST_WORK = 0.1  # that CP-SAT is called with
_WHOLE = 5_000  # items * nodes up to which CP-SAT takes the whole layer; beyond, some nodes at a time
_NODES = 6  # of such a neighbourhood
_PART_WORK = 0.5  # effort on one
_SMALL = 600  # items * nodes for which CP-SAT settles a layer at once
_APART = 0.5  # share of the limits for the layers apart, where the aggregate counts
_EXACT_WORK = 1.0  # effort from which CP-SAT gets half of it: before, search finds more


class Auto(LayerSolver):
    """Linear relaxation, rounding, exact-delta search; proves its gap by link weights."""

    name = "auto"
    summary = "linear relaxation, rounding, local search, then CP-SAT; re-checkable bounds (the default)"
    source = "moe_placer"
    exact = True

    def refuses(self, problem: Problem) -> str | None:
        """Refuse nothing."""
        del problem
        return None

    def solve(
        self, problem: Problem, limits: Limits, seed: int, start: Start | None, report: Report
    ) -> list[LayerResult]:
        """Place all layers, each apart; where the aggregate counts, that is where a joint search starts from."""
        if problem.minimise == "layers":
            return super().solve(problem, limits, seed, start, report)
        work, left = limits.total_work, limits.deadline.left
        deadline = replace(limits.deadline, at=time.monotonic() + _APART * left)
        apart = super().solve(problem, replace(limits, work=_APART * work, deadline=deadline), seed, start, report)
        return solve_aggregate(problem, replace(limits, work=(1 - _APART) * work), seed, apart, report)

    def solve_layer(
        self,
        layer: LayerProblem,
        gap: float,
        work: float,
        rng: np.random.Generator,
        start: LayerResult | None,
        deadline: Deadline,
    ) -> LayerResult:
        """Place one layer; the first call solves the relaxation, later ones search on."""
        result, spent = start, 0.0
        if start is not None and start.z == 0:
            return replace(start, bound=best_bound(layer), status=Status.OPTIMAL, stop=Stop.PROVED)
        if start is None or start.bound.weights is None:
            result, spent = _from_relaxation(layer, gap, rng, start, deadline)
        if result is None:
            return LayerResult(None, np.inf, best_bound(layer), Status.UNKNOWN, Stop.TIME, work=spent)
        assert result.node is not None
        settle = layer.items * layer.nodes <= _SMALL or work >= _EXACT_WORK
        if _open(result, gap, deadline):
            target = result.bound.value * (1 + _AIM * gap)
            found = search(layer, result.node, target, (work - spent) / (2 if settle else 1), rng, deadline)
            spent += found.work
            if found.z < result.z:
                result = replace(result, node=found.node, z=found.z)
        if settle and _open(result, gap, deadline):
            whole = layer.items * layer.nodes <= _WHOLE
            exact = CpSat().solve_layer if whole else _by_neighbourhoods
            result = exact(layer, gap, max(_LEAST_WORK, work - spent), rng, result, deadline)
            spent += result.work
        return _finished(result, gap, spent)


def _open(result: LayerResult, gap: float, deadline: Deadline) -> bool:
    """Whether there is something left to do, and time."""
    return relative_gap(result.z, result.best_bound) > max(gap, OPTIMAL_GAP) and not deadline.over


def _from_relaxation(
    layer: LayerProblem, gap: float, rng: np.random.Generator, start: LayerResult | None, deadline: Deadline
) -> tuple[LayerResult | None, float]:
    """Bound the layer by its relaxation's duals, and take the better of the start and of what rounding gives.

    Without slots the relaxation is several times faster and hardly weaker, so large layers try that one first; where
    copies are free, it is the one that bounds them all.
    """
    result, bound, spent = start, best_bound(layer), 0.0
    size = layer.items * layer.nodes
    for without_slots in (True, False) if layer.copies_are_free or size > _LARGE else (False,):
        relaxation = relax(layer, deadline.left if np.isfinite(deadline.at) else None, any_copies=without_slots)
        spent += size * (_QUICK_RELAX_WORK if without_slots else _RELAX_WORK)
        if relaxation is None:
            break
        if without_slots or not layer.copies_are_free:
            bound = max(best_bound(layer, relaxation.weights), bound, key=lambda b: b.value)
        node = round_shares(layer, relaxation.share, rng)
        if node is not None:
            found = search(layer, node, bound.value, 0.0, rng, deadline)
            spent += found.work
            if result is None or found.z < result.z:
                result = LayerResult(found.node, found.z, bound, Status.FEASIBLE, Stop.TIME)
        if result is not None and relative_gap(result.z, bound.value) <= _AIM * gap:
            break
    if result is None:
        return None, spent
    return replace(result, bound=_with_threshold(layer, bound, result.z, deadline)), spent


def _with_threshold(layer: LayerProblem, bound: Bound, z: float, deadline: Deadline) -> Bound:
    """Raise the bound by what a placement better than z may not contain, where that is anything."""
    if layer.copies_are_free:
        return bound
    forbidden = beyond(layer, z)
    if not forbidden[:, layer.widest > 0].any() or deadline.over:
        return bound
    relaxation = relax(layer, deadline.left if np.isfinite(deadline.at) else None, forbidden)
    weights = relaxation.weights if relaxation is not None else bound.weights
    if weights is None:
        return bound
    return max(bound, threshold_bound(layer, weights, z), key=lambda b: b.value)


def _by_neighbourhoods(
    layer: LayerProblem,
    gap: float,
    work: float,
    rng: np.random.Generator,
    start: LayerResult,
    deadline: Deadline,
) -> LayerResult:
    """Let CP-SAT place a few nodes anew at a time, around the worst link (large neighbourhood search, Shaw 1998)."""
    result, spent = start, 0.0
    while spent < work and _open(result, gap, deadline):
        assert result.node is not None
        part = cut_out(layer, result.node, around_worst_link(layer, result.node, _NODES, rng))
        here = part.local(result.node)
        begin = LayerResult(here, part.layer.z(here), result.bound, Status.FEASIBLE, Stop.TIME)
        solved = Model(part.layer, result.bound.value, here).solve(
            result.bound, gap / 2, _PART_WORK, int(rng.integers(2**31)), begin, deadline
        )
        spent += max(_LEAST_WORK, solved.work)
        if solved.node is not None and solved.z < begin.z:
            node = part.whole(result.node, solved.node)
            result = replace(result, node=node, z=layer.z(node))
    return replace(result, work=spent)


def _finished(result: LayerResult, gap: float, work: float) -> LayerResult:
    """Say what we have and why we stop."""
    here = relative_gap(result.z, result.best_bound)
    if here <= OPTIMAL_GAP:
        return replace(result, status=Status.OPTIMAL, stop=Stop.PROVED, work=work)
    return replace(result, status=Status.FEASIBLE, stop=Stop.GAP if here <= gap else Stop.TIME, work=work)
