"""Cools the busiest GPU of a layer: items trade GPUs, of any two nodes, while no link costs more than a limit.

The busiest GPU gives an item away for a lighter one. Trades are ranked by how much they lower the sum of squared loads,
and the first whose exact link costs are within the limit is made. Counts of items per GPU stay as they are, unless
free slots are offered: so slots, and memory over all layers, are respected however they were divided.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.limits import Deadline
from moe_placer.problem.layer import LayerProblem
from moe_placer.problem.survival import Spread

__all__ = ["Cooled", "cool"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_HELPS = 1e-9  # smaller relative changes are rounding
_CHECKED = 64  # trades whose link costs are computed together
_EVEN = 1e-6  # a GPU so little above what none can be below is as good as that


@dataclass(frozen=True, eq=False)
class Cooled:
    """A layer's items on GPUs.

    Attributes
    ----------
    gpu : int array [I]
        Global GPU of each item.
    busiest : float
        Tokens per step of the busiest GPU.
    z : float
        Cost of the busiest link.
    """

    gpu: Ints
    busiest: float
    z: float


def cool(layer: LayerProblem, gpu: Ints, free: Ints, limit: float | None, deadline: Deadline) -> Cooled:
    """Trade items between GPUs until no trade cools the busiest one within the limit on links.

    Parameters
    ----------
    layer : LayerProblem
    gpu : int array [I]
        Where items are; the result's busiest GPU is never busier, and its z at most ``limit``, or that of ``gpu``.
    free : int array [G]
        Slots of each GPU beyond its items that may be used; 0 for GPUs that hold nothing and never shall.
    limit : float or None
        Cost that no link may exceed; None: items stay on their nodes, and no link changes.
    deadline : Deadline
        When to stop, whatever has been reached.
    """
    z = layer.z(gpu // (len(free) // layer.nodes))
    state = _State(layer, gpu, free, None if limit is None else max(limit, z))
    while not deadline.over and state.cool_once():
        pass
    return Cooled(state.gpu, float(state.load.max(initial=0.0)), z if limit is None else layer.z(state.node))


class _State:
    """Items on GPUs, with the loads of GPUs and the costs of links."""

    def __init__(self, layer: LayerProblem, gpu: Ints, free: Ints, limit: float | None) -> None:
        self.layer, self.gpu, self.free, self.inside = layer, gpu.copy(), free.copy(), limit is None
        self.limit = np.inf if limit is None else limit
        self.gpus, experts = len(free), int(layer.expert.max()) + 1
        self.home = np.arange(self.gpus) // (self.gpus // layer.nodes)
        self.load = np.bincount(gpu, layer.load, self.gpus)
        self.on_gpu = np.zeros((experts, self.gpus), dtype=np.int64)
        np.add.at(self.on_gpu, (layer.expert, gpu), 1)
        self.on_node = np.zeros((experts, layer.nodes), dtype=np.int64)
        np.add.at(self.on_node, (layer.expert, self.home[gpu]), 1)
        self.cost = layer.cost(self.node) if limit is not None else np.zeros(layer.links)
        self.movable = layer.pinned < 0
        # No GPU's load can be below these; where the busiest is, nothing is left to do.
        used = (np.bincount(gpu, minlength=self.gpus) + free) > 0
        self.floor = max(float(layer.load.max(initial=0.0)), float(layer.load.sum()) / max(1, int(used.sum())))

    @property
    def node(self) -> Ints:
        """Node of each item [I]."""
        return self.home[self.gpu]

    def cool_once(self) -> bool:
        """Make the best trade of the busiest GPU; False where none is left."""
        hot = int(self.load.argmax())
        if self.load[hot] <= self.floor * (1 + _EVEN):
            return False
        items = np.flatnonzero((self.gpu == hot) & self.movable)
        partners = np.flatnonzero((self.gpu != hot) & self.movable)
        slots = np.flatnonzero(self.free > 0)
        to = np.concatenate([self.gpu[partners], slots])
        partners = np.concatenate([partners, np.full(len(slots), -1)])
        theirs = np.where(partners >= 0, self.layer.load[partners], 0.0)
        less = self.layer.load[items][:, None] - theirs[None, :]
        gain = less * (self.load[hot] - self.load[to] - less)
        gain[self._barred(items, partners, to, hot)] = 0.0
        found = np.flatnonzero(gain.ravel() > _HELPS * self.load[hot] ** 2)
        order = found[np.argsort(-gain.ravel()[found], kind="stable")]
        for first in range(0, len(order), _CHECKED):
            i, j = np.divmod(order[first : first + _CHECKED], len(partners))
            cost = self._costs(items[i], partners[j], to[j])
            within = np.flatnonzero(cost.max(axis=1, initial=0.0) <= self.limit)
            if len(within):
                at = int(within[0])
                self._trade(int(items[i[at]]), int(partners[j[at]]), int(to[j[at]]), cost[at])
                return True
        return False

    def _barred(self, items: Ints, partners: Ints, to: Ints, hot: int) -> Bools:
        """Mask [items, partners] of trades that bring replicas of one expert too close."""
        layer, home = self.layer, self.home
        mine, theirs = layer.expert[items], np.where(partners >= 0, layer.expert[partners], -1)
        away = home[to] != home[hot]
        barred = self.on_gpu[mine][:, to] > 0
        barred |= (self.on_node[mine][:, home[to]] >= layer.together[home[to]]) & away
        back = self.on_gpu[theirs, hot] > 0
        back |= (self.on_node[theirs, home[hot]] >= layer.together[home[hot]]) & away
        if layer.domain is not None:
            spread, there = Spread(layer, self.node), home[to][None, :]
            from_hot = np.full((len(items), 1), home[hot])
            barred |= spread.gathers(mine[:, None], from_hot, there) | spread.gathers(theirs[None, :], there, from_hot)
        barred |= (back & (partners >= 0)) | (mine[:, None] == theirs)
        return np.asarray(barred | away if self.inside else barred)

    def _costs(self, item: Ints, partner: Ints, to: Ints) -> Floats:
        """Cost of every link [C, K] after each trade."""
        layer, here, there = self.layer, self.home[self.gpu[item]], self.home[to]
        change = np.zeros((len(item), layer.links + 1))
        rows = np.arange(len(item))[:, None]
        back = partner >= 0
        for who, node, sign in ((item, here, -1), (item, there, 1)):
            np.add.at(change, (rows, layer.affected[node]), sign * layer.delta[who, node])
        for who, node, sign in ((partner, there, -1), (partner, here, 1)):
            np.add.at(change, (rows[back], layer.affected[node[back]]), sign * layer.delta[who[back], node[back]])
        change[here == there] = 0.0
        return np.asarray(self.cost + change[:, :-1])

    def _trade(self, item: int, partner: int, to: int, cost: Floats) -> None:
        here = int(self.gpu[item])
        self._move(item, to)
        if partner >= 0:
            self._move(partner, here)
        else:
            self.free[to] -= 1
            self.free[here] += 1
        self.cost = cost

    def _move(self, item: int, to: int) -> None:
        expert, here, load = self.layer.expert[item], int(self.gpu[item]), self.layer.load[item]
        self.load[here] -= load
        self.load[to] += load
        self.on_gpu[expert, here] -= 1
        self.on_gpu[expert, to] += 1
        self.on_node[expert, self.home[here]] -= 1
        self.on_node[expert, self.home[to]] += 1
        self.gpu[item] = to
