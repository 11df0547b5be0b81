"""Trades of replicas in all layers at once: in each step, every layer makes the best of a sample.

What is busiest is a link in one step, and a GPU in the next. A trade counts by what it does to both: by the squares of
what links and GPUs have above a target, each as a share of it.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_placer.search.layers_at_once import Batch

__all__ = ["Trades"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_BELOW = 0.01  # how far the target of links is below the busiest one
_HELPS = 1e-9  # smaller changes are rounding
_TRIES = 3  # partners of an item, the best ones, that are looked at for whether they may have its place


class Trades:
    """Items of L layers on their GPUs, and what trades between them would do.

    Attributes
    ----------
    gpu : int array [L, I]
        GPU of each item, in the whole cluster; items without an expert are free slots, those with GPU -1 are none.
    cost : float array [L, K + 1]
        Cost of each link; the last one is none.
    heat : float array [L, GPUs]
        Tokens per step of each GPU.

    Parameters
    ----------
    batch : Batch
        The layers and their items.
    gpu : int array [L, I]
        GPU of each item to begin with; it is changed.
    gpus_per_node : int
    working : int array [L] or None
        GPUs that may take items; None: how busy GPUs are does not count.
    """

    def __init__(self, batch: Batch, gpu: Ints, gpus_per_node: int, working: Ints | None) -> None:
        self.batch, self.gpu = batch, gpu
        layers, items = gpu.shape
        nodes, links = batch.affected.shape[1], batch.base.shape[1] - 1
        self._row = np.arange(layers)[:, None]
        self.node = gpu // gpus_per_node
        self.load, self.there = batch.load, gpu >= 0
        self._affected, self._stride = np.ascontiguousarray(batch.affected.T), np.arange(len(batch.affected)) * nodes
        self.cost = batch.base.copy()
        brought = self._brings(self._row, np.arange(items), self.node)
        brought[~self.there] = 0.0
        np.add.at(self.cost, (self._row[:, :, None], self._affected[self.node]), brought)
        self.cost[:, -1] = -np.inf
        gpus = nodes * gpus_per_node
        self.heat = np.zeros((layers, gpus))
        np.add.at(self.heat, (self._row, np.maximum(gpu, 0)), np.where(self.there, self.load, 0.0))
        self.even: Floats | None = None
        if working is not None:  # no GPU that is busiest has less than the hottest item, or than the mean
            self.even = np.maximum(self.load.max(axis=1), self.load.sum(axis=1) / np.maximum(working, 1))
        self._shared = _shared_links(self._affected, links)
        self._siblings = _siblings(batch.expert)

    def run(self, steps: int, sample: int, rng: np.random.Generator) -> None:
        """Make so many steps, with so many partners to choose from in each."""
        for step in range(steps):
            self._step(step % 2 == 1 and self.even is not None, sample, rng)

    def _step(self, cool_gpu: bool, sample: int, rng: np.random.Generator) -> None:
        batch, row = self.batch, self._row
        movable = self.there & (batch.pinned < 0)
        if cool_gpu:
            busy = self.gpu == self.heat.argmax(axis=1)[:, None]
        else:
            worst = self.cost.argmax(axis=1)
            touches = (batch.affected == worst[:, None, None]).any(axis=1)
            busy = touches[row, self.node]
        busy &= movable & (batch.expert >= 0)
        one = np.where(busy, rng.random(busy.shape), -1.0).argmax(axis=1)[:, None]
        other = np.broadcast_to(rng.integers(0, busy.shape[1], sample), (len(row), sample))
        change = self._links(one, other)
        if self.even is not None:
            change += self._gpus(one, other)
        change[~(busy[row, one] & movable[row, other] & self._reaches(one, other))] = np.inf
        for _ in range(_TRIES):
            best = change.argmin(axis=1)[:, None]
            partner, helps = other[row, best], change[row, best] < -_HELPS
            may = self._fits(one, partner) & self._fits(partner, one)
            if (may | ~helps).all():
                break
            change[row[~may], best[~may]] = np.inf
        done = (helps & may)[:, 0]
        self._trade(row[done, 0], one[done, 0], partner[done, 0])

    def _links(self, one: Ints, other: Ints) -> Floats:
        """Change [L, C] of the squares of links above the target, if ``one`` [L, 1] and ``other`` trade places."""
        row, affected = self._row, self._affected
        here, there = self.node[row, one], self.node[row, other]
        at_here = self._brings(row, other, here) - self._brings(row, one, here)
        at_there = self._brings(row, one, there) - self._brings(row, other, there)
        shared = self._shared[here, there]
        at_here += np.where(shared >= 0, np.take_along_axis(at_there, np.maximum(shared, 0), axis=2), 0.0)
        target = (self.cost.max(axis=1) * (1 - _BELOW))[:, None, None]
        target = np.where(target > 0, target, 1.0)
        flat, width = self.cost.ravel(), self.cost.shape[1]
        old_here = flat.take(row[..., None] * width + affected[here])
        old_there = flat.take(row[..., None] * width + affected[there])
        change = _over(old_here, at_here, target).sum(axis=2)
        counted = self._shared[there, here] >= 0
        change += np.where(counted, 0.0, _over(old_there, at_there, target)).sum(axis=2)
        change[here == there] = 0.0
        return np.asarray(change)

    def _brings(self, row: Ints, item: Ints, node: Ints) -> Floats:
        """Cost [..., M] of items on the links of nodes, if they are there; arguments broadcast."""
        _, items, touched, nodes = self.batch.delta.shape
        first = (row * items + item) * (touched * nodes) + node
        return np.asarray(self.batch.delta.ravel().take(first[..., None] + self._stride))

    def _gpus(self, one: Ints, other: Ints) -> Floats:
        assert self.even is not None
        row, target = self._row, np.where(self.even > 0, self.even, 1.0)[:, None]
        more = self.load[row, other] - self.load[row, one]
        here, there = self.gpu[row, one], self.gpu[row, other]
        change = _over(self.heat[row, here], more, target) + _over(self.heat[row, there], -more, target)
        change[here == there] = 0.0
        return np.asarray(change)

    def _reaches(self, one: Ints, other: Ints) -> Bools:
        """Mask [L, C] of trades after which both items are on nodes where they should be."""
        row, reach = self._row, self.batch.reach
        if reach is None:
            return np.ones(other.shape, dtype=bool)
        return np.asarray(reach[row, one, self.node[row, other]] & reach[row, other, self.node[row, one]])

    def _fits(self, item: Ints, place: Ints) -> Bools:
        """Mask [L, C] of items that may be where others are, as far as replicas of their expert are apart there."""
        row, siblings = self._row, self._siblings
        own = siblings[row, item]  # [L, C or 1, R]
        gpu, node = self.gpu[row[..., None], own], self.node[row[..., None], own]
        real = own != item[..., None]
        there, near = self.gpu[row, place][..., None], self.node[row, place][..., None]
        meets = (real & (gpu == there)).any(axis=2)
        beside = (real & (node == near)).sum(axis=2)
        stays = self.node[row, item] == near[..., 0]
        room = stays | (beside < self.batch.together[row, near[..., 0]])
        return np.asarray((~meets & room) | (self.batch.expert[row, item] < 0))

    def _trade(self, row: Ints, one: Ints, other: Ints) -> None:
        here, there = self.node[row, one], self.node[row, other]
        for item, old, new in ((one, here, there), (other, there, here)):
            self.cost[row[:, None], self._affected[old]] -= self._brings(row, item, old)
            self.cost[row[:, None], self._affected[new]] += self._brings(row, item, new)
        self.cost[:, -1] = -np.inf
        more = self.load[row, other] - self.load[row, one]
        self.heat[row, self.gpu[row, one]] += more
        self.heat[row, self.gpu[row, other]] -= more
        for table in (self.gpu, self.node):
            table[row, one], table[row, other] = table[row, other], table[row, one]


def _over(cost: Floats, change: Floats, target: Floats) -> Floats:
    """Change of the squares of what is above a target, as shares of it."""
    old, new = np.maximum(cost / target - 1, 0.0), np.maximum((cost + change) / target - 1, 0.0)
    return np.asarray(new * new - old * old)


def _shared_links(affected: Ints, links: int) -> Ints:
    """Return where each link of one node [N, N, M] stands among those of another, or -1."""
    same = (affected[:, None, :, None] == affected[None, :, None, :]) & (affected[:, None, :, None] < links)
    return np.where(same.any(axis=3), same.argmax(axis=3), -1)


def _siblings(expert: Ints) -> Ints:
    """Return the items of the same expert as each item [L, I, R], itself where there are fewer."""
    layers, items = expert.shape
    order = np.argsort(expert, axis=1, kind="stable")
    ordered = np.take_along_axis(expert, order, axis=1)
    row = np.arange(layers)[:, None]
    starts = np.ones_like(ordered, dtype=bool)
    starts[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    first = np.maximum.accumulate(np.where(starts, np.arange(items), 0), axis=1)
    turn = np.arange(items) - first
    real = ordered >= 0
    most = int(turn[real].max(initial=0)) + 1
    group = np.cumsum(starts, axis=1) - 1
    table = np.full((layers, int(group.max()) + 1, most), -1, dtype=np.int64)
    at = np.nonzero(real)
    table[at[0], group[at], turn[at]] = order[at]
    found = np.full((layers, items, most), -1, dtype=np.int64)
    found[row, order] = table[row, group]
    return np.where(found >= 0, found, np.arange(items)[None, :, None])
