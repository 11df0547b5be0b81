"""Links and routes of full meshes and fat trees, written down from docs/fabrics.md without their graphs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_placer.instance import Instance
from moe_placer.instance.schema import FatTree
from moe_placer.verifier.hashed import fullest_path

__all__ = ["Entries", "read_mesh", "read_tree"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Entries = tuple[Ints, Ints, Ints, Floats]  # link, source and target node, share of what goes from one to the other


def read_mesh(instance: Instance) -> tuple[dict[str, float], Entries]:
    """Return the bandwidth of every link by name, in GB/s, and which traffic crosses it: that of its own two nodes."""
    nodes = instance.cluster.nodes
    source, target = _pairs(nodes)
    names = [f"node{s}->node{d}" for s, d in zip(source.tolist(), target.tolist(), strict=True)]
    bandwidths = dict.fromkeys(names, instance.cluster.fabric.node_gb_per_s)
    return bandwidths, (np.arange(len(names)), source, target, np.ones(len(names)))


def read_tree(instance: Instance) -> tuple[dict[str, float], Entries]:
    """Return the same of a fat tree: up to the leaf, between leaves by every spine alike, and down.

    Links come in the order of the vertex that they start from: nodes, then leaves (down before up), then spines.
    """
    fabric, nodes = instance.cluster.fabric, instance.cluster.nodes
    assert isinstance(fabric, FatTree)
    per_leaf = fabric.nodes_per_leaf
    leaf = np.arange(nodes) // per_leaf
    leaves = int(leaf[-1]) + 1
    spines = fabric.spines if leaves > 1 else 0
    bandwidths = {f"node{node}->leaf{leaf[node]}": fabric.node_gb_per_s for node in range(nodes)}
    uplink = _uplink_gb_per_s(instance, fabric)
    for j in range(leaves):
        own = range(j * per_leaf, min(nodes, (j + 1) * per_leaf))
        bandwidths |= {f"leaf{j}->node{node}": fabric.node_gb_per_s for node in own}
        bandwidths |= {f"leaf{j}->spine{k}": uplink for k in range(spines)}
    bandwidths |= {f"spine{k}->leaf{j}": uplink for k in range(spines) for j in range(leaves)}

    source, target = _pairs(nodes)
    first, last = leaf[source], leaf[target]
    index = {name: i for i, name in enumerate(bandwidths)}
    down = np.array([index[f"leaf{leaf[node]}->node{node}"] for node in range(nodes)])
    parts: list[Entries] = [
        (source, source, target, np.ones(len(source))),
        (down[target], source, target, np.ones(len(source))),
    ]
    far = first != last
    for k in range(spines):
        share = np.full(int(far.sum()), 1 / spines)
        up = np.array([index[f"leaf{j}->spine{k}"] for j in range(leaves)])
        under = np.array([index[f"spine{k}->leaf{j}"] for j in range(leaves)])
        parts += [(link, source[far], target[far], share) for link in (up[first[far]], under[last[far]])]
    link, sources, targets, shares = (np.concatenate(column) for column in zip(*parts, strict=True))
    return bandwidths, (link, sources, targets, shares)


def _pairs(nodes: int) -> tuple[Ints, Ints]:
    """Return every ordered pair of different nodes."""
    source, target = np.divmod(np.flatnonzero(~np.eye(nodes, dtype=bool)), nodes)
    return source, target


def _uplink_gb_per_s(instance: Instance, fabric: FatTree) -> float:
    """Bandwidth of a link between leaf and spine: its part of what a leaf has, less where flows crowd one spine."""
    each = fabric.nodes_per_leaf * fabric.node_gb_per_s / fabric.oversubscription / fabric.spines
    if fabric.uplinks == "spray":
        return each
    cluster = instance.cluster
    flows = fabric.flows_per_pair
    if flows is None:
        flows = cluster.gpus_per_node if cluster.nics is None else cluster.nics.per_node
    others = max(0, cluster.nodes - fabric.nodes_per_leaf)
    return each / fullest_path(fabric.nodes_per_leaf * others * flows, fabric.spines)
