"""From which batch on one plan beats another: read from a sweep's rows."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["Crossing", "find_crossings"]


@dataclass(frozen=True)
class Crossing:
    """Where two curves change places.

    Attributes
    ----------
    low, high : float
        The swept values on both sides.
    at : float
        Between them, where both would be equal if the logarithm of their ratio were linear in the logarithm of x.
    first_wins_after : bool
        Whether the first curve is the lower one from here on.
    """

    low: float
    high: float
    at: float
    first_wins_after: bool


def find_crossings(
    x: Sequence[float], first: Sequence[float], second: Sequence[float], same: float = 0.0
) -> list[Crossing]:
    """List where the lower one of two positive curves changes, by ascending ``x``; equal values decide nothing.

    Parameters
    ----------
    x, first, second : sequence of float
        The two curves.
    same : float
        Values closer than this, as a share of the second, count as equal.

    Raises
    ------
    ValueError
        Different lengths, values that are not positive, or x that does not ascend.
    """
    points = list(zip(x, first, second, strict=True))
    if any(not value > 0 for point in points for value in point):
        raise ValueError("curves and x must be positive")
    if any(not a[0] < b[0] for a, b in itertools.pairwise(points)):
        raise ValueError("x must ascend")
    ratio = [(value, math.log(a / b)) for value, a, b in points]
    decided = [(value, log) for value, log in ratio if log and abs(math.expm1(log)) >= same]
    found = []
    for (low, before), (high, after) in itertools.pairwise(decided):
        if (before < 0) != (after < 0):
            between = [(value, log) for value, log in ratio if low <= value <= high]
            found.append(Crossing(low, high, _where_equal(between), after < 0))
    return found


def _where_equal(ratio: Sequence[tuple[float, float]]) -> float:
    """Return the first x where the logarithm of the curves' ratio is 0, linear in log x between the points given."""
    for (low, before), (high, after) in itertools.pairwise(ratio):
        if before == 0:
            return low
        if (before < 0) != (after < 0) and after != 0:
            return math.exp(math.log(low) + before / (before - after) * math.log(high / low))
    return ratio[-1][0]
