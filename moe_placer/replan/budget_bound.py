"""What no placement within a budget of moves is below: link weights of every layer, and one price of a move.

For link weights w[l] of every layer, a price p >= 0 of a move and at most B moves,

    sum over layers of z  >=  sum over layers of (least cost of an assignment of items to places, where item i on place
                              n costs its weighted cost, and p more if no replica of its expert is on n now)  -  p * B

since a placement within the budget pays at most p * B for its moves, and the mean of its links' costs is at most z. The
right side is concave in p, so that one price is searched for all layers. With `even` routing and replicas of any number
every expert goes whole to its cheapest place: what m replicas cost and pay for moves is at least the mean of that.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.bounds.assignment import assign, price
from moe_placer.bounds.bounds import even_weights
from moe_placer.bounds.largest import largest
from moe_placer.bounds.relaxation import relax
from moe_placer.limits import Deadline
from moe_placer.problem.layer import LayerProblem
from moe_placer.problem.replicas import count_replicas

__all__ = ["BudgetBound", "bound_budget"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_SAFETY = 1e-9  # of all that is added and subtracted: another order of summation must not make the claim false
_STEPS = 16  # prices tried with the same weights
_ROUNDS = 6  # of new weights
_CLOSE = 0.01  # relative, of prices
_HOT = 100.0  # a link that costs 1% less than the busiest has a third of its weight


@dataclass(frozen=True, eq=False)
class BudgetBound:
    """A bound on the sum of z, and its proof.

    Attributes
    ----------
    value : float
    price : float
        Of a move.
    weights : tuple of float array [links]
        Per layer.
    """

    value: float
    price: float
    weights: tuple[Floats, ...]


def bound_budget(
    layers: Sequence[LayerProblem],
    held: Sequence[Ints],
    budget: int,
    known: Sequence[Floats | None],
    guess: float,
    deadline: Deadline,
) -> BudgetBound | None:
    """Bound the sum of z of all placements within a budget; None where there are no links.

    Parameters
    ----------
    layers : sequence of LayerProblem
        With the replicas that run now.
    held : sequence of int array [experts, places]
        Replicas of each expert on each place now.
    budget : int
        Moves.
    known : sequence of float array [links] or None
        Link weights that may be good, for each layer.
    guess : float
        A price of a move that may be good: what the last move of the budget gains.
    deadline : Deadline
        Of the linear programs that look for better weights; the best found until then is used.
    """
    if not layers or not layers[0].links:
        return None
    parts = [_Part(layer, own, hint) for layer, own, hint in zip(layers, held, known, strict=True)]
    for part in parts:
        part.choose(guess)
    best = _best_price(parts, budget, guess)
    low, high = 0.0, np.inf
    for _ in range(_ROUNDS):
        now = best.price if low < best.price < high else 4 * low if high == np.inf else (low + high) / 2
        moves = 0.0
        for part in parts:
            if deadline.over:
                return best
            moves += part.refine(now, deadline.left)
        best = largest([best, _best_price(parts, budget, now)])
        if moves > budget:  # the price is too low
            low = now
        else:
            high = now
        if high < np.inf and high - low <= _CLOSE * high:
            break
    return best


def _best_price(parts: Sequence[_Part], budget: int, guess: float) -> BudgetBound:
    """Find the price that proves most with the weights that the parts have."""
    low, high, now = 0.0, np.inf, guess
    best = (-np.inf, guess)
    for _ in range(_STEPS):
        found = [part.cheapest(now) for part in parts]
        value = sum(cost for cost, _, _ in found) - now * budget
        value -= _SAFETY * (sum(size for _, size, _ in found) + now * budget)
        best = max(best, (value, now))
        if sum(moves for _, _, moves in found) > budget:  # the price is too low
            low = now
            now = 4 * now if high == np.inf else (low + high) / 2
        else:
            high = now
            now = (low + high) / 2
        if now <= 0 or (high < np.inf and high - low <= _CLOSE * high):
            break
    return BudgetBound(max(0.0, best[0]), best[1], tuple(part.weights for part in parts))


class _Part:
    """One layer of the bound."""

    def __init__(self, layer: LayerProblem, held: Ints, known: Floats | None) -> None:
        self.layer = layer
        self.away = (held == 0)[layer.expert]  # [items, places] where a replica would be a move
        self.known = known
        self.weights = np.full(layer.links, 1 / layer.links)
        node = np.argsort(-held, axis=1, kind="stable")[layer.expert, layer.replica % held.shape[1]]
        self.now = layer.cost(node)

    def choose(self, guess: float) -> None:
        """Take the best of some weights that cost nothing: known ones, even ones, those of links that are busy.

        Once moves are dear, the busiest link alone proves what the placement of now costs.
        """
        busy = np.exp(_HOT * (self.now / max(float(self.now.max(initial=0.0)), 1e-300) - 1.0))
        known = [] if self.known is None else [self.known]
        busiest = np.eye(1, self.layer.links, int(self.now.argmax()))[0]
        tried = [self.weights, *known, busy / busy.sum(), busiest, *even_weights(self.layer)]
        self.weights = max(tried, key=lambda weights: self.cheapest(guess, weights)[0])

    def refine(self, move: float, seconds: float) -> float:
        """Take the duals of the linear relaxation in which a move costs so much; return how many moves it makes."""
        if self.layer.home is not None:  # the relaxation by nodes knows no moves between their GPUs
            self.choose(move)
            return float(self.cheapest(move)[2])
        free, paying = self.layer.replicas_are_free, self._paying()
        found = relax(self.layer, seconds, any_replicas=free, memory_prices=move * paying)
        if found is None:
            return 0.0
        self.weights = found.weights
        return float((found.share * paying).sum())

    def _paying(self) -> Floats:
        """Return which share of a move an item pays [items, places]: where replicas are free, those of one share it."""
        if not self.layer.replicas_are_free:
            whole: Floats = self.away.astype(np.float64)
            return whole
        paying: Floats = self.away / count_replicas(self.layer)[self.layer.expert][:, None]
        return paying

    def cheapest(self, move: float, weights: Floats | None = None) -> tuple[float, float, int]:
        """Return the least cost at a price of a move, the size of what was added, and its moves."""
        weights = self.weights if weights is None else weights
        layer, away = self.layer, self.away
        prices = price(layer, weights)
        base = float(weights @ layer.base)
        if layer.replicas_are_free:
            _, item, replicas = np.unique(layer.expert, return_index=True, return_counts=True)
            open_ = layer.widest > 0
            whole, away = prices[item][:, open_] * replicas[:, None], away[item][:, open_]
            place = (whole + move * away).argmin(axis=1)
        else:
            whole, node = prices, assign(layer, prices + move * away)
            if node is None:
                return 0.0, 0.0, 0
            place = node
        rows = np.arange(len(place))
        moves = int(away[rows, place].sum())
        cost = base + float(whole[rows, place].sum()) + move * moves
        return cost, base + float(np.abs(whole[rows, place]).sum()) + move * moves, moves
