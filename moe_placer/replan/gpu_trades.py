"""What trades of the busiest GPUs do to the excess of all GPUs, in many layers at once.

The excess is the sum of squares of what GPUs have above a target. A trade changes two GPUs. A change of replicas (one
of an expert goes, another expert gets one more in its slot) changes all GPUs of both experts; what each of the two
does is known by itself, and that they meet on a GPU is left out here.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from moe_placer.replan.slot_tables import SlotTable, Step

__all__ = ["Offers", "find_trades"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_BLOCK = 8  # layers that are looked at together: their tables fit in a cache
_FREE_MOVE = 0.25  # what a trade without moves counts as, so that it comes before all others


@dataclass(frozen=True)
class Offers:
    """The best change of each of H busy GPUs in each of R layers, all [R, H].

    Attributes
    ----------
    score : float array
        Change of the excess per move; infinite where there is none.
    change : float array
        Of the excess.
    hot, slot, gpu, other, new : int array
        As in `Step`.
    """

    score: Floats
    change: Floats
    hot: Ints
    slot: Ints
    gpu: Ints
    other: Ints
    new: Ints

    def better(self, other: Offers) -> Offers:
        """Return the better of two for every busy GPU."""
        pairs = zip(vars(self).values(), vars(other).values(), strict=True)
        return Offers(*(np.where(other.score < self.score, theirs, mine) for mine, theirs in pairs))

    def step(self, rows: Ints, which: Ints) -> tuple[Step, Floats, Floats]:
        """Return one offer of each layer, with its score and its change [R]."""
        at = np.arange(len(rows)), which
        step = Step(rows, self.hot[at], self.slot[at], self.gpu[at], self.other[at], self.new[at])
        return step, self.score[at], self.change[at]


def find_trades(table: SlotTable, rows: Ints, target: Floats, busy: int, least: int, inside: bool) -> Offers:
    """Find the best change of each of the busiest GPUs.

    Parameters
    ----------
    table : SlotTable
    rows : int array [R]
        Layers.
    target : float array [L]
        Tokens per step of a GPU that are good enough, in every layer.
    busy : int
        GPUs of each layer that give something away.
    least : int
        Replicas that every expert must keep.
    inside : bool
        Whether an expert may come only to a node that holds it now.
    """
    found = []
    for first in range(0, len(rows), _BLOCK):
        some = _LayerTables(table, rows[first : first + _BLOCK], target, min(busy, table.load.shape[1]), inside)
        offers = some.exchanges()
        if table.of_experts:
            offers = offers.better(some.replacements(least + 1)).better(some.arrivals(least + 1))
        found.append(offers)
    return Offers(*(np.concatenate(parts) for parts in zip(*(vars(one).values() for one in found), strict=True)))


class _LayerTables:
    """Tables of R layers: H busy GPUs, G GPUs, S slots, E experts."""

    def __init__(self, table: SlotTable, rows: Ints, target: Floats, busy: int, inside: bool) -> None:
        self.table, self.rows, self.inside, self.slow = table, rows, inside, table.slowness
        self.at = np.arange(len(rows))[:, None]
        self.over = table.load[rows] - target[rows, None]  # [R, G]
        self.square = _square(self.over)
        self.hot = np.argsort(-self.over, axis=1, kind="stable")[:, :busy]  # [R, H]
        self.kind, self.each, self.fixed = table.kind[rows], table.each[rows], table.fixed[rows]
        self.on = table.on[rows] > 0  # [R, E, G]
        self.comes = (table.on[rows] >= table.held[rows]).astype(np.float64)  # moves by one replica more, and by one
        self.goes = (table.on[rows] > table.held[rows]).astype(np.float64)  # fewer
        self.expert = table.expert[rows[:, None, None], np.maximum(self.kind, 0)]  # [R, G, S]
        self.real = self.kind >= 0
        self.crowds = bool(table.count[rows].max() + 1 > table.together[rows].min())
        # What a busy GPU has: [R, H, S]
        self.mine, self.my_kind = self.each[self.at, self.hot], self.kind[self.at, self.hot]
        self.my_expert = self.expert[self.at, self.hot]
        self.can_go = (self.real & ~self.fixed)[self.at, self.hot] & (self.over[self.at, self.hot] > 0)[..., None]
        self.barred = np.where(self.can_go[..., None], self._barred(self.my_expert), True)  # to which GPU [R, H, S, G]

    def _barred(self, expert: Ints) -> Bools:
        """Mask [R, H, S, G] of GPUs to which experts of busy GPUs must not come."""
        barred = self.on[self.at[..., None], expert]
        if self.crowds:
            other_node = self.table.node[self.hot][:, :, None, None] != self.table.node
            barred = barred | (self._crowded[self.at[..., None], expert] & other_node)
        return np.asarray(barred)

    @cached_property
    def _crowded(self) -> Bools:
        """Mask [R, E, G] of GPUs whose node has as many replicas of an expert as it may have."""
        full = self._by_node(self.table.on) >= self.table.together[self.rows][:, None]
        return np.asarray(full[:, :, self.table.node])

    def _by_node(self, count: npt.NDArray[np.int8]) -> Ints:
        """Count replicas on nodes [R, E, nodes] from those on GPUs [L, E, G]."""
        nodes = int(self.table.node.max()) + 1
        return np.asarray(count[self.rows].reshape(*self.on.shape[:2], nodes, -1).sum(axis=3, dtype=np.int64))

    @cached_property
    def _home(self) -> Ints:
        """Node of each GPU [G], also where nodes of the layers are GPUs."""
        home = self.table.starts[0].layer.home
        return np.asarray(self.table.node if home is None else home[self.table.node])

    @cached_property
    def _full(self) -> Bools:
        """Mask [R, E, G] of GPUs that must not get one more replica of an expert."""
        full = self.on | self._crowded if self.crowds else self.on
        return full | self._far if self.inside else full

    @cached_property
    def _far(self) -> Bools:
        """Mask [R, E, G] of GPUs on whose node the current placement has no replica of an expert."""
        near = np.zeros((*self.on.shape[:2], int(self._home.max()) + 1), dtype=np.int64)
        np.add.at(near.transpose(2, 0, 1), self._home, self.table.held[self.rows].transpose(2, 0, 1))
        return np.asarray(near[:, :, self._home] == 0)

    def exchanges(self) -> Offers:
        """Find the best exchange of an item with any slot, free or not."""
        table, at, hot, over = self.table, self.at, self.hot, self.over
        theirs, here = self.expert[:, None], hot[:, :, None, None]
        at4 = at[:, :, None, None]
        back = self.on[at4, theirs, here]  # whether they could come [R, H, G, S]
        if self.crowds:
            other_node = table.node[hot][:, :, None, None] != table.node[:, None]
            back = back | (self._crowded[at4, theirs, here] & other_node)
        barred = (back & self.real[:, None]) | self.fixed[:, None]
        if self.inside:
            barred = barred | (self._home[hot][:, :, None] != self._home)[..., None]
        gpus = np.arange(over.shape[1])[:, None]
        come = np.where(self.real[:, None], self.comes[at4, theirs, here], 0.0)
        come -= np.where(self.real, self.goes[at[..., None], self.expert, gpus], 0.0)[:, None]
        go = self.comes[at[..., None], self.my_expert]
        go = go - self.goes[at[..., None], self.my_expert, hot[..., None]][..., None]
        moves = go[..., None] + come[:, :, None]  # [R, H, S, G, S]
        more = self.each[:, None, None] - self.mine[..., None, None]
        change = _square(over[at, hot][:, :, None, None, None] + more * self.slow[hot][:, :, None, None, None])
        change += _square(over[:, None, None, :, None] - more * self.slow[:, None])
        change -= (self.square[at, hot][:, :, None] + self.square[:, None])[:, :, None, :, None]
        change += np.where(self.barred, np.inf, 0.0)[..., None]
        change += np.where(barred, np.inf, 0.0)[:, :, None]
        score, best, least = _best(change, moves)
        slot, rest = np.divmod(best, self.kind.shape[1] * self.kind.shape[2])
        gpu, other = np.divmod(rest, self.kind.shape[2])
        return Offers(score, least, hot, slot, gpu, other, np.full_like(hot, -1))

    @cached_property
    def _alone(self) -> tuple[Floats, Floats, Floats]:
        """Change of the excess [R, E] when an expert gets one replica more or fewer; and by how much others rise."""
        tokens, count = self.table.tokens[self.rows], self.table.count[self.rows]
        falls = tokens * (1 / count - 1 / (count + 1))
        rises = tokens * (1 / np.maximum(1, count - 1) - 1 / count)
        row, expert, gpu = np.nonzero(self.on)
        over, square, slow = self.over[row, gpu], self.square[row, gpu], self.slow[gpu]

        def total(change: Floats) -> Floats:
            summed = np.bincount(row * count.shape[1] + expert, weights=change, minlength=count.size)
            return np.asarray(summed.reshape(count.shape), dtype=np.float64)

        more = total(_square(over - falls[row, expert] * slow) - square)
        fewer = total(_square(over + rises[row, expert] * slow) - square)
        return more, fewer, rises

    def _without(self, row: Ints, kind: Ints, gpu: Ints) -> Floats:
        """Change of the excess of all other GPUs when this one no longer has its replica, less its own square."""
        _, fewer, rises = self._alone
        own = _square(self.over[row, gpu] + rises[row, kind] * self.slow[gpu])
        return np.asarray(fewer[row, kind] - own)

    def replacements(self, least: int) -> Offers:
        """Find the best replica anywhere that goes for one more of an expert of a busy GPU."""
        table, at, hot = self.table, self.at, self.hot
        tokens, count = table.tokens[self.rows], table.count[self.rows]
        could = self.real & ~self.fixed & (count[at[..., None], np.maximum(self.kind, 0)] >= max(2, least))
        many = could.reshape(len(at), -1).sum(axis=1)
        most = max(1, int(many.max()))
        place = np.argsort(~could.reshape(len(at), -1), axis=1, kind="stable")[:, :most]  # [R, P]
        gpu, other = np.divmod(place, self.kind.shape[2])
        kind = np.maximum(self.kind[at, gpu, other], 0)
        gone = np.where(np.arange(most) < many[:, None], self._without(at, kind, gpu), np.inf)
        left = self.over[at, gpu] - self.each[at, gpu, other] * self.slow[gpu]
        mine, at4, gpu4 = np.maximum(self.my_kind, 0), at[:, :, None, None], gpu[:, None, None]
        each = (tokens / (count + 1))[at[..., None], mine]  # [R, H, S]
        change = _square(left[:, None, None] + each[..., None] * self.slow[gpu4])
        change += gone[:, None, None] + self._alone[0][at[..., None], mine][..., None]
        change[~self.can_go] = np.inf
        change[self._full[at4, mine[..., None], gpu4]] = np.inf
        moves = self.comes[at4, mine[..., None], gpu4] - self.goes[at, kind, gpu][:, None, None]
        score, best, changed = _best(change, moves)
        slot, partner = np.divmod(best, most)
        new = self.my_kind[at, np.arange(hot.shape[1]), slot]
        return Offers(score, changed, hot, slot, gpu[at, partner], other[at, partner], new)

    def arrivals(self, least: int) -> Offers:
        """Find the best replica of a busy GPU that goes for one more of any expert."""
        table, at, hot = self.table, self.at, self.hot
        tokens, count = table.tokens[self.rows], table.count[self.rows]
        mine = np.maximum(self.my_kind, 0)
        can_go = self.can_go & (count[at[..., None], mine] >= max(2, least))
        row, busy, slot = np.nonzero(can_go)
        kind, gpu = mine[row, busy, slot], hot[row, busy]
        left = self.over[row, gpu] - self.mine[row, busy, slot] * self.slow[gpu]
        change = _square(left[:, None] + (tokens / (count + 1))[row] * self.slow[gpu][:, None])
        change += self._without(row, kind, gpu)[:, None] + self._alone[0][row]
        change[self._full[row, :, gpu]] = np.inf
        moves = self.comes[row, :, gpu] - self.goes[row, kind, gpu][:, None]
        score, best, changed = _best(change[:, None], moves[:, None])
        found = Offers(np.full(hot.shape, np.inf), np.zeros(hot.shape), hot, *(np.zeros_like(hot) for _ in range(4)))
        order = np.argsort(-score[:, 0], kind="stable")  # of the slots of one GPU the best is written last
        to = row[order], busy[order]
        found.score[to], found.change[to] = score[order, 0], changed[order, 0]
        found.gpu[to], found.other[to], found.new[to] = gpu[order], slot[order], best[order, 0]
        return found


def _best(change: Floats, moves: Floats) -> tuple[Floats, Ints, Floats]:
    """Return the least change per move over all axes but the first two, where that is, and the change."""
    score = np.where(change < 0, change / np.where(moves > 0, moves, _FREE_MOVE), np.inf)
    score = score.reshape(*change.shape[:2], int(np.prod(change.shape[2:])))
    best = score.argmin(axis=2)[..., None]
    changed = np.take_along_axis(change.reshape(score.shape), best, axis=2)
    return np.take_along_axis(score, best, axis=2)[..., 0], best[..., 0], changed[..., 0]


def _square(value: Floats) -> Floats:
    return np.asarray(np.maximum(0.0, value) ** 2)
