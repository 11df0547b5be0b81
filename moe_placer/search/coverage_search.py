"""Iterated local search for a layer whose tokens go once to every place that holds one of their experts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.limits import Deadline
from moe_placer.problem.layer import LayerProblem
from moe_placer.search.coverage_trades import CoverageTrades

__all__ = ["NUMBERS_PER_WORK", "CoverageSearch", "Found", "search_coverage"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

NUMBERS_PER_WORK = 3e8  # numbers that a slow core looks at in a second
SAMPLE = 8192  # tokens of each file that search looks at; what is stated counts all
_SHARPNESS = (3.0, 10.0, 30.0, 100.0)  # of the smoothed busiest link: first all links count, at last mostly the hottest
_EVALUATED = 256  # trades evaluated exactly in each step: 64 end 0.5% higher after the same effort, 24 end 3%
_MOST_STEPS = 2_000  # of one descent
_HELPS = 1e-9
_FEW, _MANY = 2, 7  # trades of one kick


@dataclass(frozen=True)
class Found:
    """The placement found, its z with all tokens counted, and the effort it took."""

    node: Ints
    z: float
    work: float


class CoverageSearch:
    """The state of one search: the best placement so far, judged with all tokens."""

    def __init__(self, layer: LayerProblem, node: Ints, rng: np.random.Generator, deadline: Deadline) -> None:
        self.layer, self.rng, self.deadline = layer, rng, deadline
        self.trades = CoverageTrades(layer, node, SAMPLE)
        self.node, self.z = node.copy(), layer.z(node)
        self._sampled_z = np.inf  # of the best

    def descend(self, sharpness: float, scale: float) -> None:
        """Make the best trade until none lowers the smoothed busiest link."""
        trades = self.trades
        for _ in range(_MOST_STEPS):
            now = float(trades.smooth(trades.cost, scale, sharpness))
            after, trade = trades.best_trade(scale, sharpness, _EVALUATED)
            if after >= now - _HELPS or self.deadline.over:
                return
            trades.apply(*trade)

    def begin(self, starts: Sequence[Ints]) -> Ints:
        """Descend from every start; return the best local optimum on the sampled tokens."""
        best, best_z = self.node, np.inf
        for start in starts:
            self.trades.reset(start)
            for sharpness in _SHARPNESS:
                self.descend(sharpness, max(self.trades.z, 1e-9))
            self._note()
            if self.trades.z < best_z:
                best, best_z = self.trades.node.copy(), self.trades.z
            if self.deadline.over:
                break
        return best

    def go_on(self, home: Ints, target: float, work: float) -> None:
        """Descend from kicked copies of the best so far (iterated local search) until the effort is spent."""
        trades = self.trades
        trades.reset(home)
        scale = max(trades.z, 1e-9)
        level = float(trades.smooth(trades.cost, scale, _SHARPNESS[-1]))
        while self.z > target and self.work < work and not self.deadline.over:
            trades.reset(home)
            if not self._kick(int(self.rng.integers(_FEW, _MANY))):
                return
            self.descend(_SHARPNESS[-1], scale)
            self._note()
            here = float(trades.smooth(trades.cost, scale, _SHARPNESS[-1]))
            if here <= level:
                home, level = trades.node.copy(), here

    @property
    def work(self) -> float:
        """Deterministic effort so far, about seconds."""
        return self.trades.evaluated / NUMBERS_PER_WORK

    def _note(self) -> None:
        """Keep the placement if it is the best with all tokens counted."""
        if self.trades.z >= self._sampled_z:
            return
        self._sampled_z = self.trades.z
        z = self.layer.z(self.trades.node)
        if z < self.z:
            self.node, self.z = self.trades.node.copy(), z

    def _kick(self, trades: int) -> bool:
        """Make so many random trades; False if none was possible."""
        return sum(self.trades.random_trade(self.rng) for _ in range(trades)) > 0


def search_coverage(
    layer: LayerProblem,
    starts: Sequence[Ints],
    target: float,
    work: float,
    rng: np.random.Generator,
    deadline: Deadline,
) -> Found:
    """Descend from every start, then from kicked copies of the best, until z is at ``target`` or effort is spent.

    Parameters
    ----------
    layer : LayerProblem
        One MoE layer.
    starts : sequence of int array
        Node of each item [items], one array for each start.
    target : float
        Stop when z is at this or below, tokens at node-link speed.
    work : float
        Deterministic effort, seconds of an average core.
    rng : Generator
        Source of everything random.
    deadline : Deadline
        When to stop, whatever has been reached.
    """
    search = CoverageSearch(layer, starts[0], rng, deadline)
    home = search.begin(starts)
    search.go_on(home, target, work)
    return Found(search.node, search.z, search.work)
