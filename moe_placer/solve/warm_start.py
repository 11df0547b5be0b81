"""Where a search starts from: the baselines' best, or a placement that is given."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from moe_placer.bounds.bounds import Bound
from moe_placer.errors import InputError, Mistake, NothingFoundError
from moe_placer.limits import Limits
from moe_placer.placement import Placement
from moe_placer.problem.compile import Problem
from moe_placer.result import LayerResult, Stop
from moe_placer.solve.base import Solver
from moe_placer.solve.gpu_assignment import fit_to_gpus
from moe_placer.solve.heuristic import OnePass
from moe_placer.solve.layer_tasks import on_each_layer
from moe_placer.solve.layerwise import LayerSolver
from moe_placer.solve.outcome import objective_of
from moe_placer.solve.places import problem_for, run_method, runs_as_it_is
from moe_placer.solve.registry import find_solver

__all__ = ["BASELINES", "Baselines", "better_start", "find_slots", "run_baselines"]

Ints = npt.NDArray[np.int64]

Quick = OnePass | LayerSolver

BASELINES = ("contiguous", "eplb", "greedy")
_OF_COVERAGE = ("affinity",)  # what is published for tokens that go once to each node


@dataclass(frozen=True, eq=False)
class Baselines:
    """The placements of the quick heuristics, and their totals.

    Attributes
    ----------
    totals : dict
        Name to what is minimised, or to why there is none.
    plans : dict
        Name to the results of all layers, where each has a placement.
    start : list of LayerResult or None
        The best for each layer with the replicas of the problem, or of all layers where these count together.
    """

    totals: dict[str, float | str]
    plans: dict[str, list[LayerResult]]
    start: list[LayerResult | None]

    @classmethod
    def none(cls, problem: Problem) -> Baselines:
        """Return the baselines of a solve that runs none."""
        return cls({}, {}, [None] * len(problem))


def run_baselines(problem: Problem, seed: int) -> Baselines:
    """Run the quick heuristics: what users have today, and where the search starts from."""
    found = Baselines.none(problem)
    methods = {name: find_solver(name) for name in (*BASELINES, *(_OF_COVERAGE if problem.coverage else ()))}
    refused = {name: own.unavailable() or own.refuses(problem_for(own, problem)) for name, own in methods.items()}
    able = {name: method for name, method in methods.items() if not refused[name]}
    placed = _place_all(able, problem, seed)
    for name in methods:
        results = placed.get(name)
        if results is None:
            found.totals[name] = refused[name] or "it finds no valid placement"
            continue
        with suppress(NothingFoundError):
            results = fit_to_gpus(problem, results)
        total = objective_of(problem, results)
        found.totals[name] = "it finds no valid placement" if total is None else total
        usable = [
            replace(r, gpu=None, repaired=0) if r.node is not None and r.replicas is None else None for r in results
        ]
        found.start[:] = _better_of(problem, found.start, usable)
        if total is not None:
            found.plans[name] = [_with_own_replicas(problem, index, result) for index, result in enumerate(results)]
    return found


def _place_all(methods: Mapping[str, Solver], problem: Problem, seed: int) -> dict[str, list[LayerResult]]:
    """Place every layer by all methods before the next one is compiled; leave out those that find no placement."""
    plain = {n: m for n, m in methods.items() if isinstance(m, Quick) and runs_as_it_is(m, problem)}
    placed: dict[str, list[LayerResult]] = {}
    layers = on_each_layer(_place_layer, plain, problem, [seed] * len(problem))
    for name, method in methods.items():
        with suppress(NothingFoundError):
            if name not in plain:
                placed[name] = run_method(method, problem, Limits(), seed, None, lambda _index, _result: None)
            elif all(name in layer for layer in layers):
                placed[name] = [layer[name] for layer in layers]
    return placed


def _place_layer(methods: Mapping[str, Quick], problem: Problem, index: int, seed: int) -> dict[str, LayerResult]:
    """Place a layer by each method that can."""
    found = {}
    for name, method in methods.items():
        with suppress(NothingFoundError):
            found[name] = method.place_quickly(problem, index, seed)
    return found


def _with_own_replicas(problem: Problem, index: int, result: LayerResult) -> LayerResult:
    """Have a result say what replicas it has, where another start may give the problem others."""
    own = problem.replicas[index] if problem.replicas_are_free and result.replicas is None else result.replicas
    return replace(result, replicas=own)


def better_start(
    problem: Problem, first: list[LayerResult | None], start: Placement
) -> tuple[Problem, list[LayerResult | None]]:
    """Take the better of ``first`` and ``start``, layer by layer; the problem then has the replicas of these.

    All layers take the same side where the aggregate counts, and where they share a budget of replicas, unless
    ``start`` has the replicas of ``first``.

    Raises
    ------
    InputError
        ``start`` is of another shape, or breaks a constraint.
    """
    replicas = _replicas_of(problem, start)
    given = replace(problem, replicas=replicas)
    found = [_result(given, index, start) for index in range(len(problem))]
    shared = problem.shares_replicas and not np.array_equal(replicas, problem.replicas)
    if problem.minimise == "aggregate" or shared:
        now, then = objective_of(problem, first), objective_of(given, found)
        better = np.full(len(problem), now is None or (then is not None and then < now))
    else:
        better = np.array([mine is None or theirs.z < mine.z for mine, theirs in zip(first, found, strict=True)])
    best = [theirs if take else mine for take, mine, theirs in zip(better, first, found, strict=True)]
    return replace(problem, replicas=np.where(better[:, None], replicas, problem.replicas)), best


def _replicas_of(problem: Problem, start: Placement) -> Ints:
    """Return the replicas [MoE layers, experts] of a start; they must be the problem's, or a choice that it allows."""
    if len(start.gpu) != len(problem):
        raise _wrong(f"a start placement of {len(start.gpu)} MoE layers", f"{len(problem)}, as {problem.name} has")
    rows = []
    for index, (experts, own) in enumerate(zip(start.gpu, problem.replicas, strict=True)):
        row = np.array([len(gpus) for gpus in experts])
        known = row.shape == own.shape and (row > 0).all()
        same = known and np.array_equal(row, own)
        fits = known and (row.sum() == own.sum() or problem.redundant_in_all is not None)
        if not same and not (problem.replicas_are_free and fits):
            layer = problem.moe_layers[index]
            raise _wrong(
                f"a start placement with other replicas of experts in layer {layer}", f"those of {problem.name}"
            )
        rows.append(row)
    replicas = np.stack(rows)
    if problem.redundant_in_all is not None and (replicas - 1).sum() > problem.redundant_in_all:
        found = f"a start placement with {(replicas - 1).sum():,} redundant replicas over all layers"
        raise _wrong(found, f"at most the {problem.redundant_in_all:,} of {problem.name}")
    return replicas


