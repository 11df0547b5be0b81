"""Minimises the aggregate: the largest cost of any link summed over the layers, all layers jointly.

The relaxation (`Decomposition`) gives the bound. Trades of two items, their effect on the link totals computed exactly,
go round the layers. Where these are not enough, placements that the relaxation mixes are combined, one for each layer,
so that the totals exceed the bound the least, and traded on; kicks leave local optima.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from moe_placer.bounds.bounds import Bound, best_bound
from moe_placer.decomposition.column_generation import Decomposition
from moe_placer.limits import Deadline, Limits
from moe_placer.problem.compile import Problem
from moe_placer.problem.layer import LayerProblem
from moe_placer.result import OPTIMAL_GAP, LayerResult, Report, Stop, gap, why_stopped
from moe_placer.search.local_search import EVALUATIONS_PER_WORK, descend
from moe_placer.search.moves import Moves, repair

__all__ = ["aggregate_bound", "bound_jointly", "link_totals", "solve_aggregate"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_PRECISE = 0.1  # weights are sought to this share of the gap
_AIM = 0.5  # the search aims at this share of it
_NEWS = 1e-3  # relative change of the bound that is worth a report
_KICKS = 4  # most trades made at random to leave a local optimum
_KEPT = 1_000_000  # numbers in the costs of items whose trades are kept: those of large layers take memory
_PATIENCE = 200  # kicks in a row that may come to nothing
_HELPS = 1e-9  # smaller relative changes of the excess are rounding


def solve_aggregate(
    problem: Problem, limits: Limits, seed: int, start: Sequence[LayerResult], report: Report
) -> list[LayerResult]:
    """Place all layers so that the busiest link over all of them is as cool as the limits allow.

    Every layer's bound comes from the same link weights, so that the bounds add up. ``start`` is
    best a solution of the layers apart: its aggregate is near the best, and the sum of z stays near the least.

    Parameters
    ----------
    problem : Problem
        The compiled instance.
    limits : Limits
        Time, gap, workers and deterministic effort.
    seed : int
        Of everything random.
    start : sequence of LayerResult
        A result of each layer to start from.
    report : Report
        Called with a layer (its index among MoE layers) and each better result.
    """
    return _Search(problem, limits, seed, start, report).run()


def bound_jointly(layers: Sequence[LayerProblem], limits: Limits) -> list[Bound]:
    """Return a bound of every layer, all by the same link weights, so that they add up; none without links or time."""
    if not layers[0].links:
        return []
    relaxation = Decomposition(layers)
    for _ in relaxation.rounds(_PRECISE * limits.gap, limits.total_work, limits.deadline):
        pass
    return relaxation.bounds


def link_totals(problem: Problem, results: Sequence[LayerResult]) -> Floats:
    """Cost of every link [K] over all layers; every result has a placement."""
    costs = (problem.layer(i, r.replicas).cost(r.node) for i, r in enumerate(results) if r.node is not None)
    return np.asarray(sum(costs, start=np.zeros(len(problem.links))))


def aggregate_bound(bounds: Sequence[Bound]) -> float:
    """Return the bound on the aggregate that the layers' bounds add up to; 0 unless all have the same link weights."""
    weights = bounds[0].weights
    if weights is None:
        return 0.0
    alike = (b.proof == "dual" and b.weights is not None and np.array_equal(b.weights, weights) for b in bounds)
    return sum(bound.value for bound in bounds) if all(alike) else 0.0


class _Plan:
    """A placement of all layers, and what it adds up to.

    Attributes
    ----------
    nodes : list of int array [I]
    cost : float array [layers, K]
    """

    def __init__(self, layers: Sequence[LayerProblem], nodes: Sequence[Ints]) -> None:
        self.nodes = list(nodes)
        self.cost = np.stack([layer.cost(node) for layer, node in zip(layers, nodes, strict=True)])

    @property
    def total(self) -> Floats:
        """Cost of every link [K] over all layers."""
        return np.asarray(self.cost.sum(axis=0))

    @property
    def value(self) -> float:
        """The aggregate."""
        return float(self.total.max(initial=0.0))

    def excess(self, target: float) -> float:
        """Sum over links of the squared total above ``target``."""
        return float(_excess(self.total, target))

    def put(self, index: int, node: Ints, cost: Floats) -> None:
        """Place one layer anew."""
        self.nodes[index] = node
        self.cost[index] = cost

    def copy(self) -> _Plan:
        """Return a plan that can be changed apart from this one."""
        duplicate = _Plan.__new__(_Plan)
        duplicate.nodes, duplicate.cost = list(self.nodes), self.cost.copy()
        return duplicate


