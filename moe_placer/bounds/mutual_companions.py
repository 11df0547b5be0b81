"""A bound where tokens are sent once per place, for any number of replicas: pairs of companions, each counted once.

docs/bounds.md states and proves it (``mutual-companions``). Under link weights and ``even`` routing a placement with
replicas costs a mean, over which replica of each expert is drawn, of what placements with one replica of each cost; a
mean is at least the least. In such a placement nobody has more companions than its place has other slots, and two
experts are companions of each other or not at all. The saving is concave in how much of a companion everyone is to
everyone else, so a gradient at a good fractional answer (``near``) and prices of companionship bound it.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.bounds.assignment import assign_to_slots
from moe_placer.bounds.largest import largest
from moe_placer.limits import Deadline
from moe_placer.problem.layer import LayerProblem

__all__ = ["WHOLE", "MutualCompanions", "mutual_companions"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

WHOLE = 64  # parts of a companion in ``near``
_FEW, _MANY = 12, 60  # rounds for every choice of weights, and more for the best of them
_SAMPLE = 16_384  # sets of experts that rounds look at; what is stated counts all
_NEAR = 0.85  # of a known bound, below which more rounds do not reach it
_WEIGHED = 2  # choices of weights that are looked at place by place
_BLOCK = 16_384  # sets looked at at once
_STEPS = 3  # of prices in every round
_STEP = 0.1  # of prices, relative to their mean
_POLISH = 120  # steps of prices at the end


@dataclass(frozen=True, eq=False)
class MutualCompanions:
    """What proves a bound by link weights and pairs.

    Attributes
    ----------
    value : float
        Cost (tokens at node-link speed).
    weights : float array [links]
        They sum to 1.
    near : int array [views, experts, experts]
        How much of a companion each expert is to each other, in 64ths; symmetric.
    prices : float array [views, experts]
        Of one companion of each expert, as a share of all tokens.
    """

    value: float
    weights: Floats
    near: Ints
    prices: Floats


def mutual_companions(
    layer: LayerProblem, weights: list[Floats], deadline: Deadline, deep: bool = True, known: float = 0.0
) -> MutualCompanions | None:
    """Return the best bound of this kind by one of the weights; None where there is none.

    Parameters
    ----------
    layer : LayerProblem
        One MoE layer; its numbers of replicas do not count where tokens draw them.
    weights : list of float array [links]
        Each sums to 1.
    deadline : Deadline
        When to stop, whatever has been reached.
    deep : bool
        Whether to take four times as long on the best weights: about 5% more.
    known : float
        A bound that is known: what is far below it is not worth more time.
    """
    assert layer.coverage is not None
    if not layer.links or layer.nodes < 2 or not weights:
        return None
    tried = [_Ascent(layer, one) for one in weights]
    for one in tried:
        one.go_on(_FEW, deadline)
    tried.sort(key=lambda one: -one.value)
    stated = [one.stated() for one in tried[:_WEIGHED]]  # places need not cost alike: then they prove less
    best = largest(stated)
    if not deep or deadline.over or best.value < _NEAR * known:
        return best
    again = tried[stated.index(best)]
    again.go_on(_MANY, deadline)
    return largest([again.stated(), best])


class _Ascent:
    """One layer under link weights: everybody's companions, improved round by round."""

    def __init__(self, layer: LayerProblem, weights: Floats) -> None:
        assert layer.coverage is not None
        self.layer, self.sets, self.weights = layer, layer.coverage.sets, weights
        nodes, links, _ = layer.coverage.sending.prices.shape
        views = layer.coverage.sending.views
        table = layer.coverage.sending.prices.reshape(nodes, links, views, -1)
        self.prices = np.einsum("k,dkvf->dvf", weights, table)
        self.places = np.flatnonzero(layer.widest > 0)
        self.mean = self.prices[self.places].mean(axis=0)
        most, step = int(layer.widest.max()) - 1, -(-len(self.sets.choice) // _SAMPLE)
        choice, file = self.sets.choice[::step].astype(np.int64), self.sets.file[::step]
        share = self.sets.weight[::step] * step
        self.views = [_View(choice, share * price[file], self.sets.experts, most) for price in self.mean]

    @property
    def value(self) -> float:
        """What this would prove if all places cost alike."""
        return sum(view.value for view in self.views)

    def go_on(self, rounds: int, deadline: Deadline) -> None:
        """Improve every view by so many rounds."""
        for view in self.views:
            for _ in range(rounds if view.most > 0 else 0):
                if deadline.over:
                    return
                view.improve()

    def stated(self) -> MutualCompanions:
        """Return what proves the best that was found, rounded as it is stated, with all tokens counted."""
        experts, files = self.sets.experts, len(self.sets.tokens)
        near, prices, shares = [], [], []
        choice = self.sets.choice.astype(np.int64)
        for number, view in enumerate(self.views):
            parts = np.floor(view.near * WHOLE + 0.5).astype(np.int64)
            alpha, beta = np.zeros((files, experts)), np.zeros((files, experts, experts))
            for file in range(files):
                mine = self.sets.file == file
                alpha[file], beta[file] = _lines(choice[mine], self.sets.weight[mine], parts)
            whole = float(self.mean[number].sum()) or 1.0
            price = _polished(np.einsum("f,fij->ij", self.mean[number], beta), view.most, view.price) / whole
            near.append(parts)
            prices.append(np.minimum(price, 1.0))
            shares.append(self._shares(number, alpha, beta, prices[-1]))
        value = max(0.0, assign_to_slots(np.concatenate(shares), self.layer.widest[self.places]))
        return MutualCompanions(value, self.weights, np.stack(near), np.stack(prices))

    def _shares(self, view: int, alpha: Floats, beta: Floats, price: Floats) -> Floats:
        """Return the least share of a place's price that every expert can have [experts, places with slots]."""
        known: dict[tuple[bytes, int], Floats] = {}
        columns = []
        for place in self.places.tolist():
            of_file, fellows = self.prices[place, view], int(self.layer.widest[place]) - 1
            kind = (of_file.tobytes(), fellows)
            if kind not in known:
                saved = np.einsum("f,fij->ij", of_file, beta)
                parts = _split(saved, price * float(of_file.sum()))
                fellows = min(fellows, len(parts) - 1)
                most = np.partition(parts, len(parts) - fellows, axis=1)[:, len(parts) - fellows :] if fellows else 0.0
                known[kind] = of_file @ alpha - np.sum(most, axis=-1)
            columns.append(known[kind])
        return np.stack(columns, axis=1)


class _View:
    """What the sources of one view send at mean prices, and who is how near to whom in the best answer so far.

    Parameters
    ----------
    choice : int array [classes, top_k]
    weight : float array [classes]
        Cost of the tokens of each class on one place.
    experts : int
    most : int
        Companions that an expert can have.
    """

    def __init__(self, choice: Ints, weight: Floats, experts: int, most: int) -> None:
        self.choice, self.weight, self.most = choice, weight, most
        self._mean, self._rounds = np.zeros((experts, experts)), 0
        alone, self._saved = _lines(choice, weight, self._mean.astype(np.int64))
        place = max(0, experts - 1 - most)
        self._price = np.partition(self._saved, place, axis=1)[:, place] / 2
        self.value, self.near, self.price = -np.inf, self._mean, self._price
        self._note(float(alone.sum()))

    def improve(self) -> None:
        """Move towards the companions that save most at these prices (Frank and Wolfe), and prices with them."""
        for _ in range(_STEPS):
            self._price = _stepped(self._saved, self.most, self._price, self._rounds)
        wanted = (_left(self._saved, self._price) > 0).astype(np.float64)
        self._mean = self._mean + (wanted - self._mean) * 2 / (self._rounds + 3)
        self._rounds += 1
        parts = np.floor(self._mean * WHOLE + 0.5).astype(np.int64)
        alone, self._saved = _lines(self.choice, self.weight, parts)
        self._note(float(alone.sum()))

    def _note(self, alone: float) -> None:
        value = alone - _worth(self._saved, self.most, self._price)
        if value > self.value:
            self.value, self.near, self.price = value, self._mean, self._price


def _lines(choice: Ints, weight: Floats, near: Ints) -> tuple[Floats, Floats]:
    """Return what experts add alone [experts], and what pairs of them save on one place [experts, experts]."""
    experts = len(near)
    alone, saved = np.zeros(experts), np.zeros(experts**2)
    for first in range(0, len(choice), _BLOCK):
        some, share = choice[first : first + _BLOCK], weight[first : first + _BLOCK, None]
        pair = some[:, :, None] * experts + some[:, None, :]
        a = near.ravel()[pair].sum(axis=2) // WHOLE
        alone += np.bincount(some.ravel(), (share * (2 / (a + 2))).ravel(), experts)
        slope = np.broadcast_to((share / ((a + 1) * (a + 2)))[:, :, None], pair.shape)
        saved += np.bincount(pair.ravel(), slope.ravel(), experts**2)
    both = saved.reshape(experts, experts)
    np.fill_diagonal(both, 0.0)
    return alone, both + both.T


def _left(saved: Floats, price: Floats) -> Floats:
    """Return what is left of each pair's saving when both have paid for a companion [experts, experts]."""
    left = saved - price[:, None] - price[None, :]
    np.fill_diagonal(left, 0.0)
    return np.asarray(left)


def _worth(saved: Floats, most: int, price: Floats) -> float:
    """Return what all pairs save at most, where everyone has ``most`` companions (dual of a b-matching)."""
    return most * float(price.sum()) + float(np.maximum(_left(saved, price), 0.0).sum()) / 2


def _stepped(saved: Floats, most: int, price: Floats, rounds: int) -> Floats:
    """Move prices along a subgradient: down where experts are short of companions, by less after more rounds."""
    short = most - (_left(saved, price) > 0).sum(axis=1)
    size = _STEP * price.mean() / np.sqrt((1 + rounds) * max(float((short**2).mean()), 1e-9))
    return np.asarray(np.maximum(0.0, price - size * short))


def _polished(saved: Floats, most: int, price: Floats) -> Floats:
    """Improve prices by subgradients; return the best."""
    best, least = price, _worth(saved, most, price)
    for step in range(_POLISH if most > 0 else 0):
        price = _stepped(saved, most, price, step)
        worth = _worth(saved, most, price)
        if worth < least:
            best, least = price, worth
    return best


def _split(saved: Floats, price: Floats) -> Floats:
    """Divide what each pair saves among the two, so that neither gets more than its price unless both do."""
    both = price[:, None] + price[None, :]
    share = np.divide(price[:, None], both, out=np.full(saved.shape, 0.5), where=both > 0)
    more = (saved + price[:, None] - price[None, :]) / 2
    return np.clip(np.where(saved <= both, saved * share, more), 0.0, saved)
