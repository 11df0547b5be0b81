"""A lower bound on what any set of so many items adds, where every pair of them may save something.

    minimise sum over j in C of (alpha[j] - sum over j' in C of beta[j, j'])    over sets C of m items

is hard in general; no item takes anything away, so a term below 0 counts as 0. Branching on the first one or two
members of C in a given order, and letting every other member have the fellows that save most among those that come
later, bounds it from below.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["least_addition"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def least_addition(alpha: Floats, beta: Floats, members: int, depth: int) -> tuple[float, Ints]:
    """Return a lower bound on what any set of ``members`` items adds, and the set that attains it.

    Parameters
    ----------
    alpha : float array [items]
        What an item adds alone, in the order that is branched on.
    beta : float array [items, items]
        What item j adds less for the sake of item j'; at least 0, nothing on the diagonal.
    depth : int
        Members that are branched on: 0, 1 or 2.
    members : int
        How many items the set has.
    """
    if members <= 0:
        return 0.0, np.zeros(0, dtype=np.int64)
    value, chosen = _without_branching(alpha, beta, members)
    if not 0 < depth < members or members >= len(alpha):
        return value, chosen
    deeper, found = _by_first(alpha, beta, members) if depth == 1 else _by_first_two(alpha, beta, members)
    return max(value, deeper), found


def _without_branching(alpha: Floats, beta: Floats, members: int) -> tuple[float, Ints]:
    most = min(members - 1, len(alpha))
    saved = -np.partition(-beta, most - 1, axis=1)[:, :most].sum(axis=1) if most else np.zeros(len(alpha))
    gain = np.maximum(alpha - saved, 0.0)
    chosen = np.argsort(gain, kind="stable")[:members]
    return float(gain[chosen].sum()), chosen


class _Later:
    """For every item, the sum of the largest savings by items that come late in the order; grows from the end."""

    def __init__(self, beta: Floats, fellows: int) -> None:
        self._beta = beta
        self._largest = np.zeros((len(beta), max(1, fellows)))
        self._none = fellows <= 0
        self.saved = np.zeros(len(beta))

    def add(self, item: int) -> None:
        """Let one more item be a fellow."""
        if self._none:
            return
        rows, least = np.arange(len(self._beta)), self._largest.argmin(axis=1)
        gained = np.maximum(self._beta[:, item] - self._largest[rows, least], 0.0)
        self._largest[rows, least] += gained
        self.saved += gained


def _by_first(alpha: Floats, beta: Floats, members: int) -> tuple[float, Ints]:
    both, later, rest = beta + beta.T, _Later(beta, members - 2), members - 1
    best, chosen = np.inf, np.zeros(0, dtype=np.int64)
    for first in range(len(alpha) - 2, -1, -1):
        later.add(first + 1)
        if len(alpha) - 1 - first < rest:
            continue
        gain = alpha[first + 1 :] - both[first + 1 :, first] - later.saved[first + 1 :]
        others = np.argpartition(gain, rest - 1)[:rest]
        value = float(alpha[first] + gain[others].sum())
        if value < best:
            best, chosen = value, np.append(first + 1 + others, first)
    return best, chosen


def _by_first_two(alpha: Floats, beta: Floats, members: int) -> tuple[float, Ints]:
    both, later, rest = beta + beta.T, _Later(beta, members - 3), members - 2
    best, chosen = np.inf, np.zeros(0, dtype=np.int64)
    for second in range(len(alpha) - 1, 0, -1):
        if second + 1 < len(alpha):
            later.add(second + 1)
        if len(alpha) - 1 - second < rest:
            continue
        value = alpha[:second] + alpha[second] - both[:second, second]
        gain = (
            alpha[second + 1 :] - both[second + 1 :, second] - later.saved[second + 1 :] - both[:second, second + 1 :]
        )
        others = np.argpartition(gain, rest - 1, axis=1)[:, :rest]
        value = value + np.take_along_axis(gain, others, axis=1).sum(axis=1)
        first = int(value.argmin())
        if value[first] < best:
            best, chosen = float(value[first]), np.append(second + 1 + others[first], [first, second])
    return best, chosen
