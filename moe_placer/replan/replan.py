"""The best placement within a migration budget: a curve per layer, and one division of the budget over all of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from moe_placer.errors import DefectError, NothingFoundError, UsageError
from moe_placer.instance import Instance
from moe_placer.limits import Limits
from moe_placer.placement import LayerRecord, Placement, ReplanRecord
from moe_placer.problem.compile import Problem, compile_problem
from moe_placer.replan.budget import Budget
from moe_placer.replan.budget_bound import BudgetBound, bound_budget
from moe_placer.replan.budget_division import Divided, min_of, search
from moe_placer.replan.change import Change
from moe_placer.replan.coverage_curve import CoverageCurve
from moe_placer.replan.current import Current, read_current
from moe_placer.replan.curve import Curve
from moe_placer.replan.migration import Migration, count_serving, migrate
from moe_placer.replan.restore import Loss, read_survivors
from moe_placer.replan.task import Figures, Minimise, Task, default_goal, goal_of
from moe_placer.replan.trades import Goal, LayerState
from moe_placer.traffic import Traffic, load_traffic
from moe_placer.verifier import Verification, verify
from moe_placer.verifier.transfer_file import Transfers

__all__ = ["Replanned", "replan"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
TIME_S = 4.0
_SEARCH = 0.6  # of the time; the rest is for the bound
_AFTER_S = 0.4  # for the placement and its transfers where no bound is asked, at most the same share of the time


@dataclass(frozen=True, eq=False)
class Replanned:
    """A placement within the budget.

    Attributes
    ----------
    placement : Placement
    before, after : Figures
        The current placement and this one, on the new traffic.
    instance : Instance
        As it is now: without the GPUs that are out of service, with nodes that came.
    loss : Loss or None
        What went out of service and had to come back first; ``before`` is then the placement with that restored. None
        where the current placement can run as it is.
    curve : tuple of Figures
        The best found for several budgets, by moves; the first is what runs now, the last the best of all.
    build_curve : callable
        Returns the placement of each of them.
    budget_moves : int or None
        Moves that the budget allows.
    bound : BudgetBound or None
        On the sum of z of any placement within a budget of moves; None without such a budget, or with ``inside_nodes``.
    migration : Migration
        The transfers in time.
    transfers : Transfers
        The same as in the file.
    minimise : str
    verification : Verification or None
        What the independent verifier recomputed; None where it was not asked.
    traffic : Traffic
    seconds : float
    """

    placement: Placement
    instance: Instance
    loss: Loss | None
    before: Figures
    after: Figures
    curve: tuple[Figures, ...]
    build_curve: Callable[[], tuple[Placement, ...]]
    budget_moves: int | None
    bound: BudgetBound | None
    migration: Migration
    transfers: Transfers
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
    change: Change | None = None,
    limits: Limits | None = None,
    seed: int = 0,
    check: bool = True,
    problem: Problem | None = None,
) -> Replanned:
    """Improve the current placement on new traffic by few moves, in memory: no files, no drawings.

    Where GPUs are out of service, what they held comes back first, elsewhere: experts that no GPU has any more before
    all others. What comes back counts as moves.

    Parameters
    ----------
    instance : Instance
    current : Placement
        What runs now; only its ``gpu`` counts, and the link weights of its records as a hint.
    traffic : Traffic, optional
        The new one; absent: what the instance names.
    budget : Budget, optional
        Absent: as many moves as gain anything.
    minimise : str, optional
        ``links``: the sum over layers of the busiest link; ``gpus``: of the busiest GPU; ``time``: of both as time.
        Absent: ``time`` where placement changes what GPUs compute, else ``links``; ``gpus`` with ``inside_nodes``.
        Under ``metric: tokens`` there is no ``time``: ``links``, or with slow GPUs ``gpus``.
    inside_nodes : bool
        Only moves within a node: over NVLink.
    change : Change, optional
        GPUs that failed, drain, came or are slow since the current placement was made; the instance is changed by it.
    limits : Limits, optional
        Seconds or deterministic effort of the search; absent: 4 s. ``bounds=False`` leaves the bound out.
    seed : int
        Of the disturbances; the same seed and effort give the same placement while no clock strikes.
    check : bool
        Whether the verifier checks the placement, and what the transfers take from serving is counted.
    problem : Problem, optional
        The instance compiled with that traffic, by `moe_placer.problem.compile.compile_problem`; absent: it is compiled
        here. Nothing may have changed then.

    Raises
    ------
    InputError
        The current placement is of another model or cluster, or breaks a rule.
    InfeasibleError
        What is left of the cluster holds no placement, or more has to come back than the budget allows.
    NothingFoundError
        The instance is of a kind that is not replanned: sharded experts, tokens sent once per place, the aggregate. Or
        what has to come back finds no place, or no time within the budget.
    DefectError
        The verifier disagrees: a defect of this program.
    """
    begun = time.monotonic()
    limits = limits or Limits(time_s=TIME_S)
    if seed < 0:
        raise UsageError(f"seed is {seed}, expected 0 or more")
    deadline = replace(limits.deadline, at=min(limits.deadline.at, begun + limits.time_s))
    if problem is not None and change is not None:
        raise UsageError("a compiled problem and a change are given, expected one of them: a change is compiled anew")
    change, budget = change or Change(), budget or Budget()
    instance = change.applied_to(instance)
    traffic = traffic if traffic is not None else load_traffic(instance)
    problem = problem or compile_problem(instance, traffic)
    slowness, most = change.slowness(instance.gpus), budget.most_moves(instance)
    minimise = minimise or default_goal(instance, problem, inside_nodes, slowness is not None)
    _refuse(instance, problem, minimise)
    out = _out_of_service(instance)
    now, loss = _read(problem, current, out, goal_of(problem, minimise, slowness), most, inside_nodes)
    weights = [_known_weights(problem, record) for record in _records(current, len(problem))]
    task = Task(instance, now, weights, minimise, slowness)
    _insist_on_budget(task, most)
    kind = CoverageCurve if problem.coverage else Curve
    curves = [kind(start, task.goal, inside_nodes, min_of(most, start.layer.items)) for start in task.starts]
    bounded = most is not None and not inside_nodes and limits.bounds and not problem.coverage
    search_s = max(_SEARCH * limits.time_s, 0.0 if bounded else limits.time_s - _AFTER_S)
    search_until = min(deadline.at, begun + search_s)
    search(curves, most, limits, replace(deadline, at=search_until), seed)
    divided, placement, migration = _within(Divided(task, curves, most), budget, current, traffic, seed, out[0])
    before, after = task.figures([curve.current for curve in curves]), task.figures(divided.chosen)
    bound = None
    if most is not None and bounded:
        gained = (before.total_z - after.total_z) / max(1, most)
        guess = gained if gained > 0 else max(1.0, before.total_z / len(problem))
        bound = bound_budget(*task.layers_and_held(), most, weights, guess, deadline)
    record = _record(problem, current, after, most, inside_nodes, bound)
    placement = placement.model_copy(update={"replan": record})
    transfers = migration.to_file(instance, current, placement, task.gain_us(before, after), change.slow)
    verification = None
    if check:
        transfers = count_serving(instance, traffic, current, placement, transfers)
        verification = _verified(instance, placement, traffic, current, transfers)
    seconds = time.monotonic() - begun
    return Replanned(
        placement, instance, loss, before, after, divided.curve, partial(divided.build_curve, traffic, seed), most,
        bound, migration, transfers, minimise, verification, traffic, seconds,
    )  # fmt: skip


def _insist_on_budget(task: Task, most: int | None) -> None:
    """Refuse a budget that what had to come back exceeds, with what made room for it."""
    needed = sum(LayerState(s.layer, s.place, s.held, s.slots, task.goal).moves for s in task.starts)
    if most is not None and needed > most:
        raise NothingFoundError(
            f"what has to come back takes {needed:,} moves, with those that make room for it, and the budget allows "
            f"{most:,}: use a larger budget"
        )


def _out_of_service(instance: Instance) -> tuple[frozenset[int], frozenset[int]]:
    """Return the GPUs that hold nothing any more, and those that still send what they hold."""
    drained = frozenset(instance.placement.drained_gpus)
    return frozenset(instance.placement.failed_gpus) - drained, drained


def _read(
    problem: Problem,
    current: Placement,
    out: tuple[frozenset[int], frozenset[int]],
    goal: Goal,
    most: int | None,
    inside_nodes: bool,
) -> tuple[Current, Loss | None]:
    """Read the current placement; where it cannot run as it is, what is missing is added first."""
    asked = problem.replicas.sum(axis=1).tolist()
    free = problem.replicas_are_free and problem.redundant_in_all is None
    others = free and [sum(map(len, row)) for row in current.gpu] != asked
    touched = any(gpu in out[0] | out[1] for row in current.gpu for e in row for gpu in e)
    if not (others or touched):
        return read_current(problem, current), None
    now, loss = read_survivors(problem, current, *out, goal, most)
    if inside_nodes and loss.restored:
        raise NothingFoundError(
            f"{loss.restored:,} replicas have to come back first, which moves inside nodes cannot do: replan without "
            "inside_nodes first"
        )
    return now, loss


def _within(
    divided: Divided, budget: Budget, current: Placement, traffic: Traffic, seed: int, lost: frozenset[int]
) -> tuple[Divided, Placement, Migration]:
    """Take away moves until the transfers keep to the limits on time, and return what is left."""
    task = divided.task
    while True:
        placement = task.placement(traffic, divided.chosen, seed)
        migration = migrate(task.instance, current, placement, budget.stall_ms is not None, lost)
        stalled = [
            row for row, us in migration.layer_us.items() if budget.stall_ms is not None and us > 1e3 * budget.stall_ms
        ]
        late = budget.seconds is not None and migration.us > 1e6 * budget.seconds
        if stalled:
            divided.restrict(stalled)
        elif late and budget.seconds is not None:
            divided.reduce(1e6 * budget.seconds / migration.us)
        else:
            return divided, placement, migration


def _verified(
    instance: Instance, placement: Placement, traffic: Traffic, current: Placement, transfers: Transfers
) -> Verification:
    """Have the placement verified; whoever is right, a disagreement is a defect."""
    verification = verify(instance, placement, traffic, current, transfers)
    if not verification.ok:
        shown = "\n".join(f"  {violation}" for violation in verification.violations[:10])
        rules = [violation.rule for violation in verification.violations]
        raise DefectError(f"the new placement fails verification:\n{shown}", rules)
    return verification


def _record(
    problem: Problem,
    current: Placement,
    after: Figures,
    most: int | None,
    inside_nodes: bool,
    bound: BudgetBound | None,
) -> ReplanRecord:
    """Return what the placement file says of the budget, and of what no placement within it is below."""
    proof = {}
    if bound is not None:
        named = [{problem.links[k]: float(w[k]) for k in np.flatnonzero(w)} for w in bound.weights]
        value = min(bound.value, after.total_z)
        proof = {"bound": value, "price": bound.price, "weights": tuple(named)}
    return ReplanRecord(
        current_sha256=current.gpu_sha256, moves=after.moves, max_moves=most, inside_nodes=inside_nodes, **proof
    )


def _refuse(instance: Instance, problem: Problem, minimise: Minimise) -> None:
    """Refuse instances that trades do not support, and say what to do instead."""
    if minimise == "time" and instance.objective.metric == "tokens":
        raise UsageError(
            "links and GPUs are to be minimised as time, and objective.metric: tokens counts links in plain tokens, "
            "which are no time; minimise links or gpus, or take metric: time"
        )
    reason, anew = None, "or plan anew with `solve --start CURRENT`"
    if problem.coverage and (problem.capacity.per_gpu > 1 or problem.replicas_are_free or minimise != "links"):
        reason = (
            "its dispatch sends a token once per place, which is replanned only where a GPU has one expert of a layer, "
            f"replicas are no choice, and links are minimised; take placement.dispatch: per-expert instead, {anew}"
        )
    elif problem.shards > 1:
        reason = (
            f"its experts are sharded over {problem.shards} GPUs: shards differ, and what a GPU must load does not "
            f"follow from experts; take parallelism.expert_tp: 1, {anew}"
        )
    elif problem.minimise == "aggregate":
        reason = (
            "it minimises one link's sum over all layers, so that what a move gains depends on all other layers; take "
            f"objective.minimise: layers, {anew}"
        )
    elif problem.shares is not None:
        reason = (
            f"its {problem.shares.rule} numbers replicas by GPU, so that a move changes what others get; take "
            f"placement.replica_routing: even, {anew}"
        )
    elif problem.near is not None:
        reason = (
            f"under its {problem.near.rule} a token's replica depends on where the others are, so that a move changes "
            f"what others get; take placement.replica_routing: even, {anew}"
        )
    elif problem.scenarios:
        reason = (
            "it judges layers by all recordings at once, and moves are made for one traffic; take "
            f"objective.scenarios: mix, {anew}"
        )
    if reason:
        raise NothingFoundError(f"{problem.name} cannot be replanned: {reason}")


def _records(current: Placement, layers: int) -> list[LayerRecord | None]:
    return [*current.layers] if len(current.layers) == layers else [None] * layers


def _known_weights(problem: Problem, record: LayerRecord | None) -> Floats | None:
    """Return the link weights of a record of the current placement [K]: yesterday's duals are good today."""
    if record is None or not record.weights or not record.weights.keys() <= set(problem.links):
        return None
    weights = np.array([record.weights.get(link, 0.0) for link in problem.links])
    total = float(weights.sum())
    return weights / total if total > 0 else None
