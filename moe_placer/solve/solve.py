"""From an instance to a verified placement."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from functools import partial
from typing import Literal

import numpy as np
import numpy.typing as npt

from moe_placer.bounds.bounds import Bound, best_bound, companions_bound, even_weights, relaxed_bound
from moe_placer.bounds.largest import largest
from moe_placer.decomposition.aggregate import aggregate_bound, bound_jointly
from moe_placer.decomposition.memory import MemoryDivision, divide_memory
from moe_placer.errors import DefectError, NothingFoundError, UsageError
from moe_placer.instance import Instance
from moe_placer.limits import Deadline, Limits
from moe_placer.placement import Placement
from moe_placer.problem.compile import Problem, compile_problem
from moe_placer.result import OPTIMAL_GAP, FalseBoundError, LayerResult, Status, Stop, gap
from moe_placer.solve.assemble import bare_placement, state_placement
from moe_placer.solve.base import Solver
from moe_placer.solve.coolest_gpus import Cooling, cool_busiest
from moe_placer.solve.estimate import estimate, refuse_too_large
from moe_placer.solve.gpu_assignment import fit_to_gpus
from moe_placer.solve.group_nodes import bring_to_groups
from moe_placer.solve.layer_tasks import one_executor
from moe_placer.solve.layerwise import improves, is_quick
from moe_placer.solve.numbered import bound_any_numbers
from moe_placer.solve.outcome import never_worse, of_the_instance
from moe_placer.solve.places import problem_for, run_method
from moe_placer.solve.progress import Progress, Reporter
from moe_placer.solve.registry import DEFAULT, find_solver
from moe_placer.solve.warm_start import Baselines, better_start, find_slots, run_baselines
from moe_placer.traffic import Traffic, load_traffic
from moe_placer.verifier import Verification, verify
from moe_placer.workers import count_deaths

__all__ = ["Progress", "Solution", "solve"]

_MORE = {Stop.TIME: "give it more time, or another solver", Stop.WORK: "give it more effort, or another solver"}
_SHOWN = 10  # violations printed in an error


@dataclass(frozen=True, eq=False)
class Solution:
    """A verified placement, and how it was reached.

    Attributes
    ----------
    placement : Placement
        As in the placement file.
    verification : Verification
        What the independent verifier recomputed; it found no violation.
    baselines : mapping
        Name of a heuristic to what it gives of the `objective` (tokens at node-link speed), or to why it cannot serve.
    baseline_placements : callable
        Builds the placements of those that can, by name; they state no figures.
    status : tuple of Status
        What we have, per MoE layer.
    stop : tuple of Stop
        Why the search stopped, per MoE layer.
    seconds : float
        Wall-clock time of everything, from reading the traffic to the verdict.
    repaired : int
        Replicas that are not where the method puts them: replicas of one expert were too close together, a pin held
        one, or a DP group's nodes had no slot left.
    traffic : Traffic
    minimise : str
        Which objective: ``layers``, ``layer-time`` or ``aggregate``.
    deaths : tuple of int
        Exit codes of worker processes that died; below 0 the signal that killed one. Their layers were tried again.
    cooling : Cooling or None
        What trading replicas between GPUs after the search changed; None where nothing was there to trade.
    """

    placement: Placement
    verification: Verification
    baselines: Mapping[str, float | str]
    baseline_placements: Callable[[], Mapping[str, Placement]]
    status: tuple[Status, ...]
    stop: tuple[Stop, ...]
    seconds: float
    repaired: int
    traffic: Traffic
    minimise: Literal["layers", "layer-time", "aggregate"]
    deaths: tuple[int, ...] = ()
    cooling: Cooling | None = None

    @property
    def objective(self) -> float:
        """What was minimised, as recomputed: the sum over layers of z or of times (µs), or the aggregate."""
        if self.minimise == "layer-time":
            return self.verification.total_layer_us
        return self.verification.total_z if self.minimise == "layers" else self.verification.aggregate

    @property
    def bound(self) -> float:
        """What no placement's `objective` is below, as derived anew."""
        if self.minimise == "layer-time":
            return self.verification.layer_us_bound
        return self.verification.total_bound if self.minimise == "layers" else self.verification.aggregate_bound

    @property
    def gap(self) -> float:
        """How far the objective is above its re-checkable bound; infinite where only the bound is 0."""
        return gap(self.objective, self.bound)

    @property
    def gaps(self) -> npt.NDArray[np.float64]:
        """How far each layer's z is above its re-checkable bound [MoE layers]; infinite where only the bound is 0."""
        return np.array([gap(check.z, check.bound) for check in self.verification.layers])

    @property
    def solver_gaps(self) -> npt.NDArray[np.float64]:
        """The same against what only the solver's search proved, where that is more [MoE layers]."""
        records = self.placement.layers
        pairs = zip(records, self.verification.layers, strict=True)
        return np.array([gap(check.z, max(record.bound, record.solver_bound or 0.0)) for record, check in pairs])


