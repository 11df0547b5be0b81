"""The network between nodes, as a directed graph of nodes and switches; docs/fabrics.md defines every kind."""

from __future__ import annotations

from itertools import combinations
from typing import TYPE_CHECKING

from moe_placer.fabric.cabling import Cabling
from moe_placer.fabric.hashing import fullest_over_mean
from moe_placer.instance import Instance
from moe_placer.instance.schema import Dragonfly, FatTree, RailPods, ThreeLevelTree

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["build_fabric", "cable", "kinds_of_links", "link_kind", "link_name", "node_name"]

# On minimal routes a global link goes before any two local ones: with this length a route over one global link and a
# local link on either side (5) is shorter than any over two global links (6).
GLOBAL_LENGTH = 3


def node_name(node: int) -> str:
    """Return the name of a node in the graph and in reports: ``node3``."""
    return f"node{node}"


def link_name(source: str, target: str) -> str:
    """Return the name of a link in files and reports: ``leaf0->spine2``."""
    return f"{source}->{target}"


def link_kind(graph: nx.DiGraph[str], source: str, target: str) -> str:
    """Return what kind of link this is, in words for reports: ``leaf->spine``, ``router->router (global)``."""
    kind = f"{graph.nodes[source]['role']}->{graph.nodes[target]['role']}"
    level = graph.edges[source, target].get("level")
    return f"{kind} ({level})" if level else kind


def kinds_of_links(graph: nx.DiGraph[str]) -> dict[str, dict[str, float]]:
    """Count the ``links`` of each kind, and tell the bandwidth of the first, ``gb_per_s``, one direction."""
    kinds: dict[str, dict[str, float]] = {}
    for source, target, data in graph.edges(data=True):
        entry = kinds.setdefault(link_kind(graph, source, target), {"links": 0, "gb_per_s": float(data["bandwidth"])})
        entry["links"] += 1
    return kinds


def build_fabric(instance: Instance) -> nx.DiGraph[str]:
    """Build the fabric's graph.

    Returns
    -------
    networkx.DiGraph
        Vertices ``node<i>``, ``leaf<i>``, ``spine<i>``, ``core<i>``, ``router<i>`` with attribute ``role`` (the
        name without its number; routers also have ``group``). Every edge is an inter-node link with ``bandwidth`` in
        GB/s, one direction; where shortest routes are not those of fewest links, with its ``length`` (else 1);
        between routers, with its ``level`` (``local`` or ``global``). Edges are in a fixed order.
    """
    return cable(instance).graph()


def cable(instance: Instance) -> Cabling:
    """Return vertices and links of the fabric's graph as tables, in the same order."""
    cabling = Cabling()
    cabling.add(map(node_name, range(instance.cluster.nodes)), role="node")
    fabric = instance.cluster.fabric
    if isinstance(fabric, FatTree):
        crowding = _crowding(instance, fabric, fabric.nodes_per_leaf, fabric.spines)
        _add_fat_tree(cabling, fabric, instance.cluster.nodes, instance.leaves, crowding)
    elif isinstance(fabric, ThreeLevelTree):
        of_pod = fabric.nodes_per_leaf * fabric.leaves_per_pod
        crowding = _crowding(instance, fabric, fabric.nodes_per_leaf, fabric.spines)
        above = _crowding(instance, fabric, of_pod, fabric.spines * fabric.cores)
        _add_three_levels(cabling, fabric, instance.cluster.nodes, crowding, above)
    elif isinstance(fabric, RailPods):
        _add_rail_pods(cabling, fabric, instance.cluster.nodes, instance.cluster.rails)
    elif isinstance(fabric, Dragonfly):
        _add_dragonfly(cabling, fabric, instance.cluster.nodes)
    else:
        names = list(cabling.vertices)
        for source, target in ((source, target) for source in names for target in names if source != target):
            cabling.connect(source, target, bandwidth=fabric.node_gb_per_s)
    return cabling


def _crowding(instance: Instance, fabric: FatTree | ThreeLevelTree, below: int, paths: int) -> float:
    """How much fuller than the mean the fullest uplink is: 1 where packets are sprayed.

    Parameters
    ----------
    instance : Instance
    fabric : FatTree or ThreeLevelTree
    below : int
        Nodes whose flows share the uplinks: of a leaf, or of a pod.
    paths : int
        Uplinks that a flow's hashes choose from, all alike: spines above a leaf, or cores above all spines of a pod.
    """
    cluster = instance.cluster
    if fabric.uplinks == "spray":
        return 1.0
    each = fabric.flows_per_pair or (cluster.nics.per_node if cluster.nics else cluster.gpus_per_node)
    near = max(below, cluster.nvlink_domain_nodes or 1)
    flows = below * max(0, cluster.nodes - near) * each
    return fullest_over_mean(flows, paths)


