"""A bound where tokens are sent once per place: link weights, and the best companions that any place can give an item.

docs/bounds.md states and proves it (``weighted-companions``). Under link weights every place has a price for covering
a file's tokens. An item's share of that is at least ``alpha[j]`` less the largest ``beta[j, j']`` of as many fellows as
its place has other slots, whoever they are; with these as prices, the cheapest assignment of items to places bounds z.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.bounds.assignment import assign
from moe_placer.bounds.companions import MOST_COMPANIONS, CompanionWork
from moe_placer.bounds.largest import largest
from moe_placer.problem.layer import LayerProblem

__all__ = ["WeightedCompanions", "weighted_companions"]

Floats = npt.NDArray[np.float64]
Bools = npt.NDArray[np.bool_]

_ROUNDS = 3  # of better guesses


@dataclass(frozen=True, eq=False)
class WeightedCompanions:
    """What proves a bound by link weights.

    Attributes
    ----------
    value : float
        Cost (tokens at node-link speed).
    weights : float array [links]
        They sum to 1.
    guess : bool array [views, experts, experts]
        As in `moe_placer.bounds.companions.Companions`.
    """

    value: float
    weights: Floats
    guess: Bools


def weighted_companions(layer: LayerProblem, weights: list[Floats]) -> WeightedCompanions | None:
    """Return the best bound of this kind by one of the weights; None where there is none."""
    assert layer.coverage is not None
    if not layer.links or layer.nodes < 2 or not weights:
        return None
    work = CompanionWork(layer, layer.coverage)
    guess = work.greedy_guess(None)
    return largest(_by_weights(work, one, guess) for one in weights)


def _by_weights(work: CompanionWork, weights: Floats, guess: Bools) -> WeightedCompanions:
    """Improve the guess of every expert where others than guessed save most, and weigh all items."""
    prices = np.einsum("k,dkvf->dvf", weights, work.prices)
    mean, most = prices[work.places].mean(axis=0), int(work.layer.widest.max()) - 1
    best, gain, trial = guess.copy(), np.full(guess.shape[:2], -np.inf), guess
    for _ in range(_ROUNDS):
        better = np.zeros_like(guess)
        for view in range(len(guess)):
            alpha, beta = work.added(None, view, trial[view])
            save = np.einsum("f,fij->ij", mean[view], beta)
            order = np.argsort(-save, axis=1, kind="stable")[:, : max(0, most)]
            here = mean[view] @ alpha - np.take_along_axis(save, order, axis=1).sum(axis=1)
            rises = here > gain[view]
            best[view, rises], gain[view, rises] = trial[view, rises], here[rises]
            few = order[:, :MOST_COMPANIONS]
            np.put_along_axis(better[view], few, np.take_along_axis(save, few, axis=1) > 0, axis=1)
        trial = better
    return WeightedCompanions(_cheapest(work, prices, best), weights, best)


def _cheapest(work: CompanionWork, prices: Floats, guess: Bools) -> float:
    """Weigh every item on every place, and assign."""
    layer = work.layer
    share = np.zeros((layer.items, layer.nodes))
    for view in range(len(guess)):
        mine = np.flatnonzero(work.view == view)
        expert = layer.expert[mine]
        alpha, beta = work.added(None, view, guess[view])
        alpha, beta = alpha[:, expert], beta[:, expert][:, :, expert]
        for place in work.places.tolist():
            saved = np.einsum("f,fij->ij", prices[place, view], beta)
            fellows = min(int(layer.widest[place]) - 1, len(mine) - 1)
            most = (
                np.partition(saved, len(mine) - fellows, axis=1)[:, len(mine) - fellows :]
                if fellows > 0
                else saved[:, :0]
            )
            share[mine, place] = np.maximum(prices[place, view] @ alpha - most.sum(axis=1), 0.0)
    node = assign(layer, share)
    return 0.0 if node is None else float(share[np.arange(layer.items), node].sum())
