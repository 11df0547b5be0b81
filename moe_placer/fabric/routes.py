"""Routes compiled to sparse arrays: which share of the traffic between two nodes crosses which link."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, replace

import networkx as nx
import numpy as np
import numpy.typing as npt
from scipy import sparse

from moe_placer.fabric.graph import build_fabric, link_name, node_name
from moe_placer.instance import Instance

__all__ = ["Routes", "compile_routes", "routes_between"]


@dataclass(frozen=True, eq=False)
class Routes:
    """Shortest paths with even ECMP splitting; equally short paths have equally many links.

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
        Links on a path from s to d; 0 where NVLink joins them.
    """

    links: tuple[str, ...]
    bandwidth: npt.NDArray[np.float64]
    shares: sparse.csr_array
    hops: npt.NDArray[np.int64]


def routes_between(instance: Instance) -> Routes:
    """Route between all pairs of nodes of an instance; what NVLink joins crosses no link between nodes."""
    cluster = instance.cluster
    routes = compile_routes(build_fabric(instance), cluster.nodes)
    each = cluster.nvlink_domain_nodes or 1
    if each == 1:
        return routes
    domain = np.arange(cluster.nodes) // each
    apart = domain[:, None] != domain[None, :]
    shares = sparse.csr_array(routes.shares * apart.ravel()[None, :].astype(np.float64))
    shares.eliminate_zeros()
    return replace(routes, shares=shares, hops=np.where(apart, routes.hops, 0))


def compile_routes(graph: nx.DiGraph[str], nodes: int) -> Routes:
    """Route between all pairs of nodes: shortest paths, split evenly over equal-cost paths.

    The number of shortest paths through an edge (u, v) on the way from s to d is paths(s, u) * paths(v, d) where
    dist(s, u) + length(u, v) + dist(v, d) = dist(s, d), as in Brandes' betweenness counting (2001); the share is that
    over paths(s, d).

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
    for link, (source, target, length) in enumerate(graph.edges(data="length", default=1)):
        u, v = index[source], index[target]
        # Only where the link is on a shortest path from s to v, and on one from u to d, can it be on one from s to d.
        sources = np.flatnonzero(distance[hosts, u] + length == distance[hosts, v])
        targets = np.flatnonzero(length + distance[v, hosts] == distance[u, hosts])
        detour = distance[hosts[sources], u][:, None] + length + distance[v, hosts[targets]][None, :]
        i, j = np.nonzero(detour == between[np.ix_(sources, targets)])
        s, d = sources[i], targets[j]
        rows.append(np.full(len(s), link))
        columns.append(s * nodes + d)
        values.append(paths[hosts[s], u] * paths[v, hosts[d]] / total[s, d])
    shares = sparse.coo_array(
        (np.concatenate(values), (np.concatenate(rows), np.concatenate(columns))),
        shape=(graph.number_of_edges(), nodes * nodes),
    )
    bandwidth = np.array([data["bandwidth"] for _, _, data in graph.edges(data=True)], dtype=np.float64)
    names = tuple(link_name(source, target) for source, target in graph.edges)
    hops = np.rint(shares.sum(axis=0)).astype(np.int64).reshape(nodes, nodes)  # shares of a route's links sum to these
    return Routes(names, bandwidth, sparse.csr_array(shares), hops)


def _count_paths(graph: nx.DiGraph[str], order: list[str]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return lengths and numbers of shortest paths, both [vertices, vertices]."""
    size = len(order)
    index = {vertex: i for i, vertex in enumerate(order)}
    links = [(index[u], index[v], length) for u, v, length in graph.edges(data="length", default=1)]
    ends = np.array(links, dtype=np.int64).reshape(-1, 3)
    steps = {}
    for length in np.unique(ends[:, 2]).tolist():
        u, v = ends[ends[:, 2] == length, :2].T
        steps[length] = sparse.csr_array((np.ones(len(u)), (u, v)), shape=(size, size))
    distance = np.full((size, size), np.inf)
    np.fill_diagonal(distance, 0)
    paths = np.eye(size)
    # What is reached at the distances before, the last first: as far back as the longest link.
    frontiers = deque([np.eye(size)], maxlen=max(steps, default=1))
    hops = 0
    while any(frontier.any() for frontier in frontiers):
        hops += 1
        here = [frontiers[length - 1] @ step for length, step in steps.items() if length <= len(frontiers)]
        frontier = np.asarray(sum(here, np.zeros((size, size))))
        frontier[np.isfinite(distance)] = 0
        reached = frontier > 0
        distance[reached] = hops
        paths[reached] = frontier[reached]
        frontiers.appendleft(frontier)
    return distance, paths
