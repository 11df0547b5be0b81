"""Places the replicas of all layers in one pass, a step in all layers at once, as a balancer in an engine must.

Every step places one replica of each layer, the most loaded ones first, on the node where the layer's busiest link
stays coolest; where GPUs take several replicas, no node may get more tokens than lets its GPUs be even. So many
replicas are so many calls of NumPy, however many layers there are.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

__all__ = ["Batch", "choose_nodes", "even_ranks", "even_replicas"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_EQUAL = 1e-6  # nodes whose busiest links differ by less than this share are equally good


@dataclass(frozen=True, eq=False)
class Batch:
    """L layers with I items each, of fewer where some are missing, on N nodes.

    Attributes
    ----------
    load : float array [L, I]
        Tokens per step of each item; 0 where there is none.
    expert : int array [L, I]
        Expert of each item; -1: none.
    pinned : int array [L, I]
        Node that an item is pinned to, or -1.
    reach : bool array [L, I, N] or None
        Nodes that an item should be on, where that can be; None: all.
    base : float array [L, K + 1]
        Cost of every link with all items elsewhere; the last one is none.
    affected : int array [M, N]
        Links that a node touches; K: none.
    delta : float array [L, I, M, N]
        What an item costs on these, if it is on that node.
    slots : int array [L, N]
        Items that each node may take.
    together : int array [L, N]
        Items of one expert that a node may hold.
    """

    load: Floats
    expert: Ints
    pinned: Ints
    reach: Bools | None
    base: Floats
    affected: Ints
    delta: Floats
    slots: Ints
    together: Ints


def even_replicas(load: Floats, total: Ints, most: Ints, least: int = 1) -> Ints:
    """Give each further replica to the expert of most tokens per replica, in all layers at once [L, E].

    Parameters
    ----------
    load : float array [L, E]
        Tokens of each expert.
    total : int array [L]
        Replicas of each layer in all.
    most : int array [L]
        Replicas that one expert may have.
    least : int
        Replicas that every expert has.

    Examples
    --------
    >>> even_replicas(np.array([[6.0, 3.0, 1.0]]), np.array([5]), np.array([2])).tolist()
    [[2, 2, 1]]
    """
    replicas = np.full(load.shape, least, dtype=np.int64)
    each, rows = load / least, np.arange(len(load))
    left = total - replicas.sum(axis=1)
    for step in range(int(left.max(initial=0))):
        hottest = each.argmax(axis=1)
        can = (left > step) & (replicas[rows, hottest] < most)
        at = rows[can], hottest[can]
        replicas[at] += 1
        each[at] = np.where(replicas[at] < most[can], load[at] / replicas[at], -1.0)
    return replicas


def choose_nodes(batch: Batch, room: float | None) -> Ints:
    """Return the node of each item [L, I], 0 of what is missing.

    Parameters
    ----------
    batch : Batch
    room : float or None
        Share of the mean that GPUs of a node may get above it: 0.01 is 1%; None: as much as links like.
    """
    walk = _Walk(batch, room)
    order = np.lexsort((-batch.load, batch.pinned < 0, batch.expert < 0), axis=1)
    node = np.zeros(order.shape, dtype=np.int64)
    for item in order.T:
        node[walk.rows, item] = walk.place(item)
    return node


class _Walk:
    """Loads of links and nodes by the items placed so far; those not placed yet count as spread over all slots."""

    def __init__(self, batch: Batch, room: float | None) -> None:
        self.batch, self.rows = batch, np.arange(len(batch.base))
        layers, _, _, nodes = batch.delta.shape
        share = (batch.slots / batch.slots.sum(axis=1, keepdims=True)).astype(batch.delta.dtype)
        spread = np.zeros_like(batch.base)
        np.add.at(spread.T, batch.affected, (batch.delta.sum(axis=1) * share[:, None]).transpose(1, 2, 0))
        self.cost = batch.base + spread
        total = batch.load.sum(axis=1, keepdims=True)
        self.each = spread / np.where(total > 0, total, 1.0).astype(spread.dtype)  # of a token of items not placed yet
        self.free = batch.slots.copy()
        experts = int(batch.expert.max(initial=0)) + 2  # the last one is of what is missing
        self.replicas = np.zeros((layers, experts, nodes), dtype=np.int64)
        self.heat = np.zeros((layers, nodes))
        even = batch.load.sum(axis=1)[:, None] * batch.slots / batch.slots.sum(axis=1, keepdims=True)
        self.limit = None if room is None else np.maximum(even * (1 + room), np.finfo(np.float64).tiny)

    def place(self, item: Ints) -> Ints:
        """Place one item [L] of each layer, and return its node; what is missing changes nothing."""
        batch, rows = self.batch, self.rows
        expert, pinned, brought = batch.expert[rows, item], batch.pinned[rows, item], batch.delta[rows, item]
        self.cost -= self.each * batch.load[rows, item][:, None]
        before = self.cost.take(batch.affected, axis=1)
        after = before + brought
        worst = np.maximum(after.max(axis=1), self.cost.max(axis=1)[:, None])
        worst[~self._allowed(item, expert)] = np.inf
        before += after
        before *= brought
        rise = before.sum(axis=1)
        rise[worst > worst.min(axis=1, keepdims=True) * (1 + _EQUAL)] = np.inf
        node = np.where(pinned >= 0, pinned, rise.argmin(axis=1))
        self.cost[rows[:, None], batch.affected.T[node]] += brought[rows, :, node]
        there = np.flatnonzero(expert >= 0)
        at = there, node[there]
        self.free[at] -= 1
        self.heat[at] += batch.load[there, item[there]]
        self.replicas[there, expert[there], node[there]] += 1
        return node

    def _allowed(self, item: Ints, expert: Ints) -> Bools:
        """Mask [L, N] of nodes that may take an item: those that stay even, else the coolest ones with a slot."""
        batch, rows, free = self.batch, self.rows, self.free > 0
        open_ = _prefer(free, self.replicas[rows, expert] < batch.together)
        if batch.reach is not None:
            open_ = _prefer(open_, batch.reach[rows, item])
        if self.limit is None:
            return open_
        filled = (self.heat + batch.load[rows, item][:, None]) / self.limit
        even = open_ & (filled <= 1)
        filled[~open_] = np.inf
        coolest = filled <= filled.min(axis=1, keepdims=True)
        return np.asarray(np.where(even.any(axis=1, keepdims=True), even, coolest))


def _prefer(able: Bools, which: Bools) -> Bools:
    """Return those that are able and preferred, in rows without one all that are able."""
    both = able & which
    return np.where(both.any(axis=1, keepdims=True), both, able)


def even_ranks(load: Floats, expert: Ints, node: Ints, slots: Ints) -> Ints:
    """Return the GPU within its node of each item [L, I]: heaviest first, each to the GPU of fewest tokens with a slot.

    Replicas of an expert go to different GPUs where another one has a slot; -1: missing, or no slot is left.

    Parameters
    ----------
    load : float array [L, I]
        Tokens.
    expert : int array [L, I]
        Expert of each item; -1: none.
    node : int array [L, I]
        Node of each item.
    slots : int array [L, N, G]
        Items that each GPU may take.
    """
    layers, items = load.shape
    nodes, gpus = slots.shape[1:]
    there = expert.ravel() >= 0
    group = (np.arange(layers)[:, None] * nodes + node).ravel()
    order = np.lexsort((-load.ravel(), group, ~there))[: int(there.sum())]  # by node, heaviest first
    own = group[order]
    turn = np.arange(len(order)) - np.searchsorted(own, own)
    free, heat = slots.reshape(-1, gpus).copy(), np.zeros((layers * nodes, gpus))
    rank = np.full(layers * items, -1, dtype=np.int64)
    held = np.full((layers * nodes, gpus, int(slots.max(initial=1))), -1, dtype=np.int64)
    for step in range(int(turn.max(initial=-1)) + 1):
        mine = order[turn == step]
        at, what = group[mine], expert.ravel()[mine]
        open_ = free[at] > 0
        apart = open_ & ~(held[at] == what[:, None, None]).any(axis=2)
        able = np.where(apart.any(axis=1, keepdims=True), apart, open_)
        gpu = np.where(able, heat[at], np.inf).argmin(axis=1)
        fits = able[np.arange(len(mine)), gpu]
        mine, at, what, gpu = mine[fits], at[fits], what[fits], gpu[fits]
        rank[mine] = gpu
        held[at, gpu, free[at, gpu] - 1] = what
        free[at, gpu] -= 1
        heat[at, gpu] += load.ravel()[mine]
    return rank.reshape(layers, items)
