"""Failure domains: no single GPU, node or leaf may hold all replicas of an expert.

Replicas are on different GPUs anyway, so that an expert with two of them survives any GPU. For nodes and leaves the
rule is ``sum of x[i, n] over replicas i of an expert and nodes n of a domain <= replicas - 1``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_placer.problem.layer import LayerProblem

__all__ = ["Spread", "gathered"]

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


def gathered(layer: LayerProblem, node: Ints) -> Bools:
    """Mask of the items [I] of experts all of whose replicas are in one failure domain."""
    if layer.domain is None:
        return np.zeros(layer.items, dtype=bool)
    spread = Spread(layer)
    spread.reset(node)
    alone = (spread.on >= spread.count[:, None]).any(axis=1)
    return np.asarray(np.asarray(alone)[layer.expert])


class Spread:
    """How many replicas of each expert are in each failure domain.

    Attributes
    ----------
    on : int array [experts, domains]
    count : int array [experts]
        Replicas of each expert.
    """

    def __init__(self, layer: LayerProblem) -> None:
        assert layer.domain is not None
        self.layer, self.domain = layer, layer.domain
        self.count = np.bincount(layer.expert)
        self.on = np.zeros((len(self.count), int(self.domain.max()) + 1), dtype=np.int64)

    def reset(self, node: Ints) -> None:
        """Count anew."""
        self.on[:] = 0
        np.add.at(self.on, (self.layer.expert, self.domain[node]), 1)

    def gathers(self, expert: Ints, here: Ints, there: Ints) -> Bools:
        """Whether a replica that goes from ``here`` to ``there`` leaves all of its expert in one domain.

        The three arrays are broadcast against each other; ``expert`` may be -1 where nothing moves.
        """
        frm, to = self.domain[here], self.domain[there]
        return np.asarray((frm != to) & (expert >= 0) & (self.on[expert, to] >= self.count[expert] - 1))
