"""The best placement within a migration budget: a curve per layer, and one division of the budget over all of them."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
import numpy.typing as npt

from moe_placer.bounds.bounds import Bound, best_bound, even_weights
from moe_placer.errors import DefectError, NothingFoundError, UsageError
from moe_placer.instance import Instance
from moe_placer.instance.sizes import expert_bytes
from moe_placer.limits import Deadline, Limits
from moe_placer.placement import LayerRecord, Placement
from moe_placer.problem.compile import LayerProblem, Problem, compile_problem
from moe_placer.problem.replicas import count_replicas
from moe_placer.replan.allocation import Allocation, allocate
from moe_placer.replan.budget import Budget
from moe_placer.replan.current import Current, read_current
from moe_placer.replan.curve import Curve, LayerStart, Point
from moe_placer.replan.gpu_matching import match_gpus
from moe_placer.replan.trades import Goal
from moe_placer.result import LayerResult, Stop
from moe_placer.solve.assemble import bare_placement, state_aggregate, state_layer
from moe_placer.traffic import Traffic, load_traffic
from moe_placer.verifier import Verification, verify

__all__ = ["Figures", "Minimise", "Replanned", "goal_of", "replan"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Minimise = Literal["links", "gpus", "time"]

TIME_S = 5.0
_DESCENTS = 4  # of a layer, to different targets
_SHOWN = 16  # budgets of the curve


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
        Sum over layers of the tokens per step of the busiest GPU.
    value : float
        What was minimised.
    """

    moves: int
    bytes: float
    total_z: float
    busiest_gpu: float
    value: float


@dataclass(frozen=True, eq=False)
class Replanned:
    """A placement within the budget.

    Attributes
    ----------
    placement : Placement
    before, after : Figures
        The current placement and this one, on the new traffic.
    curve : tuple of Figures
        The best found for several budgets, by moves; the first is what runs now, the last the best of all.
    budget_moves : int or None
        Moves that the budget allows.
    minimise : str
    verification : Verification or None
        What the independent verifier recomputed; None where it was not asked.
    traffic : Traffic
    seconds : float
    """

    placement: Placement
    before: Figures
    after: Figures
    curve: tuple[Figures, ...]
    budget_moves: int | None
    minimise: Minimise
    verification: Verification | None
    traffic: Traffic
    seconds: float

    @property
    def gains(self) -> bool:
        """Whether anything is gained; else nothing moves."""
        return self.after.value < self.before.value


