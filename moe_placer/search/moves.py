"""Exact changes of the link costs when items trade places, for whole neighbourhoods at a time.

A free slot counts as an item that costs nothing, so one formula serves swaps and moves.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moe_placer.problem.layer import LayerProblem
from moe_placer.problem.survival import Spread
from moe_placer.search.nearest import nearest_valid

__all__ = ["CALL", "Moves", "excess", "repair"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
_BLOCK = 250_000  # numbers in one temporary array
_REPAIRS = 20  # changes per item before a repair is given up
CALL = 10_000  # link costs that could be looked at in the time that one small numpy call takes


class Moves:
    """A placement of one layer, changed by trades.

    Attributes
    ----------
    node : int array [I]
        Node of each item.
    cost : float array [K]
        Cost of each link.
    evaluated : int
        Link costs looked at so far: deterministic effort.
    """

    def __init__(self, layer: LayerProblem, node: Ints) -> None:
        self.evaluated = 0
        self.layer = layer
        place = _shared_links(layer.affected, layer.links)
        both = place >= 0
        # In a fat tree, what two nodes share stands at the same place in both lists.
        self._aligned = bool((~both | (place == np.arange(len(both))[:, None, None])).all())
        self._sharing = np.flatnonzero((both & ~np.eye(layer.nodes, dtype=bool)).any(axis=(1, 2))).tolist()
        self._both, self._place = both[self._sharing].astype(np.float64), np.maximum(place[self._sharing], 0)
        # Links come first, so that inner loops are long; an empty slot is the last item, also at -1.
        empty = np.zeros((1, *layer.delta.shape[1:]))
        self._delta = np.ascontiguousarray(np.concatenate([layer.delta, empty]).transpose(2, 0, 1))
        self._by_node = np.ascontiguousarray(self._delta.transpose(0, 2, 1))
        self._buffers = np.empty(0), np.empty(0)  # new large arrays cost more than what is done with them
        self._touches = _touching(layer)
        self._pins = bool((layer.pinned >= 0).any())
        self._full = bool(layer.slots.sum() <= layer.items)
        self._everyone = np.arange(layer.items)
        self._replicas = np.zeros((int(layer.expert.max()) + 1, layer.nodes), dtype=np.int64)
        self._apart_binds = bool(np.bincount(layer.expert).max() > layer.together.min())
        self.reset(node)

    def reset(self, node: Ints) -> None:
        """Start again from another placement."""
        self.node = node.copy()
        self._refresh()

    def begin(self, base: Floats, node: Ints) -> None:
        """Start from another placement, where other tokens load links too: with another ``base`` of the layer."""
        self.layer, self.evaluated = replace(self.layer, base=base), 0
        self.reset(node)

    @property
    def z(self) -> float:
        """Cost of the busiest link."""
        return float(self.cost.max(initial=0.0))

    def excess(self, target: float) -> float:
        """Sum over links of the squared cost above ``target``."""
        return float(excess(self.cost, target))

    def apply(self, item: int, partner: int, to: int) -> None:
        """Put ``item`` on node ``to``; ``partner`` takes its place unless it is -1, a free slot."""
        if partner >= 0:
            self.node[partner] = self.node[item]
        self.node[item] = to
        self._refresh()

    def best_trade(self, items: Ints, target: float) -> tuple[float, int, int, int]:
        """Find the trade of one of ``items`` with anything that lowers `excess` the most.

        Returns
        -------
        change : float
            Of the excess; not below 0 where no trade helps.
        item, partner, to : int
            What to `apply`.
        """
        partners, nodes = self.partners()
        best = (np.inf, -1, -1, -1)
        self.evaluated += CALL + 2 * len(items) * len(partners) * self.layer.affected.shape[1]
        block = max(1, _BLOCK // max(1, len(partners) * self.layer.affected.shape[1]))
        for first in range(0, len(items), block):
            some = items[first : first + block]
            change = self.changes(some, partners, nodes, target)
            at = int(change.argmin())
            i, j = divmod(at, len(partners))
            if change[i, j] < best[0]:
                best = (float(change[i, j]), int(some[i]), int(partners[j]), int(nodes[j]))
        return best

    def random_trade(self, item: int, rng: np.random.Generator) -> bool:
        """Trade ``item`` with a random allowed partner; False if there is none."""
        partners, nodes = self.partners()
        items = np.array([item])
        self.evaluated += CALL + len(partners)
        allowed = np.flatnonzero(~self.not_allowed(items, partners, nodes)[0])
        if not len(allowed):
            return False
        chosen = int(rng.choice(allowed))
        self.apply(item, int(partners[chosen]), int(nodes[chosen]))
        return True

    def items_at_worst(self) -> Ints:
        """Items on nodes that touch the busiest link: one of them must move for z to fall."""
        touches: npt.NDArray[np.bool_] = self._touches[int(self.cost.argmax())]
        return touches[self.node].nonzero()[0]

    def partners(self) -> tuple[Ints, Ints]:
        """Return every item, and one free slot of every node that has any (item -1), with their nodes."""
        if self._full:
            return self._everyone, self.node
        layer = self.layer
        free = np.flatnonzero(np.bincount(self.node, minlength=layer.nodes) < layer.slots)
        return np.concatenate([self._everyone, np.full(len(free), -1)]), np.concatenate([self.node, free])

    def changes(self, items: Ints, partners: Ints, nodes: Ints, target: float) -> Floats:
        """Change of the excess [items, partners] if they trade places; infinite where that is not allowed.

        Parameters
        ----------
        items : int array
        partners : int array
            Items, or -1 for a free slot.
        nodes : int array [partners]
            Where the partners are.
        target : float
            The excess is over this cost.
        """
        here, layer = self.node[items], self.layer
        over = np.concatenate([self.cost - target, [-np.inf]])  # untouched padding never counts
        over_here, over_there = over[layer.affected[here].T], over[layer.affected[nodes].T]
        at_here, at_there = self._filled(items, partners, nodes)
        at_there -= self._delta[:, partners, nodes][:, None, :]
        # A link that both nodes touch changes by the sum of both; count it once, on this side.
        apart = self._add_shared(at_here, at_there, here, nodes)
        at_here += (over_here - self._delta[:, items, here])[:, :, None]
        change: Floats = _squared_over(at_here).sum(axis=0)
        change -= _squared_over(over_here).sum(axis=0)[:, None]
        at_there += over_there[:, None, :]
        _squared_over(at_there)
        at_there -= _squared_over(over_there)[:, None, :]
        for m, alone in zip(self._sharing, apart, strict=True):
            at_there[m] *= alone
        change += at_there.sum(axis=0)
        change[self.not_allowed(items, partners, nodes)] = np.inf
        return change

    def _add_shared(self, at_here: Floats, at_there: Floats, here: Ints, nodes: Ints) -> Floats:
        """Add what changes on the other side to links that nodes share; return where each is not shared [m, ...]."""
        both = self._both.take(here, axis=1).take(nodes, axis=2)
        if self._aligned:
            for m, shared in zip(self._sharing, both, strict=True):
                at_here[m] += at_there[m] * shared
            return np.subtract(1.0, both, out=both)
        place = self._place.take(here, axis=1).take(nodes, axis=2)
        at_here[self._sharing] += np.take_along_axis(at_there, place, axis=0) * both
        return np.subtract(1.0, self._both.transpose(0, 2, 1).take(here, axis=1).take(nodes, axis=2))

    def _filled(self, items: Ints, partners: Ints, nodes: Ints) -> tuple[Floats, Floats]:
        """Return what partners bring to links of the items' nodes, and items to the partners' [M, items, partners].

        Both stand in buffers, which the next call overwrites.
        """
        shape = len(self._delta), len(items), len(partners)
        size = shape[0] * shape[1] * shape[2]
        if len(self._buffers[0]) < size:
            self._buffers = np.empty(size), np.empty(size)
        at_here, at_there = self._buffers[0][:size].reshape(shape), self._buffers[1][:size].reshape(shape)
        here = self.node[items]
        used = np.bincount(here, minlength=self.layer.nodes).nonzero()[0]
        of_partners = self._by_node.take(used, axis=1).take(partners, axis=2)
        # With another mode, NumPy writes to an array of its own first.
        of_partners.take(used.searchsorted(here), axis=1, out=at_here, mode="clip")
        self._delta.take(items, axis=1).take(nodes, axis=2, out=at_there, mode="clip")
        return at_here, at_there

    def not_allowed(self, items: Ints, partners: Ints, nodes: Ints) -> npt.NDArray[np.bool_]:
        """Mask [items, partners] of trades within a node, and of those that pins or distances of replicas forbid."""
        layer, here = self.layer, self.node[items]
        blocked: npt.NDArray[np.bool_] = here[:, None] == nodes
        if not (self._pins or self._apart_binds or self._spread is not None):
            return blocked
        real = partners >= 0
        if self._pins:
            stuck = np.where(real, layer.pinned[partners] >= 0, False)
            blocked |= (layer.pinned[items] >= 0)[:, None] | stuck
        if self._apart_binds:
            mine, theirs = layer.expert[items], np.where(real, layer.expert[partners], -1)
            same = mine[:, None] == theirs[None, :]
            full = self._replicas[mine][:, nodes] >= layer.together[nodes][None, :]
            full_back = (layer.together[here][:, None] <= self._replicas[theirs][:, here].T) & real[None, :]
            blocked = blocked | (~same & (full | full_back))
        if self._spread is not None:
            mine, theirs = layer.expert[items][:, None], np.where(real, layer.expert[partners], -1)[None, :]
            away, back = (here[:, None], nodes[None, :]), (nodes[None, :], here[:, None])
            gathers = self._spread.gathers(mine, *away) | self._spread.gathers(theirs, *back)
            blocked = blocked | ((mine != theirs) & gathers)
        return blocked

    def _refresh(self) -> None:
        self.cost = self.layer.cost(self.node)
        if self._apart_binds:
            self._replicas[:] = 0
            np.add.at(self._replicas, (self.layer.expert, self.node), 1)
        self._spread = None if self.layer.domain is None else Spread(self.layer, self.node)


def excess(cost: Floats, target: float) -> Floats:
    """Sum over the last axis, links, of the squared cost above ``target``."""
    return np.asarray(_squared_over(cost - target).sum(axis=-1))


def _squared_over(value: Floats) -> Floats:
    """Square what is above 0, in place, and make all else 0."""
    np.maximum(value, 0.0, out=value)
    return np.multiply(value, value, out=value)


def _touching(layer: LayerProblem) -> npt.NDArray[np.bool_]:
    """Mask [links, nodes] of who touches which link."""
    touches = np.zeros((layer.links + 1, layer.nodes), dtype=bool)
    touches[layer.affected.T, np.arange(layer.nodes)] = True
    return touches[:-1]


def _shared_links(affected: Ints, links: int) -> Ints:
    """``shared[m, a, b]``: where in b's list the m-th link of a is, or -1."""
    nodes, most = affected.shape
    shared = np.empty((most, nodes, nodes), dtype=np.int64)
    position = np.full((links + 1, nodes), -1, dtype=np.int64)
    for m in range(most):
        position[affected[:, m], np.arange(nodes)] = m
    position[links] = -1
    for m in range(most):
        shared[m] = position[affected[:, m]]
    return shared


