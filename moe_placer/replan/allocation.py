"""Which layer gets how many moves: an exact division of one budget over the points of all layers' curves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Allocation", "allocate"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Allocation:
    """The best choice of one point per layer for every budget.

    Attributes
    ----------
    value : float array [budgets + 1]
        Least sum of values with at most so much spent.
    """

    value: Floats
    _weights: tuple[Ints, ...]
    _choice: Ints

    def choose(self, budget: int) -> list[int]:
        """Return the index of each layer's point."""
        reached = self.value[: budget + 1]
        left, chosen = int(np.argmax(reached <= reached[-1])), []  # no more than what the value needs
        for weights, choice in zip(reversed(self._weights), self._choice[::-1], strict=True):
            point = int(choice[left])
            chosen.append(point)
            left -= int(weights[point])
        return chosen[::-1]


def allocate(weights: Sequence[Ints], values: Sequence[Floats], budget: int) -> Allocation:
    """Choose one point of each layer so that the sum of values is least and that of weights within the budget.

    Dynamic programming over layers (multiple-choice knapsack; Dudzinski, Walukiewicz, Exact methods for the knapsack
    problem and its generalizations, EJOR 28, 1987), for every budget up to the given one at once. Of equal values the
    point with less weight is taken: points are in the order of their weights.

    Parameters
    ----------
    weights : sequence of int arrays [points]
        At least 0, ascending; the first point of each layer is what it cannot do with less.
    values : sequence of float arrays [points]
    budget : int
        At least the sum of the first weights.
    """
    best = np.zeros(budget + 1)
    choice = np.zeros((len(weights), budget + 1), dtype=np.int64)
    for row, (weight, value) in enumerate(zip(weights, values, strict=True)):
        now = np.full(budget + 1, np.inf)
        for point, (w, v) in enumerate(zip(weight.tolist(), value.tolist(), strict=True)):
            if w > budget:
                break
            offered = np.full(budget + 1, np.inf)
            offered[w:] = best[: budget + 1 - w] + v
            better = offered < now
            now[better] = offered[better]
            choice[row][better] = point
        best = now
    return Allocation(best, tuple(weights), choice)
