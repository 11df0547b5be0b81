"""Derives anew what no rule of replica choice beats: tokens on their cheapest ways, and slots that replicas pay for."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping

import numpy as np
import numpy.typing as npt

from moe_placer.instance import Instance
from moe_placer.placement import LayerRecord, SplitRecord
from moe_placer.verifier.links import Network
from moe_placer.verifier.placed_layers import PlacedLayer
from moe_placer.verifier.verification import Violation

__all__ = ["check_split", "split_bound"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_ROUNDING_ERROR = 2.0**-53
_SPARE = 64  # roundings of scale, share and weight, of their products, and of the shares of an expert's tokens
_HIGHEST = 1e6  # times all that the layer's tokens could cost: prices beyond that prove nothing


def check_split(instance: Instance, record: LayerRecord, layer: int) -> Iterator[Violation]:
    """Rule ``proof``: there is a price for every node, and for every expert what each node's tokens pay."""
    if record.split is None:
        yield Violation("proof", "no prices of slots, required for proof: best-split", layer)
        return
    if not record.any_copies:
        required = "required is that it holds for any replicas"
        yield Violation("proof", f"proof: best-split without any_copies, {required}", layer)
    nodes, experts = instance.cluster.nodes, instance.model.experts
    paid = record.split.paid
    if len(record.split.slot_prices) != nodes or len(paid) != experts or any(len(row) != nodes for row in paid):
        required = f"required are {nodes} prices of slots, and {experts} rows of {nodes} of what tokens pay"
        yield Violation("proof", f"a best split of another shape, {required}", layer)


def split_bound(
    network: Network, layer: PlacedLayer, slots: Ints, replicas: int, weights: Mapping[str, float], split: SplitRecord
) -> float:
    """Bound z whatever the rule, and whatever the replicas and their places.

    A set S of nodes that hold an expert costs its tokens ``sum_s min over n in S of cost[s, n]`` at least, and its
    slots ``sum over S of price[n]``. As ``min over S of cost[s, n] >= paid[s] - sum over S of max(0, paid[s] - cost[s,
    n])``, both together are at least ``sum_s paid[s] + sum over S of left[n]``, where left is the price of the slot
    less what is overpaid there. S is not empty. All slots together are worth at most the dearest that may be used.

    Parameters
    ----------
    network : Network
        Links, routes and bandwidths, as the verifier reads them.
    layer : PlacedLayer
        One MoE layer as placed.
    slots : int array [nodes]
        Replicas that each node can take.
    replicas : int
        Of all experts together, at most.
    weights : mapping
        Link name to weight, at least 0, of existing links; divided by their sum.
    split : SplitRecord
        Any numbers of the right shape.
    """
    if layer.demand is None or layer.replicas is None:
        return 0.0
    first = np.cumsum(layer.replicas) - layer.replicas
    tokens = np.add.reduceat(layer.demand, first, axis=1).T  # of all replicas of an expert, whichever is picked
    nodes = len(layer.demand)
    if len(network.home) != nodes:  # places are GPUs: rule "proof" says that this is no proof there
        return 0.0
    price = network.per_token(network.normalised(weights), nodes)
    roundings = layer.roundings + int(layer.replicas.max()) + nodes + network.longest + len(network.links) + _SPARE
    cost = tokens[:, :, None] * price[None, :, :] * (1 - 2 * roundings * _ROUNDING_ERROR)
    slot, paid = np.array(split.slot_prices), np.array(split.paid)
    most = _HIGHEST * max(1.0, float(cost.max(initial=0.0)))
    if not (np.isfinite(cost).all() and slot.max(initial=0.0) <= most and paid.max(initial=0.0) <= most):
        return 0.0
    left = slot - np.maximum(0.0, paid[:, :, None] - cost).sum(axis=1)
    each = [
        *paid.ravel().tolist(),
        *np.minimum(left, 0.0).ravel().tolist(),
        *np.maximum(0.0, left.min(axis=1)).tolist(),
    ]
    worth = _worth(slot, slots, replicas)
    # Every sum above is of fewer than `nodes` + 2 numbers of the size of what is paid and of the slots' prices.
    size = math.fsum(abs(value) for value in each) + float(np.abs(left).sum()) + worth
    error = 4 * (nodes + 8) * _ROUNDING_ERROR * (size + float(np.maximum(0.0, paid[:, :, None] - cost).sum()))
    return max(0.0, math.fsum(each) - worth - error)


def _worth(prices: Floats, slots: Ints, replicas: int) -> float:
    """Return what the slots that may be used are worth at most: the dearest first, until there is no replica left."""
    total, left = 0.0, replicas
    for price, count in sorted(zip(prices.tolist(), slots.tolist(), strict=True), reverse=True):
        total += price * min(count, left)
        left -= min(count, left)
    return total * (1 + len(prices) * 4 * _ROUNDING_ERROR)
