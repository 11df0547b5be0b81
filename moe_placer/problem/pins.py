"""Whether the replicas of one layer's experts can all have GPUs where some are pinned."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

__all__ = ["fits_pins"]

Ints = npt.NDArray[np.int64]


def fits_pins(pins: Sequence[tuple[int, int]], replicas: Ints, slots: Ints, gpus_per_node: int, apart: bool) -> bool:
    """Say whether the replicas that are not pinned find GPUs, no two of one expert on the same (or on the same node).

    Parameters
    ----------
    pins : sequence of (expert, GPU)
    replicas : int array [experts]
        Of each expert, pinned ones included.
    slots : int array [GPUs]
        Replicas that a GPU may take.
    apart : bool
        Whether replicas of one expert keep to different nodes.
    gpus_per_node : int
        GPUs of a node; they follow each other.

    Returns
    -------
    bool
        By maximum flow: from experts over GPUs (or over nodes, then GPUs).
    """
    experts, gpus = len(replicas), len(slots)
    left, need = slots.copy(), replicas.copy()
    open_ = np.ones((experts, gpus), dtype=bool)
    for expert, gpu in pins:
        first = gpu - gpu % gpus_per_node
        taken = slice(first, first + gpus_per_node) if apart else slice(gpu, gpu + 1)
        if not open_[expert, gpu]:
            return False
        open_[expert, taken] = False
        left[gpu] -= 1
        need[expert] -= 1
    if left.min() < 0 or need.min() < 0:
        return False
    return _most_flow(need, left, open_, gpus_per_node if apart else 1) == int(need.sum())


def _most_flow(need: Ints, left: Ints, open_: npt.NDArray[np.bool_], per_place: int) -> int:
    """Return how many replicas find a place; a place has ``per_place`` GPUs and takes one replica of each expert."""
    from scipy import sparse
    from scipy.sparse.csgraph import maximum_flow

    experts, gpus = open_.shape
    places = gpus // per_place
    # Vertices: source, experts, experts in places, GPUs, sink.
    first_pair, first_gpu = 1 + experts, 1 + experts + experts * places
    sink = first_gpu + gpus
    expert, place = np.nonzero(open_.reshape(experts, places, per_place).any(axis=2))
    inside, gpu = np.nonzero(open_)
    pair = first_pair + expert * places + place
    arcs = [
        (np.zeros(experts, dtype=np.int64), 1 + np.arange(experts), need),
        (1 + expert, pair, np.ones(len(pair), dtype=np.int64)),
        (first_pair + inside * places + gpu // per_place, first_gpu + gpu, np.ones(len(gpu), dtype=np.int64)),
        (first_gpu + np.arange(gpus), np.full(gpus, sink), left),
    ]
    tail, head, most = (np.concatenate(part) for part in zip(*arcs, strict=True))
    graph = sparse.csr_array((most.astype(np.int32), (tail, head)), shape=(sink + 1, sink + 1))
    graph.indices, graph.indptr = graph.indices.astype(np.int32), graph.indptr.astype(np.int32)  # scipy below 1.14
    return int(maximum_flow(graph, 0, sink).flow_value)
