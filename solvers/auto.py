"""The default: round the linear relaxation, search where the worst link is, and let CP-SAT settle what is left."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moe_placer.bounds import best_bound, hot_expert_bound, relax
from moe_placer.descent import round_shares, search
from moe_placer.problem import LayerProblem
from moe_placer.result import OPTIMAL_GAP, LayerResult, Status, Stop
from moe_placer.result import gap as relative_gap
from moe_placer.solver import Deadline, LayerSolver
from moe_placer.solvers.cpsat import CpSat

__all__ = ["Auto"]

_RELAX_WORK = 3e-5  # of the relaxation, per item and node
_AIM = 0.5  # search aims at this share of the gap, so that it does not stop a hair outside
_LEAST_WORK = 0.1  # that CP-SAT is called with
_SMALL = 600  # items * nodes for which CP-SAT settles a layer at once
_EXACT_WORK = 1.0  # effort from which CP-SAT gets half of it: before, search finds more


class Auto(LayerSolver):
    """Linear relaxation, rounding, exact-delta search; proves its gap by link weights."""

    name = "auto"
    summary = "linear relaxation, rounding, local search, then CP-SAT; re-checkable bounds (the default)"
    source = "moe_placer"
    exact = True

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
            return replace(start, bound=hot_expert_bound(layer), status=Status.OPTIMAL, stop=Stop.PROVED)
        if start is None or start.bound.weights is None:
            result, spent = _from_relaxation(layer, rng, start, deadline)
        if result is None:
            return LayerResult(None, np.inf, hot_expert_bound(layer), Status.UNKNOWN, Stop.TIME, work=spent)
        assert result.node is not None
        settle = layer.items * layer.nodes <= _SMALL or work >= _EXACT_WORK
        if _open(result, gap, deadline):
            target = result.bound.value * (1 + _AIM * gap)
            found = search(layer, result.node, target, (work - spent) / (2 if settle else 1), rng, deadline)
            spent += found.work
            if found.z < result.z:
                result = replace(result, node=found.node, z=found.z)
        if settle and _open(result, gap, deadline):
            result = CpSat().solve_layer(layer, gap, max(_LEAST_WORK, work - spent), rng, result, deadline)
            spent += result.work
        return _finished(result, gap, spent)


def _open(result: LayerResult, gap: float, deadline: Deadline) -> bool:
    """Whether there is something left to do, and time."""
    return relative_gap(result.z, result.best_bound) > max(gap, OPTIMAL_GAP) and not deadline.over


def _from_relaxation(
    layer: LayerProblem, rng: np.random.Generator, start: LayerResult | None, deadline: Deadline
) -> tuple[LayerResult | None, float]:
    """Bound the layer by its relaxation's duals, and take the better of the start and of what rounding gives."""
    relaxation = relax(layer, deadline.left if np.isfinite(deadline.at) else None)
    bound = best_bound(layer, relaxation.weights if relaxation else None)
    node = round_shares(layer, relaxation.share, rng) if relaxation else None
    spent = _RELAX_WORK * layer.items * layer.nodes
    if node is None:
        return (None if start is None else replace(start, bound=bound)), spent
    found = search(layer, node, bound.value, 0.0, rng, deadline)
    spent += found.work
    if start is not None and start.z <= found.z:
        return replace(start, bound=bound), spent
    return LayerResult(found.node, found.z, bound, Status.FEASIBLE, Stop.TIME), spent


def _finished(result: LayerResult, gap: float, work: float) -> LayerResult:
    """Say what we have and why we stop."""
    here = relative_gap(result.z, result.best_bound)
    if here <= OPTIMAL_GAP:
        return replace(result, status=Status.OPTIMAL, stop=Stop.PROVED, work=work)
    return replace(result, status=Status.FEASIBLE, stop=Stop.GAP if here <= gap else Stop.TIME, work=work)
