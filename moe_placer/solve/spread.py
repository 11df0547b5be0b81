"""Moves replicas apart where a single failure would take all of an expert, and improves the placement again."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from moe_placer.errors import NothingFoundError
from moe_placer.limits import Deadline
from moe_placer.problem.compile import Problem
from moe_placer.result import LayerResult
from moe_placer.search.local_search import descend
from moe_placer.search.moves import Moves, repair

__all__ = ["spread_out"]


def spread_out(problem: Problem, index: int, result: LayerResult) -> LayerResult:
    """Return the result of a layer without experts all of whose replicas are in one failure domain.

    Its bound stays: the rule only takes placements away.

    Raises
    ------
    NothingFoundError
        No such placement is found.
    """
    if problem.domain is None or result.node is None:
        return result
    layer = problem.layer(index, result.replicas)
    if not layer.gathered(result.node).any():
        return result
    node = repair(layer, result.node, np.random.default_rng(0))
    if node is None:
        where = f"in layer {problem.moe_layers[index]}"
        raise NothingFoundError(f"no placement that placement.survives allows was found {where}: give it more room")
    if not problem.coverage:
        moves = Moves(layer, node)
        descend(moves, result.z, Deadline())
        node = moves.node
    z = layer.z(node)
    stop = result.stop if z <= result.z else result.stop.without_gap
    gpu = node if result.gpu is not None and problem.home is not None else None
    moved = int((node != result.node).sum())
    return replace(result, node=node, z=z, stop=stop, solver_bound=None, gpu=gpu, repaired=result.repaired + moved)
