"""From an instance to a verified placement."""

from __future__ import annotations

import importlib.metadata
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moe_placer.bounds import Bound, best_bound, even_weights, relaxed_bound
from moe_placer.errors import InfeasibleError, NothingFoundError, UsageError, VerificationError
from moe_placer.fabric import build_fabric, kinds_of_links
from moe_placer.instance import Instance
from moe_placer.packing import pack
from moe_placer.placement import SCHEMA, InstanceKey, LayerRecord, Placement, SolverRecord
from moe_placer.problem import Problem, compile_problem
from moe_placer.progress import Progress, Reporter
from moe_placer.registry import DEFAULT, find_solver
from moe_placer.replica_facts import replica_facts
from moe_placer.result import OPTIMAL_GAP, FalseBoundError, LayerResult, Status, Stop, gap
from moe_placer.solver import Deadline, LayerSolver, Limits, Solver
from moe_placer.start import better_start
from moe_placer.traffic import Traffic, load_traffic
from moe_placer.verifier import Verification, verify

__all__ = ["Progress", "Solution", "solve"]

BASELINES = ("contiguous", "eplb", "greedy")
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
        Name of a heuristic to the sum over layers of its z (tokens at node-link speed), or to why it cannot serve.
    status : tuple of Status
        What we have, per MoE layer.
    stop : tuple of Stop
        Why the search stopped, per MoE layer.
    seconds : float
        Wall-clock time of everything, from reading the traffic to the verdict.
    repaired : int
        Copies that the method had put too close together, and that were moved apart.
    traffic : Traffic
    """

    placement: Placement
    verification: Verification
    baselines: Mapping[str, float | str]
    status: tuple[Status, ...]
    stop: tuple[Stop, ...]
    seconds: float
    repaired: int
    traffic: Traffic

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
) -> Solution:
    """Place every expert of every MoE layer, and have the placement verified.

    Parameters
    ----------
    traffic : Traffic, optional
        Absent: what the instance names.
    solver : str or Solver
        A registered name (``moe-placer solvers``), or a solver of your own.
    limits : Limits, optional
        Time, gap, workers, deterministic effort; absent: 60 s, 0.1%, one worker.
    seed : int
        Of everything random; the same seed and limits give the same placement while no clock strikes.
    start : Placement, optional
        A placement to improve on; the heuristics' best is used beside it.
    progress : callable, optional
        Told of the placement that the search starts from, and of every improvement.
    interrupted : callable, optional
        Asked now and then; once it says True, the best placement so far is verified and returned.

    Raises
    ------
    InputError, UsageError
        The instance, its traffic or the call is wrong.
    InfeasibleError
        No placement can exist, and the message says why.
    NothingFoundError
        The limits ran out, or the method failed, before there was a placement.
    VerificationError
        The verifier disagrees with the solver: a defect of this program.
    """
    begun = time.monotonic()
    limits = limits or Limits()
    limits = replace(limits, deadline=Deadline(begun + limits.time_s, interrupted or limits.deadline.interrupted))
    method = find_solver(solver) if isinstance(solver, str) else solver
    if seed < 0:
        raise UsageError(f"seed is {seed}, expected 0 or more")
    if reason := method.unavailable():
        raise UsageError(f"the solver {method.name} cannot run here: {reason}")
    traffic = traffic if traffic is not None else load_traffic(instance)
    problem = compile_problem(instance, traffic)
    if reason := method.refuses(problem):
        raise NothingFoundError(f"the solver {method.name} cannot serve {instance.name}: {reason}")
    baselines, first = _baselines(problem, seed)
    by_load = problem.copies
    if start is not None:
        problem, first = better_start(problem, first, start)

    def build(results: Sequence[LayerResult]) -> Placement:
        return _placement(instance, traffic, problem, by_load, method, results, limits, seed)

    report = Reporter(problem, limits, progress, baselines, build)
    if isinstance(method, LayerSolver) and not method.quick:
        report.start(first)  # quick methods ignore it; others may
    results = _run(method, problem, limits, seed, first, report)
    placement = build(results)
    verification = verify(instance, placement, traffic)
    _insist(verification, method)
    return Solution(
        placement,
        verification,
        baselines,
        tuple(result.status for result in results),
        tuple(result.stop for result in results),
        time.monotonic() - begun,
        sum(result.repaired for result in results),
        traffic,
    )


def _baselines(problem: Problem, seed: int) -> tuple[dict[str, float | str], list[LayerResult | None]]:
    """Run the quick heuristics: what users have today, and where the search starts from."""
    totals: dict[str, float | str] = {}
    best: list[LayerResult | None] = [None] * len(problem)
    for name in BASELINES:
        method = find_solver(name)
        if reason := method.unavailable() or method.refuses(problem):
            totals[name] = reason
            continue
        results = method.solve(problem, Limits(), seed, None, lambda _index, _result: None)
        if any(result.node is None for result in results):
            totals[name] = "it finds no valid placement"
        else:
            totals[name] = float(sum(result.z for result in results))
        for index, result in enumerate(results):
            current = best[index]
            usable = result.node is not None and result.copies is None
            if usable and (current is None or result.z < current.z):
                best[index] = replace(result, gpu=None, repaired=0)
    return totals, best


def _run(
    method: Solver,
    problem: Problem,
    limits: Limits,
    seed: int,
    start: list[LayerResult | None],
    report: Callable[[int, LayerResult], None],
) -> list[LayerResult]:
    """Run the solver; see that every layer has a placement and, time permitting, a re-checkable bound."""
    nodes = [result.node if result is not None else None for result in start]
    results = method.solve(problem, limits, seed, nodes, report)
    if len(results) != len(problem):
        raise VerificationError(f"the solver {method.name} returned {len(results)} layers instead of {len(problem)}")
    for index, result in enumerate(results):
        layer = problem.moe_layers[index]
        if result.status is Status.INFEASIBLE:
            raise InfeasibleError(f"{problem.name}: {method.name} proved that layer {layer} has no valid placement")
        if result.node is None:
            hint = "give it more time, or another solver" if result.stop is Stop.TIME else "try another solver"
            raise NothingFoundError(f"{method.name} found no placement of layer {layer} within its limits; {hint}")
        if not _fits(problem, index, result):
            message = f"the placement of {method.name} has not one node that exists for every replica in layer {layer}"
            raise VerificationError(message, ["slots"])
        proved = result.bound.proof != "solver" and gap(result.z, result.bound.value) <= OPTIMAL_GAP
        if result.bound.weights is None and not proved:
            bound = _missing_bound(problem, results, index, limits.deadline)
            if bound.weights is not None:
                try:
                    results[index] = replace(result, bound=bound, solver_bound=_word(result))
                except FalseBoundError as error:
                    raise VerificationError(f"{method.name}, layer {layer}: {error}", ["z"]) from None
                report(index, results[index])
    return results


def _missing_bound(problem: Problem, results: Sequence[LayerResult], index: int, deadline: Deadline) -> Bound:
    """Bound a layer that the method did not: by its relaxation, or, when time is over, by weights that cost nothing.

    Those of the nearest layer that has some are within 0.1% of its own where layers are alike.
    """
    layer = problem.layer(index, results[index].copies)
    if not deadline.over:
        bound = relaxed_bound(layer, deadline.left)
        if bound.weights is not None:
            return bound
    lent = [other for other in range(len(results)) if results[other].bound.weights is not None]
    nearest = sorted(lent, key=lambda other: abs(other - index))[:1]
    weights = [w for other in nearest if (w := results[other].bound.weights) is not None] or even_weights(layer)
    return max((best_bound(layer, w) for w in weights), key=lambda b: b.value, default=best_bound(layer))


def _fits(problem: Problem, index: int, result: LayerResult) -> bool:
    expert, _ = problem.items(index, result.copies)
    node = np.asarray(result.node)
    return node.shape == expert.shape and bool(((node >= 0) & (node < problem.nodes)).all())


def _word(result: LayerResult) -> float | None:
    """Return what only the solver says of its bound, where another takes its place."""
    said = result.best_bound if result.bound.proof == "solver" else result.solver_bound
    return said or None


def _placement(
    instance: Instance,
    traffic: Traffic,
    problem: Problem,
    by_load: npt.NDArray[np.int64],
    method: Solver,
    results: Sequence[LayerResult],
    limits: Limits,
    seed: int,
) -> Placement:
    packed = _pack(problem, method, results)
    gpu = []
    for index, result in enumerate(results):
        expert, _ = problem.items(index, result.copies)
        rows: list[list[int | tuple[int, ...]]] = [[] for _ in range(problem.copies.shape[1])]
        for e, gpus in zip(expert.tolist(), packed[index], strict=True):
            rows[e].append(gpus if problem.shards > 1 else gpus[0])
        gpu.append(tuple(tuple(row) for row in rows))
    parameters = {
        "gap": limits.gap,
        "time_limit_s": limits.time_s,
        "workers": limits.workers,
        "work": limits.total_work,
    }
    return Placement(
        schema=SCHEMA,
        instance=InstanceKey(name=instance.name, sha256=instance.sha256, traffic_sha256=traffic.sha256),
        solver=SolverRecord(name=method.name, version=_version("moe-placer"), seed=seed, parameters=parameters),
        gpu=tuple(gpu),
        layers=tuple(_record(problem, index, result) for index, result in enumerate(results)),
        versions={"python": platform.python_version(), **{n: _version(n) for n in ("numpy", "scipy", "ortools")}},
        traffic=_traffic_facts(instance, traffic),
        fabric=_fabric_facts(instance),
        replicas=replica_facts(problem, by_load, method.name, results),
    )


def _pack(problem: Problem, method: Solver, results: Sequence[LayerResult]) -> list[list[tuple[int, ...]]]:
    """Give every item GPUs; where that fails, say whether the method broke the nodes' limits."""
    for result in results:
        if result.gpu is not None and not ((result.gpu >= 0) & (result.gpu < len(problem.capacity.room))).all():
            raise VerificationError(f"the placement of {method.name} names a GPU that does not exist", ["gpu-id"])
    try:
        return pack(problem, results)
    except NothingFoundError:
        for index, result in enumerate(results):
            if result.node is not None and not problem.layer(index, result.copies).valid(result.node):
                layer = problem.moe_layers[index]
                message = f"the placement of {method.name} breaks slots, pins or distances of nodes in layer {layer}"
                raise VerificationError(message, ["slots"]) from None
        raise


