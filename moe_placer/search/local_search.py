"""From a layer's relaxation to a good placement: round, trade until nothing helps, kick, repeat."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.bounds.assignment import price
from moe_placer.limits import Deadline
from moe_placer.problem.layer import LayerProblem
from moe_placer.search.moves import Moves, repair

__all__ = ["EVALUATIONS_PER_WORK", "HELPS", "Search", "deal_in_turn", "descend", "round_shares", "search"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

EVALUATIONS_PER_WORK = 2e7  # link costs that a slow core evaluates in a second
_KICKS = 3  # trades made at random to leave a local optimum
_MOST_TRADES = 200
_NOISE = 0.03  # of new starts, per mean range of an item's prices
_LOAD_NOISE = 0.6  # of each item, where the heaviest are dealt first
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
    return repair(layer, _assigned(layer, share), rng)


def _assigned(layer: LayerProblem, share: Floats) -> Ints:
    """Return the node of each item for which the sum of shares [I, N] is most; only slots are respected."""
    from scipy.optimize import linear_sum_assignment  # here, for it is slow to import

    slots = np.minimum(layer.slots, layer.items)
    _, column = linear_sum_assignment(np.repeat(share, slots, axis=1), maximize=True)
    return np.asarray(np.repeat(np.arange(layer.nodes), slots)[column])


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
    starts, started, again = None if weights is None else _Starts(layer, weights), 0, 0
    part = _MOST_STARTS
    most, each = work * EVALUATIONS_PER_WORK, _TRADES * layer.items**2 * layer.affected.shape[1] // 2
    while best_z > target and moves.evaluated < most and not deadline.over:
        before, fresh = moves.evaluated, started <= part * moves.evaluated and 2 * (started + each) <= most
        fresh = fresh and starts is not None
        if starts is not None and fresh:
            start = starts.draw(rng)
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


class _Starts:
    """Placements that are nearly the cheapest under link weights, another one each time.

    Prices get a little noise. Nodes that the weights do not tell apart, those of a leaf, are dealt what they get
    together in turn, so that none of them is a bottleneck: by load, with noise, too.
    """

    def __init__(self, layer: LayerProblem, weights: Floats) -> None:
        self.layer, self.prices = layer, price(layer, weights)
        self.noise = _NOISE * float(np.ptp(self.prices[:, layer.slots > 0], axis=1).mean())
        like = np.round(self.prices / max(1e-300, float(np.abs(self.prices).max())), 9)
        of = np.unique(like, axis=1, return_inverse=True)[1].ravel()  # NumPy 2.0 gives it a second dimension
        self.alike = [nodes for kind in range(int(of.max()) + 1) if len(nodes := np.flatnonzero(of == kind)) > 1]

    def draw(self, rng: np.random.Generator) -> Ints | None:
        """Return such a placement; None if repair fails."""
        layer = self.layer
        node = _assigned(layer, -(self.prices + self.noise * rng.random(self.prices.shape)))
        load = layer.load * (1 + _LOAD_NOISE * rng.random(layer.items))
        for nodes in self.alike:
            items = np.flatnonzero(np.isin(node, nodes))
            node[items] = nodes[deal_in_turn(load[items], layer.slots[nodes])]
        return repair(layer, node, rng)


def deal_in_turn(load: Floats, slots: Ints) -> Ints:
    """Deal items to places with ``slots`` in turn, there and back, the heaviest first; return each item's place."""
    turn, place = np.concatenate([np.arange(some) for some in slots]), np.repeat(np.arange(len(slots)), slots)
    order = np.lexsort((np.where(turn % 2 == 0, place, -place), turn))
    dealt = np.empty(len(load), dtype=np.int64)
    dealt[np.argsort(-load, kind="stable")] = place[order][: len(load)]
    return dealt


def _kick(moves: Moves, rng: np.random.Generator) -> bool:
    """Make random allowed trades at the busiest link; False if there are none."""
    made = 0
    for _ in range(_KICKS):
        items = moves.items_at_worst()
        if len(items):
            made += moves.random_trade(int(rng.choice(items)), rng)
    return made > 0
