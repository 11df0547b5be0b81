"""The aggregate objective's relaxation: link weights that all layers share, and the layers' placements they price.

    minimise t   s.t.   sum over layers l, columns c of share[l, c] * cost[l, c, k] <= t   for every link k
                        sum over c of share[l, c] = 1                                      for every layer l

A column is a placement of one layer. The duals of the first rows are link weights; under these, a transportation
problem per layer gives a bound on the aggregate and the layer's next column. Dantzig, Wolfe: Decomposition Principle
for Linear Programs, Operations Research 8 (1960); duals are smoothed towards the best so far: Wentges, Weighted
Dantzig-Wolfe Decomposition, ITOR 4 (1997).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from moe_placer.bounds.bounds import Bound, any_replicas_bound, cheapest
from moe_placer.limits import Deadline
from moe_placer.problem.layer import LayerProblem

__all__ = ["Decomposition"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_SMOOTHING = 0.5  # share of the best weights so far in those that are priced next
_PRICING_WORK = 5e-10  # of a layer, per item * item * slot: how the assignment grows
_MASTER_WORK = 3e-5  # of the master, per column
_MOST_ROUNDS = 500
_FINEST = 1e-7  # relative precision that is sought at most
_ROUNDING = 1e-9


class Decomposition:
    """The relaxation, better with every round.

    Attributes
    ----------
    weights : float array [K]
        The best link weights so far, summing to 1.
    bound : float
        What they prove for the replicas as given.
    bounds : list of Bound
        Their bound of every layer; for any replicas where these are free. They add up to a bound on the aggregate:
        ``max_k sum_l cost[l, k] >= sum_k w[k] sum_l cost[l, k]`` for weights that sum to 1.
    value : float
        Of the master over the columns so far: no weights prove more than its limit.
    columns : list of list of int array [I]
        Per layer, the node of each item in each column. Slots that memory closes, pins and distances are ignored.
    cost : list of list of float array [K]
        Of these columns.
    share : list of float array
        Per layer, the master's share of each column that it knew.
    work : float
        Deterministic effort so far.
    """

    def __init__(self, layers: Sequence[LayerProblem]) -> None:
        self.layers = layers
        self.weights = self._duals = np.full(layers[0].links, 1 / max(1, layers[0].links))
        self.bounds: list[Bound] = []
        self.bound, self.value, self.work = -np.inf, np.inf, 0.0
        self.columns: list[list[Ints]] = [[] for _ in layers]
        self.cost: list[list[Floats]] = [[] for _ in layers]
        self.share: list[Floats] = [np.zeros(0) for _ in layers]

    def rounds(self, precision: float, work: float, deadline: Deadline) -> Iterator[None]:
        """Improve, handing over after every round, until weights are within ``precision`` of the best there are."""
        candidate = self.weights
        for _ in range(_MOST_ROUNDS):
            if not self._price(candidate, deadline) or not self._solve_master(deadline):
                return
            yield
            if self.value <= self.bound * (1 + max(precision, _FINEST)) or self.work >= work:
                return
            candidate = _SMOOTHING * self.weights + (1 - _SMOOTHING) * self._duals

    def _price(self, weights: Floats, deadline: Deadline) -> bool:
        """Add the cheapest placement of every layer under ``weights``; False if stopped before the last."""
        bounds = []
        for index, layer in enumerate(self.layers):
            bound, node = cheapest(layer, weights)
            if deadline.over or node is None:
                return False
            bounds.append(bound)
            self.columns[index].append(node)
            self.cost[index].append(layer.cost(node))
            self.work += _PRICING_WORK * layer.items**2 * int(layer.widest.sum())
        if (total := sum(bound.value for bound in bounds)) > self.bound:
            self.bound, self.weights = total, weights
            self.bounds = [
                any_replicas_bound(layer, weights) if layer.replicas_are_free else bound
                for layer, bound in zip(self.layers, bounds, strict=True)
            ]
        return True

    def _solve_master(self, deadline: Deadline) -> bool:
        """Mix the columns so that the busiest link is coolest; False if out of time."""
        counts = [len(cost) for cost in self.cost]
        cost = np.array([column for own in self.cost for column in own]).T
        scale = 1 / (cost.max(initial=0.0) or 1.0)
        self.work += _MASTER_WORK * cost.shape[1]
        solved = _mixture(cost * scale, counts, deadline)
        if solved is None:
            return False
        self.share = np.split(solved.x[:-1], np.cumsum(counts)[:-1])
        self.value = solved.fun / scale
        duals = np.maximum(0.0, -solved.ineqlin.marginals)
        total = duals.sum()
        self._duals = duals / total if total > _ROUNDING else self.weights
        return True


def _mixture(cost: Floats, counts: Sequence[int], deadline: Deadline) -> Any:
    """Solve the master for columns of ``cost`` [K, columns], so many of each layer; None if it is not solved."""
    from scipy.optimize import linprog  # here, for it is slow to import

    links, columns = cost.shape
    owner = np.repeat(np.arange(len(counts)), counts)
    objective = np.zeros(columns + 1)
    objective[-1] = 1.0
    solved = linprog(
        objective,
        A_ub=sparse.csr_array(np.hstack([cost, -np.ones((links, 1))])),
        b_ub=np.zeros(links),
        A_eq=sparse.csr_array((np.ones(columns), (owner, np.arange(columns))), shape=(len(counts), columns + 1)),
        b_eq=np.ones(len(counts)),
        method="highs-ds",
        options={} if not np.isfinite(deadline.at) else {"time_limit": max(0.01, deadline.left)},
    )
    return solved if solved.status == 0 else None
