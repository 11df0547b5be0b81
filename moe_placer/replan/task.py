"""The layers of a placement that runs, as they are searched, and how what is found becomes a placement again."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from moe_placer.bounds.bounds import Bound, best_bound, even_weights
from moe_placer.bounds.largest import largest
from moe_placer.instance import Instance
from moe_placer.instance.sizes import expert_bytes, expert_us
from moe_placer.placement import Placement
from moe_placer.problem.compile import Problem
from moe_placer.problem.layer import LayerProblem
from moe_placer.problem.replicas import count_replicas
from moe_placer.replan.current import Current
from moe_placer.replan.curve import LayerStart, Point
from moe_placer.replan.gpu_matching import match_gpus
from moe_placer.replan.trades import Goal
from moe_placer.result import LayerResult, Stop
from moe_placer.solve.assemble import bare_placement, state_aggregate, state_layer
from moe_placer.traffic import Traffic

__all__ = ["Figures", "Minimise", "Task", "default_goal", "goal_of"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Minimise = Literal["links", "gpus", "time"]


@dataclass(frozen=True)
class Figures:
    """What a placement costs on the new traffic, and what it takes to get there.

    Attributes
    ----------
    moves : int
        Replicas that a GPU must load.
    bytes : float
        Their weights.
    total_z : float
        Sum over layers of the busiest link's cost (tokens per step at node-link speed).
    busiest_gpu : float
        Sum over layers of the tokens per step of the busiest GPU; those of a slow one count as many times as it takes
        longer.
    value : float
        What was minimised.
    """

    moves: int
    bytes: float
    total_z: float
    busiest_gpu: float
    value: float


def default_goal(instance: Instance, problem: Problem, inside_nodes: bool, slow: bool = False) -> Minimise:
    """Return what counts where nobody says: both links and GPUs, where placement changes what GPUs compute.

    Where links are counted in plain tokens, which are no time, only one of both counts.

    Parameters
    ----------
    instance : Instance
    problem : Problem
        The compiled instance.
    inside_nodes : bool
        Whether only moves within a node are made.
    slow : bool
        Whether any GPU takes longer than others.
    """
    if inside_nodes:
        return "gpus"
    if instance.objective.metric == "tokens":
        return "gpus" if slow else "links"
    return "time" if problem.capacity.per_gpu > 1 or problem.replicas_are_free or slow else "links"


def goal_of(problem: Problem, minimise: Minimise, slowness: Floats | None = None) -> Goal:
    """Return the weights of links and GPUs in what is minimised, and how slow GPUs are where any is."""
    price = problem.gpu_price or 1.0
    links, gpus = {"links": (1.0, 0.0), "gpus": (0.0, price), "time": (1.0, price)}[minimise]
    return Goal(links, gpus, slowness)


class Task:
    """The layers as they are now, and how points become a placement."""

    def __init__(
        self,
        instance: Instance,
        now: Current,
        known: Sequence[Floats | None],
        minimise: Minimise,
        slowness: Floats | None = None,
    ) -> None:
        self.instance, self.now, self.problem, self.minimise = instance, now, now.problem, minimise
        self.slowness = slowness
        self.goal = goal = goal_of(now.problem, minimise, slowness)
        # A GPU of one slot computes what its item brings, wherever that is: then nodes suffice as places.
        self.per_place = self.problem.gpus_per_node if goal.gpus == 0 and self.problem.capacity.per_gpu == 1 else 1
        self.starts: list[LayerStart] = []
        self.bounds: list[Bound] = []
        for index, own in enumerate(known):
            layer = self.problem.layer(index)
            tried = [own] if own is not None else [*even_weights(layer)] if layer.links else [None]
            tried_bounds = [best_bound(layer, weights) for weights in tried]
            bound = largest(tried_bounds)
            self.bounds.append(bound)
            slots = self.problem.capacity.slots[index].reshape(-1, self.per_place).sum(axis=1)
            works = self.problem.capacity.slots[index] > 0
            speed = works.astype(np.float64) if slowness is None else works / slowness  # of a GPU that is not slow: 1
            alone = 0.0 if self.problem.replicas_are_free else float(layer.load.max(initial=0.0))
            self.starts.append(
                LayerStart(
                    layer,
                    now.gpu[index] // self.per_place,
                    now.held(index, self.per_place),
                    slots,
                    bound.value,
                    max(alone, float(layer.load.sum()) / max(1.0, float(speed.sum()))),
                )
            )

    def layers_and_held(self) -> tuple[list[LayerProblem], list[Ints]]:
        """Return the layers as they run, and the replicas of each expert on each place [experts, places] of each."""
        each = range(len(self.problem))
        held = [self.now.held(index, self.problem.gpus_per_node) for index in each]
        return [start.layer for start in self.starts], held

    def figures(self, points: Sequence[Point]) -> Figures:
        """Sum up one point of every layer."""
        moves = sum(point.moves for point in points)
        return Figures(
            moves,
            moves * expert_bytes(self.instance),
            sum(point.z for point in points),
            sum(self._busiest(index, point) for index, point in enumerate(points)),
            sum(point.value for point in points),
        )

    def _busiest(self, index: int, point: Point) -> float:
        """Tokens of the busiest GPU; a slow one's count as many times as it takes longer."""
        if self.per_place == 1 and point.busiest_gpu:
            return point.busiest_gpu
        if self.slowness is None and self.per_place > 1:  # GPUs take one item each
            return float(point.layer.load.max())
        slowness = np.ones(len(self.problem.capacity.memory_slots)) if self.slowness is None else self.slowness
        return float((np.bincount(self._gpus(index, point), point.layer.load, len(slowness)) * slowness).max())

    def _gpus(self, index: int, point: Point) -> Ints:
        """GPU of each item; where places are nodes, those that stay keep theirs."""
        if self.per_place == 1:
            return point.place
        start, slots = self.starts[index], self.problem.capacity.slots[index]
        has_weights = self.now.has_weights(index)
        return match_gpus(point.layer, point.place, start.layer, self.now.gpu[index], slots, has_weights)

    def gain_us(self, before: Figures, after: Figures) -> float | None:
        """Return the microseconds that a step gains: links, there and back, and busiest GPUs; None of plain tokens."""
        if self.instance.objective.metric == "tokens":
            return None
        us = expert_us(self.instance, 1.0)
        links = us / self.problem.gpu_price if self.problem.gpu_price > 0 else 0.0
        return links * (before.total_z - after.total_z) + us * (before.busiest_gpu - after.busiest_gpu)

    def placement(self, traffic: Traffic, points: Sequence[Point], seed: int) -> Placement:
        """Give every item its GPU, and state what the layers come to."""
        results = [self._result(index, point) for index, point in enumerate(points)]
        placement = bare_placement(self.instance, traffic, self.problem, "replan", seed, results)
        return placement.model_copy(
            update={
                "solver": placement.solver.model_copy(update={"parameters": {"minimise": self.minimise}}),
                "layers": tuple(state_layer(self.problem, index, result) for index, result in enumerate(results)),
                "aggregate": state_aggregate(self.problem, results),
            }
        )

    def _result(self, index: int, point: Point) -> LayerResult:
        problem, gpu = self.problem, self._gpus(index, point)
        node = gpu // problem.gpus_per_node
        bound = self._bound(index, point.layer)
        z = point.layer.z(node)
        replicas = count_replicas(point.layer) if problem.replicas_are_free else None
        return LayerResult(node, z, bound, Stop.FINISHED, gpu=gpu, replicas=replicas)

    def _bound(self, index: int, layer: LayerProblem) -> Bound:
        known = self.bounds[index]
        if not self.problem.replicas_are_free:
            return known
        return best_bound(layer, known.weights) if known.weights is not None else known
