"""Routes compiled to sparse arrays: which share of the traffic between two nodes crosses which link."""

from __future__ import annotations

from dataclasses import dataclass

import networkx as nx
import numpy as np
import numpy.typing as npt
from scipy import sparse

from moe_placer.fabric.graph import link_name, node_name

__all__ = ["Routes", "compile_routes"]


@dataclass(frozen=True, eq=False)
class Routes:
    """Shortest paths with even ECMP splitting.

    Attributes
    ----------
    links : tuple of str
        Names of the inter-node links, ``source->target``.
    bandwidth : float array [links]
        GB/s, one direction.
    shares : sparse array [links, nodes * nodes]
        ``A[k, s, d]`` of placement-model.md, with column ``s * nodes + d``: the share of traffic from node s to node d
        that crosses link k.
    hops : int array [nodes, nodes]
        Links on a path from s to d.
    """

    links: tuple[str, ...]
    bandwidth: npt.NDArray[np.float64]
    shares: sparse.csr_array
    hops: npt.NDArray[np.int64]


def compile_routes(graph: nx.DiGraph[str], nodes: int) -> Routes:
    """Route between all pairs of nodes: shortest paths, split evenly over equal-cost paths.

    The number of shortest paths through an edge (u, v) on the way from s to d is paths(s, u) * paths(v, d) where
    dist(s, u) + 1 + dist(v, d) = dist(s, d), as in Brandes' betweenness counting (2001); the share is that over
    paths(s, d).

    Raises
    ------
    ValueError
        Some node cannot reach another.
    """
    order = list(graph)
    index = {vertex: i for i, vertex in enumerate(order)}
    hosts = np.array([index[node_name(node)] for node in range(nodes)])
    distance, paths = _count_paths(graph, order)
    between = distance[np.ix_(hosts, hosts)]
    if not np.isfinite(between).all():
        raise ValueError("the fabric does not connect every node with every other")
    total = paths[np.ix_(hosts, hosts)]
    # A first, empty part each, for fabrics without links.
    rows, columns = [np.zeros(0, dtype=np.int64)], [np.zeros(0, dtype=np.int64)]
    values = [np.zeros(0)]
    for link, (source, target) in enumerate(graph.edges):
        u, v = index[source], index[target]
        on_path = distance[hosts, u][:, None] + 1 + distance[v, hosts][None, :] == between
        s, d = np.nonzero(on_path)
        rows.append(np.full(len(s), link))
        columns.append(s * nodes + d)
        values.append(paths[hosts[s], u] * paths[v, hosts[d]] / total[s, d])
    shares = sparse.coo_array(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))),
        shape=(graph.number_of_edges(), nodes * nodes),
    )
    bandwidth = np.array([data["bandwidth"] for _, _, data in graph.edges(data=True)], dtype=np.float64)
    names = tuple(link_name(source, target) for source, target in graph.edges)
    return Routes(names, bandwidth, sparse.csr_array(shares), between.astype(np.int64))


def _count_paths(graph: nx.DiGraph[str], order: list[str]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return distances in hops and numbers of shortest paths, both [vertices, vertices]."""
    size = len(order)
    index = {vertex: i for i, vertex in enumerate(order)}
    ends = np.array([(index[u], index[v]) for u, v in graph.edges], dtype=np.int64).reshape(-1, 2)
    step = sparse.csr_array((np.ones(len(ends)), (ends[:, 0], ends[:, 1])), shape=(size, size))
    distance = np.full((size, size), np.inf)
    np.fill_diagonal(distance, 0)
    paths = np.eye(size)
    frontier = np.eye(size)
    hops = 0
    while frontier.any():
        hops += 1
        frontier = np.asarray(frontier @ step)
        frontier[np.isfinite(distance)] = 0
        reached = frontier > 0
        distance[reached] = hops
        paths[reached] = frontier[reached]
    return distance, paths
