"""One layer while it is changed: what every trade does to links, GPUs and the number of moves.

A trade exchanges the places of two items (or of an item and a free slot). A place is a GPU, or, where a GPU takes one
item and only links count, a node: then GPUs are matched at the end, and no move is lost by that. A replica that the
current placement has at the same place costs no move; so many moves more or fewer are part of what a trade does.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.bounds.assignment import price
from moe_placer.problem.layer import LayerProblem
from moe_placer.search.moves import Moves, excess

__all__ = ["LISTED", "Goal", "LayerState", "Trade", "per_move"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_BUSIEST = 4  # GPUs whose items are traded
_AT_ONCE = 4  # trades that are found at once
LISTED = 256  # trades that are computed exactly
_FREE_MOVE = 0.25  # what a trade without moves counts as, so that it comes before all others


@dataclass(frozen=True)
class Goal:
    """What a layer is judged by: ``links * z + gpus * (tokens of the busiest GPU)``.

    Attributes
    ----------
    links, gpus : float
        Weights; the second is a cost per token. 0: it does not count.
    slowness : float array [GPUs] or None
        How many times as long each GPU takes to compute: a token counts as so many; None: all are alike.
    """

    links: float
    gpus: float
    slowness: Floats | None = None


@dataclass(frozen=True)
class Trade:
    """What to `apply`, and what it does: ``item`` goes to place ``to``, and ``partner`` (-1: none) takes its place."""

    change: float
    moves: int
    item: int
    partner: int
    to: int

    @property
    def score(self) -> float:
        """Change of the excess per move."""
        return self.change / (self.moves if self.moves > 0 else _FREE_MOVE)


class LayerState:
    """A layer with its placement.

    Attributes
    ----------
    place : int array [items]
    held : int array [experts, places]
        Replicas of each expert at each place in the current placement.
    on : int array [experts, places]
        The same now.
    gpu_load : float array [places]
        Tokens per step of each GPU, those of a slow one as many times as it takes longer; zeros where places are nodes.
    """

    def __init__(self, layer: LayerProblem, place: Ints, held: Ints, slots: Ints, goal: Goal) -> None:
        self.layer, self.held, self.slots, self.goal = layer, held, slots, goal
        self.per_node = held.shape[1] // layer.nodes
        self.slowness = np.ones(held.shape[1]) if goal.slowness is None else goal.slowness
        self.place = place.copy()
        self.links = Moves(layer, self.node)
        self._count()

    @property
    def node(self) -> Ints:
        """Node of each item [items]."""
        return np.asarray(self.place // self.per_node)

    @property
    def moves(self) -> int:
        """Replicas that are not where the current placement has one."""
        return int(np.maximum(0, self.on - self.held).sum())

    @property
    def busiest_gpu(self) -> float:
        """Tokens per step of the busiest GPU."""
        return float(self.gpu_load.max(initial=0.0))

    @property
    def value(self) -> float:
        """What the goal says of the placement."""
        return self.goal.links * self.links.z + self.goal.gpus * self.busiest_gpu

    def excess(self, target_z: float, target_gpu: float) -> float:
        """Sum of squares of what links and GPUs have above their targets."""
        goal = self.goal
        links = goal.links**2 * self.links.excess(target_z) if goal.links else 0.0
        return links + goal.gpus**2 * float((np.maximum(0.0, self.gpu_load - target_gpu) ** 2).sum())

    def at_worst(self) -> Ints:
        """Items at the busiest link, or on the busiest GPUs, as far as these count."""
        found = np.zeros(self.layer.items, dtype=bool)
        if self.goal.links:
            found[self.links.items_at_worst()] = True
        if self.goal.gpus:
            busiest = np.argsort(-self.gpu_load, kind="stable")[:_BUSIEST]
            found |= np.isin(self.place, busiest)
        return np.flatnonzero(found)

    def best_trades(self, items: Ints, target_z: float, target_gpu: float, inside: bool) -> list[Trade]:
        """Find trades that lower the excess most per move, of which no two have an expert or a place in common.

        What they do to GPUs and moves adds up; what they do to links need not.

        Parameters
        ----------
        items : int array
            Items that may take part.
        target_z : float
            z that is good enough, tokens at node-link speed.
        target_gpu : float
            Tokens per step of the busiest GPU that are good enough.
        inside : bool
            Whether trades between nodes are out.
        """
        partners, places = self._partners()
        if not len(items) or not len(partners):
            return []
        gpus = self._gpu_changes(items, partners, places, target_gpu)
        least = gpus + self._least_link_changes(items, partners, places, target_z)
        moves = self._moves(items, partners, places)
        least[self._forbidden(items, partners, places, inside)] = np.inf
        score = per_move(least, moves).ravel()
        few = np.argpartition(score, LISTED)[:LISTED] if len(score) > LISTED else np.arange(len(score))
        few = few[np.isfinite(score[few])]
        i, j = np.divmod(few, len(partners))
        change = self._link_changes(items[i], partners[j], places[j], target_z)
        change += gpus[i, j]
        score = per_move(change, moves[i, j])
        found: list[Trade] = []
        taken: set[int] = set()
        for at in np.argsort(score, kind="stable").tolist():
            if not np.isfinite(score[at]) or len(found) == _AT_ONCE:
                break
            item, partner, place = int(items[i[at]]), int(partners[j[at]]), int(places[j[at]])
            touched = {int(self.place[item]), place, -1 - int(self.layer.expert[item])}
            touched |= {-1 - int(self.layer.expert[partner])} if partner >= 0 else set()
            if taken.isdisjoint(touched):
                taken |= touched
                found.append(Trade(float(change[at]), int(moves[i[at], j[at]]), item, partner, place))
        return found

    def random_trade(self, item: int, rng: np.random.Generator, inside: bool) -> Trade | None:
        """Choose any allowed trade of an item."""
        partners, places = self._partners()
        items = np.array([item])
        allowed = np.flatnonzero(~self._forbidden(items, partners, places, inside)[0])
        if not len(allowed):
            return None
        j = int(rng.choice(allowed))
        return Trade(0.0, 0, item, int(partners[j]), int(places[j]))

    def apply(self, trade: Trade) -> None:
        """Make a trade."""
        here = int(self.place[trade.item])
        if trade.partner >= 0:
            self.place[trade.partner] = here
        self.place[trade.item] = trade.to
        self.links.reset(self.node)
        self._count()

    def _count(self) -> None:
        self.on = np.zeros_like(self.held)
        np.add.at(self.on, (self.layer.expert, self.place), 1)
        self.taken = np.bincount(self.place, minlength=self.held.shape[1])
        self.gpu_load: Floats = np.zeros(self.held.shape[1])
        if self.goal.gpus:
            np.add.at(self.gpu_load, self.place, self.layer.load * self.slowness[self.place])

    def _partners(self) -> tuple[Ints, Ints]:
        """Every item, and one free slot of every place that has any (item -1), with their places."""
        free = np.flatnonzero(self.taken < self.slots)
        partners = np.concatenate([np.arange(self.layer.items), np.full(len(free), -1)])
        return partners, np.concatenate([self.place, free])

    def _least_link_changes(self, items: Ints, partners: Ints, places: Ints, target_z: float) -> Floats:
        """Bound the change of the links' excess from below [items, partners]: its slope, for it is convex in costs."""
        if not self.goal.links:
            return np.zeros((len(items), len(partners)))
        slope = 2 * np.maximum(0.0, self.links.cost - target_z)
        prices = np.vstack([price(self.layer, slope), np.zeros(self.layer.nodes)])  # last: a free slot
        here, there = self.node[items], places // self.per_node
        change = prices[items][:, there] + prices[partners][:, here].T
        change -= prices[items, here][:, None]
        change -= prices[partners, there][None, :]
        change[here[:, None] == there[None, :]] = 0.0
        return np.asarray(self.goal.links**2 * change)

    def _link_changes(self, item: Ints, partner: Ints, place: Ints, target_z: float) -> Floats:
        """Change of the links' excess [C] by each of C trades."""
        if not self.goal.links:
            return np.zeros(len(item))
        layer, here, there = self.layer, self.node[item], place // self.per_node
        cost, rows, back = np.zeros((len(item), layer.links + 1)), np.arange(len(item))[:, None], partner >= 0
        for who, node, sign in ((item, here, -1.0), (item, there, 1.0)):
            np.add.at(cost, (rows, layer.affected[node]), sign * layer.delta[who, node])
        who, rows = partner[back], rows[back]
        for node, sign in ((there[back], -1.0), (here[back], 1.0)):
            np.add.at(cost, (rows, layer.affected[node]), sign * layer.delta[who, node])
        cost[here == there] = 0.0
        after = excess(self.links.cost + cost[:, :-1], target_z)
        return np.asarray(self.goal.links**2 * (after - self.links.excess(target_z)))

    def _gpu_changes(self, items: Ints, partners: Ints, places: Ints, target_gpu: float) -> Floats:
        """Change of the GPUs' excess [items, partners]."""
        change = np.zeros((len(items), len(partners)))
        goal = self.goal
        if goal.gpus:
            load = np.append(self.layer.load, 0.0)
            more = load[partners][None, :] - load[items][:, None]  # of the item's GPU
            here, there = self.gpu_load[self.place[items]][:, None], self.gpu_load[places][None, :]
            slow_here, slow_there = self.slowness[self.place[items]][:, None], self.slowness[places][None, :]
            gpus = _square(here + slow_here * more - target_gpu) - _square(here - target_gpu)
            gpus += _square(there - slow_there * more - target_gpu) - _square(there - target_gpu)
            change += goal.gpus**2 * gpus
        return change

    def _moves(self, items: Ints, partners: Ints, places: Ints) -> Ints:
        """Count moves more [items, partners]; negative where replicas come home."""
        come, go = (self.on >= self.held).astype(np.int64), (self.on > self.held).astype(np.int64)
        mine, here = self.layer.expert[items], self.place[items]
        real = partners >= 0
        theirs = np.where(real, self.layer.expert[partners], 0)
        back = np.where(real[None, :], come[theirs][:, here].T - go[theirs, places][None, :], 0)
        more = come[mine][:, places] - go[mine, here][:, None] + back
        return np.where(real[None, :] & (mine[:, None] == theirs[None, :]), 0, more)

    def _forbidden(self, items: Ints, partners: Ints, places: Ints, inside: bool) -> Bools:
        """Mask [items, partners] of trades that are none, or break pins or distances."""
        layer, here = self.layer, self.place[items]
        nodes = places // self.per_node
        real = partners >= 0
        same_node = self.node[items][:, None] == nodes[None, :]
        near = same_node  # or on GPUs of one node, where GPUs stand for nodes
        if layer.home is not None:
            near = layer.home[here][:, None] == layer.home[places][None, :]
        forbidden = here[:, None] == places[None, :]
        forbidden |= (layer.pinned[items] >= 0)[:, None] | (real & (layer.pinned[partners] >= 0))[None, :]
        if inside:
            forbidden |= ~near
        forbidden |= ~same_node & self.links.not_allowed(items, partners, nodes)
        if self.per_node > 1:
            mine, theirs = layer.expert[items], np.where(real, layer.expert[partners], -1)
            meets = (self.on[mine][:, places] > 0) | ((self.on[theirs][:, here].T > 0) & real[None, :])
            forbidden |= meets & (mine[:, None] != theirs[None, :])
        return np.asarray(forbidden)


def per_move(change: Floats, moves: Ints) -> Floats:
    """Change of the excess per move, where it falls; else infinite."""
    return np.where(change < 0, change / np.where(moves > 0, moves, _FREE_MOVE), np.inf)


def _square(value: Floats) -> Floats:
    return np.asarray(np.maximum(0.0, value) ** 2)
