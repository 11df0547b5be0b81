"""A node's NICs as links; docs/nics.md defines which of them a copy of a token leaves by, and arrives at.

Tokens start evenly on a node's GPUs, and leave by the NICs of these: every NIC of a node sends an equal share of what
the node sends. On the source's rail every NIC receives an equal share as well. Where the expert's GPU receives, its
NICs share what other nodes send to the replicas on it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import numpy.typing as npt
from scipy import sparse

from moe_placer.fabric.graph import build_fabric, kinds_of_links, link_name, node_name
from moe_placer.fabric.routes import LARGEST_KEPT, MOST_KEPT, Routes, routes_between
from moe_placer.instance import Instance
from moe_placer.instance.schema import Nics

__all__ = ["Receivers", "is_nic", "kinds_in", "nic_bandwidths", "nics_among", "node_routes", "receivers"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def _nic(node: int, nic: int) -> str:
    return f"{node_name(node)}/nic{nic}"


def _sends(node: int, nic: int) -> str:
    return link_name(node_name(node), _nic(node, nic))


def _receives(node: int, nic: int) -> str:
    return link_name(_nic(node, nic), node_name(node))


def is_nic(link: str) -> bool:
    """Whether a link is a NIC, one direction of it: ``node3->node3/nic5`` sends, ``node3/nic5->node3`` receives."""
    return "/nic" in link


def nics_among(links: Sequence[str]) -> npt.NDArray[np.bool_]:
    """Mask of the links that are NICs, one direction of them [links]."""
    return np.array([is_nic(link) for link in links], dtype=bool)


def _counted(instance: Instance) -> int:
    """Return how many NICs of a node are links of their own; 0 where they are one pipe."""
    nics = instance.cluster.nics
    return 0 if nics is None or nics.receive == "shared" or instance.cluster.nodes == 1 else nics.per_node


def nic_bandwidths(instance: Instance) -> dict[str, float]:
    """Bandwidth of every NIC that is a link of its own, by name, in GB/s, one direction; senders come first."""
    nics, each = instance.cluster.nics, _counted(instance)
    if nics is None:
        return {}
    pairs = [(node, nic) for node in range(instance.cluster.nodes) for nic in range(each)]
    return {name(node, nic): nics.gb_per_s for name in (_sends, _receives) for node, nic in pairs}


def kinds_in(instance: Instance) -> dict[str, dict[str, float]]:
    """Count the ``links`` of each kind, NICs among them, and tell the bandwidth of the first, ``gb_per_s``."""
    kinds = kinds_of_links(build_fabric(instance))
    bandwidths = nic_bandwidths(instance)
    for kind, name in (("node->node/nic", _sends), ("node/nic->node", _receives)):
        if bandwidths:
            kinds[kind] = {"links": len(bandwidths) // 2, "gb_per_s": bandwidths[name(0, 0)]}
    return kinds


def node_routes(instance: Instance) -> Routes:
    """Route between all pairs of nodes, over the NICs too whose loads follow from what nodes send each other.

    These are all that send, and on the source's rail all that receive; `receivers` has the others.
    """
    cluster, routes = instance.cluster, routes_between(instance)
    if cluster.nics is None or not _counted(instance):
        return routes
    over = _kept_over_nics if cluster.nodes <= LARGEST_KEPT else _over_nics
    return over(routes, cluster.nics, cluster.nvlink_domain_nodes or 1)


def _over_nics(routes: Routes, nics: Nics, joined: int) -> Routes:
    nodes, each = len(routes.hops), nics.per_node
    domain = np.arange(nodes) // joined
    pair = np.flatnonzero(domain[:, None] != domain[None, :])
    source, target = np.divmod(pair, nodes)
    ends = [(_sends, source)] if nics.receive == "destination-gpu" else [(_sends, source), (_receives, target)]
    names = tuple(name(node, nic) for name, _ in ends for node in range(nodes) for nic in range(each))
    row = np.concatenate(
        [(at * nodes + end)[:, None] * each + np.arange(each) for at, (_, end) in enumerate(ends)]
    ).ravel()
    column = np.repeat(np.tile(pair, len(ends)), each)
    shares = sparse.csr_array((np.full(len(row), 1 / each), (row, column)), shape=(len(names), nodes * nodes))
    return replace(
        routes,
        links=(*routes.links, *names),
        bandwidth=np.append(routes.bandwidth, np.full(len(names), nics.gb_per_s)),
        kind=np.append(routes.kind, routes.kinds.shape[0] + np.arange(len(names))),
        kinds=sparse.csr_array(sparse.vstack([routes.kinds, shares])),
    )


_kept_over_nics = lru_cache(maxsize=MOST_KEPT)(_over_nics)


@dataclass(frozen=True, eq=False)
class Receivers:
    """The NICs of GPUs that receive what is sent to their experts.

    Attributes
    ----------
    every : tuple of str
        All NICs that receive, group by group.
    alike : int
        How many NICs a group of GPUs has; all of them carry the same.
    group : int array [GPUs]
        Whose NICs each GPU receives by, as index in `links`.
    gb_per_s : float
        Of one NIC.
    """

    every: tuple[str, ...]
    alike: int
    group: Ints
    gb_per_s: float

    @property
    def links(self) -> tuple[str, ...]:
        """One NIC of each group."""
        return self.every[:: self.alike]

    def load(self, tokens: Floats) -> Floats:
        """Tokens on all NICs, given what arrives at every GPU [GPUs]."""
        return np.repeat(np.bincount(self.group, tokens, len(self.links)) / self.alike, self.alike)


def receivers(instance: Instance) -> Receivers | None:
    """Return the NICs that receive for single GPUs; None where which GPU of a node holds an expert does not count."""
    cluster, nics = instance.cluster, instance.cluster.nics
    if nics is None or not cluster.receives_by_gpu or cluster.nodes == 1:
        return None
    ports = cluster.ports
    alike, size = nics.per_node // ports, cluster.gpus_per_node // ports
    every = tuple(_receives(node, nic) for node in range(cluster.nodes) for nic in range(nics.per_node))
    return Receivers(every, alike, np.arange(instance.gpus) // size, nics.gb_per_s)
