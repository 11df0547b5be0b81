"""Which GPU sends which expert to which: the nearest that holds it, and of these the one with least to send."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.fabric import routes_between
from moe_placer.instance import Instance
from moe_placer.instance.sizes import GB, expert_bytes
from moe_placer.placement import Placement

__all__ = ["Held", "Transfer", "Wires", "choose_sources", "degree", "held_by", "read_wires"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Held = set[tuple[int, int, int]]  # (MoE layer, expert, GPU)


@dataclass(frozen=True)
class Transfer:
    """The weights of an expert of a MoE layer (counted among MoE layers) go from one GPU to another."""

    row: int
    expert: int
    source: int
    target: int


@dataclass(frozen=True, eq=False)
class Wires:
    """What a transfer uses, and how long it takes alone.

    Attributes
    ----------
    gpus_per_node : int
    network_us, node_us : float
        One expert from GPU to GPU over both NICs' shares of their nodes' links, and inside a node over NVLink.
    links : tuple of str
    share : float array [nodes, nodes, links]
        What a transfer between two nodes uses of each link's bandwidth while it runs at its full speed.
    hops : int array [nodes, nodes]
    """

    gpus_per_node: int
    network_us: float
    node_us: float
    links: tuple[str, ...]
    share: Floats
    hops: Ints

    def between(self, transfer: Transfer) -> tuple[int, int]:
        """Return the nodes of source and target."""
        return transfer.source // self.gpus_per_node, transfer.target // self.gpus_per_node


def read_wires(instance: Instance) -> Wires:
    """Compile the fabric for transfers: a GPU has an equal share of its node's link, and NVLink."""
    cluster = instance.cluster
    nodes, fabric = cluster.nodes, cluster.fabric
    routes = routes_between(instance)
    own = fabric.node_gb_per_s / cluster.gpus_per_node
    shares = routes.shares.toarray().T.reshape(nodes, nodes, -1) * (own / routes.bandwidth)
    size = 1e6 * expert_bytes(instance) / GB
    return Wires(
        cluster.gpus_per_node,
        size / (own * fabric.link_utilization),
        size / (cluster.nvlink_gb_per_s * fabric.link_utilization),
        routes.links,
        shares,
        routes.hops,
    )


def held_by(placement: Placement) -> Held:
    """Return what every GPU holds."""
    return {
        (row, expert, gpu)
        for row, experts in enumerate(placement.gpu)
        for expert in range(len(experts))
        for replica in placement.shards(row, expert)
        for gpu in replica
    }


def choose_sources(wires: Wires, now: Held, then: Held) -> list[Transfer]:
    """Return a transfer for every replica that comes, from the nearest GPU that holds the expert now.

    Of equally near ones the GPU that has least to send is taken; replicas with the fewest choices come first.
    """
    coming = sorted(then - now)
    sources: dict[tuple[int, int], list[int]] = {(row, expert): [] for row, expert, _ in coming}
    for row, expert, gpu in now:
        if (row, expert) in sources:
            sources[row, expert].append(gpu)
    asked = []
    for row, expert, target in coming:
        node = target // wires.gpus_per_node
        able = sorted(sources[row, expert])
        far = [int(wires.hops[gpu // wires.gpus_per_node, node]) for gpu in able]
        asked.append((row, expert, target, [gpu for gpu, hops in zip(able, far, strict=True) if hops == min(far)]))
    sent: dict[tuple[int, bool], int] = {}
    found = []
    for row, expert, target, able in sorted(asked, key=lambda one: len(one[3])):
        node = target // wires.gpus_per_node
        source = min(able, key=lambda gpu: (sent.get((gpu, gpu // wires.gpus_per_node == node), 0), gpu))
        key = (source, source // wires.gpus_per_node == node)
        sent[key] = sent.get(key, 0) + 1
        found.append(Transfer(row, expert, source, target))
    return found


def degree(transfers: Sequence[Transfer]) -> int:
    """Return the most transfers that any GPU sends, or that any receives."""
    if not transfers:
        return 0
    ends = (np.bincount([t.source for t in transfers]).max(), np.bincount([t.target for t in transfers]).max())
    return int(max(ends))
