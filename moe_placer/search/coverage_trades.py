"""Trades of two items under a cost that counts covered tokens: ranked by a gradient, then evaluated exactly.

The busiest link is smoothed to ``log(sum_k exp(sharpness * (cost[k] / scale - 1))) / sharpness``. Its gradient prices
the coverage of every place, so one pass over the tables says what every trade is worth to first order; the best of
these are evaluated on all links, exactly.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.problem.layer import LayerProblem
from moe_placer.problem.survival import Spread
from moe_placer.search.coverage_tables import Tables, tables

__all__ = ["CoverageTrades", "Trades"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_STEEPEST = 300.0  # exponent at most, so that sums stay finite
_CALL = 100_000  # numbers that could be looked at in the time that the small calls of one evaluation take


@dataclass(frozen=True, eq=False)
class Trades:
    """Trades that can be made; ``partner`` -1 is a free slot.

    Attributes
    ----------
    item, partner, to : int arrays [trades]
        ``item`` goes to ``to``, and ``partner`` to where ``item`` was.
    """

    item: Ints
    partner: Ints
    to: Ints

    def __len__(self) -> int:
        return len(self.item)


class CoverageTrades:
    """A placement of one layer, changed by trades.

    Attributes
    ----------
    cost : float array [links]
        Cost of each link on the sampled tokens.
    evaluated : int
        Numbers looked at so far: deterministic effort.
    """

    def __init__(self, layer: LayerProblem, node: Ints, most_tokens: int) -> None:
        assert layer.coverage is not None
        self.layer, self._prices = layer, layer.coverage.sending.prices
        self.tables: Tables = tables(layer.coverage, layer.expert, layer.replica, most_tokens)
        self._same = self.tables.view[:, None] == self.tables.view[None, :]
        self._upper = np.triu(np.ones((layer.items, layer.items), dtype=bool), 1)
        stuck = layer.pinned >= 0
        self._stuck = stuck[:, None] | stuck[None, :]
        self._apart_binds = bool(np.bincount(layer.expert).max() > layer.together.min()) or layer.domain is not None
        self._work = 0
        self.reset(node)

    def reset(self, node: Ints) -> None:
        """Start again from another placement."""
        self.tables.reset(node)
        self._refresh()

    @property
    def node(self) -> Ints:
        """Node of each item."""
        return self.tables.place

    @property
    def z(self) -> float:
        """Cost of the busiest link on the sampled tokens."""
        return float(self.cost.max(initial=0.0))

    @property
    def evaluated(self) -> int:
        """Numbers looked at so far."""
        return self._work + self.tables.evaluated

    def apply(self, item: int, partner: int, to: int) -> None:
        """Put ``item`` on node ``to``; ``partner`` takes its place unless it is -1, a free slot."""
        self.tables.apply(item, partner, to)
        self._refresh()

    def _refresh(self) -> None:
        cov = self.tables.cov
        self.cost = np.einsum("dkx,xd->k", self._prices, cov.reshape(-1, self.layer.nodes))

    def smooth(self, cost: Floats, scale: float, sharpness: float) -> Floats:
        """Smoothed busiest link of costs [..., links], relative to ``scale``."""
        power = np.minimum(sharpness * (cost / scale - 1.0), _STEEPEST)
        return np.asarray(np.log(np.exp(power).sum(axis=-1)) / sharpness)

    def best_trade(self, scale: float, sharpness: float, most: int) -> tuple[float, tuple[int, int, int]]:
        """Return the smoothed cost after the best trade of the ``most`` that the gradient likes, and that trade."""
        found = self.promising(scale, sharpness, most)
        if not len(found):
            return np.inf, (-1, -1, -1)
        after = self.smooth(self.costs_after(found), scale, sharpness)
        best = int(after.argmin())
        return float(after[best]), (int(found.item[best]), int(found.partner[best]), int(found.to[best]))

    def promising(self, scale: float, sharpness: float, most: int) -> Trades:
        """Return the allowed trades that lower the smoothed cost most, to first order."""
        power = np.minimum(sharpness * (self.cost / scale - 1.0), _STEEPEST)
        weights = np.exp(power - power.max())
        swaps, moves = self._scores(weights / weights.sum())
        free = np.bincount(self.node, minlength=self.layer.nodes) < self.layer.slots
        items = self.layer.items
        swap = np.where(self._allowed_swaps(), swaps, np.inf)
        move = np.where(self._allowed_moves(free), moves, np.inf) if free.any() else np.zeros((items, 0))
        scores = np.concatenate([swap.ravel(), move.ravel()])
        best = np.argpartition(scores, most)[:most] if most < len(scores) else np.arange(len(scores))
        best = best[np.isfinite(scores[best])]
        is_swap = best < items * items
        pair, single = best[is_swap], best[~is_swap] - items * items
        item = np.concatenate([pair // items, single // self.layer.nodes])
        partner = np.concatenate([pair % items, np.full(len(single), -1)])
        to = np.concatenate([self.node[pair % items], single % self.layer.nodes])
        return Trades(item, partner, to)

    def random_trade(self, rng: np.random.Generator) -> bool:
        """Trade two random items that one view sees; False if the item drawn has no allowed partner.

        Half of the draws are from nodes that the busiest link serves, where a trade matters most.
        """
        item = self._draw(rng)
        allowed = self._same[item] & ~self._stuck[item] & (self.node != self.node[item])
        if self._apart_binds:
            fits = self._fits()
            same = self.layer.expert == self.layer.expert[item]
            allowed &= same | (fits[item][self.node] & fits[:, self.node[item]])
        partners = np.flatnonzero(allowed)
        if not len(partners):
            return False
        partner = int(rng.choice(partners))
        self.apply(item, partner, int(self.node[partner]))
        return True

    def _draw(self, rng: np.random.Generator) -> int:
        serves = self._prices[:, int(self.cost.argmax())].sum(axis=1)[self.node]
        if rng.random() < 0.5 or serves.sum() <= 0:
            return int(rng.integers(self.layer.items))
        return int(rng.choice(self.layer.items, p=serves / serves.sum()))

    def _scores(self, weights: Floats) -> tuple[Floats, Floats]:
        """First-order change of the weighted cost by swaps [items, items] and by moves [items, nodes]."""
        t, nodes = self.tables, self.layer.nodes
        price = np.tensordot(weights, self._prices, axes=(0, 1)).T.reshape(t.cov.shape)
        view, place, expert = t.view, t.place, t.expert
        here = price[view, :, place]  # [items, files]
        base = (here * t.cov[view, :, place]).sum(axis=1)
        instead = np.einsum("if,fie->ie", here, t.swapped)[:, expert] - base[:, None]
        dropped = (here * t.dropped.T).sum(axis=1) - base
        added = np.einsum("vfd,vfed->ved", price, t.added) - np.einsum("vfd,vfd->vd", price, t.cov)[:, None]
        moves = dropped[:, None] + added[view, expert]
        across = moves[:, place]
        swaps = np.where(self._same, instead + instead.T, across + across.T)
        self._work += _CALL + t.swapped.size + t.added.size + 4 * swaps.size
        return swaps, moves.reshape(-1, nodes)

    def costs_after(self, trades: Trades) -> Floats:
        """Cost of every link after each trade [trades, links]."""
        t = self.tables
        a, b, q = trades.item, trades.partner, trades.to
        p, rows = t.place[a], np.arange(len(a))
        views, files = t.cov.shape[:2]
        change = np.zeros((2, len(a), views, files))  # at p, at q
        real = b >= 0
        same = real & (t.view[a] == t.view[np.maximum(b, 0)])
        x = rows[same]
        v = t.view[a[x]]
        change[0, x, v] = t.swapped[:, a[x], t.expert[b[x]]].T - t.cov[v, :, p[x]]
        change[1, x, v] = t.swapped[:, b[x], t.expert[a[x]]].T - t.cov[v, :, q[x]]
        for mine, come, go, side in ((a, q, p, 0), (b, p, q, 1)):
            x = rows[~same] if side == 0 else rows[real & ~same]
            v, e = t.view[mine[x]], t.expert[mine[x]]
            change[side, x, v] = t.dropped[:, mine[x]].T - t.cov[v, :, go[x]]
            change[1 - side, x, v] = t.added[v, :, e, come[x]] - t.cov[v, :, come[x]]
        flat = change.reshape(2, len(a), views * files)
        self._work += _CALL + 2 * len(a) * self._prices[0].size
        at_p = np.matmul(self._prices[p], flat[0][:, :, None])[..., 0]
        return np.asarray(self.cost + at_p + np.matmul(self._prices[q], flat[1][:, :, None])[..., 0])

    def _allowed_swaps(self) -> Bools:
        layer, node = self.layer, self.node
        allowed = self._upper & ~self._stuck & (node[:, None] != node[None, :])
        if self._apart_binds:
            same = layer.expert[:, None] == layer.expert[None, :]
            fits = self._fits()[:, node]
            allowed = allowed & (same | (fits & fits.T))
        return np.asarray(allowed)

    def _allowed_moves(self, free: Bools) -> Bools:
        layer = self.layer
        allowed = (layer.pinned < 0)[:, None] & free[None, :] & (self.node[:, None] != np.arange(layer.nodes)[None, :])
        return np.asarray(allowed & self._fits() if self._apart_binds else allowed)

    def _fits(self) -> Bools:
        """Whether one more replica of each item's expert may be on each node [items, nodes]."""
        layer = self.layer
        replicas = np.zeros((int(layer.expert.max()) + 1, layer.nodes), dtype=np.int64)
        np.add.at(replicas, (layer.expert, self.node), 1)
        fits = replicas[layer.expert] < layer.together[None, :]
        if layer.domain is not None:
            spread = Spread(layer, self.node)
            fits &= ~spread.gathers(layer.expert[:, None], self.node[:, None], np.arange(layer.nodes)[None, :])
        return np.asarray(fits)
