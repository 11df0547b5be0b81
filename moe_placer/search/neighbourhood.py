"""A part of a layer as a layer of its own: the items of some nodes, to be placed anew on these nodes."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moe_placer.problem.layer import LayerProblem

__all__ = ["Neighbourhood", "around_worst_link", "cut_out"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class Neighbourhood:
    """A layer cut down to some nodes; everything elsewhere is fixed and part of ``base``.

    Attributes
    ----------
    layer : LayerProblem
        Of the items and nodes that are free, with all links.
    items, nodes : int array
        Which items and nodes of the whole layer these are.
    """

    layer: LayerProblem
    items: Ints
    nodes: Ints

    def local(self, node: Ints) -> Ints:
        """Node of each free item, numbered as in the cut-out."""
        return np.searchsorted(self.nodes, node[self.items])

    def whole(self, node: Ints, local: Ints) -> Ints:
        """Put a placement of the cut-out back into one of the whole layer."""
        result = node.copy()
        result[self.items] = self.nodes[local]
        return result


def cut_out(layer: LayerProblem, node: Ints, nodes: Ints) -> Neighbourhood:
    """Free the items on ``nodes`` (sorted), and fix all others where they are."""
    free = np.isin(node, nodes)
    items = np.flatnonzero(free)
    fixed = np.flatnonzero(~free)
    affected = layer.affected[node[fixed]]
    added = np.bincount(affected.ravel(), layer.delta[fixed, node[fixed]].ravel(), minlength=layer.links + 1)
    pinned = layer.pinned[items]
    part = replace(
        layer,
        expert=layer.expert[items],
        replica=layer.replica[items],
        symmetry_class=layer.symmetry_class[items],
        slots=layer.slots[nodes],
        widest=layer.widest[nodes],
        together=layer.together[nodes],
        pinned=np.where(pinned >= 0, np.searchsorted(nodes, pinned), -1),
        base=layer.base + added[: layer.links],
        affected=layer.affected[nodes],
        delta=np.ascontiguousarray(layer.delta[items][:, nodes]),
        load=layer.load[items],
        home=None,  # part of a node's GPUs
        domain=None,  # the other replicas of an expert may be elsewhere
    )
    return Neighbourhood(part, items, nodes)


def around_worst_link(layer: LayerProblem, node: Ints, size: int, rng: np.random.Generator) -> Ints:
    """Choose ``size`` nodes: one that touches the busiest link, and others, rather those whose links are cool.

    Parameters
    ----------
    layer : LayerProblem
        One MoE layer.
    node : int array [items]
        Node of each item.
    size : int
        How many nodes.
    rng : Generator
        Source of everything random.
    """
    cost = np.append(layer.cost(node), -np.inf)
    hot = np.flatnonzero((layer.affected == int(cost.argmax())).any(axis=1))
    first = int(rng.choice(hot))
    heat = cost[layer.affected].max(axis=1)
    spread = max(1e-12, float(np.ptp(heat)))
    # Exponential keys choose without replacement, in proportion to exp(-heat).
    keys = rng.standard_exponential(layer.nodes) * np.exp((heat - heat.min()) / spread)
    keys[first] = -1.0
    return np.sort(np.argsort(keys, kind="stable")[:size])
