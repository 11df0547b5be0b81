"""The reference exact model of `cpsat`, as a mixed-integer program on HiGHS through OR-Tools' MathOpt.

HiGHS's own Python package and OR-Tools clash in one process; the HiGHS inside OR-Tools works beside CP-SAT. HiGHS
counts no deterministic effort: where its share of time runs out before the gap is reached, two runs may differ.
"""

from __future__ import annotations

import datetime
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from moe_placer.bounds.bounds import relaxed_bound
from moe_placer.limits import WORK_PER_SECOND, Deadline
from moe_placer.problem.compile import Problem
from moe_placer.problem.layer import LayerProblem
from moe_placer.problem.symmetry import SymmetryClasses
from moe_placer.result import OPTIMAL_GAP, LayerResult, Stop, stop_at, why_stopped
from moe_placer.result import gap as relative_gap
from moe_placer.solve.base import refuses_coverage, says_missing
from moe_placer.solve.layerwise import LayerSolver, LayerTask

if TYPE_CHECKING:
    from ortools.math_opt.python import mathopt

__all__ = ["Mip"]

Ints = npt.NDArray[np.int64]


class Mip(LayerSolver):
    """The exact model at node level, solved by HiGHS with a hint."""

    name = "mip"
    summary = "the exact model on HiGHS (MathOpt): branch and bound on the linear relaxation"
    source = "HiGHS, https://highs.dev, through OR-Tools MathOpt"
    exact = True

    def unavailable(self) -> str | None:
        """Say whether OR-Tools is missing."""
        return says_missing("ortools")

    def refuses(self, problem: Problem) -> str | None:
        """Refuse costs that are not linear, and what couples layers."""
        return refuses_coverage(problem) or super().refuses(problem)

    def solve_layer(self, task: LayerTask) -> LayerResult:
        """Place one layer; every call starts the search anew, with the best so far as its hint."""
        layer, gap, work, start, deadline = task.layer, task.gap, task.work, task.start, task.deadline
        bound = start.bound if start is not None else None
        if bound is None or bound.weights is None:
            bound = relaxed_bound(layer, task.seconds)
        if start is not None:
            start = replace(start, bound=bound)
            if relative_gap(start.z, start.best_bound) <= max(gap, OPTIMAL_GAP):
                return _finished(start, gap, 0.0, deadline)
        model = Model(layer, start.node if start is not None else None)
        node, own, infeasible = model.solve(gap, work / WORK_PER_SECOND, int(task.rng.integers(2**31)), deadline)
        if infeasible and start is None:
            return LayerResult(None, np.inf, bound, Stop.PROVED, work=work)
        best = start or LayerResult(None, np.inf, bound, why_stopped(task.deadline), work=work)
        if node is not None and layer.valid(node) and layer.z(node) < best.z:
            best = LayerResult(node, layer.z(node), bound, Stop.WORK, best.solver_bound)
        if best.node is None:
            return best
        if layer.replicas_are_free:  # the model has the replicas that are given: of others, it proves nothing
            done = relative_gap(best.z, own) <= max(gap, OPTIMAL_GAP)
            best = _finished(best, gap, work, deadline)
            return replace(best, stop=Stop.FINISHED) if done and best.stop in {Stop.TIME, Stop.WORK} else best
        own = min(best.z, max(own, best.solver_bound or 0.0))
        best = replace(best, solver_bound=own if own > bound.value else None)
        return _finished(best, gap, work, deadline)


def _finished(result: LayerResult, gap: float, work: float, deadline: Deadline) -> LayerResult:
    stop = stop_at(relative_gap(result.z, result.best_bound), gap, why_stopped(deadline))
    return replace(result, stop=stop, work=work)


