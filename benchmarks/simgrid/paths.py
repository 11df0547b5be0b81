"""The single paths behind the shares of `moe_placer.fabric.Routes`."""

from __future__ import annotations

import networkx as nx

from moe_placer.fabric import node_name

__all__ = ["list_paths"]


def list_paths(graph: nx.DiGraph[str], nodes: int) -> dict[tuple[int, int], list[list[int]]]:
    """List the shortest paths between all nodes, each as the numbers of its links in the order of the graph's edges."""
    number = {edge: k for k, edge in enumerate(graph.edges)}
    paths = {}
    for source in range(nodes):
        for target in range(nodes):
            if source != target:
                found = nx.all_shortest_paths(graph, node_name(source), node_name(target), weight="length")
                paths[source, target] = [[number[edge] for edge in nx.utils.pairwise(path)] for path in found]
    return paths
