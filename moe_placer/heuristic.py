"""The base of methods that make one pass over a layer and prove nothing."""

from __future__ import annotations

from abc import abstractmethod

import numpy as np
import numpy.typing as npt

from moe_placer.bounds import best_bound
from moe_placer.moves import repair
from moe_placer.problem import LayerProblem
from moe_placer.result import LayerResult, Status, Stop
from moe_placer.solver import Deadline, LayerSolver

__all__ = ["Heuristic", "heuristic_result"]

Ints = npt.NDArray[np.int64]


class Heuristic(LayerSolver):
    """A one-pass method: says where it would put each item; slots, copies apart and pins are then seen to."""

    quick = True

    @abstractmethod
    def place(self, layer: LayerProblem, rng: np.random.Generator) -> Ints:
        """Return the node of each item [I]."""

    def solve_layer(
        self,
        layer: LayerProblem,
        gap: float,
        work: float,
        rng: np.random.Generator,
        start: LayerResult | None,
        deadline: Deadline,
    ) -> LayerResult:
        """Place one layer in one pass; limits and start do not matter."""
        del gap, work, start, deadline
        return heuristic_result(layer, self.place(layer, rng), rng)


def heuristic_result(
    layer: LayerProblem,
    node: Ints,
    rng: np.random.Generator,
    gpu: Ints | None = None,
    copies: Ints | None = None,
    repaired: int = 0,
) -> LayerResult:
    """Repair what a method decided, and say what it comes to; its GPUs are kept only if nothing had to move.

    ``repaired`` counts what the method mended before.
    """
    mended = repair(layer, node, rng)
    bound = best_bound(layer)
    if mended is None:
        return LayerResult(None, np.inf, bound, Status.UNKNOWN, Stop.FINISHED)
    moved = int((mended != node).sum())
    return LayerResult(
        mended,
        layer.z(mended),
        bound,
        Status.FEASIBLE,
        Stop.FINISHED,
        gpu=gpu if not moved else None,
        copies=copies,
        repaired=moved + repaired,
    )
