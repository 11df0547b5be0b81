"""Links and routes of meshes, fat trees and pods of rails, written down from docs/fabrics.md without their graphs."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_placer.instance import Instance
from moe_placer.instance.schema import FatTree, RailPods, ThreeLevelTree
from moe_placer.verifier.hashed import fullest_path

__all__ = ["Entries", "read_mesh", "read_rail_pods", "read_three_levels", "read_tree"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Entries = tuple[Ints, Ints, Ints, Floats]  # link, source and target node, share of what goes from one to the other


def read_mesh(instance: Instance) -> tuple[dict[str, float], Entries, Ints]:
    """Return the bandwidth of every link by name, in GB/s, and which traffic crosses it: that of its own two nodes.

    Third, the link whose entries each has: here its own.
    """
    nodes = instance.cluster.nodes
    source, target = _pairs(nodes)
    names = [f"node{s}->node{d}" for s, d in zip(source.tolist(), target.tolist(), strict=True)]
    bandwidths = dict.fromkeys(names, instance.cluster.fabric.node_gb_per_s)
    every = np.arange(len(names))
    return bandwidths, (every, source, target, np.ones(len(names))), every


def read_tree(instance: Instance) -> tuple[dict[str, float], Entries, Ints]:
    """Return the same of a fat tree: up to the leaf, between leaves by every spine alike, and down.

    Links come in the order of the vertex that they start from: nodes, then leaves (down before up), then spines.
    Third, the link whose entries each has: all between a leaf and its spines those of the first.
    """
    fabric, nodes = instance.cluster.fabric, instance.cluster.nodes
    assert isinstance(fabric, FatTree)
    per_leaf = fabric.nodes_per_leaf
    leaf = np.arange(nodes) // per_leaf
    leaves = int(leaf[-1]) + 1
    spines = fabric.spines if leaves > 1 else 0
    bandwidths = {f"node{node}->leaf{leaf[node]}": fabric.node_gb_per_s for node in range(nodes)}
    uplink = per_leaf * fabric.node_gb_per_s / fabric.oversubscription / fabric.spines
    uplink /= _fullest_uplink(instance, fabric, per_leaf, fabric.spines)
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
    if spines:
        pairs = source[far], target[far], np.full(int(far.sum()), 1 / spines)
        up = np.array([index[f"leaf{j}->spine0"] for j in range(leaves)])
        under = np.array([index[f"spine0->leaf{j}"] for j in range(leaves)])
        parts += [(link, *pairs) for link in (up[first[far]], under[last[far]])]
    like = {(f"leaf{j}", f"spine{k}"): (f"leaf{j}", "spine0") for j in range(leaves) for k in range(spines)}
    return bandwidths, _joined(parts), _alike(index, like)


def read_three_levels(instance: Instance) -> tuple[dict[str, float], Entries, Ints]:
    """Return the same of a fat tree of three levels: as far up as the two nodes need, over all that is there alike."""
    fabric, nodes = instance.cluster.fabric, instance.cluster.nodes
    assert isinstance(fabric, ThreeLevelTree)
    S, C, B = fabric.spines, fabric.cores, fabric.node_gb_per_s
    leaf = np.arange(nodes) // fabric.nodes_per_leaf
    leaves = np.arange(leaf[-1] + 1)
    pod = leaves // fabric.leaves_per_pod
    of_pod = fabric.nodes_per_leaf * fabric.leaves_per_pod * B / fabric.oversubscription
    up = of_pod / fabric.leaves_per_pod / (S * _fullest_uplink(instance, fabric, fabric.nodes_per_leaf, S))
    pod_nodes = fabric.nodes_per_leaf * fabric.leaves_per_pod
    across = of_pod / fabric.pod_oversubscription / (S * C * _fullest_uplink(instance, fabric, pod_nodes, S * C))
    links: list[tuple[str, str, float]] = [(f"node{n}", f"leaf{leaf[n]}", B) for n in range(nodes)]
    if len(leaves) > 1:
        links += [(f"leaf{j}", f"spine{pod[j] * S + k}", up) for j in leaves for k in range(S)]
    if pod[-1] > 0:
        cores = [(p * S + k, k * C + c) for p in range(pod[-1] + 1) for k in range(S) for c in range(C)]
        links += [(f"spine{spine}", f"core{core}", across) for spine, core in cores]
    bandwidths = _both_ways(links, ("node", "leaf", "spine", "core"))
    index = {name: i for i, name in enumerate(bandwidths)}

    source, target = _pairs(nodes)
    parts: list[Entries] = []

    def carries(pairs: npt.NDArray[np.bool_], share: float, out: list[str], into: list[str]) -> None:
        shares = np.full(int(pairs.sum()), share)
        ways = np.array([index[name] for name in out])[source], np.array([index[name] for name in into])[target]
        parts.extend((way[pairs], source[pairs], target[pairs], shares) for way in ways)

    whole, apart = np.ones(len(source), dtype=bool), leaf[source] != leaf[target]
    far = pod[leaf[source]] != pod[leaf[target]]
    low = [f"leaf{j}" for j in leaf]
    carries(whole, 1.0, [f"node{n}->{at}" for n, at in enumerate(low)], [f"{at}->node{n}" for n, at in enumerate(low)])
    high = [f"spine{pod[j] * S}" for j in leaf]
    if len(leaves) > 1:
        ways = list(zip(low, high, strict=True))
        carries(apart, 1 / S, [f"{a}->{b}" for a, b in ways], [f"{b}->{a}" for a, b in ways])
    if pod[-1] > 0:
        carries(far, 1 / (S * C), [f"{at}->core0" for at in high], [f"core0->{at}" for at in high])
    like = {
        (f"leaf{j}", f"spine{pod[j] * S + k}"): (f"leaf{j}", f"spine{pod[j] * S}")
        for j in leaves
        for k in range(S if len(leaves) > 1 else 0)
    }
    like |= {
        (f"spine{p * S + k}", f"core{k * C + c}"): (f"spine{p * S}", "core0")
        for p in range(pod[-1] + 1 if pod[-1] > 0 else 0)
        for k in range(S)
        for c in range(C)
    }
    return bandwidths, _joined(parts), _alike(index, like)


def read_rail_pods(instance: Instance) -> tuple[dict[str, float], Entries, Ints]:
    """Return the same of pods of rails: by every rail alike, between pods from any over any spine to any."""
    fabric, nodes = instance.cluster.fabric, instance.cluster.nodes
    assert isinstance(fabric, RailPods)
    cluster = instance.cluster
    R = fabric.rails or (cluster.gpus_per_node if cluster.nics is None else cluster.nics.per_node)
    pod, each = np.arange(nodes) // fabric.nodes_per_pod, fabric.node_gb_per_s / R
    pods, spines = int(pod[-1]) + 1, fabric.spines
    links = [(f"node{n}", f"leaf{pod[n] * R + r}", each) for n in range(nodes) for r in range(R)]
    if pods > 1:
        up = each * fabric.nodes_per_pod / fabric.oversubscription / spines
        links += [(f"leaf{j}", f"spine{k}", up) for j in range(pods * R) for k in range(spines)]
    bandwidths = _both_ways(links, ("node", "leaf", "spine"))
    index = {name: i for i, name in enumerate(bandwidths)}
    source, target = _pairs(nodes)
    far = pod[source] != pod[target]
    parts: list[Entries] = []
    leaf = pod * R
    out = np.array([index[f"node{n}->leaf{leaf[n]}"] for n in range(nodes)])
    into = np.array([index[f"leaf{leaf[n]}->node{n}"] for n in range(nodes)])
    parts += [(way, source, target, np.full(len(source), 1 / R)) for way in (out[source], into[target])]
    if pods > 1:
        share = np.full(int(far.sum()), 1 / (R * spines))
        out = np.array([index[f"leaf{leaf[n]}->spine0"] for n in range(nodes)])
        into = np.array([index[f"spine0->leaf{leaf[n]}"] for n in range(nodes)])
        parts += [(way, source[far], target[far], share) for way in (out[source[far]], into[target[far]])]
    like = {(f"node{n}", f"leaf{leaf[n] + r}"): (f"node{n}", f"leaf{leaf[n]}") for n in range(nodes) for r in range(R)}
    if pods > 1:
        like |= {
            (f"leaf{j}", f"spine{k}"): (f"leaf{j // R * R}", "spine0") for j in range(pods * R) for k in range(spines)
        }
    return bandwidths, _joined(parts), _alike(index, like)


def _both_ways(links: list[tuple[str, str, float]], ranks: tuple[str, ...]) -> dict[str, float]:
    """Name links and their twins, in the order of the vertices that they start from, rank by rank; down before up."""
    found = [(low, high, rate) for low, high, rate in links] + [(high, low, rate) for low, high, rate in links]

    def place(end: str) -> tuple[int, int]:
        rank = end.rstrip("0123456789")
        return ranks.index(rank), int(end[len(rank) :])

    found.sort(key=lambda link: (place(link[0]), place(link[1])))
    return {f"{start}->{end}": rate for start, end, rate in found}


def _alike(index: dict[str, int], like: dict[tuple[str, str], tuple[str, str]]) -> Ints:
    """Return the link whose entries each has, both ways: that between two ends, or its own."""
    found = np.arange(len(index))
    for ends, others in like.items():
        for one, other in ((ends, others), (ends[::-1], others[::-1])):
            found[index["->".join(one)]] = index["->".join(other)]
    return found


def _joined(parts: list[Entries]) -> Entries:
    link, source, target, share = (np.concatenate(column) for column in zip(*parts, strict=True))
    return link, source, target, share


def _pairs(nodes: int) -> tuple[Ints, Ints]:
    """Return every ordered pair of different nodes."""
    source, target = np.divmod(np.flatnonzero(~np.eye(nodes, dtype=bool)), nodes)
    return source, target


def _fullest_uplink(instance: Instance, fabric: FatTree | ThreeLevelTree, nodes: int, uplinks: int) -> float:
    """Load of the fullest of the uplinks above so many nodes, over the mean: 1, or where flows crowd one, more."""
    if fabric.uplinks == "spray":
        return 1.0
    cluster = instance.cluster
    flows = fabric.flows_per_pair
    if flows is None:
        flows = cluster.gpus_per_node if cluster.nics is None else cluster.nics.per_node
    others = max(0, cluster.nodes - max(nodes, cluster.nvlink_domain_nodes or 1))
    return fullest_path(nodes * others * flows, uplinks)