def _excess(totals: Floats, target: float) -> Floats:
    over = np.maximum(0.0, totals - target)
    return np.asarray(np.einsum("...k,...k->...", over, over))


class _Search:
    """The state of one solve."""

    def __init__(
        self, problem: Problem, limits: Limits, seed: int, start: Sequence[LayerResult], report: Report
    ) -> None:
        self.start, self.limits, self.report = start, limits, report
        self.layers = [problem.layer(index, result.replicas) for index, result in enumerate(start)]
        self.rng = np.random.default_rng(seed)
        self.best: _Plan | None = None
        self.bounds: list[Bound] = []
        self.told = (np.inf, 0.0)
        self.work = 0.0
        self._kept: dict[int, Moves] = {}
        self._most_kept = _KEPT // max(1, *(layer.delta.size for layer in self.layers))
        nodes = [result.node for result in start if result.node is not None]
        if len(nodes) == len(self.layers):
            self.best = _Plan(self.layers, nodes)

    @property
    def bound(self) -> float:
        """What is proved so far."""
        return sum(bound.value for bound in self.bounds)

    @property
    def deadline(self) -> Deadline:
        """When to stop."""
        return self.limits.deadline

    @property
    def spent(self) -> bool:
        """Whether limits are reached."""
        return self.deadline.over or self.work >= self.limits.total_work

    def run(self) -> list[LayerResult]:
        """Relax, trade, round and trade again until the gap is reached; return the best."""
        if self.best is not None and self.best.value == 0:
            self.bounds = [best_bound(layer) for layer in self.layers]
            return self._results(Stop.PROVED)
        relaxation = Decomposition(self.layers)
        for _ in relaxation.rounds(_PRECISE * self.limits.gap, self.limits.total_work, self.deadline):
            self.bounds, self.work = relaxation.bounds, relaxation.work
            self._tell()
            if self._within(_AIM):
                break
        if self.best is not None:
            self._descend(self.best.copy(), self._target)
        if not self._within(1.0) and self.bounds:
            self._round(relaxation)
            if self.best is not None:
                self._search(self.best)
        return self._results(self._reason())

    def _within(self, share: float) -> bool:
        """Whether the best is within this share of the gap."""
        allowed = max(share * self.limits.gap, OPTIMAL_GAP)
        return self.best is not None and gap(self.best.value, self.bound) <= allowed

    @property
    def _value(self) -> float:
        return np.inf if self.best is None else self.best.value

    @property
    def _target(self) -> float:
        return self.bound * (1 + _AIM * self.limits.gap)

    def _reason(self) -> Stop:
        if self._within(1.0):
            return Stop.GAP
        return why_stopped(self.deadline) if self.spent else Stop.FINISHED

    def _results(self, stop: Stop) -> list[LayerResult]:
        bounds = self.bounds or [Bound(0.0, "solver")] * len(self.layers)
        if self.best is None:
            return [LayerResult(None, np.inf, bound, stop) for bound in bounds]
        share = self.work / len(self.layers)
        return [
            LayerResult(node, float(cost.max(initial=0.0)), bound, stop, replicas=before.replicas, work=share)
            for before, node, cost, bound in zip(self.start, self.best.nodes, self.best.cost, bounds, strict=True)
        ]

    def _tell(self) -> None:
        """Report the best if it or the bound became better by something."""
        if self.best is None:
            return
        now = (self.best.value, self.bound)
        if now[0] < self.told[0] or now[1] > self.told[1] * (1 + _NEWS):
            self.told = now
            for index, result in enumerate(self._results(Stop.WORK)):
                self.report(index, result)

    def _keep(self, plan: _Plan) -> None:
        if self.best is None or plan.value < self.best.value:
            self.best = plan.copy()
            self._tell()

    def _round(self, relaxation: Decomposition) -> None:
        """Choose one column of every layer: first the one that the relaxation has most of, then by what it adds."""
        pool, chosen = [], []
        for index, layer in enumerate(self.layers):
            most = int(relaxation.share[index].argmax())
            columns = relaxation.columns[index]
            order = [columns[most], *columns[:most], *columns[most + 1 :]]
            valid = [n for node in order if (n := _mended(layer, node, self.rng)) is not None]
            if self.best is not None:
                valid.append(self.best.nodes[index])
            if not valid:
                return
            pool.append([(node, layer.cost(node)) for node in valid])
            chosen.append(valid[0])
        plan = _Plan(self.layers, chosen)
        self._swap_columns(plan, pool)
        self._keep(plan)

    def _swap_columns(self, plan: _Plan, pool: Sequence[Sequence[tuple[Ints, Floats]]]) -> None:
        """Give one layer after the other the column that lowers the excess the most, while any does."""
        target, before = self.bound, np.inf
        while (excess := plan.excess(target)) < before * (1 - _HELPS):
            before = excess
            for index, own in enumerate(pool):
                others = plan.total - plan.cost[index]
                after = _excess(others + np.stack([cost for _, cost in own]), target)
                at = int(after.argmin())
                if after[at] < plan.excess(target) * (1 - _HELPS):
                    plan.put(index, *own[at])

    def _search(self, home: _Plan) -> None:
        """Descend from the plan, then from kicked copies of it, until the gap is reached or that comes to nothing."""
        self._descend(home := home.copy(), self._target)
        failed = 0
        while failed < _PATIENCE and not self._within(1.0) and not self.spent:
            before, plan = self._value, home.copy()
            # What is coolest at its hottest need not exceed the bound the least: aim in between, too.
            target = self._target + float(self.rng.random()) * (self._value - self._target)
            self._kick(plan)
            self._descend(plan, target)
            if plan.excess(target) <= home.excess(target):
                home = plan
            failed = 0 if self._value < before * (1 - _HELPS) else failed + 1

    def _descend(self, plan: _Plan, target: float) -> None:
        """Let every layer in turn make the trades that lower the excess of the totals, while any does."""
        before = np.inf
        while (excess := plan.excess(target)) < before * (1 - _HELPS) and not self.spent:
            before = excess
            for index in range(len(self.layers)):
                if plan.value <= target or self.deadline.over:
                    break
                moves = self._moves(plan, index)
                descend(moves, target, self.deadline)
                self._made(plan, index, moves)
                self._keep(plan)
        self._keep(plan)

    def _kick(self, plan: _Plan) -> None:
        """Make a few random trades, each in some layer, of an item at the busiest link or of any."""
        for index in self.rng.integers(len(self.layers), size=self.rng.integers(1, _KICKS + 1)).tolist():
            moves = self._moves(plan, index)
            items = moves.items_at_worst() if self.rng.random() < 0.5 else np.arange(len(moves.node))
            if len(items):
                moves.random_trade(int(self.rng.choice(items)), self.rng)
                self._made(plan, index, moves)
        self._keep(plan)

    def _moves(self, plan: _Plan, index: int) -> Moves:
        """Trades of one layer; what the others put on each link counts as this layer's base."""
        layer = self.layers[index]
        moves = self._kept.get(index) or Moves(layer, plan.nodes[index])
        if len(self._kept) < self._most_kept:
            self._kept[index] = moves
        moves.begin(layer.base + plan.total - plan.cost[index], plan.nodes[index])
        return moves

    def _made(self, plan: _Plan, index: int, moves: Moves) -> None:
        self.work += moves.evaluated / EVALUATIONS_PER_WORK
        plan.put(index, moves.node, self.layers[index].cost(moves.node))


def _mended(layer: LayerProblem, node: Ints, rng: np.random.Generator) -> Ints | None:
    """Return a column, changed where pins, replicas apart or memory demand it; None if that fails."""
    return node if layer.valid(node) else repair(layer, node, rng)
