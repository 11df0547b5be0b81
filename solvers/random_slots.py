"""Deals items to slots at random: the baseline without any optimisation."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_placer.problem.layer import LayerProblem
from moe_placer.solve.heuristic import Heuristic

__all__ = ["RandomSlots"]


class RandomSlots(Heuristic):
    """Every item goes to a random free slot."""

    name = "random"
    summary = "deals experts to slots at random (seeded)"
    source = "the null hypothesis"

    def place(self, layer: LayerProblem, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Return the node of each item [I]."""
        slots = np.repeat(np.arange(layer.nodes), np.minimum(layer.slots, layer.items))
        return rng.permutation(slots)[: layer.items].astype(np.int64)
