"""Routes compiled to sparse arrays: which share of the traffic between two nodes crosses which link."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from hashlib import sha256
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from scipy import sparse

from moe_placer.fabric.cabling import Cabling
from moe_placer.fabric.graph import cable, link_name, node_name
from moe_placer.instance import Instance
from moe_placer.instance.fabric_section import AnyFabric
from moe_placer.instance.schema import Nics

if TYPE_CHECKING:
    import networkx as nx

__all__ = ["LARGEST_KEPT", "MOST_KEPT", "Routes", "compile_routes", "routes_between"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MOST_KEPT = 16  # fabrics whose routes are kept
LARGEST_KEPT = 64  # nodes of these; routes of more take memory


@dataclass(frozen=True, eq=False)
class Routes:
    """Shortest paths with even ECMP splitting; equally short paths have equally many links.

    Attributes
    ----------
    links : tuple of str
        Names of the inter-node links, ``source->target``.
    bandwidth : float array [links]
        GB/s, one direction.
    kind : int array [links]
        Row of ``kinds`` that each link has; those to parallel spines have one in common.
    kinds : sparse array [kinds, nodes * nodes]
        What is different of `shares`.
    hops : int array [nodes, nodes]
        Links on a path from s to d; 0 where NVLink joins them.
    """

    links: tuple[str, ...]
    bandwidth: Floats
    kind: Ints
    kinds: sparse.csr_array
    hops: Ints

    @cached_property
    def shares(self) -> sparse.csr_array:
        """``A[k, s, d]`` of placement-model.md, sparse [links, nodes * nodes], with column ``s * nodes + d``.

        It is the share of traffic from node s to node d that crosses link k.
        """
        return self.kinds[self.kind]


@dataclass(frozen=True)
class _Network:
    """What routes follow from; equal if they are alike."""

    fabric: AnyFabric
    nics: Nics | None
    sizes: tuple[int, int, int | None]
    instance: Instance = field(compare=False)


def routes_between(instance: Instance) -> Routes:
    """Route between all pairs of nodes of an instance; what NVLink joins crosses no link between nodes.

    One command asks for them several times: those of small clusters are kept. Nobody may write to their arrays.
    """
    cluster = instance.cluster
    sizes = cluster.nodes, cluster.gpus_per_node, cluster.nvlink_domain_nodes
    network = _Network(cluster.fabric, cluster.nics, sizes, instance)
    return _kept_routes(network) if cluster.nodes <= LARGEST_KEPT else _routes_of(instance)


@lru_cache(maxsize=MOST_KEPT)
def _kept_routes(network: _Network) -> Routes:
    routes = _routes_of(network.instance)
    kinds = routes.kinds
    for array in (routes.bandwidth, routes.kind, routes.hops, kinds.data, kinds.indices, kinds.indptr):
        array.setflags(write=False)
    return routes


def _routes_of(instance: Instance) -> Routes:
    cluster = instance.cluster
    routes = compile_routes(cable(instance), cluster.nodes)
    each = cluster.nvlink_domain_nodes or 1
    if each == 1:
        return routes
    domain = np.arange(cluster.nodes) // each
    apart = domain[:, None] != domain[None, :]
    kinds = sparse.csr_array(routes.kinds * apart.ravel()[None, :].astype(np.float64))
    kinds.eliminate_zeros()
    return replace(routes, kinds=kinds, hops=np.where(apart, routes.hops, 0))


def compile_routes(graph: nx.DiGraph[str] | Cabling, nodes: int) -> Routes:
    """Route between all pairs of nodes: shortest paths, split evenly over equal-cost paths.

    The number of shortest paths through an edge (u, v) on the way from s to d is paths(s, u) * paths(v, d) where
    dist(s, u) + length(u, v) + dist(v, d) = dist(s, d), as in Brandes' betweenness counting (2001); the share is that
    over paths(s, d).

    Raises
    ------
    ValueError
        Some node cannot reach another.
    """
    cabling = graph if isinstance(graph, Cabling) else Cabling.of(graph)
    order = list(cabling.vertices)
    index = {vertex: i for i, vertex in enumerate(order)}
    hosts = np.array([index[node_name(node)] for node in range(nodes)])
    distance, paths = _count_paths(cabling, order)
    between = distance[np.ix_(hosts, hosts)]
    if not np.isfinite(between).all():
        raise ValueError("the fabric does not connect every node with every other")
    total = paths[np.ix_(hosts, hosts)]
    kind, ends = _kinds_of_links(cabling, index, distance[hosts], distance[:, hosts], paths[hosts], paths[:, hosts])
    # A first, empty part each, for fabrics without links.
    number = np.int32 if nodes * nodes <= np.iinfo(np.int32).max else np.int64
    columns, values, sizes = [np.zeros(0, dtype=number)], [np.zeros(0)], [0]
    for u, v, length in ends:
        # Only where the link is on a shortest path from s to v, and on one from u to d, can it be on one from s to d.
        sources = np.flatnonzero(distance[hosts, u] + length == distance[hosts, v])
        targets = np.flatnonzero(length + distance[v, hosts] == distance[u, hosts])
        detour = distance[hosts[sources], u][:, None] + length + distance[v, hosts[targets]][None, :]
        i, j = np.nonzero(detour == between[np.ix_(sources, targets)])
        s, d = sources[i], targets[j]
        columns.append((s * nodes + d).astype(number))
        values.append(paths[hosts[s], u] * paths[v, hosts[d]] / total[s, d])
        sizes.append(len(s))
    entries = np.concatenate(values), np.concatenate(columns), np.cumsum(sizes)
    kinds = sparse.csr_array(entries, shape=(len(ends), nodes * nodes))
    bandwidth = np.array([facts["bandwidth"] for _, _, facts in cabling.links()], dtype=np.float64)
    names = tuple(link_name(source, target) for source, target, _ in cabling.links())
    crossed = np.bincount(kind, minlength=len(ends)) @ kinds  # shares of a route's links sum to how many these are
    return Routes(names, bandwidth, kind, kinds, np.rint(crossed).astype(np.int64).reshape(nodes, nodes))


def _kinds_of_links(
    cabling: Cabling, index: dict[str, int], to: Floats, since: Floats, paths_to: Floats, paths_since: Floats
) -> tuple[Ints, list[tuple[int, int, int]]]:
    """Tell links apart by lengths and numbers of ways to their begin and from their end: what decides their shares.

    Parameters
    ----------
    cabling : Cabling
    index : dict
        Number of each vertex.
    to, paths_to : float arrays [nodes, vertices]
        Length and number of shortest paths from each node.
    since, paths_since : float arrays [vertices, nodes]
        The same to each node.

    Returns
    -------
    kind : int array [links]
    ends : list
        Source, target and length of the first link of each kind.
    """
    begin, end = np.stack([to, paths_to]).T.copy(), np.stack([since, paths_since], axis=1)  # one block for each vertex
    of_begin, of_end = _numbered(begin), _numbered(end)
    first: dict[tuple[int, int, int], int] = {}
    kind: list[int] = []
    ends: list[tuple[int, int, int]] = []
    for source, target, facts in cabling.links():
        u, v, length = index[source], index[target], facts.get("length", 1)
        key = of_begin[u], of_end[v], length
        if key not in first:
            first[key] = len(ends)
            ends.append((u, v, length))
        kind.append(first[key])
    return np.array(kind, dtype=np.int64), ends


def _numbered(blocks: Floats) -> list[int]:
    """Give equal blocks the same number."""
    number: dict[bytes, int] = {}
    return [number.setdefault(sha256(block.tobytes()).digest(), len(number)) for block in blocks]


def _count_paths(cabling: Cabling, order: list[str]) -> tuple[Floats, Floats]:
    """Return lengths and numbers of shortest paths, both [vertices, vertices]."""
    size = len(order)
    index = {vertex: i for i, vertex in enumerate(order)}
    links = [(index[u], index[v], facts.get("length", 1)) for u, v, facts in cabling.links()]
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
