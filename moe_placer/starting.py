"""Where a search starts from: the baselines' best, or a placement that is given."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moe_placer.bounds import Bound
from moe_placer.coupling.aggregate import link_totals
from moe_placer.errors import InputError, Mistake
from moe_placer.placement import Placement
from moe_placer.problem import Problem
from moe_placer.registry import find_solver
from moe_placer.result import LayerResult, Status, Stop
from moe_placer.solver import Limits

__all__ = ["BASELINES", "better_of", "find_counts", "read_start", "run_baselines"]

BASELINES = ("contiguous", "eplb", "greedy")


def run_baselines(problem: Problem, seed: int) -> tuple[dict[str, float | str], list[LayerResult | None]]:
    """Run the quick heuristics: what users have today, and where the search starts from."""
    totals: dict[str, float | str] = {}
    best: list[LayerResult | None] = [None] * len(problem)
    for name in BASELINES:
        method = find_solver(name)
        if reason := method.unavailable() or method.refuses(problem):
            totals[name] = reason
            continue
        results = method.solve(problem, Limits(), seed, None, lambda _index, _result: None)
        found = _objective(problem, results)
        totals[name] = "it finds no valid placement" if found is None else found
        usable = [
            replace(r, gpu=None, repaired=0) if r.node is not None and r.copies is None else None for r in results
        ]
        best = better_of(problem, best, usable)
    return totals, best


def _objective(problem: Problem, results: Sequence[LayerResult | None]) -> float | None:
    """Return what is minimised; None where a layer has no placement."""
    placed = [result for result in results if result is not None and result.node is not None]
    if len(placed) < len(problem):
        return None
    if problem.minimise == "layers":
        return float(sum(result.z for result in placed))
    return float(link_totals(problem, placed).max(initial=0.0))


def read_start(problem: Problem, start: Placement) -> list[LayerResult]:
    """Return a given placement as results of which nothing is proved.

    Raises
    ------
    InputError
        It is of another shape, or breaks slots, pins or distances.
    """

    def wrong(found: str, expected: str) -> InputError:
        return InputError(Mistake(found, expected, "start"))

    if len(start.gpu) != len(problem):
        raise wrong(f"a start placement of {len(start.gpu)} MoE layers", f"{len(problem)}, as {problem.name} has")
    results = []
    for index in range(len(problem)):
        expert, replica = problem.items(index)
        copies = [len(row) for row in start.gpu[index]]
        if copies != problem.copies[index].tolist():
            layer = problem.moe_layers[index]
            raise wrong(f"a start placement with other copies of experts in layer {layer}", f"those of {problem.name}")
        first = [start.shards(index, e)[r][0] for e, r in zip(expert.tolist(), replica.tolist(), strict=True)]
        node = np.array(first) // problem.gpus_per_node
        if node.max() >= problem.nodes or not problem.layer(index).valid(node):
            raise wrong(
                f"a start placement that breaks slots, pins or distances in layer {problem.moe_layers[index]}",
                "one that is valid",
            )
        z = problem.layer(index).z(node)
        results.append(LayerResult(node, z, Bound(0.0, "solver"), Status.FEASIBLE, Stop.TIME))
    return results


def find_counts(problem: Problem, start: Placement) -> npt.NDArray[np.int64] | None:
    """Count the copies that a placement has on each node [layers, nodes]; None where `read_start` will refuse it."""
    counts = np.zeros((len(problem), problem.nodes), dtype=np.int64)
    if len(start.gpu) != len(problem):
        return None
    for layer, experts in enumerate(start.gpu):
        first = [copy[0] for e in range(len(experts)) for copy in start.shards(layer, e)]
        node = np.array(first, dtype=np.int64) // problem.gpus_per_node
        if len(node) != problem.copies[layer].sum() or node.max() >= problem.nodes:
            return None
        counts[layer] = np.bincount(node, minlength=problem.nodes)
    return counts


def better_of(
    problem: Problem, first: Sequence[LayerResult | None], other: Sequence[LayerResult | None]
) -> list[LayerResult | None]:
    """Take the better of two placements: layer by layer, or as a whole where the aggregate counts."""
    if problem.minimise == "aggregate":
        one, two = _objective(problem, first), _objective(problem, other)
        if one is not None or two is not None:
            return list(first if two is None or (one is not None and one <= two) else other)
    pairs = zip(first, other, strict=True)
    return [b if a is None or (b is not None and b.z < a.z) else a for a, b in pairs]
