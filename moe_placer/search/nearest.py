"""The valid placement nearest to one that breaks rules, by linear programming: what repair falls back on."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse

from moe_placer.problem.layer import LayerProblem

__all__ = ["nearest_valid"]

Ints = npt.NDArray[np.int64]


def nearest_valid(layer: LayerProblem, node: Ints) -> Ints | None:
    """Return the node of each item [I], the fewest moved that slots, pins and distances demand; None if none is valid.

    Items flow through their expert's share of a node to the node, so that the vertices of the linear program are whole.
    """
    from scipy.optimize import linprog  # here, for it is slow to import

    items, nodes = layer.items, layer.nodes
    at = np.arange(items * nodes)
    item, place = np.divmod(at, nodes)
    able = (layer.pinned[item] < 0) | (layer.pinned[item] == place)
    crowd = np.bincount(layer.expert)[:, None] > layer.together[None, :]  # only there can replicas be too close
    pair = layer.expert[item] * nodes + place
    close = crowd.ravel()[pair]
    crowded, row = np.unique(pair[close], return_inverse=True)
    ones = np.ones(len(at))
    solved = linprog(
        (place != node[item]).astype(np.float64),
        A_ub=sparse.vstack(
            [
                sparse.csr_array((ones, (place, at)), shape=(nodes, len(at))),
                sparse.csr_array((ones[close], (row, at[close])), shape=(len(crowded), len(at))),
            ]
        ).tocsr(),
        b_ub=np.concatenate([layer.slots, layer.together[crowded % nodes]]),
        A_eq=sparse.csr_array((ones, (item, at)), shape=(items, len(at))),
        b_eq=np.ones(items),
        bounds=np.stack([np.zeros(len(at)), able.astype(np.float64)], axis=1),
        method="highs-ds",
    )
    if solved.status != 0:
        return None
    found = solved.x.reshape(items, nodes).argmax(axis=1).astype(np.int64)
    return found if layer.valid(found) else None
