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


def find_crossings(x: Sequence[float], first: Sequence[float], second: Sequence[float]) -> list[Crossing]:
    """List where the lower one of two positive curves changes, by ascending ``x``; equal values decide nothing.

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
    decided = [(value, log) for value, log in ratio if log]
    found = []
    for (low, before), (high, after) in itertools.pairwise(decided):
        if (before < 0) != (after < 0):
            equal = [value for value, log in ratio if not log and low < value < high]
            share = before / (before - after)
            at = equal[0] if equal else math.exp(math.log(low) + share * math.log(high / low))
            found.append(Crossing(low, high, at, after < 0))
    return found