def _record(problem: Problem, index: int, result: LayerResult) -> LayerRecord:
    assert result.node is not None
    layer, bound = problem.layer(index, result.copies), result.bound
    cost = layer.cost(result.node)
    weights = None
    if bound.proof in {"dual", "threshold"} and bound.weights is not None:
        weights = {problem.links[k]: float(bound.weights[k]) for k in np.flatnonzero(bound.weights)}
    return LayerRecord(
        layer=problem.moe_layers[index],
        z=result.z,
        bound=min(bound.value, result.z),
        proof=bound.proof,
        weights=weights,
        threshold=bound.threshold,
        hot=None if bound.hot is None else (int(layer.expert[bound.hot]), int(layer.replica[bound.hot])),
        any_copies=bound.any_copies or None,
        worst_link=problem.links[int(cost.argmax())] if result.z > 0 else "",
        # A search with these copies proves nothing of others.
        solver_bound=None if problem.copies_are_free else result.solver_bound,
    )


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def _traffic_facts(instance: Instance, traffic: Traffic) -> dict[str, object]:
    return {
        "kind": instance.traffic.kind,
        "tokens_per_gpu": instance.traffic.tokens_per_gpu,
        "recordings": [{"name": r.name, "tokens": float(r.tokens.max())} for r in traffic.recordings],
        "mix": traffic.mix.tolist(),
    }


def _fabric_facts(instance: Instance) -> dict[str, object]:
    """Bandwidths by kind of link: enough to see what a cost means."""
    fabric = instance.cluster.fabric
    metric, links = instance.objective.metric, kinds_of_links(build_fabric(instance))
    return {"kind": fabric.kind, "node_gb_per_s": fabric.node_gb_per_s, "metric": metric, "links": links}


def _insist(verification: Verification, method: Solver) -> None:
    """Raise where solver and verifier disagree, whoever is right."""
    if verification.ok:
        return
    shown = [f"  {violation}" for violation in verification.violations[:_SHOWN]]
    more = len(verification.violations) - len(shown)
    rest = [f"  ... and {more:,} more"] if more > 0 else []
    found = "\n".join([*shown, *rest])
    message = f"the placement of {method.name} fails verification, so nothing was written:\n{found}"
    raise VerificationError(message, [violation.rule for violation in verification.violations])