def _add_fat_tree(cabling: Cabling, fabric: FatTree, nodes: int, leaves: int, crowding: float) -> None:
    cabling.add((f"leaf{leaf}" for leaf in range(leaves)), role="leaf")
    for node in range(nodes):
        _add_both_ways(cabling, node_name(node), f"leaf{node // fabric.nodes_per_leaf}", fabric.node_gb_per_s)
    if leaves > 1:
        cabling.add((f"spine{spine}" for spine in range(fabric.spines)), role="spine")
        up = fabric.nodes_per_leaf * fabric.node_gb_per_s / fabric.oversubscription / fabric.spines
        for leaf in range(leaves):
            for spine in range(fabric.spines):
                _add_both_ways(cabling, f"leaf{leaf}", f"spine{spine}", up / crowding)


def _add_three_levels(cabling: Cabling, fabric: ThreeLevelTree, nodes: int, crowding: float, above: float) -> None:
    """Add all three levels.

    Parameters
    ----------
    cabling : Cabling
    fabric : ThreeLevelTree
    nodes : int
    crowding, above : float
        How much fuller than the mean the fullest of a leaf's uplinks is, and of a pod's.
    """
    leaves = -(-nodes // fabric.nodes_per_leaf)
    pods, spines = -(-leaves // fabric.leaves_per_pod), fabric.spines
    cabling.add((f"leaf{leaf}" for leaf in range(leaves)), role="leaf")
    for node in range(nodes):
        _add_both_ways(cabling, node_name(node), f"leaf{node // fabric.nodes_per_leaf}", fabric.node_gb_per_s)
    if leaves == 1:
        return
    cabling.add((f"spine{spine}" for spine in range(pods * spines)), role="spine")
    up = fabric.nodes_per_leaf * fabric.node_gb_per_s / fabric.oversubscription / spines
    for leaf in range(leaves):
        for spine in range(spines):
            _add_both_ways(
                cabling, f"leaf{leaf}", f"spine{leaf // fabric.leaves_per_pod * spines + spine}", up / crowding
            )
    if pods == 1:
        return
    cabling.add((f"core{core}" for core in range(spines * fabric.cores)), role="core")
    across = fabric.leaves_per_pod * up / fabric.pod_oversubscription / fabric.cores
    for spine in range(pods * spines):
        for core in range(fabric.cores):
            _add_both_ways(cabling, f"spine{spine}", f"core{spine % spines * fabric.cores + core}", across / above)


def _add_rail_pods(cabling: Cabling, fabric: RailPods, nodes: int, rails: int) -> None:
    pods = -(-nodes // fabric.nodes_per_pod)
    cabling.add((f"leaf{leaf}" for leaf in range(pods * rails)), role="leaf")
    for node in range(nodes):
        for rail in range(rails):
            own = f"leaf{node // fabric.nodes_per_pod * rails + rail}"
            _add_both_ways(cabling, node_name(node), own, fabric.node_gb_per_s / rails)
    if pods == 1:
        return
    cabling.add((f"spine{spine}" for spine in range(fabric.spines)), role="spine")
    up = fabric.nodes_per_pod * fabric.node_gb_per_s / rails / fabric.oversubscription / fabric.spines
    for leaf in range(pods * rails):
        for spine in range(fabric.spines):
            _add_both_ways(cabling, f"leaf{leaf}", f"spine{spine}", up)


def _add_dragonfly(cabling: Cabling, fabric: Dragonfly, nodes: int) -> None:
    size, parallel = fabric.routers_per_group, fabric.global_links
    groups = -(-nodes // (fabric.nodes_per_router * size))
    for router in range(groups * size):
        cabling.add([f"router{router}"], role="router", group=router // size)
    for node in range(nodes):
        _add_both_ways(cabling, node_name(node), f"router{node // fabric.nodes_per_router}", fabric.node_gb_per_s)
    local = fabric.local_gb_per_s or fabric.node_gb_per_s
    for one, other in combinations(range(size), 2):
        for first in range(0, groups * size, size):
            _add_both_ways(cabling, f"router{first + one}", f"router{first + other}", local, level="local")
    across = fabric.global_gb_per_s or fabric.node_gb_per_s
    for a, b in combinations(range(groups), 2):
        for q in range(parallel):
            here, there = ((b - a - 1) % groups * parallel + q) % size, ((a - b - 1) % groups * parallel + q) % size
            ends = f"router{a * size + here}", f"router{b * size + there}"
            _add_both_ways(cabling, *ends, across, level="global", length=GLOBAL_LENGTH)


def _add_both_ways(cabling: Cabling, low: str, high: str, bandwidth: float, **facts: str | int) -> None:
    cabling.connect(low, high, bandwidth=bandwidth, **facts)
    cabling.connect(high, low, bandwidth=bandwidth, **facts)
