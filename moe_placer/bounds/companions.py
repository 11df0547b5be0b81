"""A bound where tokens are sent once per node: whoever holds a hot expert holds others as well, and what they add.

docs/bounds.md states and proves it (``companions``). Of node n, which holds hot item i, every other item j of view v
adds ``alpha[v, j]`` less ``beta[v, j, j']`` for each fellow j' at least, since a token that fires x of its fellows
counts ``1 / (1 + x)`` with each, and ``1 / (1 + x) >= 2 / (a + 2) - x / ((a + 1) * (a + 2))`` for any whole a >= 0. The
better a foresees x, the better the bound: it counts how many of a token's experts are among j's guessed companions.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.bounds.fellows import least_addition
from moe_placer.limits import Deadline
from moe_placer.problem.coverage import Coverage
from moe_placer.problem.layer import LayerProblem

__all__ = ["MOST_COMPANIONS", "CompanionWork", "Companions", "hot_companions"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]
Singles = npt.NDArray[np.float32]

MOST_COMPANIONS = 15  # guessed for an expert: more make the file larger and hardly the bound
_CANDIDATES = 4  # hot items tried
_DEEP = 160  # items up to which two members are branched on, beyond one
_ROUNDS = 10  # of better guesses, on one place
_AS_HOT = 1e-9  # links that cost the hot item this much less than the worst are tried as well


@dataclass(frozen=True, eq=False)
class Companions:
    """What proves that whoever holds a hot item receives so much.

    Attributes
    ----------
    value : float
        Cost (tokens at node-link speed).
    hot : int
        Item.
    depth : int
        Members that are branched on.
    order : int array [experts]
        In which members are branched on; of one expert's items, by view.
    guess : bool array [views, experts, experts]
        ``guess[v, j, e]``: e is a guessed companion of j.
    """

    value: float
    hot: int
    depth: int
    order: Ints
    guess: Bools


def hot_companions(layer: LayerProblem, deadline: Deadline, deep: bool = True) -> Companions | None:
    """Return the best bound of this kind that is found, over items that cost most alone; None where there is none.

    Unless ``deep``, no member is branched on: a tenth of the time, and about 10% less.
    """
    assert layer.coverage is not None
    if not layer.links or layer.nodes < 2:
        return None
    work = CompanionWork(layer, layer.coverage)
    screened = []
    for item in np.argsort(-work.alone(), kind="stable")[:_CANDIDATES].tolist():
        guess = work.greedy_guess(item)
        screened.append((work.floor(item, guess, 0)[0], item, guess))
    screened.sort(key=lambda one: -one[0])
    best = Companions(screened[0][0], screened[0][1], 0, work.order, screened[0][2])
    depth = 2 if layer.items <= _DEEP else 1
    if deep and not deadline.over:
        found = work.deepened(best.hot, best.guess, depth, deadline)
        best = found if found.value > best.value else best
    return best


class CompanionWork:
    """One layer's tokens and prices, arranged for these bounds."""

    def __init__(self, layer: LayerProblem, coverage: Coverage) -> None:
        self.layer, self.sets, self.sending = layer, coverage.sets, coverage.sending
        self.experts = coverage.sets.experts
        self.choice = coverage.sets.choice.astype(np.int64)
        drawn = coverage.sending.drawn
        replicas = np.bincount(layer.expert, minlength=self.experts)
        self.chance = 1 / replicas if drawn else np.ones(self.experts)
        self.view = np.zeros_like(layer.replica) if drawn else layer.replica
        self.places = np.flatnonzero(layer.widest > 0)
        self.least = np.maximum(0, layer.items - (layer.widest.sum() - layer.widest))
        nodes, links, _ = coverage.sending.prices.shape
        self.prices = coverage.sending.prices.reshape(nodes, links, coverage.sending.views, -1)
        self.load = np.stack([self._by_expert(file) for file in range(len(self.sets.tokens))])
        self.order = np.argsort(-self.load.sum(axis=0), kind="stable")
        self.hit = np.zeros((len(self.choice), self.experts), dtype=np.float32)
        np.put_along_axis(self.hit, self.choice, 1.0, axis=1)

    def _by_expert(self, file: int) -> Floats:
        """Share of a file's tokens that draw a replica of each expert [experts]."""
        mine = self.sets.file == file
        weight = np.repeat(self.sets.weight[mine], self.choice.shape[1])
        return np.asarray(np.bincount(self.choice[mine].ravel(), weight, self.experts) * self.chance)

    def alone(self) -> Floats:
        """Cost of the busiest link if an item is where that is least, and nothing else is there [items]."""
        cost = np.einsum("dkvf,fe->vedk", self.prices[self.places], self.load).max(axis=3).min(axis=2)
        return np.asarray(cost[self.view, self.layer.expert])

    def _rest(self, item: int | None, view: int) -> Floats:
        """Chance that each class of tokens is not on the hot item's node because of it [classes], in a view."""
        if item is None or view != self.view[item]:
            return np.ones(len(self.choice))
        expert = int(self.layer.expert[item])
        return np.asarray(1.0 - self.hit[:, expert].astype(np.float64) * self.chance[expert])

    def greedy_guess(self, item: int | None) -> Bools:
        """Guess for every expert, in every view, the companions that save most of its tokens, one after the other."""
        most = min(MOST_COMPANIONS, max(0, int(self.least[self.places].max(initial=1)) - 2), self.experts - 2)
        guess = np.zeros((self.sending.views, self.experts, self.experts), dtype=bool)
        for view in range(self.sending.views):
            source = self.sending.source[self.sending.view == view].sum(axis=0)
            weight = (self.sets.weight * source[self.sets.file] * self._rest(item, view)).astype(np.float32)
            hot = int(self.layer.expert[item]) if item is not None and view == self.view[item] else -1
            for expert in range(self.experts):
                rows = np.flatnonzero(self.hit[:, expert] * weight > 0)
                guess[view, expert] = self._greedy(self.hit[rows], weight[rows], most, [expert, hot])
        return guess

    def _greedy(self, hit: Singles, weight: Singles, most: int, not_: list[int]) -> Bools:
        """Choose experts that share tokens with each other least and with these rows most."""
        chosen = np.zeros(self.experts, dtype=bool)
        if not len(hit):
            return chosen
        taken, count = chosen.copy(), np.zeros(len(hit), dtype=np.float32)
        taken[[expert for expert in not_ if expert >= 0]] = True
        for _ in range(most):
            saved = (weight / ((1 + count) * (2 + count))) @ hit
            best = int(np.where(taken, -1.0, saved).argmax())
            taken[best] = chosen[best] = True
            count += hit[:, best]
        return chosen

    def foresee(self, guess: Bools, members: Ints) -> None:
        """Let the items of a set that would add little guess each other, as far as one view sees them."""
        for view in range(len(guess)):
            mine = self.layer.expert[members[self.view[members] == view]]
            for expert in mine.tolist():
                guess[view, expert] = False
                guess[view, expert, [e for e in mine.tolist() if e != expert][:MOST_COMPANIONS]] = True

    def deepened(self, item: int, guess: Bools, depth: int, deadline: Deadline) -> Companions:
        """Improve a guess where the bound is least, by the sets that would make it so, and branch everywhere.

        Parameters
        ----------
        item : int
            The hot item.
        guess : bool array
            Mask [experts] of companions to begin with.
        depth : int
            Branch over the first companion (1), or over the first two (2).
        deadline : Deadline
            When to stop, whatever has been reached.
        """
        value, members, place = self.floor(item, guess, depth)
        best = Companions(value, item, depth, self.order, guess)
        others, trial, found = self._in_order(item), guess.copy(), guess
        for _ in range(_ROUNDS):
            if deadline.over:
                return best
            self.foresee(trial, members)
            reached, members = self._on(place, item, others, self._all_added(item, trial), depth)
            if reached > value:
                value, found = reached, trial.copy()
        value, _, _ = self.floor(item, found, depth)
        return Companions(value, item, depth, self.order, found) if value > best.value else best

    def _all_added(self, item: int, guess: Bools) -> list[tuple[Floats, Floats]]:
        return [self.added(item, view, guess[view]) for view in range(self.sending.views)]

    def floor(self, item: int, guess: Bools, depth: int) -> tuple[float, Ints, int]:
        """Return the bound that a guess gives, and by which items beside the hot one and on which place it is least."""
        added = self._all_added(item, guess)
        others = self._in_order(item)
        roots = {place: self._on(place, item, others, added, 0) for place in self.places.tolist()}
        deep: set[int] = set()
        while roots:  # what is not branched on yet is at least what it is without
            place = min(roots, key=lambda one: roots[one][0])
            if depth == 0 or place in deep:
                return *roots[place], place
            roots[place] = self._on(place, item, others, added, depth)
            deep.add(place)
        return 0.0, np.zeros(0, dtype=np.int64), 0

    def _in_order(self, item: int) -> Ints:
        """All items but one, in the order that is branched on."""
        position = np.argsort(self.order)
        items = np.lexsort((np.arange(self.layer.items), self.view, position[self.layer.expert]))
        return np.asarray(items[items != item])

    def _on(
        self, place: int, item: int, others: Ints, added: list[tuple[Floats, Floats]], depth: int
    ) -> tuple[float, Ints]:
        """Return what a place that holds the hot item must receive, and which others would make it so little.

        On the link that the hot item costs most; of links that it costs alike, such as both ends of the way between
        two nodes of one DP group, on the one where others add most.
        """
        cost = self.prices[place, :, self.view[item]] @ self.load[:, self.layer.expert[item]]
        links = np.flatnonzero(cost >= cost.max(initial=0.0) * (1 - _AS_HOT))
        prices = np.unique(self.prices[place, links], axis=0)
        return max((self._at(price, place, item, others, added, depth) for price in prices), key=lambda one: one[0])

    def _at(
        self, price: Floats, place: int, item: int, others: Ints, added: list[tuple[Floats, Floats]], depth: int
    ) -> tuple[float, Ints]:
        """Return the same on one link, with what a token there costs.

        Parameters
        ----------
        price : float array [views, files]
            Cost of all tokens.
        place : int
            Of the hot item.
        item : int
            The hot one.
        others : int array
            Items that may be with it, in the order that is branched on.
        added : list
            What `added` says, by view.
        depth : int
            How many companions are branched on.
        """
        expert, view = int(self.layer.expert[item]), int(self.view[item])
        alpha, beta = np.zeros(len(others)), np.zeros((len(others), len(others)))
        for v, (alone, saved) in enumerate(added):
            mine = np.flatnonzero(self.view[others] == v)
            experts = self.layer.expert[others[mine]]
            alpha[mine] = (price[v] @ alone)[experts]
            beta[np.ix_(mine, mine)] = np.einsum("f,fij->ij", price[v], saved)[np.ix_(experts, experts)]
        value, chosen = least_addition(alpha, beta, int(self.least[place]) - 1, depth)
        return float(price[view] @ self.load[:, expert]) + value, others[chosen]

    def added(self, item: int | None, view: int, guess: Bools) -> tuple[Floats, Floats]:
        """Return alpha [files, experts] and beta [files, experts, experts] of experts seen by a view."""
        choice, sets, files = self.choice, self.sets, len(self.sets.tokens)
        rest = sets.weight * self._rest(item, view)
        met = guess[choice[:, :, None], choice[:, None, :]].sum(axis=2)  # [classes, top_k]
        row = sets.file[:, None] * self.experts + choice
        alone = np.bincount(row.ravel(), (rest[:, None] * 2 / (met + 2)).ravel(), files * self.experts)
        pair = row[:, :, None] * self.experts + choice[:, None, :]
        slope = np.broadcast_to((rest[:, None] / ((met + 1) * (met + 2)))[:, :, None], pair.shape)
        saved = np.bincount(pair.ravel(), slope.ravel(), files * self.experts**2)
        beta = saved.reshape(files, self.experts, self.experts) * self.chance[:, None] * self.chance[None, :]
        beta[:, np.arange(self.experts), np.arange(self.experts)] = 0.0  # two replicas of one expert save nothing
        return alone.reshape(files, self.experts) * self.chance, beta