def solve(
    instance: Instance,
    traffic: Traffic | None = None,
    *,
    solver: str | Solver = DEFAULT,
    limits: Limits | None = None,
    seed: int = 0,
    start: Placement | None = None,
    progress: Callable[[Progress], None] | None = None,
    interrupted: Callable[[], bool] | None = None,
    cool_gpus: bool | None = None,
    baselines: bool = True,
) -> Solution:
    """Place every expert of every MoE layer, and have the placement verified.

    Parameters
    ----------
    instance : Instance
    traffic : Traffic, optional
        Absent: what the instance names.
    solver : str or Solver
        A registered name (``moe-placer solvers``), or a solver of your own.
    limits : Limits, optional
        Time, gap, workers, deterministic effort, memory, bounds; absent: 60 s, 0.1%, one worker, all memory left.
    seed : int
        Of everything random; the same seed and limits give the same placement while no clock strikes.
    start : Placement, optional
        A placement to improve on; the heuristics' best is used beside it.
    progress : callable, optional
        Told of the placement that the search starts from, and of every improvement.
    interrupted : callable, optional
        Asked now and then; once it says True, the best placement so far is verified and returned.
    cool_gpus : bool, optional
        Whether replicas trade GPUs after the search to cool the busiest ones, while no layer's z rises above
        ``max(z, bound * (1 + limits.gap))``; absent: where the method says so (``auto`` does).
    baselines : bool
        Whether the heuristics to compare with are run beside a method of one pass; a search starts from them, and runs
        them in any case.

    Raises
    ------
    InputError, UsageError
        The instance, its traffic or the call is wrong.
    InfeasibleError
        No placement can exist, and the message says why.
    NothingFoundError
        The limits ran out, or the method failed, before there was a placement; or memory cannot suffice.
    DefectError
        The verifier disagrees with the solver: a defect of this program.
    """
    begun = time.monotonic()
    limits = _starting_now(limits or Limits(), interrupted)
    method = _available(solver)
    if seed < 0:
        raise UsageError(f"seed is {seed}, expected 0 or more")
    refuse_too_large(instance.name, estimate(instance, limits.workers, not is_quick(method)), limits.memory_bytes)
    traffic = traffic if traffic is not None else load_traffic(instance)
    problem, division = _with_memory(_compiled(instance, traffic, method), method, limits, start)
    cools, goes_on = _cools(method, problem, cool_gpus), improves(method)
    with count_deaths() as deaths, one_executor(problem, limits) if goes_on else nullcontext():
        beside = run_baselines(problem, seed) if baselines or goes_on else Baselines.none(problem)
        place_baselines = partial(_place_baselines, instance, traffic, problem, seed, beside.plans)
        by_load, first = problem.replicas, beside.start
        if start is not None:
            problem, first = better_start(problem, first, start)

        def build(results: Sequence[LayerResult]) -> Placement:
            fitted = fit_to_gpus(problem, results)
            return state_placement(instance, traffic, problem, by_load, method, fitted, limits, seed, division)

        report = Reporter(problem, limits, progress, beside.totals, build, division)
        if goes_on:
            report.start(first)  # quick methods ignore it; others may
        results = fit_to_gpus(problem, _run(method, problem, limits, seed, first, report, division))
        if goes_on:
            results = never_worse(problem, results, beside.plans)
        if cools:
            results = bring_to_groups(problem, results)
    results, cooling = cool_busiest(problem, results, limits) if cools else (results, None)
    results = bound_any_numbers(problem, results, limits.deadline)
    placement = build(results)
    verification = _verified(instance, placement, traffic, method)
    return Solution(
        placement,
        verification,
        beside.totals,
        place_baselines,
        statuses(problem, results, verification),
        tuple(result.stop for result in results),
        time.monotonic() - begun,
        sum(result.repaired for result in results),
        traffic,
        problem.minimise,
        tuple(deaths),
        cooling,
    )


