"""Links that carry the same in every placement, and which of them a node touches."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from hashlib import sha256

import numpy as np
import numpy.typing as npt
from scipy import sparse

from moe_placer.fabric import Routes
from moe_placer.fabric.routes import LARGEST_KEPT, MOST_KEPT

__all__ = ["LinkCosts", "link_costs", "scaled_rows"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_NO_CHANGE = 1e-12  # of a cost per token


@dataclass(frozen=True, eq=False)
class LinkCosts:
    """What a token costs on links, each of which stands for those that always carry the same.

    Attributes
    ----------
    keep : int array [links]
        The first of each, as number in the routes.
    multiplicity : tuple of int
        How many there are of each.
    shares : sparse array [links, nodes * nodes]
        As in `Routes`.
    reference, affected, change : arrays
        As in `Problem`.
    """

    keep: Ints
    multiplicity: tuple[int, ...]
    shares: sparse.csr_array
    reference: Floats
    affected: Ints
    change: Floats


def link_costs(routes: Routes, scale: Floats) -> LinkCosts:
    """Tell what a token costs that itself costs ``scale`` [links] on each link; kept where `routes_between` keeps."""
    of = _kept_costs if len(routes.hops) <= LARGEST_KEPT else _costs
    return of(routes, scale.tobytes())


def _costs(routes: Routes, scale_bytes: bytes) -> LinkCosts:
    scale = np.frombuffer(scale_bytes)
    keep, multiplicity = _distinct_links(routes, scale)
    shares = routes.kinds[routes.kind[keep]]
    arrays = _affected_links(shares, scale[keep], len(routes.hops))
    for array in arrays:
        array.setflags(write=False)
    return LinkCosts(np.array(keep, dtype=np.int64), tuple(multiplicity), shares, *arrays)


_kept_costs = lru_cache(maxsize=MOST_KEPT)(_costs)


def _distinct_links(routes: Routes, scale: Floats) -> tuple[list[int], list[int]]:
    """Group links that carry the same in every placement; return the first of each group, and the sizes."""
    first: dict[bytes, int] = {}
    size: dict[int, int] = {}
    leader_of: dict[tuple[int, float], int] = {}
    for k, which in enumerate(zip(routes.kind.tolist(), scale.tolist(), strict=True)):
        leader = leader_of.get(which)
        if leader is None:
            here = slice(*routes.kinds.indptr[which[0] : which[0] + 2])
            costs = np.round(routes.kinds.data[here] * scale[k], 12)
            leader = first.setdefault(sha256(routes.kinds.indices[here].tobytes() + costs.tobytes()).digest(), k)
            leader_of[which] = leader
        size[leader] = size.get(leader, 0) + 1
    return list(size), list(size.values())


def _affected_links(shares: sparse.csr_array, scale: Floats, nodes: int) -> tuple[Floats, Ints, Floats]:
    """Split ``A`` into what a link carries wherever an item is, and how single nodes change that."""
    links = len(scale)
    reference = np.zeros((links, nodes))
    changes: list[list[tuple[int, Floats]]] = [[] for _ in range(nodes)]
    for k in range(links):
        here = slice(*shares.indptr[k : k + 2])
        source, target = np.divmod(shares.indices[here], nodes)
        share = scale[k] * shares.data[here]
        # Only a source that uses the link to most destinations has a value at most of them that is not 0.
        many = np.bincount(source, minlength=nodes) > nodes // 2
        whole, place = np.flatnonzero(many), np.cumsum(many) - 1
        dense = np.zeros((len(whole), nodes))
        dense[place[source[many[source]]], target[many[source]]] = share[many[source]]
        reference[k, whole] = np.sort(dense, axis=1)[:, (nodes - 1) // 2]
        dense -= reference[k, whole, None]
        few = ~many[source] & (share > _NO_CHANGE)
        for node in np.union1d(
            target[few], np.flatnonzero(np.abs(dense).max(axis=0, initial=0.0) > _NO_CHANGE)
        ).tolist():
            change = np.zeros(nodes)
            change[whole] = dense[:, node]
            at = ~many[source] & (target == node)
            change[source[at]] = share[at]
            changes[node].append((k, change))
    most = max(1, max(map(len, changes), default=1))
    affected = np.full((nodes, most), links, dtype=np.int64)
    change_at = np.zeros((nodes, most, nodes))
    for node, found in enumerate(changes):
        for m, (k, change) in enumerate(found):
            affected[node, m] = k
            change_at[node, m] = change
    return reference, affected, change_at


def scaled_rows(shares: sparse.csr_array, scale: Floats) -> sparse.csr_array:
    """Return shares [links, pairs of nodes] as costs: every link's row times its cost of one token."""
    return sparse.csr_array(sparse.diags_array(scale) @ shares)
