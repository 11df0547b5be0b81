"""A problem whose places are single GPUs: what dispatch once per GPU asks for where GPUs hold several experts.

Sources and places become GPUs; GPUs of one node have no link between them, so the costs of links are what they were.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt
from scipy import sparse

from moe_placer.problem.capacity import Capacity
from moe_placer.problem.coverage import Coverage, Sending

__all__ = ["capacity_by_gpu", "sent_by_gpu"]

Ints = npt.NDArray[np.int64]


def capacity_by_gpu(capacity: Capacity) -> Capacity:
    """Return the capacity with every GPU as a node of its own."""
    widest = np.minimum(capacity.usable, capacity.per_gpu)  # 0 for a GPU that failed
    return replace(capacity, node_memory_slots=capacity.usable, widest=widest, gpus_per_node=1)


def sent_by_gpu(coverage: tuple[Coverage, ...], node: Ints) -> tuple[Coverage, ...]:
    """Return the coverage of all layers with every GPU, on ``node[gpu]``, as a source and a place of its own."""
    sending = _on_gpus(coverage[0].sending, node)
    return tuple(replace(layer, sending=sending) for layer in coverage)


def _on_gpus(sending: Sending, node: Ints) -> Sending:
    """Repeat every entry of the routes for all pairs of GPUs of its two nodes; tokens start evenly on a node's GPUs."""
    nodes, gpus = sending.nodes, len(node)
    size = gpus // nodes
    entries = sending.shares.tocoo()
    link, pair = entries.coords
    first, second = np.meshgrid(np.arange(size), np.arange(size), indexing="ij")
    source = (pair // nodes * size)[:, None] + first.ravel()
    target = (pair % nodes * size)[:, None] + second.ravel()
    links = np.broadcast_to(link[:, None], source.shape)
    costs = np.broadcast_to(entries.data[:, None], source.shape)
    at = (links.ravel(), (source * gpus + target).ravel())
    shares = sparse.csr_array((costs.ravel(), at), shape=(sending.shares.shape[0], gpus * gpus))
    return replace(sending, view=sending.view[node], source=sending.source[node] / size, shares=shares)
