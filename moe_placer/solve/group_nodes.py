"""Brings replicas to the nodes of the DP group that uses them, where no layer's z rises: a step after the search.

With ``group`` routing group r uses replica r only. Where all of a group's replicas are on its own nodes, the groups
never wait for each other, and a step takes as long as the slower group, not as the slower one in every layer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from moe_placer.problem.compile import Problem
from moe_placer.problem.layer import LayerProblem
from moe_placer.result import LayerResult
from moe_placer.search.moves import Moves
from moe_placer.solve.layer_tasks import on_each_layer

__all__ = ["bring_to_groups", "outside_groups"]

Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

_BLOCK = 64  # items that are looked at together
_SAME = 1e-12  # relative: a z so little higher is the same, rounded


def outside_groups(problem: Problem, layer: LayerProblem, node: Ints) -> Bools:
    """Mask of the items [I] that are not on a node of the DP group that uses them; none without groups."""
    if not problem.groups:
        return np.zeros(len(node), dtype=bool)
    return np.asarray(problem.group_of_node[node] != layer.replica)


def bring_to_groups(problem: Problem, results: Sequence[LayerResult]) -> list[LayerResult]:
    """Return layers in which fewer replicas are outside their groups' nodes; no z rises.

    Nothing changes where costs are no sums over items (dispatch once per place), or where more than each layer's z
    counts.
    """
    sums = not problem.coverage and problem.judge is None and problem.minimise == "layers"
    if problem.groups < 2 or not sums:
        return list(results)
    return on_each_layer(_layer_to_groups, None, problem, results)


def _layer_to_groups(given: None, problem: Problem, index: int, result: LayerResult) -> LayerResult:
    """Trade items, and move them to free slots, as long as that brings one home."""
    del given
    layer = problem.layer(index, result.replicas)
    if result.node is None or not outside_groups(problem, layer, result.node).any():
        return result
    # Slots of nodes are known here, those of GPUs that were chosen already, or what memory leaves, are not.
    frees = result.gpu is None and not problem.capacity.binds
    moves, most = Moves(layer, result.node), result.z * (1 + _SAME)
    gpu = None if result.gpu is None else result.gpu.copy()
    while (trade := _best_trade(problem, moves, most, frees)) is not None:
        item, partner, to = trade
        moves.apply(item, partner, to)
        if gpu is not None:
            gpu[[item, partner]] = gpu[[partner, item]]
    return replace(result, node=moves.node, z=min(result.z, moves.z), gpu=gpu)


def _best_trade(problem: Problem, moves: Moves, most: float, frees: bool) -> tuple[int, int, int] | None:
    """Return the trade that brings most items home and leaves every link within ``most``; None where there is none.

    Of several the first is taken, so most pairs need not be looked at.
    """
    layer, node, group = moves.layer, moves.node, problem.group_of_node
    outside = outside_groups(problem, layer, node)
    items = np.flatnonzero(outside)
    if not len(items):
        return None
    partners, nodes = moves.partners()
    # A partner that is home would leave it, and brings no gain; free slots (-1) are nobody's home.
    real = partners >= 0
    takes = np.where(real, outside[partners], frees)
    partners, nodes, real = partners[takes], nodes[takes], real[takes]
    theirs = np.where(real, layer.replica[partners], -1)
    for gain in (2, 1):
        for first in range(0, len(items), _BLOCK):
            some = items[first : first + _BLOCK]
            home = group[nodes][None, :] == layer.replica[some][:, None]
            back = theirs[None, :] == group[node[some]][:, None]
            pairs = (home & back) if gain == 2 else (home ^ back)
            rows, columns = pairs.any(axis=1), pairs.any(axis=0)
            if not rows.any():
                continue
            change = moves.changes(some[rows], partners[columns], nodes[columns], most)
            allowed = pairs[np.ix_(rows, columns)] & (change <= 0)
            if allowed.any():
                i, j = divmod(int(allowed.argmax()), int(columns.sum()))
                return int(some[rows][i]), int(partners[columns][j]), int(nodes[columns][j])
    return None