def repair(layer: LayerProblem, node: Ints, rng: np.random.Generator) -> Ints | None:
    """Return ``node`` with few changes that make it valid, or None if there is no valid placement.

    Pinned items go home; items of overfull nodes, replicas that are too close, and those of experts that a single
    failure would end move to where there is room, or trade places with an item for which both sides are allowed. Where
    that fails, a linear program decides.
    """
    node = np.where(layer.pinned >= 0, layer.pinned, node)
    for _ in range(_REPAIRS * layer.items):
        wrong = _misplaced(layer, node)
        if not len(wrong):
            return node
        if not any(_rehouse(layer, node, int(item), rng) for item in rng.permutation(wrong)):
            _shake(layer, node, rng)
    return nearest_valid(layer, node)


def _shake(layer: LayerProblem, node: Ints, rng: np.random.Generator) -> None:
    """Swap two movable items at random, to leave a corner in which nothing can be mended directly."""
    movable = np.flatnonzero(layer.pinned < 0)
    if len(movable) > 1:
        one, other = rng.choice(movable, 2, replace=False)
        node[one], node[other] = node[other], node[one]


def _misplaced(layer: LayerProblem, node: Ints) -> Ints:
    """Items that could move to mend something: all movable ones of an overfull node, and replicas too close."""
    movable = layer.pinned < 0
    overfull = np.bincount(node, minlength=layer.nodes) > layer.slots
    replicas = np.zeros((int(layer.expert.max()) + 1, layer.nodes), dtype=np.int64)
    np.add.at(replicas, (layer.expert, node), 1)
    close = (replicas > layer.together[None, :])[layer.expert, node]
    return np.flatnonzero(movable & (overfull[node] | close | layer.gathered(node)))


