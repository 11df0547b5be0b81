"""The progress of a solve, which its caller is told while it runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from moe_placer.decomposition.aggregate import aggregate_bound
from moe_placer.decomposition.memory import MemoryDivision
from moe_placer.limits import Limits
from moe_placer.placement import Placement
from moe_placer.problem.compile import Problem
from moe_placer.result import LayerResult, gap
from moe_placer.solve.outcome import of_the_instance

__all__ = ["Progress", "Reporter"]

Build = Callable[[Sequence[LayerResult]], Placement]


@dataclass(frozen=True, eq=False)
class Progress:
    """How far a solve is.

    Attributes
    ----------
    layers, placed, done : int
        MoE layers in all, those with a placement, and those with one from the chosen solver.
    total_z, total_bound : float
        Sums over the placed layers of the best z so far and of its bound (tokens at node-link speed).
    minimise : str
        ``layers``, ``layer-time`` or ``aggregate``.
    objective : float
        What the search minimises: the same sum of z (also on the way to short layer times), or the aggregate.
    objective_bound : float
        What bounds it: the sum of bounds; of the aggregate 0 until all layers' bounds have the same weights.
    worst_gap : float
        Largest gap of any placed layer; of the objective where the aggregate is minimised, or memory binds over
        layers; may be infinite.
    worst_layer : int
        Index in the model of the layer with the largest z; its z is ``max_z``.
    max_z : float
    seconds_left : float
    z, bound, best_bound : tuple of float
        Per MoE layer: the best z so far (infinite without a placement), its re-checkable bound, and the larger of that
        and the solver's own.
    baselines : mapping
        As in `Solution`.
    placement : callable
        Builds the placement as it stands; only where every layer has one.
    """

    layers: int
    placed: int
    done: int
    total_z: float
    total_bound: float
    minimise: Literal["layers", "layer-time", "aggregate"]
    objective: float
    objective_bound: float
    worst_gap: float
    worst_layer: int
    max_z: float
    seconds_left: float
    z: tuple[float, ...]
    bound: tuple[float, ...]
    best_bound: tuple[float, ...]
    baselines: Mapping[str, float | str]
    placement: Callable[[], Placement]


class Reporter:
    """Keeps the best of every layer, and tells the caller of each change."""

    def __init__(
        self,
        problem: Problem,
        limits: Limits,
        tell: Callable[[Progress], None] | None,
        baselines: Mapping[str, float | str],
        build: Build,
        division: MemoryDivision | None = None,
    ) -> None:
        self.problem, self.limits, self.tell = problem, limits, tell
        self.baselines, self.build, self.division = baselines, build, division
        self.best: list[LayerResult | None] = [None] * len(problem)
        self.done: set[int] = set()
        self.cost = np.zeros((len(problem), len(problem.links)))  # kept only where the aggregate counts

    def start(self, first: Sequence[LayerResult | None]) -> None:
        """Tell of the placement that the search starts from."""
        for index, result in enumerate(first):
            self._note(index, result)
        self._tell()

    def __call__(self, index: int, result: LayerResult) -> None:
        """Tell of a better result for the index-th MoE layer."""
        self._note(index, result)
        self.done.add(index)
        self._tell()

    def _note(self, index: int, result: LayerResult | None) -> None:
        if result is not None:
            result = of_the_instance(self.problem, self.division, index, result, self.limits.gap)
        self.best[index] = result
        if self.tell is not None and self.problem.minimise == "aggregate":
            self.cost[index] = 0.0
            if result is not None and result.node is not None:
                self.cost[index] = self.problem.layer(index, result.replicas).cost(result.node)

    def _tell(self) -> None:
        placed = {i: r for i, r in enumerate(self.best) if r is not None and r.node is not None}
        if self.tell is None or not placed:
            return
        worst = max(placed, key=lambda i: placed[i].z)
        now = tuple(self.best)
        total_z, total_bound = float(sum(r.z for r in placed.values())), float(sum(map(_bound, placed.values())))
        objective, bound, worst_gap = total_z, total_bound, max(r.gap for r in placed.values())
        if self.problem.minimise == "aggregate":
            objective = float(self.cost.sum(axis=0).max(initial=0.0))
            bound = aggregate_bound([r.bound for r in placed.values()]) if len(placed) == len(now) else 0.0
            worst_gap = gap(objective, bound)
        elif self.division is not None and len(placed) == len(now):
            bound = max(bound, self.division.total)
            worst_gap = gap(objective, bound)
        self.tell(
            Progress(
                layers=len(now),
                placed=len(placed),
                done=len(self.done),
                total_z=total_z,
                total_bound=total_bound,
                minimise=self.problem.minimise,
                objective=objective,
                objective_bound=bound,
                worst_gap=worst_gap,
                worst_layer=self.problem.moe_layers[worst],
                max_z=placed[worst].z,
                seconds_left=self.limits.deadline.left,
                z=tuple(float(r.z) if r is not None else np.inf for r in now),
                bound=tuple(_bound(r) if r is not None else 0.0 for r in now),
                best_bound=tuple(float(r.best_bound) if r is not None else 0.0 for r in now),
                baselines=self.baselines,
                placement=lambda: self.build([r for r in now if r is not None]),
            )
        )


def _bound(result: LayerResult) -> float:
    """Return the re-checkable bound; what only the solver vouches for does not count."""
    return float(result.bound.value) if result.bound.proof != "solver" else 0.0