def replan(
    instance: Instance,
    current: Placement,
    traffic: Traffic | None = None,
    *,
    budget: Budget | None = None,
    minimise: Minimise | None = None,
    inside_nodes: bool = False,
    limits: Limits | None = None,
    seed: int = 0,
    check: bool = True,
) -> Replanned:
    """Improve the current placement on new traffic by few moves, in memory: no files, no drawings.

    Parameters
    ----------
    current : Placement
        What runs now; only its ``gpu`` counts, and the link weights of its records as a hint.
    traffic : Traffic, optional
        The new one; absent: what the instance names.
    budget : Budget, optional
        Absent: as many moves as gain anything.
    minimise : str, optional
        ``links``: the sum over layers of the busiest link; ``gpus``: of the busiest GPU; ``time``: of both as time.
        Absent: ``time`` where placement changes what GPUs compute, else ``links``; ``gpus`` with ``inside_nodes``.
    inside_nodes : bool
        Only moves within a node: over NVLink.
    limits : Limits, optional
        Seconds or deterministic effort of the search; absent: 5 s.
    seed : int
        Of the disturbances; the same seed and effort give the same placement while no clock strikes.
    check : bool
        Whether the verifier checks the placement.

    Raises
    ------
    InputError
        The current placement is of another model or cluster, or breaks a rule.
    NothingFoundError
        The instance is of a kind that is not replanned: sharded experts, tokens sent once per place, the aggregate.
    DefectError
        The verifier disagrees: a defect of this program.
    """
    begun = time.monotonic()
    limits = limits or Limits(time_s=TIME_S)
    if seed < 0:
        raise UsageError(f"seed is {seed}, expected 0 or more")
    deadline = replace(limits.deadline, at=min(limits.deadline.at, begun + limits.time_s))
    traffic = traffic if traffic is not None else load_traffic(instance)
    problem = compile_problem(instance, traffic)
    _refuse(problem)
    now = read_current(problem, current)
    minimise = minimise or _default_goal(problem, inside_nodes)
    goal = goal_of(now.problem, minimise)
    weights = [_known_weights(problem, record) for record in _records(current, len(problem))]
    task = _Task(instance, now, goal, weights)
    most = (budget or Budget()).most_moves(instance)
    curves = [
        Curve(start, goal, inside_nodes, start.layer.items if most is None else min(most, start.layer.items))
        for start in task.starts
    ]
    _search(curves, limits, deadline, seed)
    points = [curve.points for curve in curves]
    counted = [np.array([point.moves for point in row]) for row in points]
    in_all = sum(int(row[-1]) for row in counted)
    spent = in_all if most is None else min(most, in_all)
    allocation = allocate(counted, [np.array([point.value for point in row]) for row in points], spent)
    chosen = [row[at] for row, at in zip(points, allocation.choose(spent), strict=True)]
    placement = task.placement(traffic, chosen, minimise, seed)
    verification = verify(instance, placement, traffic) if check else None
    if verification is not None and not verification.ok:
        shown = "\n".join(f"  {violation}" for violation in verification.violations[:10])
        rules = [violation.rule for violation in verification.violations]
        raise DefectError(f"the new placement fails verification:\n{shown}", rules)
    return Replanned(
        placement,
        task.figures([curve.current for curve in curves]),
        task.figures(chosen),
        _curve(task, allocation, points, spent),
        most,
        minimise,
        verification,
        traffic,
        time.monotonic() - begun,
    )


def _refuse(problem: Problem) -> None:
    """Refuse what trades do not know."""
    reason = None
    if problem.coverage:
        reason = "its dispatch sends a token once per place; replan knows dispatch: per-expert"
    elif problem.shards > 1:
        reason = f"its experts are sharded over {problem.shards} GPUs; replan knows expert_tp: 1"
    elif problem.minimise == "aggregate":
        reason = "it minimises the aggregate; replan knows objective.minimise: layers"
    if reason:
        raise NothingFoundError(f"{problem.name} cannot be replanned: {reason}")


def _default_goal(problem: Problem, inside_nodes: bool) -> Minimise:
    if inside_nodes:
        return "gpus"
    return "time" if problem.capacity.per_gpu > 1 or problem.replicas_are_free else "links"


def goal_of(problem: Problem, minimise: Minimise) -> Goal:
    """Return the weights of links and GPUs in what is minimised."""
    price = problem.gpu_price or 1.0
    return {"links": Goal(1.0, 0.0), "gpus": Goal(0.0, price), "time": Goal(1.0, price)}[minimise]


def _records(current: Placement, layers: int) -> list[LayerRecord | None]:
    return [*current.layers] if len(current.layers) == layers else [None] * layers


def _known_weights(problem: Problem, record: LayerRecord | None) -> Floats | None:
    """Return the link weights of a record of the current placement [K]: yesterday's duals are good today."""
    if record is None or not record.weights or not record.weights.keys() <= set(problem.links):
        return None
    weights = np.array([record.weights.get(link, 0.0) for link in problem.links])
    total = float(weights.sum())
    return weights / total if total > 0 else None


def _search(curves: Sequence[Curve], limits: Limits, deadline: Deadline, seed: int) -> None:
    """Descend in every layer, then disturb and improve, the layers in turns, until effort or time is spent."""
    for depth in range(_DESCENTS):
        for curve in curves:
            if deadline.over:
                return
            curve.descend(depth, deadline)
    rngs = [np.random.default_rng((seed, index)) for index in range(len(curves))]
    while sum(curve.work for curve in curves) < limits.total_work:
        before = sum(curve.evaluated for curve in curves)
        for curve, rng in zip(curves, rngs, strict=True):
            if deadline.over:
                return
            if len(curve.points) > 1:  # where no trade helps there is nothing to disturb
                curve.disturb(rng, deadline)
        if sum(curve.evaluated for curve in curves) == before:
            return


