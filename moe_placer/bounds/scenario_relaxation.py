"""The linear relaxation where a layer counts a mean over scenarios, and standard deviations on top.

``min v  s.t.  base + sum delta x <= t[j] on the links of scenario j,  p t <= v``, for the weights p of scenarios that
the value may have: the mean's, and, one after the other, those that are steepest at the t that is found (cutting
planes: Kelley, The cutting-plane method for solving convex programs, 1960).
"""

from __future__ import annotations

import time
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from scipy import sparse

from moe_placer.bounds.relaxation import link_matrix
from moe_placer.problem.layer import LayerProblem
from moe_placer.problem.symmetry import SymmetryClasses

__all__ = ["Judged", "relax_judged"]

Floats = npt.NDArray[np.float64]

_MOST_CUTS = 12
_TOLERANCE = 1e-5
_SIMPLEX = 4_000  # variables up to which simplex is faster than interior point


@dataclass(frozen=True, eq=False)
class Judged:
    """A relaxation over scenarios.

    Attributes
    ----------
    weights : float array [J * K]
        Duals of links: their sums over scenarios weigh these as the value does.
    each : float array [J]
        Cost of the busiest link of each scenario in the fractional optimum.
    """

    weights: Floats
    each: Floats


def relax_judged(problem: LayerProblem, time_limit_s: float | None = None) -> Judged | None:
    """Solve the relaxation of a layer with a judge; None if there is none, or out of time.

    Where replicas are a choice, slots do not count, so that the bound holds for any.
    """
    judge = problem.judge
    assert judge is not None
    model, deadline = _Model(problem), None if time_limit_s is None else time.monotonic() + time_limit_s
    cuts = [np.full(judge.scenarios, 1 / judge.scenarios)]
    while True:
        left = None if deadline is None else deadline - time.monotonic()
        solved = model.solve(np.array(cuts), left)
        if solved is None:
            return None
        weights, each, value = solved
        judged = float(each.mean() + judge.sigmas * each.std())
        if judged <= value * (1 + _TOLERANCE) or len(cuts) >= _MOST_CUTS or not judge.sigmas:
            return Judged(weights, each)
        cuts.append(judge.steepest(each))


class _Model:
    """The rows that all cuts have alike; costs are scaled to about 1, since HiGHS's tolerances are absolute."""

    def __init__(self, problem: LayerProblem) -> None:
        assert problem.judge is not None
        self.problem, self.classes, self.scenarios = problem, SymmetryClasses.of_layer(problem), problem.judge.scenarios
        self.scale = 1 / max(1e-9, float(problem.base.max(initial=0.0)), float(problem.delta.max(initial=0.0)))
        cost = self.scale * link_matrix(problem, self.classes.item)
        self.count, links = cost.shape[1], problem.links
        of = np.repeat(np.arange(self.scenarios), links // self.scenarios)
        below = sparse.csr_array((-np.ones(links), (np.arange(links), of)), shape=(links, self.scenarios + 1))
        class_, node = np.divmod(np.arange(self.count), problem.nodes)
        ones, size = np.ones(self.count), self.count + self.scenarios + 1
        slots = sparse.csr_array((ones, (node, np.arange(self.count))), shape=(problem.nodes, size))
        self.rows = sparse.vstack([sparse.hstack([cost, below]), slots])
        most = np.where((problem.widest > 0) & problem.replicas_are_free, problem.items, problem.widest)
        self.right = np.concatenate([-self.scale * problem.base, most])
        self.whole = sparse.csr_array((ones, (class_, np.arange(self.count))), shape=(len(self.classes.item), size))

    def solve(self, cuts: Floats, time_limit_s: float | None) -> tuple[Floats, Floats, float] | None:
        """Solve with these weights of scenarios [cuts, J]: link weights, costs of scenarios, and the value."""
        from scipy.optimize import linprog  # here, for it is slow to import

        size = self.count + self.scenarios + 1
        extra = np.hstack([np.zeros((len(cuts), self.count)), cuts, -np.ones((len(cuts), 1))])
        objective = np.zeros(size)
        objective[-1] = 1.0
        solved = linprog(
            objective,
            A_ub=sparse.csr_array(sparse.vstack([self.rows, sparse.csr_array(extra)])),
            b_ub=np.concatenate([self.right, np.zeros(len(cuts))]),
            A_eq=self.whole,
            b_eq=self.classes.count,
            method="highs-ds" if self.count <= _SIMPLEX else "highs-ipm",
            options={} if time_limit_s is None else {"time_limit": max(0.01, time_limit_s)},
        )
        if solved.status != 0:
            return None
        weights = np.maximum(0.0, -solved.ineqlin.marginals[: self.problem.links])
        each = solved.x[self.count : -1] / self.scale
        return weights, each, float(solved.fun) / self.scale
