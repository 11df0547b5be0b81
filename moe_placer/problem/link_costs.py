"""Links that carry the same in every placement, and which of them a node touches."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse

__all__ = ["distinct_links", "scaled_rows", "touched_links"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def distinct_links(shares: sparse.csr_array, scale: Floats) -> tuple[list[int], list[int]]:
    """Group links that carry the same in every placement; return the first of each group, and the sizes."""
    first: dict[bytes, int] = {}
    size: dict[int, int] = {}
    for k in range(len(scale)):
        row = shares[[k]]
        key = row.indices.tobytes() + np.round(row.data * scale[k], 12).tobytes()
        leader = first.setdefault(key, k)
        size[leader] = size.get(leader, 0) + 1
    return list(size), list(size.values())


def touched_links(shares: sparse.csr_array, scale: Floats, nodes: int) -> tuple[Floats, Ints, Floats]:
    """Split ``A`` into what a link carries wherever an item is, and how single nodes change that."""
    links = len(scale)
    reference = np.zeros((links, nodes))
    changes: list[list[tuple[int, Floats]]] = [[] for _ in range(nodes)]
    for k in range(links):
        share = scale[k] * shares[[k]].toarray().reshape(nodes, nodes)
        reference[k] = np.sort(share, axis=1)[:, (nodes - 1) // 2]  # the value at most destinations
        change = share - reference[k][:, None]
        for node in np.flatnonzero(np.abs(change).max(axis=0) > 1e-12).tolist():
            changes[node].append((k, change[:, node]))
    most = max(1, max(map(len, changes), default=1))
    touched = np.full((nodes, most), links, dtype=np.int64)
    change_at = np.zeros((nodes, most, nodes))
    for node, found in enumerate(changes):
        for m, (k, change) in enumerate(found):
            touched[node, m] = k
            change_at[node, m] = change
    return reference, touched, change_at


def scaled_rows(shares: sparse.csr_array, scale: Floats) -> sparse.csr_array:
    """Return shares [links, pairs of nodes] as costs: every link's row times its cost of one token."""
    return sparse.csr_array(sparse.diags_array(scale) @ shares)
