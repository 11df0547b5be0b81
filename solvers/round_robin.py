"""Deals items to nodes in turn, inside each EP group."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from moe_placer.problem.compile import Problem
from moe_placer.result import LayerResult
from moe_placer.solve.heuristic import EngineRule, heuristic_result, pack_in_groups

__all__ = ["RoundRobin"]

Ints = npt.NDArray[np.int64]


class RoundRobin(EngineRule):
    """Item i of an EP group goes to the next of its nodes in turn that has a slot left."""

    name = "round-robin"
    summary = "deals experts to nodes in turn"
    source = "folklore; the default of several engines without expert groups"

    def place_in_groups(self, problem: Problem, index: int, rng: np.random.Generator) -> LayerResult:
        """Place one layer."""
        layer = problem.layer(index)
        return heuristic_result(layer, pack_in_groups(problem, layer, layer.slots, _in_turn), rng)


def _in_turn(items: Ints, slots: Ints) -> Ints:
    """Return the node of each item, whatever its load."""
    turns = [(turn, n) for n, count in enumerate(slots.tolist()) for turn in range(count)]
    return np.array([n for _, n in sorted(turns)[: len(items)]], dtype=np.int64)
