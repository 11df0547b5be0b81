"""The network between nodes, as a directed graph of nodes, leaf and spine switches."""

from __future__ import annotations

import networkx as nx

from moe_placer.instance import Instance
from moe_placer.instance.schema import FatTree

__all__ = ["build_fabric", "link_name", "node_name"]


def node_name(node: int) -> str:
    """Return the name of a node in the graph and in reports: ``node3``."""
    return f"node{node}"


def link_name(source: str, target: str) -> str:
    """Return the name of a link in files and reports: ``leaf0->spine2``."""
    return f"{source}->{target}"


def build_fabric(instance: Instance) -> nx.DiGraph[str]:
    """Build the fabric's graph.

    Returns
    -------
    networkx.DiGraph
        Vertices ``node<i>``, ``leaf<i>``, ``spine<i>`` with attribute ``role`` (``node``, ``leaf`` or ``spine``); every
        edge is an inter-node link with ``bandwidth`` in GB/s, one direction. Edges are in a fixed order.
    """
    nodes, fabric = instance.cluster.nodes, instance.cluster.fabric
    graph: nx.DiGraph[str] = nx.DiGraph()
    graph.add_nodes_from((node_name(node) for node in range(nodes)), role="node")
    if not isinstance(fabric, FatTree):
        for source in range(nodes):
            for target in range(nodes):
                if source != target:
                    graph.add_edge(node_name(source), node_name(target), bandwidth=fabric.node_gb_per_s)
        return graph
    leaves = instance.leaves
    graph.add_nodes_from((f"leaf{leaf}" for leaf in range(leaves)), role="leaf")
    for node in range(nodes):
        _add_both_ways(graph, node_name(node), f"leaf{node // fabric.nodes_per_leaf}", fabric.node_gb_per_s)
    if leaves > 1:
        graph.add_nodes_from((f"spine{spine}" for spine in range(fabric.spines)), role="spine")
        down = fabric.nodes_per_leaf * fabric.node_gb_per_s
        for leaf in range(leaves):
            for spine in range(fabric.spines):
                _add_both_ways(graph, f"leaf{leaf}", f"spine{spine}", down / fabric.oversubscription / fabric.spines)
    return graph


def _add_both_ways(graph: nx.DiGraph[str], low: str, high: str, bandwidth: float) -> None:
    graph.add_edge(low, high, bandwidth=bandwidth)
    graph.add_edge(high, low, bandwidth=bandwidth)