def _starting_now(limits: Limits, interrupted: Callable[[], bool] | None) -> Limits:
    """Return the limits with the moment at which their time is over."""
    at = time.monotonic() + limits.time_s
    return replace(limits, deadline=Deadline(at, interrupted or limits.deadline.interrupted))


def _compiled(instance: Instance, traffic: Traffic, method: Solver) -> Problem:
    """Compile the problem; the method must be one that can solve it."""
    problem = compile_problem(instance, traffic)
    if reason := method.refuses(problem_for(method, problem)):
        raise NothingFoundError(f"the solver {method.name} cannot serve {instance.name}: {reason}")
    return problem


def _with_memory(
    problem: Problem, method: Solver, limits: Limits, start: Placement | None
) -> tuple[Problem, MemoryDivision | None]:
    """Divide memory that binds over layers among them, where that pays; else keep to the slots of a start."""
    kept = find_slots(problem, start) if start is not None and problem.capacity.binds else None
    division = divide_memory(problem, limits, kept) if _can_divide_memory(problem, method) else None
    if division is not None:
        return division.problem, division
    return problem if kept is None else replace(problem.with_slots(kept), slots_are_given=False), None


def statuses(problem: Problem, results: Sequence[LayerResult], verification: Verification) -> tuple[Status, ...]:
    """Say of every layer whether what it has of the objective is optimal."""
    if problem.minimise != "layer-time":
        return tuple(result.status for result in results)
    best = gap(verification.total_layer_us, verification.layer_us_bound) <= OPTIMAL_GAP
    return (Status.OPTIMAL if best else Status.FEASIBLE,) * len(results)


def _place_baselines(
    instance: Instance, traffic: Traffic, problem: Problem, seed: int, served: Mapping[str, Sequence[LayerResult]]
) -> dict[str, Placement]:
    """Give the heuristics' replicas their GPUs; what does not go on the GPUs of its nodes is left out."""
    found = {}
    for name, results in served.items():
        with suppress(NothingFoundError):
            found[name] = bare_placement(instance, traffic, problem, name, seed, results)
    return found


def _available(solver: str | Solver) -> Solver:
    """Return the solver of a name, or the one given, where it can run here."""
    method = find_solver(solver) if isinstance(solver, str) else solver
    if reason := method.unavailable():
        raise UsageError(f"the solver {method.name} cannot run here: {reason}")
    return method


def _cools(method: Solver, problem: Problem, asked: bool | None) -> bool:
    """Whether GPUs are cooled after the search: as asked, or as the method does where only busiest links count."""
    if asked and problem.judge is not None:
        raise UsageError("cooling GPUs keeps every layer's busiest link, and objective.take: mean counts others, too")
    return method.cools and problem.judge is None if asked is None else asked


def _can_divide_memory(problem: Problem, method: Solver) -> bool:
    """Whether it pays to divide memory among the layers first: where memory binds, and the method takes its time."""
    apart = problem.minimise != "aggregate" and not problem.shares_replicas
    linear = not problem.coverage and problem.home is None and problem.judge is None and problem.near is None
    return improves(method) and apart and linear and problem.capacity.binds and problem.shards == 1


