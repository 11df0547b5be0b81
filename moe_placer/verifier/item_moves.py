"""Looks for the cheapest assignment of items to few nodes; `verifier.integer_bounds` asks, and does not trust it.

Slot prices are raised node by node until hardly any node is asked for by more items than it can hold. What is left over
moves along the cheapest chains of nodes to free slots (Busacker and Gowen, 1960; Bertsekas, Network Optimization, 1998,
section 7.1: coordinate ascent on the dual).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

__all__ = ["cheapest_by_moves"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_MOST_NODES = 64  # of more, scipy's routine is as fast
_MOST_CHAINS = 400
_SWEEPS = 8
_BEYOND = 2**61  # above every price with a slot price


def cheapest_by_moves(price: Ints, slots: Ints) -> Ints | None:
    """Return the node of each item, probably of the cheapest assignment; None where that takes too long.

    Parameters
    ----------
    price : int array [items, nodes]
        At least 0, below 2**60.
    slots : int array [nodes]
        Items that each node may hold, from 1 to as many as there are; no fewer than items in all.
    """
    if len(slots) > _MOST_NODES:
        return None
    node = np.asarray((price + _raised(price, slots)).argmin(axis=1))
    least = np.full((len(slots), len(slots)), np.inf)  # of moving an item from each node to each
    changed = list(range(len(slots)))
    for _ in range(_MOST_CHAINS):
        spare = slots - np.bincount(node, minlength=len(slots))
        if (spare >= 0).all():
            return node
        for n in changed:
            least[n] = _least_changes(price[node == n], n)
        chain = _cheapest_chain(least, spare < 0, spare > 0)
        if chain is None:
            return None
        changed = sorted({n for link in chain for n in link})
        _move(price, node, chain, min(-int(spare[chain[-1][0]]), int(spare[chain[0][1]])))
    return None


def _move(price: Ints, node: Ints, chain: list[tuple[int, int]], most: int) -> None:
    """Move an item along every link of a chain, or several where they cost the same."""
    movable = []
    for start, end in chain:
        here = np.flatnonzero(node == start)
        change = price[here, end] - price[here, start]
        movable.append(here[change == change.min()])
    moved = min(most, *map(len, movable))
    for (_, end), items in zip(chain, movable, strict=True):
        node[items[:moved]] = end


def _raised(price: Ints, slots: Ints) -> Ints:
    """Return slot prices, each the nearest to what it was at which its node is asked for by as many as it can hold."""
    columns, own, items = np.ascontiguousarray(price.T), np.zeros(len(slots), dtype=np.int64), len(price)
    asked = columns.copy()
    for _ in range(_SWEEPS):
        before = own.copy()
        for n in np.flatnonzero(slots < items).tolist():
            asked[n] = _BEYOND
            rank = items - int(slots[n])
            worth = np.partition(asked.min(axis=0) - columns[n], (rank - 1, rank))  # of this node to each item
            own[n] = min(max(int(own[n]), int(worth[rank - 1]), 0), max(int(worth[rank]), 0))
            asked[n] = columns[n] + own[n]
        if (own == before).all():
            break
    return own


def _least_changes(price: Ints, n: int) -> Floats:
    """Return what the item on node n costs that it costs least to move to each other node; infinite without items."""
    if not len(price):
        return np.full(price.shape[1], np.inf)
    least: Floats = (price - price[:, n : n + 1]).min(axis=0).astype(np.float64)
    least[n] = np.inf
    return least


def _cheapest_chain(
    least: Floats, full: npt.NDArray[np.bool_], free: npt.NDArray[np.bool_]
) -> list[tuple[int, int]] | None:
    """Return the moves from node to node of the cheapest way from a ``full`` node to a ``free`` one, the last first."""
    distance, came = np.where(full, 0.0, np.inf), np.full(len(least), -1)
    for _ in range(len(least)):
        ways = distance[:, None] + least
        best = ways.argmin(axis=0)
        shorter = ways[best, np.arange(len(best))] < distance
        if not shorter.any():
            break
        distance = np.where(shorter, ways[best, np.arange(len(best))], distance)
        came = np.where(shorter, best, came)
    at, chain = int(np.where(free, distance, np.inf).argmin()), []
    while came[at] >= 0:
        chain.append((int(came[at]), at))
        at = int(came[at])
        if len(chain) > len(least):
            return None  # roundings went round in a circle
    return chain if chain and full[at] else None
