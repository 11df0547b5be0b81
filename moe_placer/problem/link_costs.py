"""Links that carry the same in every placement, and which of them a node touches."""

from __future__ import annotations

from hashlib import sha256

import numpy as np
import numpy.typing as npt
from scipy import sparse

from moe_placer.fabric import Routes

__all__ = ["affected_links", "distinct_links", "scaled_rows"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_NO_CHANGE = 1e-12  # of a cost per token


def distinct_links(routes: Routes, scale: Floats) -> tuple[list[int], list[int]]:
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


def affected_links(shares: sparse.csr_array, scale: Floats, nodes: int) -> tuple[Floats, Ints, Floats]:
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