def _run(
    method: Solver,
    problem: Problem,
    limits: Limits,
    seed: int,
    start: list[LayerResult | None],
    report: Callable[[int, LayerResult], None],
    division: MemoryDivision | None,
) -> list[LayerResult]:
    """Run the solver; see that every layer has a placement and, time permitting, a re-checkable bound."""
    nodes = [result.node if result is not None else None for result in start]
    results = run_method(method, problem, limits, seed, nodes, report)
    if len(results) != len(problem):
        raise DefectError(f"the solver {method.name} returned {len(results)} layers instead of {len(problem)}")
    results = [of_the_instance(problem, division, index, result, limits.gap) for index, result in enumerate(results)]
    for index, result in enumerate(results):
        layer = problem.moe_layers[index]
        if result.status is Status.INFEASIBLE:
            message = (
                f"{method.name} says that layer {layer} has no valid placement, but slots, pins and distances leave one"
            )
            raise DefectError(message, ["infeasible"])
        if result.node is None:
            hint = _MORE.get(result.stop, "try another solver")
            raise NothingFoundError(f"{method.name} found no placement of layer {layer} within its limits; {hint}")
        if not _fits(problem, index, result):
            message = f"the placement of {method.name} has not one node that exists for every replica in layer {layer}"
            raise DefectError(message, ["slots"])
    for index, bound in _missing_bounds(problem, results, limits):
        try:
            results[index] = replace(results[index], bound=bound, solver_bound=_word(results[index]))
        except FalseBoundError as error:
            raise DefectError(f"{method.name}, layer {problem.moe_layers[index]}: {error}", ["z"]) from None
        report(index, results[index])
    return results


def _missing_bounds(problem: Problem, results: Sequence[LayerResult], limits: Limits) -> Iterator[tuple[int, Bound]]:
    """Bound what the method left unbounded."""
    if not limits.bounds:
        return
    if problem.minimise == "aggregate":
        known = aggregate_bound([result.bound for result in results])
        if not known and not problem.coverage and not limits.deadline.over:  # link weights count a copy per choice
            layers = [problem.layer(index, result.replicas) for index, result in enumerate(results)]
            yield from enumerate(bound_jointly(layers, limits))
        return
    if problem.coverage:
        for index, result in enumerate(results):
            if result.bound.companions is None and not limits.deadline.over:
                assert result.node is not None
                layer = problem.layer(index, result.replicas)
                yield index, companions_bound(layer, result.node, limits.deadline)
        return
    for index, result in enumerate(results):
        proved = result.bound.proof != "solver" and gap(result.z, result.bound.value) <= OPTIMAL_GAP
        if result.bound.weights is None and not proved:
            bound = _missing_bound(problem, results, index, limits.deadline)
            if bound.weights is not None:
                yield index, bound


def _missing_bound(problem: Problem, results: Sequence[LayerResult], index: int, deadline: Deadline) -> Bound:
    """Bound a layer that the method did not: by its relaxation, or, when time is over, by weights that cost nothing.

    Those of the nearest layer that has some are within 0.1% of its own where layers are alike.
    """
    layer = problem.layer(index, results[index].replicas)
    if not deadline.over:
        bound = relaxed_bound(layer, deadline.left)
        if bound.weights is not None:
            return bound
    lent = [other for other in range(len(results)) if results[other].bound.weights is not None]
    nearest = sorted(lent, key=lambda other: abs(other - index))[:1]
    weights = [w for other in nearest if (w := results[other].bound.weights) is not None] or even_weights(layer)
    return largest(best_bound(layer, one) for one in weights) if weights else best_bound(layer)


def _fits(problem: Problem, index: int, result: LayerResult) -> bool:
    expert, _ = problem.items(index, result.replicas)
    node = np.asarray(result.node)
    return node.shape == expert.shape and bool(((node >= 0) & (node < problem.nodes)).all())


def _word(result: LayerResult) -> float | None:
    """Return what only the solver says of its bound, where another takes its place."""
    said = result.best_bound if result.bound.proof == "solver" else result.solver_bound
    return said or None


def _verified(instance: Instance, placement: Placement, traffic: Traffic, method: Solver) -> Verification:
    """Verify a placement; raise where solver and verifier disagree, whoever is right."""
    verification = verify(instance, placement, traffic)
    if verification.ok:
        return verification
    shown = [f"  {violation}" for violation in verification.violations[:_SHOWN]]
    more = len(verification.violations) - len(shown)
    rest = [f"  ... and {more:,} more"] if more > 0 else []
    found = "\n".join([*shown, *rest])
    message = f"the placement of {method.name} fails verification, so nothing was written:\n{found}"
    raise DefectError(message, [violation.rule for violation in verification.violations])