class Model:
    """The MathOpt model of one layer; the constraints are those of `moe_placer.solvers.cpsat`."""

    def __init__(self, layer: LayerProblem, hint: Ints | None) -> None:
        from ortools.math_opt.python import mathopt  # its import takes a second

        self.layer, self.classes, self.mathopt = layer, SymmetryClasses.of_layer(layer), mathopt
        self.model = mathopt.Model(name=f"layer {layer.layer}")
        # HiGHS's tolerances are absolute: costs are scaled to about 1.
        self.scale = 1 / max(
            1e-9,
            layer.z(hint) if hint is not None else float(max(layer.base.max(initial=0), layer.delta.max(initial=0))),
        )
        self.z = self.model.add_variable(lb=0.0, name="z")
        self.x = [
            [self._count_var(j, n) for n in range(layer.nodes)]  # x[j][n]
            for j in range(len(self.classes.item))
        ]
        self._place_and_pack()
        self._cover_every_link()
        self.model.minimize(self.z)
        self.hint = hint

    def _count_var(self, j: int, n: int) -> mathopt.Variable:
        least = int(self.classes.pinned[j, n])
        most = int(min(self.classes.count[j], self.layer.slots[n], self.layer.together[n]))
        return self.model.add_integer_variable(lb=least, ub=max(least, most))

    def _place_and_pack(self) -> None:
        """Place every replica once; respect slots; keep replicas apart."""
        layer, classes, sum_ = self.layer, self.classes, self.mathopt.fast_sum
        for j, row in enumerate(self.x):
            self.model.add_linear_constraint(sum_(row) == int(classes.count[j]))
        expert = layer.expert[classes.item]
        for n in range(layer.nodes):
            self.model.add_linear_constraint(sum_(row[n] for row in self.x) <= int(layer.slots[n]))
            for e in np.unique(expert):
                mine = np.flatnonzero(expert == e)
                if classes.count[mine].sum() > layer.together[n]:
                    self.model.add_linear_constraint(sum_(self.x[j][n] for j in mine) <= int(layer.together[n]))
        for d in np.unique(layer.domain) if layer.domain is not None else ():
            nodes = np.flatnonzero(layer.domain == d)
            for e in np.unique(expert):
                mine = np.flatnonzero(expert == e)
                inside = sum_(self.x[j][n] for j in mine for n in nodes)
                self.model.add_linear_constraint(inside <= int(classes.count[mine].sum()) - 1)

    def _cover_every_link(self) -> None:
        """z >= base[k] + sum delta[j, n, m] x[j, n] for every link k."""
        layer = self.layer
        delta = layer.delta[self.classes.item] * self.scale
        terms: list[list[Any]] = [[] for _ in range(layer.links)]
        for n, m in zip(*np.nonzero(layer.affected < layer.links), strict=True):
            values = delta[:, n, m].tolist()
            terms[layer.affected[n, m]] += [v * row[n] for v, row in zip(values, self.x, strict=True) if v]
        for k in range(layer.links):
            base = float(layer.base[k] * self.scale)
            self.model.add_linear_constraint(self.mathopt.fast_sum(terms[k]) - self.z <= -base)

    def solve(self, gap: float, seconds: float, seed: int, deadline: Deadline) -> tuple[Ints | None, float, bool]:
        """Return the best placement found, a lower bound on z, and whether there provably is none."""
        mathopt = self.mathopt
        parameters = mathopt.SolveParameters(
            time_limit=datetime.timedelta(seconds=max(0.05, min(seconds, deadline.left))),
            relative_gap_tolerance=gap,
            random_seed=seed,
        )
        model_parameters = mathopt.ModelSolveParameters()
        if self.hint is not None:
            counts = self.classes.counts(self.hint, self.layer.nodes)
            values = {
                v: float(c) for row, count in zip(self.x, counts, strict=True) for v, c in zip(row, count, strict=True)
            }
            values[self.z] = self.layer.z(self.hint) * self.scale
            model_parameters.solution_hints.append(mathopt.SolutionHint(variable_values=values))
        result = mathopt.solve(self.model, mathopt.SolverType.HIGHS, params=parameters, model_params=model_parameters)
        infeasible = result.termination.reason == mathopt.TerminationReason.INFEASIBLE
        dual = result.termination.objective_bounds.dual_bound
        bound = max(0.0, dual) / self.scale if np.isfinite(dual) else 0.0
        if not result.has_primal_feasible_solution():
            return None, bound, infeasible
        found = np.array([result.variable_values(row) for row in self.x])
        return self.classes.place(np.rint(found).astype(np.int64), self.layer), bound, False
