"""Derives the bound of every kind of proof anew, as docs/bounds.md defines it."""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt

from moe_placer.instance import Instance
from moe_placer.verifier.loads import Network

__all__ = ["any_copies_bound", "dual_bound", "hot_expert_bound", "node_slots", "priced_cost", "threshold_bound"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

ROUNDING = 1e-9  # what docs/bounds.md allows, relative


def node_slots(instance: Instance) -> Ints:
    """Replicas of one layer that each node can hold."""
    cluster = instance.cluster
    working = np.full(cluster.nodes, cluster.gpus_per_node)
    for gpu in instance.placement.failed_gpus:
        working[gpu // cluster.gpus_per_node] -= 1
    return working * instance.placement.slots_per_gpu // instance.parallelism.expert_tp


def dual_bound(network: Network, demand: Floats, slots: Ints, weights: Mapping[str, float]) -> float:
    """Bound that link weights prove: the cheapest assignment at the weighted prices.

    Parameters
    ----------
    demand : float array [nodes, items]
        D of docs/bounds.md.
    slots : int array [nodes]
        What `node_slots` says.
    weights : mapping
        Link name to weight, of existing links; divided by their sum, which may be off 1 by rounding.
    """
    value = priced_cost(network, demand, slots, weights, np.zeros(len(slots)))
    return value if math.isfinite(value) else 0.0  # no placement at all: rule "slots" will say so


def priced_cost(
    network: Network, demand: Floats, slots: Ints, weights: Mapping[str, float], room_prices: Floats
) -> float:
    """Cheapest assignment at the weighted prices, where every item pays ``room_prices`` [nodes] too; inf if none."""
    return _cheapest_assignment(_prices(network, demand, weights) + room_prices, slots)


def any_copies_bound(network: Network, single: Floats, slots: Ints, weights: Mapping[str, float]) -> float:
    """Bound that link weights prove whatever the number of copies: every expert at its cheapest node.

    Parameters
    ----------
    single : float array [nodes, experts]
        Demand if every expert had one copy.
    """
    if not (slots > 0).any():
        return 0.0
    return float(_prices(network, single, weights)[:, slots > 0].min(axis=1).sum())


def hot_expert_bound(network: Network, demand: Floats, slots: Ints, item: int) -> float:
    """Bound from one item that some node must hold, together with the coldest companions."""
    floors = _floors(network, demand, slots)[item, slots > 0]
    return float(floors.min()) if len(floors) else 0.0


def threshold_bound(
    network: Network, demand: Floats, slots: Ints, weights: Mapping[str, float], threshold: float
) -> float:
    """Bound from forbidding what no placement below the threshold can contain, then weighing the rest."""
    # A floor may equal the threshold but for rounding: prove a threshold that is lower by as much.
    threshold *= 1 - ROUNDING
    prices = np.where(_floors(network, demand, slots) >= threshold, np.inf, _prices(network, demand, weights))
    return max(0.0, min(threshold, _cheapest_assignment(prices, slots)))


def _prices(network: Network, demand: Floats, weights: Mapping[str, float]) -> Floats:
    """Weighted cost of each item on each node: [items, nodes]."""
    weight = np.array([weights.get(name, 0.0) for name in network.links])
    weight /= weight.sum() or 1.0
    nodes = len(demand)
    per_token = np.zeros((nodes, nodes))  # what a token from node s to node n costs, over all links of its routes
    np.add.at(
        per_token,
        (network.source, network.target),
        (weight * network.scale)[network.link] * network.share,
    )
    return demand.T @ per_token


def _cheapest_assignment(prices: Floats, slots: Ints) -> float:
    """Solve the transportation problem: every item on one node, at most ``slots`` on each; inf if impossible."""
    from scipy.optimize import linear_sum_assignment  # here, for it is slow to import

    one_per_slot = np.repeat(prices, np.minimum(slots, len(prices)), axis=1)
    if one_per_slot.shape[1] < len(prices):
        return math.inf
    try:
        items, columns = linear_sum_assignment(one_per_slot)
    except ValueError:  # no assignment avoids the forbidden pairs
        return math.inf
    return float(one_per_slot[items, columns].sum())


def _floors(network: Network, demand: Floats, slots: Ints) -> Floats:
    """Compute ``floor[i, n]``: what some link carries at least if item i is on node n."""
    routes, of_node = network.arrivals
    items = demand.shape[1]
    floors = np.zeros((items, len(slots)))
    if not len(routes):
        return floors
    cost = routes @ demand  # c[i, n, k], one row for all (n, k) that are alike
    least = np.maximum(0, items - (slots.sum() - slots))
    with_companions = {count: _with_companions(cost, count) for count in set(least.tolist())}
    for node, rows in enumerate(of_node):
        floors[:, node] = with_companions[int(least[node])][rows].max(axis=0)
    return floors


def _with_companions(cost: Floats, least: int) -> Floats:
    """Add to each item's cost, in every row, the ``least - 1`` smallest of the other items."""
    if least <= 1:
        return cost
    # Of the `least` smallest of all, drop the item itself if it is one of them, else the largest.
    smallest = np.partition(cost, least - 1, axis=1)[:, :least]
    return np.asarray(cost + smallest.sum(axis=1, keepdims=True) - np.minimum(cost, smallest[:, -1:]))
