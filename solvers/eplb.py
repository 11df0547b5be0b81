"""The public expert-load-balancing heuristic (EPLB): replicas by load, then balanced packing. It never looks at links.

Described in deepseek-ai/EPLB (README, 2025): *hierarchical* packs groups of experts to nodes by load, makes replicas
within each node, and packs replicas to GPUs; *global* makes replicas and packs them to GPUs anywhere. Every GPU gets
equally many. Here every expert is its own group. Where the instance fixes the number of replicas (``replicas: dp``),
only the packing is left to decide; with ``group`` routing, engines run EPLB inside each EP group, so a DP group's
experts are packed to its own nodes. The original lets two replicas of one expert meet on a GPU; here these are moved
apart, and counted as repaired.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from moe_placer.problem.compile import Problem
from moe_placer.problem.layer import LayerProblem
from moe_placer.problem.replica_counts import replicas_by_load
from moe_placer.result import LayerResult
from moe_placer.solve.heuristic import (
    EngineRule,
    even_slots,
    gpu_result,
    heuristic_result,
    lightest_first,
    pack_in_groups,
)

__all__ = ["Eplb", "EplbGlobal", "balanced_packing", "ranks_within_nodes"]

Ints = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]


class EplbGlobal(EngineRule):
    """Replicas by load, packed to the least loaded GPUs anywhere in the EP group."""

    name = "eplb-global"
    summary = "EPLB, global: balances GPU load over the whole EP group"
    source = "https://github.com/deepseek-ai/EPLB"

    def place_in_groups(self, problem: Problem, index: int, rng: np.random.Generator) -> LayerResult:
        """Place one layer."""
        return _global(problem, index, rng)


class Eplb(EplbGlobal):
    """Experts packed to nodes by load, replicas within nodes, then to GPUs; global where nodes do not divide evenly."""

    name = "eplb"
    summary = "EPLB, hierarchical: balances node load, then GPU load"

    def place_in_groups(self, problem: Problem, index: int, rng: np.random.Generator) -> LayerResult:
        """Place one layer."""
        if not problem.replicas_are_free:
            layer = problem.layer(index)
            return _packed(problem, index, layer, pack_in_groups(problem, layer, layer.slots, _packing(layer)), rng)
        return _within_nodes(problem, index, rng) or _global(problem, index, rng)


def _global(problem: Problem, index: int, rng: np.random.Generator) -> LayerResult:
    layer = problem.layer(index)
    if problem.shards > 1:
        return heuristic_result(layer, pack_in_groups(problem, layer, layer.slots, _packing(layer)), rng)
    load = problem.demand[index].sum(axis=0)[layer.expert]
    # First replicas by expert, then the others as they were made: each for the highest load per replica there was.
    made = np.lexsort((layer.expert, np.where(layer.replica > 0, -load / np.maximum(layer.replica, 1), -np.inf)))
    order = made if problem.replicas_are_free else np.arange(layer.items)
    gpu = pack_in_groups(problem, layer, problem.capacity.slots[index], _packing(layer, order))
    return gpu_result(problem, layer, gpu, rng)


def _packing(layer: LayerProblem, order: Ints | None = None) -> Callable[[Ints, Ints], Ints]:
    """Return `balanced_packing` of a layer's items into equally many slots of each place; of equals, by ``order``."""
    rank = np.arange(layer.items) if order is None else np.argsort(order)

    def pack(items: Ints, slots: Ints) -> Ints:
        ordered, place = np.argsort(rank[items]), np.empty(len(items), dtype=np.int64)
        place[ordered] = balanced_packing(layer.load[items[ordered]], even_slots(slots, len(items)))
        return place

    return pack


def _packed(
    problem: Problem,
    index: int,
    layer: LayerProblem,
    node: Ints,
    rng: np.random.Generator,
    replicas: Ints | None = None,
) -> LayerResult:
    """Take the last step, within nodes; an expert that is sharded over GPUs is left to the packing of memory."""
    if problem.shards > 1:
        return heuristic_result(layer, node, rng, replicas=replicas)
    return gpu_result(problem, layer, ranks_within_nodes(problem, index, layer, node), rng, replicas)


def ranks_within_nodes(problem: Problem, index: int, layer: LayerProblem, node: Ints) -> Ints:
    """Balance each node's items over its GPUs; where experts are sharded over GPUs, an item is a rank of its own.

    Parameters
    ----------
    problem : Problem
        The compiled instance.
    index : int
        The MoE layer, counted among MoE layers.
    layer : LayerProblem
        One MoE layer.
    node : int array [items]
        Node of each item.
    """
    if problem.shards > 1:
        return np.arange(layer.items)
    rank = np.zeros(layer.items, dtype=np.int64)
    for n in np.unique(node).tolist():
        first, here = n * problem.gpus_per_node, np.flatnonzero(node == n)
        slots = problem.capacity.slots[index][first : first + problem.gpus_per_node]
        rank[here] = first + balanced_packing(layer.load[here], even_slots(slots, len(here)))
    return rank


def _within_nodes(problem: Problem, index: int, rng: np.random.Generator) -> LayerResult | None:
    """Keep replicas on their expert's node; None where experts or slots do not divide evenly over nodes."""
    experts, nodes = problem.replicas.shape[1], problem.nodes
    total = int(problem.replicas[index].sum())
    slots, together = problem.capacity.node_slots[index], problem.capacity.together[index]
    if experts % nodes or total % nodes or (slots < total // nodes).any():
        return None
    load = problem.demand[index].sum(axis=0)
    home = balanced_packing(load, np.full(nodes, experts // nodes))
    replicas = np.ones(experts, dtype=np.int64)
    for n in range(nodes):
        mine = np.flatnonzero(home == n)
        if together[n] * len(mine) < total // nodes or problem.least_replicas * len(mine) > total // nodes:
            return None
        replicas[mine] = replicas_by_load(load[mine], total // nodes, int(together[n]), least=problem.least_replicas)
    layer = problem.layer(index, replicas)
    return _packed(problem, index, layer, home[layer.expert], rng, replicas)


def balanced_packing(load: Floats, slots: Ints) -> Ints:
    """Put the heaviest item first, each into the lightest pack with a slot left; return the pack of each item.

    Where no pack takes more than one item there is nothing to balance, and items go to packs in order.
    """
    if slots.max() <= 1:
        return np.flatnonzero(slots > 0)[: len(load)]
    return lightest_first(load, slots)