def _result(problem: Problem, index: int, start: Placement) -> LayerResult:
    """Return one layer of a start at node level."""
    layer = problem.layer(index)
    pairs = zip(layer.expert.tolist(), layer.replica.tolist(), strict=True)
    node = np.array([start.shards(index, e)[r][0] for e, r in pairs]) // problem.gpus_per_node
    if node.max() >= problem.nodes or not layer.valid(node):
        found = f"a start placement that breaks slots, pins or distances in layer {problem.moe_layers[index]}"
        raise _wrong(found, "one that is valid")
    return LayerResult(node, layer.z(node), Bound(0.0, "solver"), Stop.WORK)


def _wrong(found: str, expected: str) -> InputError:
    return InputError(Mistake(found, expected, "start"))


def find_slots(problem: Problem, start: Placement) -> Ints | None:
    """Return slots of GPUs [MoE layers, GPUs] that a placement fits in; None where it breaks slots or memory."""
    capacity = problem.capacity
    slots = np.zeros_like(capacity.slots)
    if len(start.gpu) != len(problem):
        return None
    for layer, experts in enumerate(start.gpu):
        gpus = [gpu for e in range(len(experts)) for replica in start.shards(layer, e) for gpu in replica]
        if max(gpus, default=0) >= slots.shape[1]:
            return None
        slots[layer] = np.bincount(gpus, minlength=slots.shape[1])
    if (slots > capacity.per_gpu).any() or (slots.sum(axis=0) > capacity.usable).any():
        return None
    return capacity.filled(slots)


def _better_of(
    problem: Problem, first: Sequence[LayerResult | None], other: Sequence[LayerResult | None]
) -> list[LayerResult | None]:
    """Take the better of two placements: layer by layer, or as a whole where the aggregate counts."""
    if problem.minimise == "aggregate":
        one, two = objective_of(problem, first), objective_of(problem, other)
        if one is not None or two is not None:
            return list(first if two is None or (one is not None and one <= two) else other)
    pairs = zip(first, other, strict=True)
    return [b if a is None or (b is not None and b.z < a.z) else a for a, b in pairs]
