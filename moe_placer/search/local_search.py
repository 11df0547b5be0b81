"""From a layer's relaxation to a good placement: round, trade until nothing helps, kick, repeat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.limits import Deadline
from moe_placer.problem.layer import LayerProblem
from moe_placer.search.moves import Moves, repair

__all__ = ["EVALUATIONS_PER_WORK", "HELPS", "Search", "descend", "round_shares", "search"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

EVALUATIONS_PER_WORK = 2e7  # link costs that a slow core evaluates in a second
_KICKS = 3  # trades made at random to leave a local optimum
_MOST_TRADES = 200
HELPS = 1e-9  # smaller relative changes of the excess are rounding


@dataclass(frozen=True)
class Search:
    """The result of `search`: the placement, its z, and the effort it took."""

    node: Ints
    z: float
    work: float


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
    layer: LayerProblem, node: Ints, target: float, work: float, rng: np.random.Generator, deadline: Deadline
) -> Search:
    """Improve a placement by descents from kicked copies of the best so far (iterated local search).

    Lourenco, Martin, Stuetzle: Iterated Local Search (2003). Kicks are random trades at the busiest link.

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
    """
    moves = Moves(layer, node)
    descend(moves, target, deadline)
    best, best_z = moves.node.copy(), moves.z
    home, home_excess = best, moves.excess(target)
    while best_z > target and moves.evaluated < work * EVALUATIONS_PER_WORK and not deadline.over:
        moves.reset(home)
        if not _kick(moves, rng):
            break
        descend(moves, target, deadline)
        if moves.z < best_z:
            best, best_z = moves.node.copy(), moves.z
        if (excess := moves.excess(target)) <= home_excess:
            home, home_excess = moves.node.copy(), excess
    return Search(best, best_z, moves.evaluated / EVALUATIONS_PER_WORK)


def _kick(moves: Moves, rng: np.random.Generator) -> bool:
    """Make random allowed trades at the busiest link; False if there are none."""
    made = 0
    for _ in range(_KICKS):
        items = moves.items_at_worst()
        if len(items):
            made += moves.random_trade(int(rng.choice(items)), rng)
    return made > 0
