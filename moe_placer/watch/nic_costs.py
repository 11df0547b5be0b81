"""What a placement puts on its busiest NICs, where NICs are links of their own."""

from __future__ import annotations

import numpy as np

from moe_placer.fabric import nics_among
from moe_placer.instance import Instance
from moe_placer.placement import Placement
from moe_placer.traffic import Traffic
from moe_placer.verifier.loads import read_network
from moe_placer.verifier.placed_layers import read_layers
from moe_placer.verifier.rules import read_replicas

__all__ = ["busiest_nics"]


def busiest_nics(instance: Instance, traffic: Traffic, placement: Placement) -> float | None:
    """Sum over layers the cost of the busiest NIC; None where a node's NICs are one pipe."""
    network = read_network(instance)
    nics = np.flatnonzero(nics_among(network.links))
    if not len(nics):
        return None
    replicas = read_replicas(instance, placement)
    layers = read_layers(instance, network, traffic, replicas, set(instance.moe_layers))
    cost = np.stack([layer.load[nics] for layer in layers]) * network.scale[nics]
    return float(cost.max(axis=1).sum())
