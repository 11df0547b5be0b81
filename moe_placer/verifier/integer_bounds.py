"""Bounds in whole numbers: prices are rounded down to a grid once, and nothing after that rounds.

For any slot prices ``v[n] >= 0`` and every assignment with at most ``slots[n]`` items on node n,

    sum_i price[i, node(i)] >= sum_i min over n of (price[i, n] + v[n]) - sum_n v[n] * slots[n]

so the right side is a bound whoever found v: the routine that looks for the cheapest assignment is not trusted.
"""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import numpy.typing as npt

from moe_placer.verifier.item_moves import cheapest_by_moves

__all__ = ["BITS", "find_unit", "least_cost", "on_grid", "steps_up_to", "value_of"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

BITS = 58  # of the largest price on the grid: sums of a price, a price of memory and a slot price stay below 2**63
_MODERATE = 600  # numbers beyond 2**600, or all below 2**-600, prove nothing: their products may not be in range
_MOST_PAIRS = 10_000_000  # of an item and a slot, whose cheapest assignment is looked for
_FAR = 2**60  # larger than any slot price that is needed
_BITS_OF_SEARCH = 50  # as far as floating point finds the cheapest assignment


def find_unit(largest: float, bits: int = BITS) -> int | None:
    """Return the exponent e of the grid's step, 2**e, with which ``largest`` has so many bits; None if out of range."""
    if not 2.0**-_MODERATE <= largest <= 2.0**_MODERATE:
        return None
    return math.frexp(largest)[1] - bits


def on_grid(values: Floats, unit: int) -> Ints:
    """Round down to whole steps of 2**unit."""
    return np.floor(np.ldexp(values, -unit)).astype(np.int64)


def steps_up_to(value: float, unit: int) -> int:
    """Count the steps of 2**unit that reach a value: rounded up."""
    return math.ceil(Fraction(value) / Fraction(2) ** unit)


def value_of(steps: int, unit: int) -> float:
    """Return so many steps of 2**unit, rounded down where no double is exact; at least 0."""
    value = float(max(0, steps))
    if int(value) > steps:
        value = math.nextafter(value, 0.0)
    return max(0.0, math.ldexp(value, unit))


def least_cost(price: Ints, slots: Ints) -> int | None:
    """Return a number of steps that no assignment costs less than; None if slots are fewer than items.

    Parameters
    ----------
    price : int array [items, nodes]
        At least 0, below 2**60.
    slots : int array [nodes]
        Items that each node may hold.

    Returns
    -------
    int or None
        The cost of the cheapest assignment, unless the routine that looks for it errs, or there are so many items and
        slots that it is not asked: then less.
    """
    price, slots = price[:, slots > 0], np.minimum(slots[slots > 0], len(price))
    if slots.sum() < len(price):
        return None
    none = np.zeros_like(slots)
    freely = price.argmin(axis=1)
    if (np.bincount(freely, minlength=len(slots)) <= slots).all():
        return _weighed(price, none, slots)
    of_few = _by_moves(*_merged(price, slots))
    if of_few is not None:
        return of_few
    if len(price) * int(slots.sum()) > _MOST_PAIRS:
        return _weighed(price, none, slots)
    found = _weighed(price, _slot_prices(price, _cheapest(price, slots), slots), slots)
    return max(found, _weighed(price, none, slots))


def _by_moves(price: Ints, slots: Ints) -> int | None:
    """Return what `least_cost` does; None unless an assignment shows that there is hardly more to prove."""
    node = cheapest_by_moves(price, slots)
    if node is None:
        return None
    found = _weighed(price, _slot_prices(price, node, slots), slots)
    cost = sum(price[np.arange(len(price)), node].tolist())
    return found if cost - found <= cost >> _BITS_OF_SEARCH else None


def _merged(price: Ints, slots: Ints) -> tuple[Ints, Ints]:
    """Take nodes on which every item costs the same as one node with the slots of all."""
    columns = np.ascontiguousarray(price.T)
    first: dict[bytes, int] = {}
    into = np.array([first.setdefault(column.tobytes(), n) for n, column in enumerate(columns)])
    kept = np.unique(into)
    together = np.bincount(np.searchsorted(kept, into), slots, len(kept)).astype(np.int64)
    return np.ascontiguousarray(columns[kept].T), np.minimum(together, len(price))


def _weighed(price: Ints, slot_prices: Ints, slots: Ints) -> int:
    """Evaluate the right side in Python's integers, which do not overflow."""
    cheapest = (price + slot_prices).min(axis=1)
    paid: int = sum(cheapest.tolist())
    back: int = sum(v * s for v, s in zip(slot_prices.tolist(), slots.tolist(), strict=True))
    return paid - back


def _cheapest(price: Ints, slots: Ints) -> Ints:
    """Look for the cheapest assignment, in floating point: the node of each item."""
    from scipy.optimize import linear_sum_assignment  # here, for it is slow to import

    _, column = linear_sum_assignment(np.repeat(price.astype(np.float64), slots, axis=1))
    return np.asarray(np.repeat(np.arange(len(slots)), slots)[column], dtype=np.int64)


def _slot_prices(price: Ints, node: Ints, slots: Ints) -> Ints:
    """Return slot prices by which no item wants to leave its node: shortest ways over nodes to a free slot."""
    nodes = len(slots)
    change = price - price[np.arange(len(price)), node][:, None]
    least_change = np.full((nodes, nodes), _FAR)  # of moving an item from node a to node b
    np.minimum.at(least_change, node, change)
    free = np.bincount(node, minlength=nodes) < slots
    prices = np.where(free | (not free.any()), 0, _FAR)
    for _ in range(nodes):
        shorter = np.clip((least_change + prices).min(axis=1), -_FAR, prices)  # below -_FAR only if node is no optimum
        if (shorter == prices).all():
            break
        prices = shorter
    if not free.any():  # then only differences matter
        prices = prices - prices.min()
    return np.clip(prices, 0, _FAR)
