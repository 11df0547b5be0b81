"""A layer whose places are single GPUs, with the GPUs of a node as one place again: what the linear relaxation needs.

GPUs of a node differ in nothing but their own NIC. So a fractional placement may be averaged over them: then every NIC
of the node costs as much as its share of what the node receives, and which GPU an item is on counts no more.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moe_placer.problem.layer import LayerProblem

__all__ = ["merged_by_node", "on_every_gpu"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


def merged_by_node(layer: LayerProblem) -> LayerProblem:
    """Return the layer with nodes as places, and all links but the NICs by which single GPUs receive."""
    assert layer.home is not None
    _, first = np.unique(layer.home, return_index=True)
    nics = int(layer.affected[:, -1].min())  # these are the last links
    affected = layer.affected[first, :-1]

    def by_node(of_gpu: Ints) -> Ints:
        return np.add.reduceat(of_gpu, first)

    return replace(
        layer,
        slots=by_node(layer.slots),
        widest=by_node(layer.widest),
        together=by_node(layer.together),
        pinned=np.where(layer.pinned >= 0, layer.home[layer.pinned], -1),
        base=layer.base[:nics],
        affected=np.where(affected == layer.links, nics, affected),
        delta=np.ascontiguousarray(layer.delta[:, first, :-1]),
        home=None,
        domain=None if layer.domain is None else layer.domain[first],
    )


def on_every_gpu(layer: LayerProblem, of_node: Floats) -> Floats:
    """Spread numbers of nodes [..., nodes] evenly over the slots of their GPUs [..., GPUs]."""
    assert layer.home is not None
    slots = np.bincount(layer.home, layer.widest)[layer.home]
    return np.asarray(of_node[..., layer.home] * (layer.widest / np.maximum(slots, 1)))
