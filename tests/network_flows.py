"""Bytes between nodes for the networks of a simulated step, and the ends of what is in flight."""

from __future__ import annotations

from typing import Any

import numpy as np
from builders import DRAGONFLY, MESH

from moe_placer.schedule.network import Network

FABRICS: dict[str, dict[str, Any]] = {
    "fat tree": {},
    "mesh": {"cluster": {"fabric": MESH}},
    "uneven leaves": {"cluster": {"nodes": 5}, "parallelism": {"dp": 1}},
    "one leaf": {"cluster": {"fabric": {"nodes_per_leaf": 4}}},
    "dragonfly": {"cluster": {"nodes": 6, "fabric": DRAGONFLY}},
}
# 1 GB/s is 1000 bytes/µs: 400 GB/s at 80% are 320,000 bytes/µs.
NODE_SPEED = 320_000.0


def sent(net: Network, flows: dict[tuple[int, int], float]) -> np.ndarray:
    matrix = np.zeros(net.routes.hops.shape)
    for pair, amount in flows.items():
        matrix[pair] = amount
    return matrix


def drawn(net: Network, seed: int) -> np.ndarray:
    """Draw skewed bytes between all nodes, some of them none."""
    rng = np.random.default_rng(seed)
    shape = net.routes.hops.shape
    return np.asarray(rng.gamma(0.5, 1e8, shape) * (rng.random(shape) < 0.8))


def ends_of(net: Network) -> dict[int, float]:
    """Let everything end."""
    ends = {}
    while (coming := net.next_end()) is not None:
        for name in net.advance(coming[0]):
            ends[name] = coming[0]
    return ends
