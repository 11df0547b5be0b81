"""Deals items to nodes in turn."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_placer.problem.compile import LayerProblem
from moe_placer.solve.heuristic import Heuristic

__all__ = ["RoundRobin"]


class RoundRobin(Heuristic):
    """Item i goes to the next node in turn that has a slot left."""

    name = "round-robin"
    summary = "deals experts to nodes in turn"
    source = "folklore; the default of several engines without expert groups"

    def place(self, layer: LayerProblem, rng: np.random.Generator) -> npt.NDArray[np.int64]:
        """Return the node of each item [I]."""
        del rng
        turns = [(turn, n) for n in range(layer.nodes) for turn in range(int(layer.slots[n]))]
        return np.array([n for _, n in sorted(turns)[: layer.items]], dtype=np.int64)
