"""The published topology ILP, solved as the min-cost flow that it is: fewest link crossings, summed over all tokens.

Sivtsov, Katrutsa and Oseledets, "Cluster Topology-Driven Placement of Experts Reduces Network Traffic in MoE Inference"
(2025), place experts by an integer linear program that minimises the expected number of transmissions:

    minimise  sum over items i, nodes n of P[i, n] x[i, n]        P[i, n] = sum over sources s of D[s, i] hops[s, n]
    sum_n x[i, n] = 1                                             every replica is placed once
    sum_i x[i, n] <= slots[n]                                     slots
    sum of x[i, n] over the replicas i of one expert <= together[n] replicas apart
    x[i, n] = 0 or 1

Every item sends one unit through its expert's share of a node to the node, so this is a flow in a network, and a
cheapest flow is whole-numbered: no branching, the optimum in milliseconds (OR-Tools' cost-scaling push-relabel method,
Goldberg 1997). It takes whole costs: P is rounded to a billionth of its largest value. What is minimised is how many
links are crossed in all, not how many tokens cross the worst. Where the number of replicas is free they are made by
load first, since the published model has none.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_placer.problem.compile import Problem
from moe_placer.problem.layer import LayerProblem
from moe_placer.result import LayerResult
from moe_placer.solve.base import says_missing
from moe_placer.solve.heuristic import OnePass, heuristic_result

__all__ = ["Flow", "cheapest_flow"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_STEPS = 1e9  # whole-numbered steps in the largest price


class Flow(OnePass):
    """Exact for the sum of tokens times links crossed, which is not the busiest link."""

    name = "flow"
    summary = "the published topology ILP, least tokens x hops, solved exactly as a min-cost flow"
    source = "https://arxiv.org/abs/2508.09229"

    def unavailable(self) -> str | None:
        """Say whether OR-Tools is missing."""
        return says_missing("ortools")

    def place_layer(self, problem: Problem, index: int, rng: np.random.Generator) -> LayerResult:
        """Place one layer."""
        layer = problem.layer(index)
        price = problem.crossings(index, layer)
        node = cheapest_flow(layer, price)
        if node is None:  # pins, slots and distances leave nothing, as the repair will find
            node = np.repeat(np.arange(layer.nodes), layer.slots)[: layer.items]
        return heuristic_result(layer, node, rng)


def cheapest_flow(layer: LayerProblem, price: Floats) -> Ints | None:
    """Return the node of each item [I] for the least sum of ``price`` [I, N], or None if there is no placement."""
    from ortools.graph.python.min_cost_flow import SimpleMinCostFlow

    items, nodes = price.shape
    experts = int(layer.expert.max()) + 1
    # Vertices: items, then experts on nodes, then nodes, then the sink.
    sink = items + experts * nodes + nodes
    item, node = np.nonzero((layer.pinned[:, None] < 0) | (layer.pinned[:, None] == np.arange(nodes)))
    crowd = np.bincount(layer.expert)[:, None] > layer.together[None, :]  # only there can replicas be too close
    on_node = items + experts * nodes + node
    via = np.where(crowd[layer.expert[item], node], items + layer.expert[item] * nodes + node, on_node)
    e, n = np.nonzero(crowd)
    ones, nothing = np.ones(len(item), dtype=np.int64), np.zeros(len(e) + nodes, dtype=np.int64)
    largest = float(price.max(initial=0.0)) or 1.0
    steps = np.rint(price[item, node] / largest * _STEPS).astype(np.int64)
    network = SimpleMinCostFlow()
    network.add_arcs_with_capacity_and_unit_cost(
        np.concatenate([item, items + e * nodes + n, items + experts * nodes + np.arange(nodes)]),
        np.concatenate([via, items + experts * nodes + n, np.full(nodes, sink)]),
        np.concatenate([ones, layer.together[n], layer.slots]),
        np.concatenate([steps, nothing]),
    )
    network.set_nodes_supplies(np.arange(items), np.ones(items, dtype=np.int64))
    network.set_node_supply(sink, -items)
    if network.solve() != network.OPTIMAL:
        return None
    taken = network.flows(np.arange(len(item))) > 0
    placed = np.empty(items, dtype=np.int64)
    placed[item[taken]] = node[taken]
    return placed
