"""Assigns every replica a GPU of its node: the packing step after the solver has chosen nodes."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from moe_placer.errors import NothingFoundError
from moe_placer.problem.compile import Problem
from moe_placer.result import LayerResult
from moe_placer.solve.nearest_gpus import nearest_gpus
from moe_placer.solve.numbered import gpus_in_order, in_gpu_order
from moe_placer.solve.spread import spread_out

__all__ = ["fit_to_gpus", "pack", "pack_layer"]

Ints = npt.NDArray[np.int64]
Gpus = tuple[int, ...]  # of one replica: one GPU, or one per shard


def pack(problem: Problem, results: Sequence[LayerResult]) -> list[list[Gpus]]:
    """Give every item GPUs of its node.

    Layers are packed in order, each on the GPUs that hold the least so far, so memory stays even. Where GPUs take
    several items of a layer, the hottest come first, each to the GPU with the least load in this layer; else items keep
    their order. Where the method decided GPUs itself, these stay.

    Returns
    -------
    list
        Per MoE layer, per item, its GPUs.

    Raises
    ------
    NothingFoundError
        The GPUs of a node cannot take what it was given.
    """
    held = np.zeros(len(problem.capacity.memory_slots), dtype=np.int64)
    packed = []
    for index, result in enumerate(results):
        if result.gpu is not None:
            layer: list[Gpus] = [(int(gpu),) for gpu in result.gpu]
        else:
            layer = pack_layer(problem, index, result, held)
        if problem.shares is not None:
            layer = gpus_in_order(problem, index, result, layer)
        held += np.bincount([gpu for gpus in layer for gpu in gpus], minlength=len(held))
        packed.append(layer)
    return packed


def fit_to_gpus(problem: Problem, results: Sequence[LayerResult]) -> list[LayerResult]:
    """Return results whose replicas go on the GPUs of their nodes: where pins or memory forbid that, few are moved.

    Replicas of an expert that a single failure would end are moved, too: not all methods know of that rule.

    A node's slots and the distance between replicas suffice for that, unless GPUs differ in slots or replicas are
    pinned.

    Raises
    ------
    NothingFoundError
        The replicas of a layer's experts have no GPUs, wherever they go.
    """
    results = [spread_out(problem, index, result) for index, result in enumerate(results)]
    if not problem.pinned and not problem.capacity.binds:
        return [in_gpu_order(problem, index, result) for index, result in enumerate(results)]
    fitted = []
    for index, result in enumerate(results):
        if result.gpu is None and result.node is not None and not _packs(problem, index, result):
            gpus = nearest_gpus(problem, index, result.node, result.replicas)
            node = np.array([own[0] for own in gpus], dtype=np.int64) // problem.gpus_per_node
            z = problem.layer(index, result.replicas).z(node)
            stop = result.stop if z <= result.z else result.stop.without_gap
            result = replace(result, node=node, z=z, stop=stop, solver_bound=None)
        fitted.append(in_gpu_order(problem, index, result))
    return fitted


def _packs(problem: Problem, index: int, result: LayerResult) -> bool:
    try:
        pack_layer(problem, index, result, np.zeros(len(problem.capacity.memory_slots), dtype=np.int64))
    except NothingFoundError:
        return False
    return True


def pack_layer(problem: Problem, index: int, result: LayerResult, held: Ints) -> list[Gpus]:
    """Give the items of one layer GPUs of their nodes; ``held`` [GPUs] are experts of other layers there.

    Parameters
    ----------
    problem : Problem
        The compiled instance.
    index : int
        The MoE layer, counted among MoE layers.
    result : LayerResult
        The layer, with the node of each item.
    held : int array
        Experts of other layers on each GPU [GPUs].

    Raises
    ------
    NothingFoundError
        The GPUs of a node cannot take what it was given.
    """
    assert result.node is not None
    expert, replica = problem.items(index, result.replicas)
    slots = problem.capacity.slots[index]
    load = problem.item_demand(index, expert, replica).sum(axis=0)
    memory_left = problem.capacity.memory_slots - held
    if problem.shards == 1 and not problem.pinned and slots.max(initial=0) <= 1:
        gpu = _one_each(problem, result.node, expert, held, (slots > 0) & (memory_left > 0))
        if gpu is not None:
            return [(g,) for g in gpu.tolist()]
    packed: list[Gpus] = [()] * len(result.node)
    for n in np.unique(result.node):
        first = int(n) * problem.gpus_per_node
        gpus = [g for g in range(first, first + problem.gpus_per_node) if slots[g] and memory_left[g] > 0]
        free = {g: int(min(slots[g], memory_left[g])) for g in gpus}
        here = np.flatnonzero(result.node == n).tolist()
        pins = {i: problem.pinned.get((index, int(expert[i]), int(replica[i]))) for i in here}
        for i, taken in _choose(problem, here, expert, load, pins, free, held).items():
            packed[i] = taken
    return packed


def _one_each(problem: Problem, node: Ints, expert: Ints, held: Ints, able: npt.NDArray[np.bool_]) -> Ints | None:
    """Give items of all nodes a GPU each [I], as `_choose` does where GPUs take one item; None if they are too few."""
    gpus = np.flatnonzero(able)
    gpus = gpus[np.lexsort((gpus, held[gpus], gpus // problem.gpus_per_node))]
    needed, there = (np.bincount(of, minlength=problem.nodes) for of in (node, gpus // problem.gpus_per_node))
    if (needed > there).any():
        return None
    together = np.zeros((int(expert.max()) + 1, problem.nodes), dtype=np.int64)
    np.add.at(together, (expert, node), 1)
    order = np.lexsort((-together[expert, node], node))
    nth = np.arange(len(node)) - np.repeat(np.cumsum(needed) - needed, needed)
    gpu = np.empty(len(node), dtype=np.int64)
    gpu[order] = gpus[np.repeat(np.cumsum(there) - there, needed) + nth]
    return gpu


def _choose(
    problem: Problem,
    items: list[int],
    expert: Ints,
    load: npt.NDArray[np.float64],
    pins: dict[int, int | None],
    free: dict[int, int],
    held: Ints,
) -> dict[int, Gpus]:
    """Give items of one node GPUs, by load and memory use; by maximum flow where taking them in order gets stuck."""
    chosen: dict[int, Gpus] = {}
    left = dict(free)
    on: dict[int, set[int]] = {g: set() for g in free}
    weigh = max(free.values(), default=0) > 1  # a GPU that takes one item has that item's load, whichever it is
    carries = dict.fromkeys(free, 0.0)
    # An expert with several replicas here needs as many GPUs: those first, or the last replica may find none.
    replicas = Counter(int(expert[i]) for i in items)
    for i in sorted(items, key=lambda i: (pins[i] is None, -replicas[int(expert[i])], -load[i] if weigh else 0.0)):
        e, pin = int(expert[i]), pins[i]
        able = [g for g in ([pin] if pin is not None else left) if left.get(g, 0) > 0 and e not in on[g]]
        able.sort(key=lambda g: (carries[g], held[g] + free[g] - left[g], g))
        taken = tuple(able[: problem.shards])
        if len(taken) < problem.shards:
            return _by_flow(problem, items, expert, pins, free)
        for g in taken:
            left[g] -= 1
            carries[g] += float(load[i]) if weigh else 0.0
            on[g].add(e)
        chosen[i] = taken
    return chosen


def _by_flow(
    problem: Problem, items: list[int], expert: Ints, pins: dict[int, int | None], free: dict[int, int]
) -> dict[int, Gpus]:
    """Match experts with GPUs exactly: expert e needs replicas * shards different GPUs, GPU g takes free[g]."""
    import networkx as nx  # rarely needed, and loading it takes a tenth of a second

    graph: nx.DiGraph[Any] = nx.DiGraph()
    need: Counter[int] = Counter()
    pinned = {(int(expert[i]), g) for i, g in pins.items() if g is not None}
    left = Counter(free)
    left.subtract(g for _, g in pinned)
    for i in items:
        if pins[i] is None:
            need[int(expert[i])] += problem.shards
    for e, count in need.items():
        graph.add_edge("source", ("expert", e), capacity=count)
        for g in free:
            if (e, g) not in pinned:
                graph.add_edge(("expert", e), ("gpu", g), capacity=1)
    for g, count in left.items():
        graph.add_edge(("gpu", g), "sink", capacity=max(0, count))
    value, flow = nx.maximum_flow(graph, "source", "sink") if need else (0, {})
    if value < sum(need.values()) or min(left.values(), default=0) < 0:
        node = min(free, default=0) // problem.gpus_per_node
        raise NothingFoundError(f"the GPUs of node {node} cannot take the {len(items)} expert replicas it was given")
    supply = {e: [g for g in free if flow[("expert", e)].get(("gpu", g))] for e in need}
    chosen: dict[int, Gpus] = {}
    for i in items:
        pin, mine = pins[i], supply.get(int(expert[i]), [])
        chosen[i] = (pin,) if pin is not None else tuple(mine.pop(0) for _ in range(problem.shards))
    return chosen
