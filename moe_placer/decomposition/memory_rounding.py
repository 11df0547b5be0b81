"""Rounds fractions of a division of memory to slots that the nodes' GPUs have memory for."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import sparse

from moe_placer.problem.compile import Problem

__all__ = ["fit_memory"]

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

_FAR = 3.0  # cost of each slot that is not the fraction rounded up or down; rounding costs at most 1


@dataclass(frozen=True, eq=False)
class _Shelves:
    """GPUs of a node with the same memory: to these, counting is enough.

    A node's GPUs can take ``count[l]`` items in layer l, for all l, if items over groups of equal GPUs fit: within a
    group, giving every layer the GPUs with the most memory left succeeds whenever anything does (Gale-Ryser).
    """

    node: Ints
    in_a_layer: Ints
    over_all: Ints

    @classmethod
    def of_problem(cls, problem: Problem) -> _Shelves:
        usable = problem.capacity.usable.reshape(problem.nodes, problem.gpus_per_node)
        rows = [
            (n, problem.capacity.per_gpu * int(count), int(value) * int(count))
            for n in range(problem.nodes)
            for value, count in zip(*np.unique(usable[n], return_counts=True), strict=True)
            if value > 0
        ]
        return cls(*np.array(rows, dtype=np.int64).reshape(-1, 3).T)


def fit_memory(problem: Problem, counts: Floats | Ints) -> Problem | None:
    """Return the problem with whole-numbered slots near fractional ``counts`` [layers, N]; None if none fit.

    Every layer gets as many as it has items, and pinned items theirs. The least sum of deviations is a flow from layers
    over nodes to groups of equal GPUs, so the linear program's vertices are whole-numbered; spare memory goes to layers
    in turn.
    """
    shelves = _Shelves.of_problem(problem)
    layers = [problem.layer(index) for index in range(len(problem))]
    pinned = np.stack([np.bincount(layer.pinned[layer.pinned >= 0], minlength=layer.nodes) for layer in layers])
    floor = np.floor(counts + 1e-6)
    raised = np.maximum(floor, pinned)
    items = np.array([layer.items for layer in layers])
    counts = np.asarray(counts, dtype=np.float64)
    taken = _flow(raised, np.maximum(0.0, counts - raised), raised - pinned, items, shelves)
    if taken is None:
        return None
    slots = np.zeros(counts.shape, dtype=np.int64)
    np.add.at(slots.T, shelves.node, _with_spare(taken, counts, shelves).T)
    gpus = _open_gpus(problem, slots)
    if (gpus.reshape(len(slots), problem.nodes, -1).sum(axis=2) != slots).any():  # pins may be in the way
        return None
    given = problem.with_slots(gpus)
    return given if given.has_places else None


def _flow(floor: Floats, fraction: Floats, lower: Floats, items: Ints, shelves: _Shelves) -> Ints | None:
    """Return slots [layers, shelves] with the least deviation; ``lower`` is how far below ``floor`` they may be."""
    from scipy.optimize import linprog  # here, for it is slow to import

    layers, nodes = floor.shape
    groups, cells = len(shelves.node), layers * nodes
    cell, row = np.arange(cells), np.repeat(np.arange(layers), nodes)
    at = np.repeat(np.arange(layers), groups) * nodes + np.tile(shelves.node, layers)
    ones, nothing = np.ones(cells), sparse.csr_array((layers, layers * groups))
    by_cell = sparse.csr_array((np.ones(len(at)), (at, np.arange(len(at)))), shape=(cells, len(at)))
    same = sparse.csr_array((ones, (cell, cell)), shape=(cells, cells))
    by_layer = sparse.csr_array((ones, (row, cell)), shape=(layers, cells))
    groups_of = np.tile(np.arange(groups), layers)
    by_group = sparse.csr_array(
        (np.ones(len(at)), (groups_of, np.arange(len(at)))), shape=(groups, len(at) + 3 * cells)
    )
    solved: Any = linprog(
        # Slots, then what they are above the floor by rounding up, by more than that, and below it.
        np.concatenate([np.zeros(len(at)), 1 - 2 * fraction.ravel(), _FAR * ones, _FAR * ones]),
        A_ub=by_group,
        b_ub=shelves.over_all,
        A_eq=sparse.block_array([[by_cell, -same, -same, same], [nothing, by_layer, by_layer, -by_layer]]),
        b_eq=np.concatenate([floor.ravel(), items - floor.sum(axis=1)]),
        bounds=np.concatenate(
            [
                np.stack([np.zeros(len(at)), np.tile(shelves.in_a_layer, layers)], axis=1),
                np.stack([np.zeros(cells), ones], axis=1),
                np.stack([np.zeros(cells), np.full(cells, np.inf)], axis=1),
                np.stack([np.zeros(cells), lower.ravel()], axis=1),
            ]
        ),
        method="highs-ds",
    )
    return None if solved.status != 0 else np.rint(solved.x[: len(at)]).astype(np.int64).reshape(layers, groups)


def _with_spare(taken: Ints, counts: Floats, shelves: _Shelves) -> Ints:
    """Give what memory is left to the layers that it was taken from, then to all in turn."""
    taken = taken.copy()
    for group, node in enumerate(shelves.node.tolist()):
        left = int(shelves.over_all[group] - taken[:, group].sum())
        order = np.argsort(taken[:, group] - counts[:, node], kind="stable")
        while left > 0:
            open_ = order[taken[order, group] < shelves.in_a_layer[group]][:left]
            if not len(open_):
                break
            taken[open_, group] += 1
            left -= len(open_)
    return taken


def _open_gpus(problem: Problem, slots: Ints) -> Ints:
    """Say how many replicas each GPU takes in each layer [layers, GPUs], so that nodes have ``slots`` [layers, N].

    Opening the GPUs with the most memory left succeeds for all layers whenever anything does (the Gale-Ryser
    construction); GPUs with pinned replicas are open in their layers.
    """
    capacity, per_node = problem.capacity, problem.gpus_per_node
    pinned = np.zeros((len(slots), len(capacity.usable)), dtype=np.int64)
    for (layer, _, _), gpu in problem.pinned.items():
        pinned[layer, gpu] += 1
    left = capacity.usable - pinned.sum(axis=0)
    opened = pinned.copy()
    for layer, node in np.ndindex(*slots.shape):
        own = slice(node * per_node, (node + 1) * per_node)
        for _ in range(int(slots[layer, node] - opened[layer, own].sum())):
            able = np.where(opened[layer, own] < capacity.per_gpu, left[own], 0)
            if not able.any():
                break
            gpu = own.start + int(np.lexsort((opened[layer, own], -able))[0])
            opened[layer, gpu] += 1
            left[gpu] -= 1
    return opened
