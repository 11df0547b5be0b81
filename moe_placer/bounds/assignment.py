"""The transportation problem behind link weights: the cheapest way to put items on nodes at given prices."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_placer.problem.layer import LayerProblem

__all__ = ["assign", "assign_to_slots", "price", "transport"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_MOST_PAIRS = 10_000_000  # of an item and a slot, whose exact assignment is looked for


def price(problem: LayerProblem, weights: Floats) -> Floats:
    """Return the weighted cost [I, N] that item i on node n adds, for link weights [K]."""
    return np.asarray(np.einsum("inm,nm->in", problem.delta, np.append(weights, 0.0)[problem.affected]))


def transport(problem: LayerProblem, prices: Floats) -> tuple[float, bool]:
    """Cheapest assignment of items to nodes with at most ``widest`` items a node, and whether there is one.

    Above 10 million pairs of an item and a slot, whose table would take 80 MB, slots do not count: less, by some
    millionths where demand differs from item to item, and never more than the verifier derives.
    """
    if problem.items * int(np.minimum(problem.widest, problem.items).sum()) > _MOST_PAIRS:
        cost = float(prices[:, problem.widest > 0].min(axis=1).sum())
        return cost, bool(np.isfinite(cost))
    node = assign(problem, prices)
    return (np.inf, False) if node is None else (float(prices[np.arange(len(node)), node].sum()), True)


def assign(problem: LayerProblem, prices: Floats) -> Ints | None:
    """Return the node of each item [I] in the cheapest assignment with at most ``widest`` items a node, or None.

    Infinite prices forbid a pair. Solved exactly by the shortest-augmenting-path method (scipy).
    """
    from scipy.optimize import linear_sum_assignment  # here, for it is slow to import

    slots = np.minimum(problem.widest, problem.items)
    try:
        _, columns = linear_sum_assignment(np.repeat(prices, slots, axis=1))
    except ValueError:  # "cost matrix is infeasible"
        return None
    node = np.repeat(np.arange(problem.nodes), slots)
    return np.asarray(node[columns])


def assign_to_slots(prices: Floats, slots: Ints) -> float:
    """Return what the cheapest assignment of all rows to columns costs, at most ``slots[n]`` to column n; or less.

    Where slots are too few for the rows, or there are above 10 million pairs of a row and a slot, they do not count.
    """
    from scipy.optimize import linear_sum_assignment  # here, for it is slow to import

    slots = np.minimum(slots, len(prices))
    free = prices.argmin(axis=1)
    fits = bool((np.bincount(free, minlength=len(slots)) <= slots).all())
    if fits or not len(prices) <= int(slots.sum()) <= _MOST_PAIRS / len(prices):
        return float(prices.min(axis=1).sum())
    wide = np.repeat(prices, slots, axis=1)
    rows, columns = linear_sum_assignment(wide)
    return float(wide[rows, columns].sum())
