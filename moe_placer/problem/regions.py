"""Regions of a fabric: pods, leaves and nodes, told by which links their nodes share; and a layer with these as places.

A link that only nodes of one region touch carries what the region holds, whichever of its nodes holds it. So a large
layer can be divided from the outside in: which pod an item goes to, then which leaf, then which node.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moe_placer.problem.layer import LayerProblem

__all__ = ["VAST", "Merged", "Region", "find_regions", "innermost", "merge"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

VAST = 250_000  # items * nodes from which a layer is divided among regions, where it has any


@dataclass(frozen=True, eq=False)
class Region:
    """Nodes that share links which no other node touches.

    Attributes
    ----------
    nodes : int array
        Ascending.
    parts : tuple of Region
        The largest regions inside, all its nodes among them; empty for a single node.
    """

    nodes: Ints
    parts: tuple[Region, ...] = ()


@dataclass(frozen=True, eq=False)
class Merged:
    """A layer whose places are regions, and whose links stand for the mean of those of one kind in one region.

    Attributes
    ----------
    layer : LayerProblem
        A placement by nodes costs at least its z with the regions of these nodes, where every item costs the mean over
        the nodes of its region.
    stands_for : tuple of int array
        The real links of each of its links.
    """

    layer: LayerProblem
    stands_for: tuple[Ints, ...]

    def spread(self, weights: Floats, links: int) -> Floats:
        """Return weights of the real links [links]: those of each link, evenly over what it stands for."""
        real = np.zeros(links)
        for weight, own in zip(weights.tolist(), self.stands_for, strict=True):
            real[own] += weight / len(own)
        return real


def find_regions(layer: LayerProblem) -> Region | None:
    """Return all nodes as nested regions; None where links are shared in another way, or more than links binds nodes.

    Fat trees, meshes and pods of rails have such regions. Dragonflies have not, nor have layers with pins, failure
    domains, copies that count once for each node, or GPUs as places.
    """
    plain = layer.coverage is None and layer.home is None and layer.judge is None and layer.domain is None
    if not plain or (layer.pinned >= 0).any() or layer.nodes < 2:
        return None
    columns = [set(links[links < layer.links].tolist()) for links in layer.affected.T]
    if sum(map(len, columns)) != len(set().union(*columns)):  # a link stands for other things at other nodes
        return None
    shared: list[Ints] = []
    for links in layer.affected.T:
        order = np.argsort(links, kind="stable")  # so that nodes of one link are ascending
        _, first = np.unique(links[order], return_index=True)
        alike = np.split(order, first[1:])
        shared += [nodes for nodes in alike if len(nodes) > 1 and links[nodes[0]] < layer.links]
    regions, owner = {n: Region(np.array([n])) for n in range(layer.nodes)}, np.arange(layer.nodes)
    for nodes in [*sorted(shared, key=len), np.arange(layer.nodes)]:
        inside = np.unique(owner[nodes]).tolist()
        if sum(len(regions[r].nodes) for r in inside) != len(nodes):
            return None
        if len(inside) > 1:
            parts = tuple(regions.pop(r) for r in inside)
            owner[nodes] = inside[0]  # so that regions stay in the order of their first nodes
            regions[inside[0]] = Region(nodes, parts)
    return regions[0]


def innermost(region: Region) -> list[Region]:
    """List the regions inside that nodes are parts of, in the order of their nodes."""
    if any(not part.parts for part in region.parts):
        return [region]
    return [inner for part in region.parts for inner in innermost(part)]


def merge(layer: LayerProblem, regions: Sequence[Region], items: Ints, outside: bool) -> Merged:
    """Return the layer of some items with regions as places.

    Parameters
    ----------
    layer : LayerProblem
        One MoE layer with nodes as places.
    regions : sequence of Region
        Apart from each other.
    items : int array
        Which items are to be placed, all others being nowhere.
    outside : bool
        Whether links that other nodes touch too count; they cost the same wherever in a region an item is.
    """
    most = layer.affected.shape[1]
    touching = np.bincount(layer.affected.ravel(), minlength=layer.links + 1)
    delta = np.zeros((len(items), len(regions), most))
    stands_for: list[Ints] = []
    number: dict[bytes, int] = {}
    at = np.full((len(regions), most), -1, dtype=np.int64)
    for r, region in enumerate(regions):
        delta[:, r] = _mean_delta(layer, region.nodes, items)
        for m, touched in enumerate(layer.affected[region.nodes].T):
            links, times = touched[touched < layer.links], np.ones(1, dtype=np.int64)
            if len(links) > 1:
                links, times = np.unique(links, return_counts=True)
            if not len(links) or not (outside or (times == touching[links]).all()):
                delta[:, r, m] = 0.0
                continue
            at[r, m] = number.setdefault(links.tobytes(), len(stands_for))
            if at[r, m] == len(stands_for):
                stands_for.append(links)
            delta[:, r, m] /= len(links)

    def summed(of_nodes: Ints) -> Ints:
        return np.array([of_nodes[region.nodes].sum() for region in regions])

    merged = replace(
        layer,
        expert=layer.expert[items],
        replica=layer.replica[items],
        symmetry_class=layer.symmetry_class[items],
        slots=summed(layer.slots),
        widest=summed(layer.widest),
        together=summed(layer.together),
        pinned=layer.pinned[items],
        base=np.array([layer.base[links].mean() for links in stands_for]),
        affected=np.where(at < 0, len(stands_for), at),
        delta=delta,
        load=layer.load[items],
    )
    return Merged(merged, tuple(stands_for))


def _mean_delta(layer: LayerProblem, nodes: Ints, items: Ints) -> Floats:
    """Return what each item costs [items, M] on a node, as the mean over the slots of ``nodes``."""
    room = layer.widest[nodes].astype(np.float64)
    share = room / room.sum() if room.any() else np.full(len(nodes), 1 / len(nodes))
    together = nodes[-1] - nodes[0] + 1 == len(nodes)
    if len(items) == layer.items:  # without a copy of what is most of a layer's memory
        own = layer.delta[:, nodes[0] : nodes[-1] + 1] if together else layer.delta[:, nodes]
    else:
        own = layer.delta[np.ix_(items, nodes)]
    return np.asarray(np.einsum("inm,n->im", own, share))
