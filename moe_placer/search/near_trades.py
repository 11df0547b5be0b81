"""Trades of replicas under rules that prefer near ones, each counted exactly: only the experts that trade change.

Two replicas trade GPUs, one goes to a free slot, or the slot of an expert that has others takes another expert.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.problem.near_replicas import NearLayer
from moe_placer.search.near_tables import move_table

__all__ = ["NearState", "Trades"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_ROUNDING = 1e-12
_STEP, _LISTED, _RANKED = 60_000, 4, 2  # numbers that a step counts as, a trade that it lists, a move in its table
_RATE = 4e7  # numbers that are computed in a second of effort


@dataclass(frozen=True, eq=False)
class Trades:
    """Changes of one or two experts each: expert ``one`` leaves a GPU and comes to another, and ``other`` likewise.

    Attributes
    ----------
    one, gone, come : int array [C]
        Expert, the GPU that it leaves, and the one that it comes to; -1: none.
    other, other_gone, other_come : int array [C]
        The same of a second expert; -1 where there is none.
    """

    one: Ints
    gone: Ints
    come: Ints
    other: Ints
    other_gone: Ints
    other_come: Ints

    def __len__(self) -> int:
        return len(self.one)

    @property
    def sides(self) -> tuple[tuple[Ints, Ints, Ints], tuple[Ints, Ints, Ints]]:
        """Expert, the GPU that it leaves, and the one that it comes to, of both."""
        return (self.one, self.gone, self.come), (self.other, self.other_gone, self.other_come)

    def some(self, which: Ints) -> Trades:
        """Return those at ``which``."""
        return Trades(*(column[which] for column in vars(self).values()))

    @classmethod
    def together(cls, *parts: Trades) -> Trades:
        """Return all of several lists."""
        columns = zip(*(vars(part).values() for part in parts), strict=True)
        return cls(*(np.concatenate(column) for column in columns))


class NearState:
    """Replicas on GPUs, with costs of links and loads of GPUs, expert by expert; counts the effort that it takes."""

    def __init__(self, near: NearLayer, on: Bools) -> None:
        self.near, self.on, self.spent = near, on.copy(), 0.0
        self.size = len(near.slots) // near.nodes
        self.of_links = near.links(near.by_node(on), near.tokens)
        self.of_gpus = near.rule.on_gpus(on, near.tokens)
        self._add_up()

    def _add_up(self) -> None:
        self.cost, self.load = self.near.base + self.of_links.sum(axis=0), self.of_gpus.sum(axis=0)

    @property
    def z(self) -> float:
        """Cost of the busiest link; 0 where what cancels exactly leaves rounding."""
        z = float(self.cost.max(initial=0.0))
        return z if z > _ROUNDING * float(self.near.base.max(initial=0.0)) else 0.0

    @property
    def busiest(self) -> float:
        """Tokens of the busiest GPU."""
        return float(self.load.max(initial=0.0))

    def copy(self) -> NearState:
        """Return the same placement to go on from; what it spends is its own."""
        return NearState(self.near, self.on)

    def after(self, trades: Trades) -> tuple[Floats, Floats]:
        """Costs of links [C, K] and loads of GPUs [C, GPUs] after each trade."""
        cost, load = np.tile(self.cost, (len(trades), 1)), np.tile(self.load, (len(trades), 1))
        for expert, gone, come in trades.sides:
            some = np.flatnonzero(expert >= 0)
            who, on = expert[some], self.on[expert[some]]
            rows = np.arange(len(some))
            for gpu, there in ((gone[some], False), (come[some], True)):
                on[rows[gpu >= 0], gpu[gpu >= 0]] = there
            tokens = self.near.tokens[who]
            cost[some] += self.near.links(self.near.by_node(on), tokens) - self.of_links[who]
            load[some] += self.near.rule.on_gpus(on, tokens) - self.of_gpus[who]
            self._spend(len(some) * (2 * self.near.nodes**2 + 4 * len(self.load)))
        return cost, load

    def make(self, trades: Trades, at: int) -> None:
        """Make one trade."""
        one = trades.some(np.array([at]))
        for expert, gone, come in one.sides:
            e, g, h = int(expert[0]), int(gone[0]), int(come[0])
            if e < 0:
                continue
            if g >= 0:
                self.on[e, g] = False
            if h >= 0:
                self.on[e, h] = True
            tokens = self.near.tokens[e]
            self.of_links[e] = self.near.links(self.near.by_node(self.on[e]), tokens)
            self.of_gpus[e] = self.near.rule.on_gpus(self.on[e], tokens)
        self._add_up()

    def trades(self, experts: Ints, most: int | None, rng: np.random.Generator, among: Ints | None = None) -> Trades:
        """List the trades of experts with each other, or with ``among``; where too many, a drawn part of them.

        Parameters
        ----------
        experts : int array
            Whose replicas move.
        most : int or None
            How many to list; None: all.
        rng : numpy.random.Generator
            Draws the part.
        among : int array or None
            With whom; None: with each other.
        """
        mine, gpus = np.nonzero(self.on[experts])
        mine = experts[mine]
        others = experts if among is None else among
        theirs, their_gpus = np.nonzero(self.on[others])
        theirs = others[theirs]
        parts = [self._swaps(mine, gpus, theirs, their_gpus, among is None)]
        free = np.flatnonzero(self.near.slots > self.on.sum(axis=0))
        if len(free):
            i, j = np.indices((len(mine), len(free))).reshape(2, -1)
            none = np.full(len(i), -1)
            parts.append(Trades(mine[i], gpus[i], free[j], none, none, none))
        if self.near.counts_are_free:
            spare = self.on.sum(axis=1) > 1
            parts.append(self._changes(mine[spare[mine]], gpus[spare[mine]], others))
            if among is not None:
                parts.append(self._changes(theirs[spare[theirs]], their_gpus[spare[theirs]], experts))
        found = Trades.together(*parts)
        self._spend(_STEP + _LISTED * len(found))
        found = found.some(np.flatnonzero(self._allowed(found)))
        if most is not None and len(found) > most:
            found = found.some(np.sort(rng.choice(len(found), most, replace=False)))
        return found

    @staticmethod
    def _swaps(mine: Ints, gpus: Ints, theirs: Ints, their_gpus: Ints, once: bool) -> Trades:
        i, j = np.triu_indices(len(mine), 1) if once else np.indices((len(mine), len(theirs))).reshape(2, -1)
        return Trades(mine[i], gpus[i], their_gpus[j], theirs[j], their_gpus[j], gpus[i])

    @staticmethod
    def _changes(leaving: Ints, gpus: Ints, coming: Ints) -> Trades:
        i, j = np.indices((len(leaving), len(coming))).reshape(2, -1)
        none = np.full(len(i), -1)
        return Trades(leaving[i], gpus[i], none, coming[j], none, gpus[i])

    def _allowed(self, trades: Trades) -> Bools:
        """Mask of trades [C] that leave replicas of an expert on different GPUs, or nodes."""
        allowed = (trades.one != trades.other) & (trades.gone != trades.come)
        held = self.near.by_node(self.on) if self.near.apart else None
        for expert, gone, come in trades.sides:
            comes = (expert >= 0) & (come >= 0)
            allowed &= ~(comes & self.on[expert, come])
            if held is not None:
                here, there = gone // self.size, come // self.size
                crowded = held[expert, there] > ((gone >= 0) & (here == there))
                allowed &= ~(comes & crowded)
        return np.asarray(allowed)

    def allows(self, trades: Trades, at: int) -> bool:
        """Whether a trade that was listed before can still be made."""
        one = trades.some(np.array([at]))
        for expert, gone, _ in one.sides:
            if expert[0] >= 0 and gone[0] >= 0 and not self.on[expert[0], gone[0]]:
                return False
        alone = one.come[0] < 0 and self.on[one.one[0]].sum() < 2
        full = one.other[0] < 0 and self.on[:, one.come[0]].sum() >= self.near.slots[one.come[0]]
        return bool(self._allowed(one)[0]) and not alone and not full

    def savings(self, trades: Trades, weights: Floats) -> Floats:
        """Rank trades [C] by what they add to the links' cost at ``weights`` [K]: a table per expert, no costs.

        Parameters
        ----------
        trades : Trades
        weights : float array [K]
        """
        near = self.near
        who = np.unique(np.concatenate([trades.one, trades.other[trades.other >= 0]]))
        place = np.full(len(self.on), -1)
        place[who] = np.arange(len(who))
        table = move_table(near, near.by_node(self.on[who]), near.tokens[who], near.prices(weights))
        self._spend(_RANKED * table.size)
        nodes, total = near.nodes, np.zeros(len(trades))
        for expert, gone, come in trades.sides:
            some = expert >= 0
            g = np.where(gone < 0, nodes, gone // self.size)[some]
            c = np.where(come < 0, nodes, come // self.size)[some]
            total[some] += table[place[expert[some]], g, c]
        return total

    def _spend(self, numbers: float) -> None:
        self.spent += numbers / _RATE
