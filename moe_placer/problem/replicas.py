"""One layer with other numbers of copies: what that does to its items, and how few copies of an expert are enough.

With ``even`` routing every copy of an expert with m copies gets 1/m of its tokens, so a layer can be compiled anew from
itself, without the traffic.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moe_placer.problem.compile import LayerProblem, replica_order

__all__ = [
    "could_pay",
    "count_copies",
    "fewest_copies",
    "hottest_that_pays",
    "layer_time",
    "nodes_by_expert",
    "placed",
    "with_copies",
]

Ints = npt.NDArray[np.int64]

_ROUNDING = 1e-9


def count_copies(layer: LayerProblem) -> Ints:
    """Count the copies of each expert [E]."""
    return np.bincount(layer.expert)


def with_copies(layer: LayerProblem, copies: Ints) -> LayerProblem:
    """Return a layer whose copies are free with ``copies`` [E] of each expert instead; replica 0 keeps its pin."""
    expert, replica = replica_order(copies)
    first = np.flatnonzero(layer.replica == 0)  # one item of each expert, by expert
    factor = (count_copies(layer) / copies)[expert]
    source = first[expert]
    return replace(
        layer,
        expert=expert,
        replica=replica,
        kind=expert,
        pinned=np.where(replica == 0, layer.pinned[source], -1),
        delta=layer.delta[source] * factor[:, None, None],
        load=layer.load[source] * factor,
    )


def nodes_by_expert(layer: LayerProblem, node: Ints) -> list[list[int]]:
    """List the nodes of each expert's copies, in replica order."""
    of_expert: list[list[int]] = [[] for _ in range(int(layer.expert.max()) + 1)]
    for e, n in zip(layer.expert.tolist(), node.tolist(), strict=True):
        of_expert[e].append(n)
    return of_expert


def placed(layer: LayerProblem, of_expert: list[list[int]]) -> tuple[LayerProblem, Ints]:
    """Turn `nodes_by_expert` back into a layer with these copies, and the node of each item."""
    changed = with_copies(layer, np.array([len(nodes) for nodes in of_expert], dtype=np.int64))
    pairs = zip(changed.expert.tolist(), changed.replica.tolist(), strict=True)
    return changed, np.array([of_expert[e][r] for e, r in pairs], dtype=np.int64)


def layer_time(layer: LayerProblem, z: float) -> float:
    """Time of a layer as a cost: its worst link, there and back, and the copy with the most tokens on its GPU.

    Where GPUs take one copy each, that copy's is the busiest GPU.
    """
    return z + layer.gpu_price * float(layer.load.max(initial=0.0))


def hottest_that_pays(layer: LayerProblem, z: float, lower: float) -> float:
    """Return the most tokens of one copy that a better z can pay for, where none is below ``lower``."""
    return np.inf if layer.gpu_price <= 0 else (layer_time(layer, z) - lower) / layer.gpu_price


def could_pay(layer: LayerProblem, z: float, lower: float) -> bool:
    """Whether any copy could go without making another hotter than a better z can pay for."""
    fewest = fewest_copies(layer, hottest_that_pays(layer, z, lower))
    return bool((count_copies(layer) > fewest).any())


def fewest_copies(layer: LayerProblem, most: float) -> Ints:
    """Return the fewest copies of each expert [E] with which no copy gets more than ``most`` tokens per step."""
    load = np.bincount(layer.expert, layer.load)
    if most <= 0 or not np.isfinite(most):
        return np.ones(len(load), dtype=np.int64)
    return np.maximum(1, np.ceil(load / most * (1 - _ROUNDING))).astype(np.int64)
