"""Groups of experts that fire together, one group per node."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse

from moe_placer.problem.layer import LayerProblem

__all__ = ["co_activation", "group_by_affinity", "shuffled", "view_places"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def co_activation(layer: LayerProblem) -> Floats:
    """Tokens per step that choose both of two experts [experts, experts]; on the diagonal, those that choose one."""
    assert layer.coverage is not None
    sets, sending = layer.coverage.sets, layer.coverage.sending
    tokens = sets.weight * sending.source.sum(axis=0)[sets.file]
    rows = np.repeat(np.arange(len(sets.choice)), sets.choice.shape[1])
    at = (rows, sets.choice.ravel().astype(np.int64))
    shape = (len(sets.choice), sets.experts)
    chosen = sparse.csr_array((np.ones(len(rows)), at), shape=shape)
    weighted = sparse.csr_array((np.repeat(tokens, sets.choice.shape[1]), at), shape=shape)
    return np.asarray((weighted.T @ chosen).toarray())


def view_places(layer: LayerProblem) -> list[tuple[Ints, Ints]]:
    """Return for each view its items, and how many of them each node takes [nodes].

    With ``group`` routing a view's items go to the nodes of its DP group as far as there is room, then anywhere. Items
    are spread as evenly as slots allow.
    """
    assert layer.coverage is not None
    sending = layer.coverage.sending
    view = np.zeros_like(layer.replica) if sending.drawn else layer.replica
    free, found = layer.slots.copy(), []
    for v in range(sending.views):
        items = np.flatnonzero(view == v)
        count = np.zeros(layer.nodes, dtype=np.int64)
        for nodes in (np.flatnonzero(sending.view == v), np.arange(layer.nodes)):
            while count.sum() < len(items) and (free[nodes] > 0).any():
                open_nodes = nodes[free[nodes] > 0]
                least = int(open_nodes[count[open_nodes].argmin()])
                count[least] += 1
                free[least] -= 1
        found.append((items, count))
    return found


def group_by_affinity(layer: LayerProblem) -> Ints:
    """Fill one node after the other: the hottest expert left, then those that fire most with the ones already there.

    The greedy grouping of Occult (2025) on the co-activation graph; returns the node of each item [items].
    """
    together = co_activation(layer)
    load = together.diagonal().copy()
    node = np.zeros(layer.items, dtype=np.int64)
    for items, count in view_places(layer):
        left = items.copy()
        for n in np.flatnonzero(count).tolist():
            bond = np.zeros(len(load))
            for place in range(int(count[n])):
                if not len(left):
                    break
                key = load if place == 0 else bond
                best = int(np.lexsort((left, -load[layer.expert[left]], -key[layer.expert[left]]))[0])
                expert = int(layer.expert[left[best]])
                node[left[best]] = n
                bond = bond + together[expert]
                bond[expert] = -np.inf  # another replica of the same expert saves nothing here
                left = np.delete(left, best)
    return node


def shuffled(node: Ints, layer: LayerProblem, rng: np.random.Generator) -> Ints:
    """Deal every view's items out anew over the places that they had."""
    result = node.copy()
    for items, _ in view_places(layer):
        result[items] = rng.permutation(node[items])
    return result
