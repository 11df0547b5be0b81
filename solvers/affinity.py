"""Affinity clustering as published: group experts that fire together, then balance the nodes' loads.

Occult (arXiv 2505.13345, 2025) groups experts greedily by how often they are activated together; GRACE-MoE (arXiv
2509.25041, 2025) groups by affinity and then evens out load. Neither looks at links. Here groups fill nodes one after
the other; then experts trade places between the busiest node and another as long as that lowers the larger load,
each time by the trade that costs the least co-activation, until the busiest node is within 10% of the mean.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_placer.problem.compile import Problem
from moe_placer.problem.layer import LayerProblem
from moe_placer.search.grouping import co_activation, group_by_affinity, view_places
from moe_placer.solve.heuristic import Heuristic

__all__ = ["Affinity", "balance_groups"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

TOLERANCE = 0.10  # of the busiest node's load, over the mean
_LEAST = 1e-9  # of a node's load: what sums differ by in rounding would be traded to and fro for ever


class Affinity(Heuristic):
    """Greedy groups by co-activation, then balance."""

    name = "affinity"
    summary = "experts that fire together on one node, then balanced by load: published affinity clustering"
    source = "https://arxiv.org/abs/2505.13345, https://arxiv.org/abs/2509.25041"

    def refuses(self, problem: Problem) -> str | None:
        """Refuse problems in which it cannot matter which experts fire together."""
        if not problem.coverage:
            return "it groups experts that fire together, which placement.dispatch: per-expert gains nothing from"
        return super().refuses(problem)

    def place(self, layer: LayerProblem, rng: np.random.Generator) -> Ints:
        """Return the node of each item [I]."""
        del rng
        return balance_groups(layer, group_by_affinity(layer), TOLERANCE)


def balance_groups(layer: LayerProblem, node: Ints, tolerance: float) -> Ints:
    """Trade items of one view between its busiest node and others, at the least loss of co-activation.

    Parameters
    ----------
    node : int array [items]
        Where the groups are.
    tolerance : float
        The busiest node may have this fraction more than the mean.

    Returns
    -------
    int array [items]
        With as many items of every view on each node as before.
    """
    node, together = node.copy(), co_activation(layer)
    np.fill_diagonal(together, 0.0)
    for items, _ in view_places(layer):
        while _lower_the_busiest(layer, node, items, together, tolerance):
            pass
    return node


def _lower_the_busiest(layer: LayerProblem, node: Ints, items: Ints, together: Floats, tolerance: float) -> bool:
    """Make the cheapest trade that lowers the busiest node's load below what it was; False if there is none."""
    place, load, expert = node[items], layer.load[items], layer.expert[items]
    by_node = np.bincount(place, load, layer.nodes)
    busiest = int(by_node.argmax())
    used = np.unique(place)
    if by_node[busiest] <= (1 + tolerance) * by_node[used].mean():
        return False
    here, there = np.flatnonzero(place == busiest), np.flatnonzero(place != busiest)
    shift, least = load[here][:, None] - load[there][None, :], _LEAST * by_node[busiest]
    lower = (shift > least) & (by_node[place[there]][None, :] + shift < by_node[busiest] - least)
    if not lower.any():
        return False
    bond = np.zeros((len(items), layer.nodes))  # of an item with what each node holds
    np.add.at(bond.T, place, together[np.ix_(expert, expert)])
    alone = together[np.ix_(expert[here], expert[there])]
    before = bond[here, busiest][:, None] + bond[there, place[there]][None, :]
    after = bond[here][:, place[there]] + bond[there, busiest][None, :] - 2 * alone
    loss = np.where(lower, before - after, np.inf)
    i, j = divmod(int(loss.argmin()), len(there))
    node[items[here[i]]], node[items[there[j]]] = place[there[j]], busiest
    return True
