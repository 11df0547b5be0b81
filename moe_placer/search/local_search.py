"""From a layer's relaxation to a good placement: round, trade until nothing helps, kick, repeat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.bounds.assignment import price
from moe_placer.limits import Deadline
from moe_placer.problem.layer import LayerProblem
from moe_placer.search.moves import Moves, repair

__all__ = ["EVALUATIONS_PER_WORK", "HELPS", "Search", "descend", "round_shares", "search"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

EVALUATIONS_PER_WORK = 2e7  # link costs that a slow core evaluates in a second
_KICKS = 3  # trades made at random to leave a local optimum
_MOST_TRADES = 200
_NOISE = 0.03  # of new starts, per mean range of an item's prices
_MOST_STARTS, _LEAST_STARTS = 0.5, 0.05  # of the effort, for new starts: less where kicks find more
_TRADES = 40  # that a descent from a new start is expected to take
_PER_PAIR = 4  # link costs that could be looked at while an item is assigned to a slot, per pair of these
_AGAIN = 16  # new starts that end in the best placement's z, for search to end
_SAME = 1e-9  # relative, of a z
HELPS = 1e-9  # smaller relative changes of the excess are rounding


@dataclass(frozen=True)
class Search:
    """The result of `search`: the placement, its z, the effort it took, and whether more of it is likely in vain."""

    node: Ints
    z: float
    work: float
    exhausted: bool = False


def round_shares(layer: LayerProblem, share: Floats, rng: np.random.Generator) -> Ints | None:
    """Round fractional shares [I, N] to the valid placement that keeps most of them; None if repair fails."""
    from scipy.optimize import linear_sum_assignment  # here, for it is slow to import

    slots = np.minimum(layer.slots, layer.items)
    keep = np.repeat(share, slots, axis=1)
    _, column = linear_sum_assignment(keep, maximize=True)
    return repair(layer, np.repeat(np.arange(layer.nodes), slots)[column], rng)


def descend(moves: Moves, target: float, deadline: Deadline) -> None:
    """Make the best trade at the busiest link until z is at ``target`` or no trade lowers the excess over it."""
    for _ in range(_MOST_TRADES):
        excess = moves.excess(target)
        if excess <= 0 or deadline.over:
            return
        change, item, partner, to = moves.best_trade(moves.items_at_worst(), target)
        if change >= -HELPS * excess:
            return
        moves.apply(item, partner, to)


def search(
    layer: LayerProblem,
    node: Ints,
    target: float,
    work: float,
    rng: np.random.Generator,
    deadline: Deadline,
    weights: Floats | None = None,
) -> Search:
    """Improve a placement by descents, from kicked copies of the best so far and from near what link weights ask for.

    Kicks are random trades at the busiest link (Lourenco, Martin, Stuetzle: Iterated Local Search, 2003). Under the
    weights that prove a bound, many placements are nearly cheapest; prices with a little noise give another one each
    time (perturbed optimisation). Which of the two finds more depends on the fabric, so each gets half of the effort.
    Where many such starts have ended at the best z, and none below, search is exhausted.

    Parameters
    ----------
    layer : LayerProblem
        One MoE layer.
    node : int array [items]
        Node of each item.
    target : float
        Stop when z is at this or below, tokens at node-link speed.
    work : float
        Deterministic effort, seconds of an average core.
    rng : Generator
        Source of everything random.
    deadline : Deadline
        When to stop, whatever has been reached.
    weights : float array [links] or None
        Link weights of a good bound; None: there are only kicks.
    """
    moves = Moves(layer, node)
    descend(moves, target, deadline)
    best, best_z = moves.node.copy(), moves.z
    home, home_excess = best, moves.excess(target)
    prices, started, again = None if weights is None else price(layer, weights), 0, 0
    part = _MOST_STARTS
    most, each = work * EVALUATIONS_PER_WORK, _TRADES * layer.items**2 * layer.affected.shape[1] // 2
    while best_z > target and moves.evaluated < most and not deadline.over:
        before, fresh = moves.evaluated, started <= part * moves.evaluated and 2 * (started + each) <= most
        fresh = fresh and prices is not None
        if prices is not None and fresh:
            start = _near_cheapest(layer, prices, rng)
            moves.evaluated += _PER_PAIR * layer.items * min(int(layer.slots.sum()), layer.items * layer.nodes)
            moves.reset(home if start is None else start)
        else:
            moves.reset(home)
            if not _kick(moves, rng):
                break
        descend(moves, target, deadline)
        if moves.z < best_z * (1 - _SAME):
            best, best_z, again = moves.node.copy(), moves.z, 0
            part = min(_MOST_STARTS, 2 * part) if fresh else max(_LEAST_STARTS, part / 2)
        if fresh:
            each = moves.evaluated - before
            started += each
            again += moves.z <= best_z * (1 + _SAME)
            if again >= _AGAIN:
                break
        if (excess := moves.excess(target)) <= home_excess:
            home, home_excess = moves.node.copy(), excess
    return Search(best, best_z, moves.evaluated / EVALUATIONS_PER_WORK, again >= _AGAIN)


def _near_cheapest(layer: LayerProblem, prices: Floats, rng: np.random.Generator) -> Ints | None:
    """Return a placement that is nearly the cheapest at prices [I, N], another one each time; None if repair fails."""
    noise = _NOISE * float(np.ptp(prices[:, layer.slots > 0], axis=1).mean())
    return round_shares(layer, -(prices + noise * rng.random(prices.shape)), rng)


def _kick(moves: Moves, rng: np.random.Generator) -> bool:
    """Make random allowed trades at the busiest link; False if there are none."""
    made = 0
    for _ in range(_KICKS):
        items = moves.items_at_worst()
        if len(items):
            made += moves.random_trade(int(rng.choice(items)), rng)
    return made > 0
