"""Which nodes fail together, and how many replicas an expert must have so that none is lost with them."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_placer.instance import Instance

__all__ = ["failure_domains", "least_replicas"]

Ints = npt.NDArray[np.int64]


def failure_domains(instance: Instance) -> Ints | None:
    """Return the failure domain of each node [nodes]; None where replicas on different GPUs are enough."""
    nodes = np.arange(instance.cluster.nodes)
    if instance.placement.survives == "node":
        return nodes
    if instance.placement.survives == "leaf" and instance.nodes_per_leaf is not None:
        return np.asarray(nodes // instance.nodes_per_leaf)
    return None


def least_replicas(instance: Instance) -> int:
    """Return how many replicas of every expert there must be, where their number is a choice."""
    return 1 if instance.placement.survives == "none" else 2
