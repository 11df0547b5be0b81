"""Failure domains: no single GPU, node or leaf may hold all replicas of an expert.

Replicas are on different GPUs anyway, so that an expert with two of them survives any GPU. For nodes and leaves the
rule is ``sum of x[i, n] over replicas i of an expert and nodes n of a domain <= replicas - 1``.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_placer.problem.layer import LayerProblem

__all__ = ["Spread"]

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]


class Spread:
    """How many replicas of each expert are in each failure domain.

    Attributes
    ----------
    on : int array [experts, domains]
    count : int array [experts]
        Replicas of each expert.
    """

    def __init__(self, layer: LayerProblem, node: Ints) -> None:
        assert layer.domain is not None
        self.domain, self.count, self.on = layer.domain, np.bincount(layer.expert), layer.in_domains(node)

    def gathers(self, expert: Ints, here: Ints, there: Ints) -> Bools:
        """Whether a replica that goes from ``here`` to ``there`` leaves all of its expert in one domain.

        The three arrays are broadcast against each other; ``expert`` may be -1 where nothing moves.
        """
        frm, to = self.domain[here], self.domain[there]
        return np.asarray((frm != to) & (expert >= 0) & (self.on[expert, to] >= self.count[expert] - 1))
