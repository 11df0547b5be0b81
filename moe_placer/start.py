"""A given placement as the start of a search, where it is better than what the heuristics find."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moe_placer.bounds import Bound
from moe_placer.errors import InputError, Mistake
from moe_placer.placement import Placement
from moe_placer.problem import Problem
from moe_placer.result import LayerResult, Status, Stop

__all__ = ["better_start"]

Ints = npt.NDArray[np.int64]


def better_start(
    problem: Problem, first: list[LayerResult | None], start: Placement
) -> tuple[Problem, list[LayerResult | None]]:
    """Take the better of ``first`` and ``start``, layer by layer; the problem then has the copies of these.

    Layers that share a budget of copies all take the same side, unless ``start`` has the copies of ``first``.

    Raises
    ------
    InputError
        ``start`` is of another shape, or breaks a constraint.
    """
    copies = _copies_of(problem, start)
    given = replace(problem, copies=copies)
    found = [_result(given, index, start) for index in range(len(problem))]
    better = np.array([mine is None or theirs.z < mine.z for mine, theirs in zip(first, found, strict=True)])
    if problem.redundant_in_all is not None and not np.array_equal(copies, problem.copies):
        mine = [np.inf if result is None else result.z for result in first]
        better[:] = sum(result.z for result in found) < sum(mine)
    best = [theirs if take else mine for take, mine, theirs in zip(better, first, found, strict=True)]
    return replace(problem, copies=np.where(better[:, None], copies, problem.copies)), best


def _copies_of(problem: Problem, start: Placement) -> Ints:
    """Return the copies [MoE layers, experts] of a start; they must be the problem's, or a choice that it allows."""
    if len(start.gpu) != len(problem):
        raise _wrong(f"a start placement of {len(start.gpu)} MoE layers", f"{len(problem)}, as {problem.name} has")
    rows = []
    for index, (experts, own) in enumerate(zip(start.gpu, problem.copies, strict=True)):
        row = np.array([len(gpus) for gpus in experts])
        known = row.shape == own.shape and (row > 0).all()
        same = known and np.array_equal(row, own)
        fits = known and (row.sum() == own.sum() or problem.redundant_in_all is not None)
        if not same and not (problem.copies_are_free and fits):
            layer = problem.moe_layers[index]
            raise _wrong(f"a start placement with other copies of experts in layer {layer}", f"those of {problem.name}")
        rows.append(row)
    copies = np.stack(rows)
    if problem.redundant_in_all is not None and (copies - 1).sum() > problem.redundant_in_all:
        found = f"a start placement with {(copies - 1).sum():,} redundant replicas over all layers"
        raise _wrong(found, f"at most the {problem.redundant_in_all:,} of {problem.name}")
    return copies


def _result(problem: Problem, index: int, start: Placement) -> LayerResult:
    """Return one layer of a start at node level."""
    layer = problem.layer(index)
    pairs = zip(layer.expert.tolist(), layer.replica.tolist(), strict=True)
    node = np.array([start.shards(index, e)[r][0] for e, r in pairs]) // problem.gpus_per_node
    if node.max() >= problem.nodes or not layer.valid(node):
        found = f"a start placement that breaks slots, pins or distances in layer {problem.moe_layers[index]}"
        raise _wrong(found, "one that is valid")
    return LayerResult(node, layer.z(node), Bound(0.0, "solver"), Status.FEASIBLE, Stop.TIME)


def _wrong(found: str, expected: str) -> InputError:
    return InputError(Mistake(found, expected, "start"))
