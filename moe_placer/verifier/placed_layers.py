"""MoE layers as placed: which replicas there are, what each is sent, and what that puts on links."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt

from moe_placer.instance import Instance
from moe_placer.traffic.recording import Traffic
from moe_placer.verifier.loads import Network, choices_per_token
from moe_placer.verifier.rules import Replica
from moe_placer.verifier.sending import asked_of_replicas, tokens_between, views_by_row

__all__ = ["PlacedLayer", "read_layers"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class PlacedLayer:
    """One MoE layer as placed.

    Where not every replica can be located, ``replicas`` and ``demand`` are None, ``load`` and ``worst_pair`` zero.
    Demands of all layers would take much memory: each is worked out when it is asked for, and the last one is kept.

    Attributes
    ----------
    layer : int
        Index in the model, dense layers counted.
    replicas : int array [experts] or None
    received : float array [items]
        Tokens per step that every item works on: the replicas, expert by expert, in replica order; none where these
        are not known.
    roundings : int
        How many roundings, each of 2**-53, a number in ``demand`` may have gone through.
    load : float array [links]
        Tokens per step.
    worst_pair : float
        Most tokens per step between any ordered pair of different nodes.
    work_out : callable
        Returns ``demand``.
    last : list
        The layer whose ``demand`` was asked for last, and this; one list for all layers.
    """

    layer: int
    replicas: Ints | None
    received: Floats
    roundings: int
    load: Floats
    worst_pair: float
    work_out: Callable[[], Floats]
    last: list[tuple[PlacedLayer, Floats]]

    @property
    def demand(self) -> Floats | None:
        """Tokens per step from every node to every item [nodes, items]."""
        if self.replicas is None:
            return None
        if not self.last or self.last[0][0] is not self:
            self.last[:] = []
            self.last[:] = [(self, self.work_out())]
        return self.last[0][1]

    @property
    def tokens(self) -> float:
        """Tokens per step that are sent at all; 0 where that is not known."""
        return float(self.received.sum())


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
    if instance.placement.prefers_near and len(whole) < len(of_layer):
        whole = set()  # a layer's draws depend on all layers before it
    views = views_by_row(instance, of_layer) if whole else [None] * len(of_layer)
    layers: list[PlacedLayer] = []
    last: list[tuple[PlacedLayer, Floats]] = []
    for row, layer in enumerate(instance.moe_layers):
        if layer not in whole:
            nothing = np.zeros(len(network.links))
            layers.append(PlacedLayer(layer, None, np.zeros(0), 0, nothing, 0.0, lambda: np.zeros((0, 0)), last))
            continue
        count = Counter(replica.expert for replica in of_layer[row])
        counts = np.array([count[expert] for expert in range(instance.model.experts)])
        work_out = partial(asked_of_replicas, instance, traffic, choices[:, row], of_layer[row], views[row])
        flow, demand = tokens_between(instance, traffic, row, choices[:, row], of_layer[row], views[row])
        # A quotient and a product per recording, their sum, the node's tokens, and the division by replicas.
        roundings = 2 * len(traffic.recordings) + 8 + _roundings_of_views(instance)
        between = np.zeros((instance.cluster.nodes,) * 2)
        np.add.at(between.T, network.home, flow.T)
        load, worst_pair, received = network.load(flow), float(between.max()), demand.sum(axis=0)
        layers.append(PlacedLayer(layer, counts, received, roundings, load, worst_pair, work_out, last))
    return layers


def _roundings_of_views(instance: Instance) -> int:
    """Count the roundings of a replica's share where it is a sum over views, each a sum over a node's GPUs."""
    if not (instance.placement.numbers_replicas or instance.placement.prefers_near):
        return 0
    return max(instance.gpus, int(instance.traffic.tokens_per_gpu)) + instance.cluster.gpus_per_node + 8