def _rehouse(layer: LayerProblem, node: Ints, item: int, rng: np.random.Generator) -> bool:
    """Move one item to a node with room, or swap it with one that may come here."""
    here, expert = node[item], layer.expert[item]
    replicas = np.zeros((int(layer.expert.max()) + 1, layer.nodes), dtype=np.int64)
    np.add.at(replicas, (layer.expert, node), 1)
    everywhere = np.arange(layer.nodes)
    welcome = (replicas[expert] < layer.together) & (everywhere != here)
    fits_here = (replicas[layer.expert, here] < layer.together[here]) & (layer.expert != expert)
    if layer.domain is not None:
        spread = Spread(layer, node)
        welcome &= ~spread.gathers(np.full(layer.nodes, expert), np.full(layer.nodes, here), everywhere)
        fits_here &= ~spread.gathers(layer.expert, node, np.full(layer.items, here))
    room = np.flatnonzero(welcome & (np.bincount(node, minlength=layer.nodes) < layer.slots))
    if len(room):
        node[item] = rng.choice(room)
        return True
    partners = np.flatnonzero(welcome[node] & fits_here & (layer.pinned < 0) & (node != here))
    if not len(partners):
        return False
    partner = int(rng.choice(partners))
    node[item], node[partner] = node[partner], here
    return True
