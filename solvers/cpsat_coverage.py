"""The exact model where a token goes once to every place that holds one of its experts, on CP-SAT; for small layers.

    minimise  z
    z >= sum over views v, sets t, places n of c[k, v, t, n] * y[v, t, n]        for every link k
    y[v, t, n] >= x[i, n]                           for every item i that view v has of an expert of set t
    sum_n y[v, t, n] >= experts of t over the slots of a place, rounded up
    slots, replicas apart, failure domains and pins as in `moe_placer.solvers.cpsat`

A set t are the experts that a token chooses; c is what a link costs if all tokens with that set, of all recordings and
of the view's sources, go to place n. So y is 1 where any of them is there. A view must see one replica of every expert:
where tokens draw from several, what they miss is a product.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_placer.problem.compile import Problem
from moe_placer.problem.coverage import Coverage
from moe_placer.problem.layer import LayerProblem
from moe_placer.result import LayerResult
from moe_placer.solve.layerwise import LayerTask
from moe_placer.solvers.cpsat import Model

__all__ = ["CoverageModel", "fits_model", "refuses_model", "settle_coverage"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

# Integer steps in the largest cost; each of a link's terms is rounded down by less than one. With 1e10 of them CP-SAT
# 9.15 said infeasible of a layer that is not.
_STEPS = 1e8
_MOST = 6_000  # views x sets x places: more variables than that take minutes, and prove less than companions do


def _terms(coverage: Coverage) -> int:
    return coverage.sending.views * len(np.unique(coverage.sets.choice, axis=0)) * coverage.sending.nodes


def _draws(coverage: Coverage, most_replicas: int) -> bool:
    """Whether tokens draw from several replicas of an expert."""
    return coverage.sending.drawn and most_replicas > 1


def fits_model(layer: LayerProblem) -> bool:
    """Whether the model can state a layer, and is small enough to pay."""
    assert layer.coverage is not None
    return not _draws(layer.coverage, int(np.bincount(layer.expert).max())) and _terms(layer.coverage) <= _MOST


def refuses_model(problem: Problem) -> str | None:
    """Say why the model cannot serve a problem that counts tokens once per place; None if it can."""
    most_replicas = problem.replicas.max(axis=1).tolist()
    if any(_draws(coverage, most) for coverage, most in zip(problem.coverage, most_replicas, strict=True)):
        return "its model sees one replica of every expert, and tokens draw from several here"
    most = max(map(_terms, problem.coverage))
    if most > _MOST:
        return (
            f"its model of dispatch once per place takes {_MOST:,} sets of experts on places, "
            f"and a layer has {most:,}: coverage searches"
        )
    return None


def settle_coverage(task: LayerTask, result: LayerResult) -> LayerResult:
    """Look for better than a result of the task's layer, or prove that there is none."""
    assert result.node is not None
    model = CoverageModel(task.layer, result.best_bound, result.node)
    found = model.solve(replace(task, start=result), result.bound)
    return replace(found, work=found.work + result.work, replicas=result.replicas)


class CoverageModel(Model):
    """The CP-SAT model of one layer whose costs count sets of experts on places."""

    def __init__(self, layer: LayerProblem, lower: float, hint: Ints) -> None:
        assert layer.coverage is not None
        self.sets, self.of = np.unique(layer.coverage.sets.choice.astype(np.int64), axis=0, return_inverse=True)
        super().__init__(layer, lower, hint)

    def _scaled(self, largest: float) -> tuple[float, float]:
        return _STEPS / max(largest, 1e-9), 1.0

    def _cover_every_link(self) -> None:
        """Let every set of experts reach the places of its experts, and sum what that costs links."""
        coverage = self.layer.coverage
        assert coverage is not None
        self.y: dict[tuple[int, int, int], Any] = {}
        view = self._views()
        for v in range(coverage.sending.views):
            item = np.zeros(coverage.sets.experts, dtype=np.int64)
            mine = np.flatnonzero(view == v)
            item[self.layer.expert[mine]] = mine
            for t, experts in enumerate(self.sets):
                self._reach(v, t, item[np.unique(experts)])
        share = np.zeros((len(coverage.sets.tokens), len(self.sets)))
        np.add.at(share, (coverage.sets.file, self.of.ravel()), coverage.sets.weight)
        prices = coverage.sending.prices.reshape(self.layer.nodes, self.layer.links, coverage.sending.views, -1)
        for k in range(self.layer.links):
            cost = np.floor(np.einsum("dvf,ft->vtd", prices[:, k], share) * self.factor).astype(np.int64)
            at = np.argwhere(cost > 0)
            terms = [self.y[int(v), int(t), int(n)] for v, t, n in at]
            self.model.add(self.cp_model.LinearExpr.weighted_sum(terms, cost[tuple(at.T)].tolist()) <= self.z)

    def _views(self) -> Ints:
        assert self.layer.coverage is not None
        return np.zeros_like(self.layer.replica) if self.layer.coverage.sending.drawn else self.layer.replica

    def _reach(self, view: int, chosen: int, items: Ints) -> None:
        """Have a view's tokens with a set of experts on every place that holds one of these items."""
        rows = [self.x[int(self.classes.of[i])] for i in items]
        for n in range(self.layer.nodes):
            there = self.model.new_bool_var(f"y{view},{chosen},{n}")
            self.y[view, chosen, n] = there
            for row in rows:
                self.model.add(there >= row[n])
        least = -(-len(items) // max(1, int(self.layer.slots.max())))
        self.model.add(sum(self.y[view, chosen, n] for n in range(self.layer.nodes)) >= least)

    def _hint(self, node: Ints) -> None:
        super()._hint(node)
        view = self._views()
        for (v, t, n), there in self.y.items():
            holds = (node == n) & (view == v) & np.isin(self.layer.expert, self.sets[t])
            self.model.add_hint(there, int(holds.any()))

    def _deltas(self) -> Any:
        raise NotImplementedError("costs of sets are no sums over items")
