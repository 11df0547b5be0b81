"""Divides the memory of every node among layers, where it binds over layers, by prices that all layers share.

    minimise sum over l, c of share[l, c] * z[l, c]
    s.t.     sum over l, c of share[l, c] * count[l, c, n] <= memory[n]   for every node n
             sum over c of share[l, c] = 1                                for every layer l

A column is a solution of one layer's linear relaxation: its z, and how many items are on each node. The duals of the
first rows are prices of memory; a layer that pays them for every item it puts on a node gives its next column, and all
layers together a bound (docs/bounds.md). Dantzig and Wolfe's decomposition, smoothed as in `decomposition`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from moe_placer.bounds.assignment import price, transport
from moe_placer.bounds.bounds import SAFETY, SMALLEST, Bound, best_bound, relaxed_bound
from moe_placer.bounds.largest import largest
from moe_placer.bounds.relaxation import Relaxation, relax
from moe_placer.decomposition.memory_exchange import SMALL, Exchange
from moe_placer.decomposition.memory_rounding import fit_memory
from moe_placer.limits import Deadline, Limits
from moe_placer.problem.compile import Problem
from moe_placer.problem.layer import LayerProblem

__all__ = ["MemoryDivision", "divide_memory"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_SMOOTHING = 0.5  # share of the best prices so far in those that are tried next
_RELAX_WORK = 3e-5  # of a relaxation, per item and node
_EXCHANGE = 0.1  # share of the effort for exchanges of memory
_MOST_ROUNDS = 30
_ROUNDING = 1e-9  # of counts, relative
_CLOSE = 0.5  # share of the gap to which the master comes close to its bound
_CLOSEST = 1e-5


@dataclass(frozen=True, eq=False)
class MemoryDivision:
    """What the nodes have memory for in each layer, and what no other division beats.

    Attributes
    ----------
    problem : Problem
        With slots for each layer that fit the memory over all layers.
    bounds : list of Bound
        The best of each layer, whatever memory it has.
    total : float
        Bound on the sum over layers of z, memory counted; 0 where replicas are free.
    weights : list of float array [K]
        Per layer, the link weights that prove ``total`` together with ``prices``.
    prices : float array [N]
        What an item pays for its node's memory.
    """

    problem: Problem
    bounds: list[Bound]
    total: float
    weights: list[Floats]
    prices: Floats


def _priced(layer: LayerProblem, weights: Floats, memory_prices: Floats) -> float:
    """Return the least of weighted link costs and memory paid for."""
    return float(weights @ layer.base) + transport(layer, price(layer, weights) + memory_prices)[0]


def divide_memory(problem: Problem, limits: Limits, kept: Ints | None = None) -> MemoryDivision | None:
    """Divide every node's memory among the layers; None if half of the limits is reached before any division fits.

    ``kept`` [layers, GPUs] are slots of GPUs to keep to, such as a placement to start from has.
    """
    deadline = limits.deadline.after(1 / 2)
    division = _Master(problem)
    division.run(max(_CLOSEST, _CLOSE * limits.gap), limits.total_work / 2, deadline)
    if kept is not None:
        given: Problem | None = problem.with_slots(kept)
    else:
        counts = division.mixed_counts()
        given = None if counts is None else fit_memory(problem, counts)
        if given is not None and all(layer.items * layer.nodes <= SMALL for layer in division.layers):
            given = _exchanged(problem, given, _EXCHANGE * limits.total_work, deadline)
    if given is None or not division.weights:
        return None
    total = 0.0 if problem.replicas_are_free else division.safe_bound
    return MemoryDivision(given, division.bounds(deadline), total, division.weights, division.prices)


def _exchanged(problem: Problem, given: Problem, work: float, deadline: Deadline) -> Problem:
    """Improve a division by exchanges; start from the one without prices where that is better."""
    exchange, closed = Exchange(given, deadline), problem.capacity
    value = exchange.start(given.capacity.node_slots)
    if exchange.start(closed.node_slots) < value:
        given = problem.with_slots(closed.slots)
    exchange.start(given.capacity.node_slots)
    exchange.run(work)
    better = fit_memory(problem, exchange.slots)
    kept = better is not None and (better.capacity.node_slots >= exchange.slots).all()
    return better if better is not None and kept else given


class _Master:
    """The master problem: columns of all layers, mixed so that memory suffices."""

    def __init__(self, problem: Problem) -> None:
        self.problem = problem
        self.layers = [problem.layer(index) for index in range(len(problem))]
        self.memory_slots = problem.capacity.node_memory_slots.astype(np.float64)
        self.bound, self.prices, self.work = -np.inf, np.zeros(problem.nodes), 0.0
        self.weights: list[Floats] = []
        self.owner: list[int] = []  # of the columns: their layers, z, and items on each node
        self.z: list[float] = []
        self.count: list[Floats] = []
        self.mix: Floats | None = None  # the master's share of each column

    def run(self, precision: float, work: float, deadline: Deadline) -> None:
        """Divide the memory evenly, then find prices round by round until the master is close to what they prove."""
        even = self._relax(deadline, slots=self.memory_slots / len(self.layers))
        if even is None:
            return
        prices = np.mean([relaxation.slot_prices for relaxation in even], axis=0)
        self._bound(prices, [relaxation.weights for relaxation in even])
        for _ in range(_MOST_ROUNDS):
            priced = self._relax(deadline, memory_prices=prices)
            if priced is not None:
                self._bound(prices, [relaxation.weights for relaxation in priced])
            mixed = self._mix()
            if priced is None or mixed is None or mixed[0] <= self.bound * (1 + precision) or self.work >= work:
                return
            prices = _SMOOTHING * self.prices + (1 - _SMOOTHING) * mixed[1]

    def _relax(
        self, deadline: Deadline, memory_prices: Floats | None = None, slots: Floats | None = None
    ) -> list[Relaxation] | None:
        """Solve every layer's relaxation, which gives it a column each; None if stopped before the last."""
        solved = []
        for index, layer in enumerate(self.layers):
            left = deadline.left if np.isfinite(deadline.at) else None
            relaxation = None if deadline.over else relax(layer, left, memory_prices=memory_prices, slots=slots)
            if relaxation is None:
                return None
            self.work += _RELAX_WORK * layer.items * layer.nodes
            self.owner.append(index)
            self.z.append(_fractional_z(layer, relaxation.share))
            self.count.append(relaxation.share.sum(axis=0))
            solved.append(relaxation)
        return solved

    def _bound(self, prices: Floats, weights: list[Floats]) -> None:
        """Keep prices and weights if they prove more than those before."""
        priced = (_priced(layer, own, prices) for layer, own in zip(self.layers, weights, strict=True))
        bound = sum(priced) - float(prices @ self.memory_slots)
        if bound > self.bound:
            self.bound, self.prices, self.weights = bound, prices, weights

    def _mix(self) -> tuple[float, Floats] | None:
        """Mix the columns so that memory suffices; return the sum of z, and prices of memory [N]; None if unsolved."""
        from scipy.optimize import linprog  # here, for it is slow to import

        layers, columns = len(self.layers), len(self.owner)
        scale = 1 / (max(self.z) or 1.0)
        solved: Any = linprog(
            scale * np.array(self.z),
            A_ub=sparse.csr_array(np.array(self.count).T),
            b_ub=self.memory_slots * (1 + _ROUNDING),
            A_eq=sparse.csr_array((np.ones(columns), (self.owner, np.arange(columns))), shape=(layers, columns)),
            b_eq=np.ones(layers),
            method="highs-ds",
        )
        if solved.status != 0:
            return None
        self.mix = solved.x
        return solved.fun / scale, np.maximum(0.0, -solved.ineqlin.marginals) / scale

    @property
    def safe_bound(self) -> float:
        """What weights and prices prove, less what another order of summation may differ by.

        ``sum_l z[l] >= sum_l min over assignments of (w[l] cost[l] + p count[l]) - p memory``, in vectors over links
        and nodes.
        """
        safe = self.bound - SAFETY * (self.bound + 2 * float(self.prices @ self.memory_slots))
        return safe if safe >= SMALLEST else 0.0

    def bounds(self, deadline: Deadline) -> list[Bound]:
        """Bound every layer, whatever its memory: the better of the weights found and of those without prices."""
        bounds = []
        for layer, weights in zip(self.layers, self.weights, strict=True):
            bound = best_bound(layer, weights)
            if not deadline.over:
                left = deadline.left if np.isfinite(deadline.at) else None
                bound = largest([relaxed_bound(layer, left), bound])
            bounds.append(bound)
        return bounds

    def mixed_counts(self) -> Floats | None:
        """Return how many items of each layer the master has on each node [layers, N]; None if nothing was mixed."""
        if self.mix is None:
            return None
        counts = np.zeros((len(self.layers), len(self.memory_slots)))
        for share, owner, count in zip(self.mix, self.owner, self.count, strict=False):
            counts[owner] += share * count
        return counts


def _fractional_z(layer: LayerProblem, share: Floats) -> float:
    """Cost of the busiest link when items are on nodes in fractions [I, N]."""
    added = np.einsum("in,inm->nm", share, layer.delta)
    total = np.bincount(layer.affected.ravel(), added.ravel(), minlength=layer.links + 1)
    return float((layer.base + total[: layer.links]).max(initial=0.0))
