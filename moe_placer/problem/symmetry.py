"""Items that are interchangeable, counted instead of told apart: what exact models decide."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from moe_placer.problem.layer import LayerProblem

__all__ = ["SymmetryClasses"]

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class SymmetryClasses:
    """Items that are interchangeable, counted.

    Attributes
    ----------
    item : int array [J]
        One item of each class.
    of : int array [I]
        Class of each item.
    count : int array [J]
    pinned : int array [J, N]
        Items of each class that must be on each node.
    """

    item: Ints
    of: Ints
    count: Ints
    pinned: Ints

    @classmethod
    def of_layer(cls, layer: LayerProblem) -> SymmetryClasses:
        """Group a layer's items by class."""
        _, item, of, count = np.unique(layer.symmetry_class, return_index=True, return_inverse=True, return_counts=True)
        pinned = np.zeros((len(item), layer.nodes), dtype=np.int64)
        at = np.flatnonzero(layer.pinned >= 0)
        np.add.at(pinned, (of[at], layer.pinned[at]), 1)
        return cls(item.astype(np.int64), of.astype(np.int64), count.astype(np.int64), pinned)

    def counts(self, node: Ints, nodes: int) -> Ints:
        """How many of each class a placement has on each node [J, N]."""
        counts = np.zeros((len(self.item), nodes), dtype=np.int64)
        np.add.at(counts, (self.of, node), 1)
        return counts

    def place(self, counts: Ints, layer: LayerProblem) -> Ints:
        """Turn counts [J, N] back into a node for each item; pinned items get theirs."""
        node = np.where(layer.pinned >= 0, layer.pinned, -1)
        left = counts - self.pinned
        for j in range(len(self.item)):
            free = np.flatnonzero((self.of == j) & (node < 0))
            node[free] = np.repeat(np.arange(layer.nodes), left[j])
        return node