class _Task:
    """The layers as they are now, and how points become a placement."""

    def __init__(self, instance: Instance, now: Current, goal: Goal, known: Sequence[Floats | None]) -> None:
        self.instance, self.now, self.goal = instance, now, goal
        self.problem = now.problem
        # A GPU of one slot computes what its item brings, wherever that is: then nodes suffice as places.
        self.per_place = self.problem.gpus_per_node if goal.gpus == 0 and self.problem.capacity.per_gpu == 1 else 1
        self.starts: list[LayerStart] = []
        self.bounds: list[Bound] = []
        for index, own in enumerate(known):
            layer = self.problem.layer(index)
            tried = [own] if own is not None else [*even_weights(layer)] if layer.links else [None]
            tried_bounds = [best_bound(layer, weights) for weights in tried]
            bound = max(tried_bounds, key=lambda one: one.value)
            self.bounds.append(bound)
            slots = self.problem.capacity.slots[index].reshape(-1, self.per_place).sum(axis=1)
            gpus = int(np.count_nonzero(self.problem.capacity.slots[index]))
            alone = 0.0 if self.problem.replicas_are_free else float(layer.load.max(initial=0.0))
            self.starts.append(
                LayerStart(
                    layer,
                    now.gpu[index] // self.per_place,
                    now.held(index, self.per_place),
                    slots,
                    bound.value,
                    max(alone, float(layer.load.sum()) / max(1, gpus)),
                )
            )

    def figures(self, points: Sequence[Point]) -> Figures:
        """Sum up one point of every layer."""
        moves = sum(point.moves for point in points)
        return Figures(
            moves,
            moves * expert_bytes(self.instance),
            sum(point.z for point in points),
            sum(_busiest(point, self.per_place) for point in points),
            sum(point.value for point in points),
        )

    def placement(self, traffic: Traffic, points: Sequence[Point], minimise: Minimise, seed: int) -> Placement:
        """Give every item its GPU, and state what the layers come to."""
        results = [self._result(index, point) for index, point in enumerate(points)]
        placement = bare_placement(self.instance, traffic, self.problem, "replan", seed, results)
        return placement.model_copy(
            update={
                "solver": placement.solver.model_copy(update={"parameters": {"minimise": minimise}}),
                "layers": tuple(state_layer(self.problem, index, result) for index, result in enumerate(results)),
                "aggregate": state_aggregate(self.problem, results),
            }
        )

    def _result(self, index: int, point: Point) -> LayerResult:
        problem, gpu = self.problem, point.place
        if self.per_place > 1:
            start = self.starts[index]
            slots = problem.capacity.slots[index]
            gpu = match_gpus(point.layer, point.place, start.layer, self.now.gpu[index], slots)
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


def _busiest(point: Point, per_place: int) -> float:
    """Tokens of the busiest GPU; where places are nodes, GPUs take one item each."""
    return point.busiest_gpu if per_place == 1 and point.busiest_gpu else float(_gpu_loads(point, per_place).max())


def _gpu_loads(point: Point, per_place: int) -> Floats:
    if per_place > 1:
        return point.layer.load
    return np.asarray(np.bincount(point.place, point.layer.load), dtype=np.float64)


def _curve(task: _Task, allocation: Allocation, points: Sequence[Sequence[Point]], most: int) -> tuple[Figures, ...]:
    """Measure the best found for budgets that double, up to the one that is given."""
    budgets = sorted({0, most, *(most >> shift for shift in range(_SHOWN))})
    found: list[Figures] = []
    for budget in budgets:
        chosen = [row[at] for row, at in zip(points, allocation.choose(budget), strict=True)]
        figures = task.figures(chosen)
        if not found or figures.moves > found[-1].moves:
            found.append(figures)
    return tuple(found)
