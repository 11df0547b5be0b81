"""One layer with other numbers of replicas: what that does to its items, and how few replicas of an expert are enough.

With ``even`` routing every replica of an expert with m replicas gets 1/m of its tokens, so a layer can be compiled anew
from itself, without the traffic.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moe_placer.problem.layer import LayerProblem
from moe_placer.problem.replica_counts import replica_order

__all__ = [
    "could_pay",
    "count_replicas",
    "fewest_replicas",
    "hottest_that_pays",
    "layer_time",
    "nodes_by_expert",
    "placed",
    "with_replicas",
]

Ints = npt.NDArray[np.int64]

_ROUNDING = 1e-9


def count_replicas(layer: LayerProblem) -> Ints:
    """Count the replicas of each expert [E]."""
    return np.bincount(layer.expert)


def with_replicas(layer: LayerProblem, replicas: Ints) -> LayerProblem:
    """Return a layer whose replicas are free with ``replicas`` [E] of each expert instead; replica 0 keeps its pin."""
    expert, replica = replica_order(replicas)
    first = np.flatnonzero(layer.replica == 0)  # one item of each expert, by expert
    factor = (count_replicas(layer) / replicas)[expert]
    source = first[expert]
    return replace(
        layer,
        expert=expert,
        replica=replica,
        symmetry_class=expert,
        pinned=np.where(replica == 0, layer.pinned[source], -1),
        delta=layer.delta[source] * factor[:, None, None],
        load=layer.load[source] * factor,
    )


def nodes_by_expert(layer: LayerProblem, node: Ints) -> list[list[int]]:
    """List the nodes of each expert's replicas, in replica order."""
    of_expert: list[list[int]] = [[] for _ in range(int(layer.expert.max()) + 1)]
    for e, n in zip(layer.expert.tolist(), node.tolist(), strict=True):
        of_expert[e].append(n)
    return of_expert


def placed(layer: LayerProblem, of_expert: list[list[int]]) -> tuple[LayerProblem, Ints]:
    """Turn `nodes_by_expert` back into a layer with these replicas, and the node of each item."""
    changed = with_replicas(layer, np.array([len(nodes) for nodes in of_expert], dtype=np.int64))
    pairs = zip(changed.expert.tolist(), changed.replica.tolist(), strict=True)
    return changed, np.array([of_expert[e][r] for e, r in pairs], dtype=np.int64)


def layer_time(layer: LayerProblem, z: float) -> float:
    """Time of a layer as a cost: its busiest link, there and back, and the replica with the most tokens on its GPU.

    Where GPUs take one replica each, that replica's is the busiest GPU.
    """
    return z + layer.gpu_price * float(layer.load.max(initial=0.0))


def hottest_that_pays(layer: LayerProblem, z: float, lower: float) -> float:
    """Return the most tokens of one replica that a better z can pay for, where none is below ``lower``."""
    return np.inf if layer.gpu_price <= 0 else (layer_time(layer, z) - lower) / layer.gpu_price


def could_pay(layer: LayerProblem, z: float, lower: float) -> bool:
    """Whether any replica could go without making another hotter than a better z can pay for."""
    fewest = fewest_replicas(layer, hottest_that_pays(layer, z, lower))
    return bool((count_replicas(layer) > fewest).any())


def fewest_replicas(layer: LayerProblem, most: float) -> Ints:
    """Return the fewest replicas of each expert [E] with which no replica gets more than ``most`` tokens per step."""
    load = np.bincount(layer.expert, layer.load)
    if most <= 0 or not np.isfinite(most):
        return np.full(len(load), layer.least_replicas)
    return np.maximum(layer.least_replicas, np.ceil(load / most * (1 - _ROUNDING))).astype(np.int64)
