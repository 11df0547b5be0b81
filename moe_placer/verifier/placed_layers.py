"""MoE layers as placed: which replicas there are, what each is sent, and what that puts on links."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.instance import Instance
from moe_placer.traffic.recording import Traffic
from moe_placer.verifier.loads import Network, choices_per_token
from moe_placer.verifier.rules import Replica
from moe_placer.verifier.sending import tokens_between

__all__ = ["PlacedLayer", "read_layers"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PlacedLayer:
    """One MoE layer as placed.

    Where not every replica can be located, ``replicas`` and ``demand`` are None, ``load`` and ``worst_pair`` zero.

    Attributes
    ----------
    layer : int
        Index in the model, dense layers counted.
    replicas : int array [experts] or None
    demand : float array [nodes, items] or None
        Tokens per step from every node to every item: the replicas, expert by expert, in replica order.
    roundings : int
        How many roundings, each of 2**-53, a number in ``demand`` may have gone through.
    load : float array [links]
        Tokens per step.
    worst_pair : float
        Most tokens per step between any ordered pair of different nodes.
    """

    layer: int
    replicas: Ints | None
    demand: Floats | None
    roundings: int
    load: Floats
    worst_pair: float

    @property
    def tokens(self) -> float:
        """Tokens per step that are sent at all; 0 where that is not known."""
        return 0.0 if self.demand is None else float(self.demand.sum())


def read_layers(
    instance: Instance, network: Network, traffic: Traffic, replicas: Sequence[Replica], whole: set[int]
) -> list[PlacedLayer]:
    """Compute demand and loads of every MoE layer; ``whole`` are those whose replicas can all be located.

    Parameters
    ----------
    instance : Instance
    network : Network
        Links, routes and bandwidths, as the verifier reads them.
    traffic : Traffic
        Routing statistics of the instance's sources.
    replicas : sequence of Replica
        Every replica of the placement.
    whole : set of int
        Rows of layers whose replicas can all be located.
    """
    choices = choices_per_token(instance, traffic)
    of_layer: list[list[Replica]] = [[] for _ in instance.moe_layers]
    for replica in replicas:
        of_layer[replica.row].append(replica)
    layers = []
    for row, layer in enumerate(instance.moe_layers):
        if layer not in whole:
            layers.append(PlacedLayer(layer, None, None, 0, np.zeros(len(network.links)), 0.0))
            continue
        count = Counter(replica.expert for replica in of_layer[row])
        counts = np.array([count[expert] for expert in range(instance.model.experts)])
        flow, demand = tokens_between(instance, traffic, row, choices[:, row], of_layer[row])
        # A quotient and a product per recording, their sum, the node's tokens, and the division by replicas.
        roundings = 2 * len(traffic.recordings) + 8 + _roundings_of_views(instance)
        between = np.zeros((instance.cluster.nodes,) * 2)
        np.add.at(between.T, network.home, flow.T)
        layers.append(PlacedLayer(layer, counts, demand, roundings, network.load(flow), float(between.max())))
    return layers


def _roundings_of_views(instance: Instance) -> int:
    """Count the roundings of a replica's share where it is a sum over views, each a sum over a node's GPUs."""
    if not instance.placement.numbers_replicas:
        return 0
    return max(instance.gpus, int(instance.traffic.tokens_per_gpu)) + instance.cluster.gpus_per_node + 8
