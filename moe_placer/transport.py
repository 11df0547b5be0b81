"""The transportation problem behind link weights: the cheapest way to put items on nodes at given prices."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.optimize import linear_sum_assignment

from moe_placer.problem import LayerProblem

__all__ = ["price", "transport"]

Floats = npt.NDArray[np.float64]


def price(problem: LayerProblem, weights: Floats) -> Floats:
    """Return the weighted cost [I, N] that item i on node n adds, for link weights [K]."""
    return np.asarray(np.einsum("inm,nm->in", problem.delta, np.append(weights, 0.0)[problem.touched]))


def transport(problem: LayerProblem, prices: Floats) -> tuple[float, bool]:
    """Cheapest assignment of items to nodes with at most ``widest`` items a node, and whether there is one.

    Infinite prices forbid a pair. Solved exactly by the shortest-augmenting-path method (scipy).
    """
    slots = np.minimum(problem.widest, problem.items)
    try:
        rows, columns = linear_sum_assignment(np.repeat(prices, slots, axis=1))
    except ValueError:  # "cost matrix is infeasible"
        return np.inf, False
    node = np.repeat(np.arange(problem.nodes), slots)[columns]
    return float(prices[rows, node].sum()), True
