"""Divides a layer's items among regions of the fabric, from the outside in: pods, then leaves, then nodes.

Every division is a small layer of its own, with the parts of a region as places. Its relaxation on clusters of items
says which part of each cluster goes where; items are dealt accordingly, and trade places while the busiest link is
above the target. So effort grows with items times the parts of one region, not with items times nodes.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.bounds.clustered import parts_by_direction
from moe_placer.limits import Deadline
from moe_placer.problem.layer import LayerProblem
from moe_placer.problem.regions import Region, merge
from moe_placer.problem.symmetry import SymmetryClasses
from moe_placer.search.local_search import EVALUATIONS_PER_WORK, HELPS, deal_in_turn
from moe_placer.search.moves import CALL, Moves

__all__ = ["Division", "divide"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_VARIABLES = 6_000  # of a division's linear program: fewer clusters where there are more parts
_MOST_CLUSTERS = 200
_ITEMS, _PARTNERS = 24, 384  # drawn for each trade
_IN_VAIN = 12  # draws without a trade that helps, after which a division is left as it is
_MOST_TRADES = 2_000


@dataclass(frozen=True)
class Division:
    """The node of each item [I], and the effort that it took."""

    node: Ints
    work: float


def divide(
    layer: LayerProblem, region: Region, target: float, rng: np.random.Generator, deadline: Deadline
) -> Division | None:
    """Divide all items among the nodes of a region; None if time runs out before each has its node.

    Slots are respected; replicas that must be apart, only as far as regions have room for them.

    Parameters
    ----------
    layer : LayerProblem
        One MoE layer.
    region : Region
        All its nodes.
    target : float
        Trades end when z is at this or below, tokens at node-link speed.
    rng : Generator
        Source of everything random.
    deadline : Deadline
        When to stop.
    """
    node, evaluated = np.zeros(layer.items, dtype=np.int64), 0
    open_ = [(region, np.arange(layer.items))]
    while open_:
        whole, items = open_.pop()
        if not whole.parts or not len(items):
            node[items] = whole.nodes[0]
            continue
        own = merge(layer, whole.parts, items, outside=False).layer
        # Dealing in turn is enough where links of nodes do not bind.
        place = None if any(part.parts for part in whole.parts) else deal_in_turn(own.load, own.slots)
        if place is None or own.z(place) > target:
            dealt = None if deadline.over else _dealt(own, deadline)
            if dealt is None:
                return None
            moves = Moves(own, dealt)
            _trade(moves, target, rng, deadline)
            evaluated, place = evaluated + moves.evaluated, moves.node
        open_ += [(part, items[place == p]) for p, part in enumerate(whole.parts)]
    return Division(node, evaluated / EVALUATIONS_PER_WORK)


def _dealt(layer: LayerProblem, deadline: Deadline) -> Ints | None:
    """Deal items by the relaxation on clusters: the heaviest first, each to the place its cluster owes the most."""
    classes = SymmetryClasses.of_layer(layer)
    clusters = int(np.clip(_VARIABLES // layer.nodes, 2, _MOST_CLUSTERS))
    seconds = deadline.left if np.isfinite(deadline.at) else None
    solved = parts_by_direction(layer, classes, layer.slots, clusters, seconds)
    if solved is None:
        return None
    _, mass, of, parts = solved
    parts = np.maximum(parts, 0.0)
    owed = parts / parts.sum(axis=1, keepdims=True) * np.bincount(of, mass)[:, None]
    cluster, left, place = of[classes.of], layer.slots.copy(), np.zeros(layer.items, dtype=np.int64)
    for item in np.argsort(-layer.load, kind="stable").tolist():
        mine = owed[cluster[item]]
        at = int(np.where(left > 0, mine, -np.inf).argmax())
        place[item] = at
        mine[at] -= layer.load[item]
        left[at] -= 1
    return place


def _trade(moves: Moves, target: float, rng: np.random.Generator, deadline: Deadline) -> None:
    """Make the best of some trades that are drawn, again and again, while that lowers the excess over the target."""
    in_vain = made = 0
    while moves.z > target and in_vain < _IN_VAIN and made < _MOST_TRADES and not deadline.over:
        items = _some(moves.items_at_worst(), _ITEMS, rng)
        partners, nodes = moves.partners()
        drawn = _some(np.arange(len(partners)), _PARTNERS, rng)
        partners, nodes = partners[drawn], nodes[drawn]
        change = moves.changes(items, partners, nodes, target)
        moves.evaluated += CALL + 2 * change.size * moves.layer.affected.shape[1]
        i, j = divmod(int(change.argmin()), len(partners))
        if change[i, j] >= -HELPS * moves.excess(target):
            in_vain += 1
            continue
        moves.apply(int(items[i]), int(partners[j]), int(nodes[j]))
        made, in_vain = made + 1, 0


def _some(values: Ints, most: int, rng: np.random.Generator) -> Ints:
    return values if len(values) <= most else rng.choice(values, most, replace=False)
